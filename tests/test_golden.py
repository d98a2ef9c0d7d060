"""Numbers of every config that were right once: norms of initial parameters, and loss and gradient of one training call.

A failure says that a change reached the mathematics: an initialiser, the name of a parameter (its key comes from its path), a size
in a preset, or the forward pass. If that is what the change is for, write the new numbers with

    python -m tests.test_golden [CONFIG ...]

and say in the log what changed; otherwise the change has a fault.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memtok_jax import config
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training import step

# Compile fast rather than run fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
FILE = Path(__file__).with_name("golden.json")
# The default preset of every config that reads tokens.
CONFIGS = ("armt", "babilong", "compressive", "dna", "hymba", "mad", "mamba", "memgpt", "needles", "recall", "retrofit", "rmt",
           "ruler", "state_tracking", "stream_eval", "streaming_llm", "titans_lmm", "titans_mac", "titans_mag", "titans_mal",
           "transformer", "transformer_xl")
OTHERS = {"ett", "vit_registers"}  # they read series and images


def groups(params) -> dict:
    """Top-level groups; those of a model inside memory tokens as "model.layers"."""
    inside = {f"model.{name}": group for name, group in params["model"].items()} if "model" in params else {}
    return inside | {name: group for name, group in params.items() if name != "model"}


def norm(tree) -> float:
    return float(np.sqrt(sum(np.square(np.asarray(leaf, np.float64)).sum() for leaf in jax.tree.leaves(tree))))


def initial(name: str) -> tuple[step.Update, dict]:
    """The update of a config's default preset, and its initial parameters."""
    experiment = config.load(name)
    how = step.update_of(experiment, bind(experiment.model))
    return how, how.model.init(jax.random.key(0))


def norms(params) -> dict[str, float]:
    return {name: norm(group) for name, group in groups(params).items()}


def training_call(how: step.Update, params) -> dict[str, float]:
    """Loss of two rows over one call from the start of a stream, and the norm of its gradient."""
    model: Model = how.model
    ids = np.random.default_rng(0).integers(model.vocabulary, size=(2, how.call_tokens + 1))

    def loss(params):
        logits, _, stats = model.run(params, model.init_state(params, 2), jnp.asarray(ids[:, :-1], jnp.int32), step.TRAINING_CALL)
        sums = step.losses.totals(logits, jnp.asarray(ids[:, 1:], jnp.int32))
        return sums.nats / sums.count + step.losses.auxiliary_loss(stats)

    value, gradient = jax.jit(jax.value_and_grad(loss), compiler_options=QUICK)(params)
    return {"loss": float(value), "gradient": norm(gradient)}


def check(found: dict[str, float], name: str, tolerance: float) -> None:
    want = json.loads(FILE.read_text())[name]
    assert found == pytest.approx({key: want[key] for key in found}, rel=tolerance), __doc__


def test_every_config_has_numbers():
    every = {path.stem for path in (FILE.parent.parent / "configs").glob("*.py")}
    assert every - OTHERS == set(CONFIGS) == set(json.loads(FILE.read_text())), __doc__


@pytest.mark.parametrize("name", CONFIGS)
def test_initial_parameters(name):
    found = norms(initial(name)[1])
    assert found.keys() == json.loads(FILE.read_text())[name].keys() - {"loss", "gradient"}, __doc__
    check(found, name, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_one_training_call(name):
    check(training_call(*initial(name)), name, 1e-4)


if __name__ == "__main__":
    numbers = json.loads(FILE.read_text())
    for name in sys.argv[1:] or CONFIGS:
        update, params = initial(name)
        numbers[name] = norms(params) | training_call(update, params)
        print(name, numbers[name], flush=True)
    FILE.write_text(json.dumps(numbers, indent=1) + "\n")
