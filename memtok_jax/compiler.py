"""How XLA is asked to compile this code, and where its programs are kept."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import jax

# Sums over rows of a few thousand numbers, of which the gradient of a memory has many, take several times as long in the
# library that XLA uses for them on a CPU as in its own loops (docs/log.md, 2026-11-21).
CPU_OPTIONS = {"xla_cpu_experimental_ynn_fusion_type": ""}

# A program that runs once is better compiled fast.
ONCE_CPU_OPTIONS = {"xla_backend_optimization_level": 0}

PROGRAMS, PROGRAMS_BYTES = ".programs", 2 ** 30


def keep_programs(folder: Path) -> None:
    """Keep compiled programs in `folder/.programs`, so that the next command that needs one does not compile it again.

    Those not used for longest leave if they take more than a gibibyte. Whoever has set JAX_COMPILATION_CACHE_DIR keeps that folder
    and its limits.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute() / PROGRAMS))
    jax.config.update("jax_compilation_cache_max_size", PROGRAMS_BYTES)


@functools.cache
def options(platform: str) -> dict[str, str]:
    """`compiler_options` for `jax.jit` on a platform ("cpu", "gpu", "tpu"): `CPU_OPTIONS` where it is a CPU whose compiler
    knows them, else none. They change rounding and speed, nothing else."""
    if platform != "cpu":
        return {}
    try:
        jax.jit(lambda x: x, compiler_options=CPU_OPTIONS).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return CPU_OPTIONS


def platform() -> str:
    """Of the devices that a program is being traced for ("cpu", "gpu", "tpu"): those of the mesh in force, else jax's default.

    Asked where the same values are computed in another order on a CPU. A wrong answer costs speed alone.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device is not None else jax.default_backend()


def once_options(platform: str) -> dict[str, int]:
    """`compiler_options` of a program that runs once, such as an initialisation: on a CPU its compilation takes half the time."""
    return ONCE_CPU_OPTIONS if platform == "cpu" else {}
