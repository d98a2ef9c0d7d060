"""Several processes, one program: find out whether there are any, and join them before a device is touched."""

from __future__ import annotations

import os
from collections.abc import Mapping

import jax

from memtok_jax.config import UserError
from memtok_jax.training.experiment import TrainingConfig


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
        jax.distributed.initialize()
        return
    parts = choice.split(",")
    if len(parts) != 3 or ":" not in parts[0] or not (parts[1].isdigit() and parts[2].isdigit()):
        raise UserError(f"--distributed={choice} must be auto, on, off or ADDRESS:PORT,COUNT,INDEX")
    if int(parts[2]) >= int(parts[1]):
        raise UserError(f"--distributed={choice}: index {parts[2]} must be below the count {parts[1]}")
    jax.distributed.initialize(parts[0], int(parts[1]), int(parts[2]))


def use_cores(training: TrainingConfig, evaluation_rows: int, environment: Mapping[str, str] = os.environ) -> None:
    """Offer the cores of a CPU as devices, before a device is touched: as many as the mesh asks for.

    The compiler runs the small products of a memory on one core; rows divided over devices keep all cores at work.
    Where the data axis is to take what the others leave (-1), that is every core, as long as the rows of training and of
    evaluation divide. Nothing happens where the number of devices has been chosen already, in several processes, or on
    an accelerator (where CPU devices are not used).
    """
    by_flag = "xla_force_host_platform_device_count" in environment.get("XLA_FLAGS", "")
    if by_flag or jax.config.jax_num_cpu_devices > 0 or jax.distributed.is_initialized():
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    others, rows = training.fsdp * training.tensor, (training.batch // training.microbatches, evaluation_rows)
    fits = [n for n in range(1, cores // others + 1) if all(count % n == 0 for count in rows)]
    data = training.data if training.data > 0 else max(fits, default=1)
    jax.config.update("jax_num_cpu_devices", data * others)
