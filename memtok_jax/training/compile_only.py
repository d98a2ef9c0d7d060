"""Compile the training step for a machine that is not here, and say what it would need.

The TPU compiler runs on any machine where libtpu is installed; nothing is executed. Fake CPU devices stand in for it
where only the sharding is to be checked.
"""

from __future__ import annotations

import importlib.util
import os
import re
import time

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from memtok_jax import params as pr
from memtok_jax import sharding
from memtok_jax.config import UserError
from memtok_jax.models.protocol import bind
from memtok_jax.training import hlo, roofline
from memtok_jax.training.chips import CHIPS
from memtok_jax.training.experiment import Experiment
from memtok_jax.training.run import check
from memtok_jax.training.step import Update, abstract_batch, abstract_state, compile_step, update_of

MOST_CPU_DEVICES = 4096
# What libtpu asks for on a machine without a TPU; the type need not match the topology that is compiled for. The last one lets
# several commands compile at once: without it the second finds the lock of the first, though neither holds a chip.
TPU_ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0",
                   "TPU_ACCELERATOR_TYPE": "v5litepod-8", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}


def compile_for(experiment: Experiment, target: str) -> list[str]:
    """Compile one update for `target`, such as "v5e:16x16" or "cpu:8"; returns the lines of the report.

    The mesh is that of the config (`training.data`, `fsdp`, `tensor`) over the devices of the target.
    Raises UserError for an unknown target, and where libtpu is not installed.
    """
    t = experiment.training
    mesh = _target_mesh(target, t.data, t.fsdp, t.tensor)
    update = update_of(experiment, bind(experiment.model))
    check(experiment, update, mesh)
    begun = time.monotonic()
    # An abstract mesh has no devices here to run on: it tells `constrain` the axes, the shardings name the devices.
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        arguments = (abstract_state(update, mesh), abstract_batch(update, experiment.data, mesh))
        compiled = compile_step(update, mesh).lower(*arguments).compile()
    return _report(update, experiment.data.sequence, target, mesh, compiled, time.monotonic() - begun)


def _target_mesh(target: str, data: int, fsdp: int, tensor: int) -> Mesh:
    platform, _, size = target.partition(":")
    if not size:
        raise UserError(f"--compile_only={target} must be KIND:SIZE, as in v5e:16x16 or cpu:8")
    if platform == "cpu":
        if not (size.isdecimal() and 1 <= int(size) <= MOST_CPU_DEVICES):
            raise UserError(f"--compile_only={target}: the number of CPU devices must be a whole number from 1 to "
                            f"{MOST_CPU_DEVICES}, got {size!r}")
        return sharding.make_mesh(data, fsdp, tensor, _cpu_devices(int(size)))
    if not re.fullmatch(r"v\d+\w*", platform):
        raise UserError(f"--compile_only={target}: {platform!r} is no machine to compile for; give v5e:16x16 (a TPU) or cpu:8")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(f"--compile_only={target} needs the TPU compiler, which is not installed: pip install libtpu")
    for name, value in TPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from jax.experimental import mesh_utils, topologies

    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=target)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--compile_only={target} is not a topology that the TPU compiler knows ({reason})") from None
    devices = list(description.devices)
    sizes = sharding.mesh_sizes(data, fsdp, tensor, len(devices))
    placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(np.asarray(placed), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * len(sharding.MESH_AXES))


def _cpu_devices(count: int) -> list[jax.Device]:
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        pass  # devices exist already; there may be enough of them
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise UserError(f"--compile_only=cpu:{count}: this process has {len(devices)} CPU devices already")
    return devices[:count]


def _report(update: Update, sequence: int, target: str, mesh: Mesh, compiled, seconds: float) -> list[str]:
    memory = compiled.memory_analysis()
    arguments, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    output = memory.output_size_in_bytes - memory.alias_size_in_bytes
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
    text = compiled.as_text()
    cost = roofline.cost_of(hlo.parse(text))
    return [
        f"compiled for {target} in {seconds:.0f} s: {mesh.size} devices, mesh {sizes}",
        f"model: {pr.count(update.model.specs()):,} parameters; batch {update.batch} x {sequence} tokens, "
        f"{update.microbatches} microbatches, calls of {update.call_tokens} tokens",
        f"memory per device: {_size(arguments + temporary + output)} = {_size(arguments)} arguments + {_size(temporary)} temporary "
        f"+ {_size(output)} output beyond the {_size(memory.alias_size_in_bytes)} that are donated",
        *_costs(cost, target.partition(":")[0], update.batch * sequence),
        *_kernels(hlo.kernel_memory(text)),
    ]


def _costs(cost: roofline.Cost, kind: str, tokens: int) -> list[str]:
    """What an update costs a chip, and the roofline of the chip if it is known. tokens: of one update."""
    counted = ", ".join(f"{n:,} {name}" for name, n in sorted(cost.collectives.items())) or "none"
    unknown = f"; {cost.unknown} loop(s) of unknown length count once" if cost.unknown else ""
    lines = [f"per chip and update: {_amount(cost.products)} operations of matrix products ({_amount(cost.passes)} with the passes "
             f"of float32), {_amount(cost.others)} others, {_size(cost.bytes)} of memory traffic: {cost.intensity:.1f} operations "
             f"a byte{unknown}",
             f"collectives of an update: {counted}; {_size(cost.sent)} a chip"]
    if kind in CHIPS:
        chip, (by_products, by_memory) = CHIPS[kind], roofline.seconds(cost, CHIPS[kind])
        side, longest = ("memory", by_memory) if by_memory > by_products else ("products", by_products)
        lines.append(f"roofline of {kind} ({_amount(chip.operations)} operations and {_size(chip.bandwidth)} a second): products "
                     f"{1e3 * by_products:.2f} ms, memory {1e3 * by_memory:.2f} ms; bound by {side}, at most "
                     f"{tokens / max(longest, 1e-12):,.0f} tokens a second on all chips")
    return lines


def _kernels(sizes: list[int]) -> list[str]:
    """What kernels take of a chip's fast memory; nothing where there are none. sizes: bytes of each."""
    return [f"{len(sizes)} kernels; the largest takes {_size(max(sizes))} of a chip's fast memory"] if sizes else []


def _amount(count: float) -> str:
    """A number of operations with T, G or M."""
    unit, scale = next(((unit, scale) for unit, scale in (("T", 1e12), ("G", 1e9)) if count >= scale), ("M", 1e6))
    return f"{count / scale:.3g} {unit}"


def _size(count: float) -> str:
    """Bytes in GB, or in MB below a tenth of one."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
