"""Our side of `benchmarks.vit`: one line of JSON for one case.

    python -m benchmarks.vit_our_cases --case='{"registers": 4, "width": 384, ...}'
"""

from __future__ import annotations

import json

import jax

from benchmarks import measure

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", measure.cores())  # each core a device

import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402
from jax.sharding import PartitionSpec  # noqa: E402

from memtok_jax import params as P  # noqa: E402
from memtok_jax import sharding  # noqa: E402
from memtok_jax.models.vision import vit  # noqa: E402
from memtok_jax.models.vision.config import VitConfig  # noqa: E402
from memtok_jax.numerics import dense  # noqa: E402

AXES = sharding.RULES["batch"]


def logits(params, images: jax.Array, cfg: VitConfig) -> jax.Array:
    """A linear head on class token and patch mean, as transformers has it."""
    out = vit.features(params["vit"], images, cfg)
    return dense(jnp.concatenate([out.cls[:, 0], out.patches.mean(1)], axis=-1), params["head"], cfg.dtype)


def loss(params, images: jax.Array, labels: jax.Array, cfg: VitConfig) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits(params, images, cfg), labels).mean()


def run(case: dict) -> dict:
    """Forward and training step."""
    cfg = VitConfig(case["width"], case["layers"], case["heads"], 4 * case["width"], case["patch"], (case["table"],) * 2,
                    registers=case["registers"])
    head = {"w": P.ParamSpec((2 * cfg.width, case["classes"]), (None, None), P.normal(0.02)),
            "b": P.ParamSpec((case["classes"],), (None,), P.zeros)}
    mesh = sharding.make_mesh(jax.device_count(), 1, 1)
    own_rows, whole = PartitionSpec(AXES), PartitionSpec()
    params = jax.device_put(P.init_params({"vit": vit.specs(cfg), "head": head}, jax.random.key(0)), sharding.replicated(mesh))
    shape = (case["batch"], case["pixels"], case["pixels"], cfg.channels)
    images = jax.device_put(jax.random.normal(jax.random.key(1), shape), sharding.rows(mesh))
    labels = jax.device_put(jnp.arange(case["batch"]) % case["classes"], sharding.rows(mesh))
    optimizer = optax.adamw(1e-3)
    moments = jax.device_put(optimizer.init(params), sharding.replicated(mesh))

    def gradient(params, images, labels):
        return jax.lax.pmean(jax.grad(loss)(params, images, labels, cfg), AXES)

    divided = lambda f, ins, out: jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=out, check_vma=False)
    forward = jax.jit(divided(lambda params, images: logits(params, images, cfg), (whole, own_rows), own_rows))
    gradients = divided(gradient, (whole, own_rows, own_rows), whole)

    def step(params, moments, images, labels):
        updates, moments = optimizer.update(gradients(params, images, labels), moments, params)
        return optax.apply_updates(params, updates), moments

    step = jax.jit(step, donate_argnums=(0, 1))
    result = {"forward": measure.measure(lambda: forward(params, images).block_until_ready(), case["seconds"])}
    carry = [params, moments]

    def train():
        carry[:] = step(*carry, images, labels)
        jax.block_until_ready(carry)

    result["training"] = measure.measure(train, case["seconds"])
    return result


def main() -> None:
    result = run(measure.read_case(__doc__))
    about = {"jax": jax.__version__, "device": jax.devices()[0].device_kind, "peak_mb": measure.peak_mb()}
    print(json.dumps(result | {"about": about}))


if __name__ == "__main__":
    main()
