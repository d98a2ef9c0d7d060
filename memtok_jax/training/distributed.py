"""Several processes, one program: find out whether there are any, and join them before a device is touched."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Mapping

import jax

from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.training.experiment import TrainingConfig

MOST_DEVICES = 512  # of one CPU
PATIENCE = 300.0     # seconds to wait for other processes


def detected(environment: Mapping[str, str]) -> bool:
    """Whether a cluster started this process beside others: SLURM, Open MPI, or a TPU slice of several hosts."""
    if "," in environment.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    for name in ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"):
        if environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1:
            return True
    return False


def join(choice: str, environment: Mapping[str, str] = os.environ) -> None:
    """Join the other processes.

    choice: "auto" (join where a cluster is detected), "off", "on" (let JAX find the cluster), or
    "ADDRESS:PORT,COUNT,INDEX" to name the coordinator, the number of processes and the place of this one.
    Raises UserError for anything else.
    """
    if choice == "off" or (choice == "auto" and not detected(environment)):
        return
    if choice in ("on", "auto"):
        _initialize("the other processes of the cluster", choice)
        return
    parts = choice.split(",")
    if len(parts) != 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        raise UserError(f"--distributed={choice} must be auto, on, off or ADDRESS:PORT,COUNT,INDEX")
    address, count, index = parts[0], int(parts[1]), int(parts[2])
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise UserError(f"--distributed={choice}: {address!r} must be ADDRESS:PORT with a port from 1 to 65535")
    if index >= count:
        raise UserError(f"--distributed={choice}: index {index} must be below the count {count}")
    _initialize(f"process 0 at {address} (this is process {index} of {count})" if index else
                f"{count - 1} other process(es) to come to {address} (this is process 0 of {count})", choice, address, count, index)


def _initialize(what: str, choice: str, *arguments: str | int) -> None:
    """`jax.distributed.initialize`, with a word about what it waits for. It ends the process in one line after PATIENCE seconds.

    JAX itself says nothing while it waits, and aborts with a stack of C++ in the end: hence a thread that is quicker.
    """
    print(f"waiting for {what}, at most {PATIENCE:g} s", file=sys.stderr, flush=True)
    clock = threading.Timer(PATIENCE, _give_up, (f"--distributed={choice}: waited {PATIENCE:g} s in vain for {what}; start every "
                                                 "process with the same ADDRESS:PORT and COUNT, each with its own INDEX",))
    clock.daemon = True
    clock.start()
    try:
        jax.distributed.initialize(*arguments, initialization_timeout=int(PATIENCE) + 60)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={choice}: {' '.join(str(error).split())[:200]}") from error
    finally:
        clock.cancel()


def _give_up(text: str) -> None:
    print(f"error: {text}", file=sys.stderr, flush=True)
    os._exit(2)


def use_cores(training: TrainingConfig, evaluation_rows: int, environment: Mapping[str, str] = os.environ) -> None:
    """Offer the cores of a CPU as devices, before a device is touched: as many as the mesh asks for.

    The compiler runs the small products of a memory on one core; rows divided over devices keep all cores at work. A data axis
    of -1 takes as many cores as the rows divide over (`sharding.data_axis`). Nothing happens if the number of devices has been
    chosen already, in several processes, or for a mesh of more than MOST_DEVICES. On an accelerator CPU devices are not used.
    """
    by_flag = "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if by_flag or jax.config.jax_num_cpu_devices > 0 or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rows = (training.batch // training.microbatches, evaluation_rows)
    data = training.data if training.data > 0 else sharding.data_axis(cores, training.fsdp, training.tensor, rows)
    devices = data * training.fsdp * training.tensor
    if devices <= MOST_DEVICES:
        jax.config.update("jax_num_cpu_devices", devices)
