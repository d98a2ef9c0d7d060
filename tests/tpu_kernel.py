"""Compile the gradient of a neural memory's kernel view for a v5e chip that is not here.

The last line it prints is the bytes of the chip's fast memory that each kernel takes, as JSON.

    python tests/tpu_kernel.py '{"chunk": 64}'
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from memtok_jax import params as P
from memtok_jax.memory import neural
from memtok_jax.training import hlo

WIDTH, ROWS, CHUNKS = 256, 2, 4


def main(options: dict) -> None:
    cfg = neural.NeuralMemoryConfig(**dict(width=WIDTH, head_dim=64, activation="gelu_tanh", view="kernel") | options)
    chip = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]
    there = jax.sharding.SingleDeviceSharding(chip)
    place = lambda tree: jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=there), tree)
    state = place(jax.eval_shape(lambda: neural.init_state({}, cfg, ROWS)))
    x = place(jax.ShapeDtypeStruct((ROWS, CHUNKS * cfg.chunk, WIDTH), jnp.float32))
    loss = lambda params, state, x: jnp.square(neural.apply(params, state, x, cfg, whole=True)[0]).mean()
    text = jax.jit(jax.grad(loss)).lower(place(P.abstract(neural.specs(cfg))), state, x).compile().as_text()
    print(json.dumps(hlo.kernel_memory(text)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
