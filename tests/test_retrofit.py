"""A memory put into a trained model: nothing changes at first, whatever the memory holds; then gates move, then the memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizer_toys
from decoder_cases import STORED, Case, distance
from neural_cases import jit
from test_stream_pretrained import make

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.convert import __main__ as command
from memtok_jax.convert import tensor_files
from memtok_jax.memory.armt import ArmtConfig
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import language_model as lm
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.sharding import make_mesh
from memtok_jax.training import cli, optimizer, retrofit
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import OptimizerConfig
from memtok_jax.training.run import train

ONE = make_mesh(1, 1, 1)
MEMORY = LmmConfig(NeuralMemoryConfig(head_dim=8, chunk=8, expansion=2, conv=2))


def template(layer, segment: int = 0) -> LanguageModelConfig:
    return LanguageModelConfig(width=32, layers=1, pattern=(layer,), head_dim=8, segment=segment)


WANTED = {
    "mag": template(BesideConfig((WindowConfig(24), MEMORY))),
    "armt": RmtConfig(template(ArmtLayerConfig(ArmtConfig(key_dim=4)), 24), tokens=2, form="suffix"),
    "xl": template(CachedConfig(XlConfig(8)), 24),
    "sinks": template(WindowConfig(20, sinks=4)),
}


def fitted(wanted, folder: Path, key: int = 1):
    """(model, its parameters) of a base in a folder with a memory."""
    source = retrofit.base_config(folder, wanted)
    cfg = retrofit.around(wanted, source)
    fresh = bind(cfg).init(jax.random.key(key))
    return bind(cfg), retrofit.graft(fresh, cfg, retrofit.base_params(folder, source, cfg, ONE), source)


def logits(model, params, ids) -> np.ndarray:
    return np.asarray(jit(lambda p, x: model.apply(p, model.init_state(p, len(x)), x)[0])(params, jnp.asarray(ids)))


@pytest.mark.parametrize("name", [n if n == "mag" else pytest.param(n, marks=pytest.mark.slow) for n in WANTED])
def test_nothing_changes_at_first(name, tmp_path):
    """Logits at step 0 are those of the pretrained model, as the Hugging Face library computes them."""
    case = Case(STORED, "llama")
    model, params = fitted(WANTED[name], case.folder(tmp_path))
    assert distance(logits(model, params, case.ids)[..., :4], case.logits("redrawn")) < 2e-5


@pytest.mark.parametrize("base", [pytest.param(base, marks=pytest.mark.slow if base == "gemma3" else pytest.mark.exhaustive)
                                  for base in ("gemma3", "olmo2", "gpt_neox", "falcon", "gpt2")])
def test_nothing_changes_in_other_styles(base, tmp_path):
    case = Case(STORED, base)
    wanted = template(BesideConfig((WindowConfig(24), LmmConfig(replace(MEMORY.memory, head_dim=16)))))
    model, params = fitted(wanted, case.folder(tmp_path))
    assert distance(logits(model, params, case.ids)[..., :4], case.logits("redrawn")) < 2e-5


@pytest.mark.slow
def test_a_closed_gate_hides_the_memory_then_both_learn(tmp_path):
    """Two memories behind a gate of 0: the same logits, to the bit. The first gradient is the gate's alone; behind an open gate all
    of the memory has one. A memory that has become infinite does not reach the model either."""
    case = Case(STORED, "llama")
    folder = case.folder(tmp_path)
    model, one = fitted(WANTED["mag"], folder)
    _, other = fitted(WANTED["mag"], folder, key=2)
    ids = jnp.asarray(case.ids)
    call = jit(lambda p, x: model.apply(p, model.init_state(p, len(x)), x)[0])
    np.testing.assert_array_equal(call(one, ids), call(other, ids))
    learn = jit(jax.grad(lambda p: jnp.square(model.apply(p, model.init_state(p, 2), ids)[0]).mean()))
    first = learn(one)["layers"][0]["beside"]
    assert np.abs(first["gate_1"]).max() > 0 == max(np.abs(x).max() for x in jax.tree.leaves(first["1"]))
    beside = one["layers"][0]["beside"]
    opened = one | {"layers": (one["layers"][0] | {"beside": beside | {"gate_1": beside["gate_1"] + 0.1}},)}
    then = learn(opened)["layers"][0]["beside"]["1"]
    assert all(np.abs(x).max() > 0 for x in (then["o"]["w"], then["norm_reads"], then["z"]["w"]))
    assert max(np.abs(x).max() for x in jax.tree.leaves(then["memory"])) > 0
    wild = jax.tree.map(lambda x: x, one)
    wild["layers"][0]["beside"]["1"]["o"]["w"] = jnp.full_like(beside["1"]["o"]["w"], 3e38)
    assert np.isfinite(call(wild, ids)).all()


def test_rates_freeze_what_they_say():
    """Backbone arrays keep every bit over ten updates; the gate moves twenty times as far as the memory."""
    cfg = LanguageModelConfig(vocabulary=5, width=8, layers=1, head_dim=4, pattern=(BesideConfig((WindowConfig(4), LmmConfig(
        NeuralMemoryConfig(head_dim=4, chunk=4, expansion=2, conv=2)))),))
    specs = lm.specs(cfg)
    params = bind(cfg).init(jax.random.key(0))
    begun = params
    how = OptimizerConfig(learning_rate=1.0, steps=10, warmup_steps=0, weight_decay=0.1,
                          rates=("=0", "['beside']['1']=1", "gate_=20"))
    tx = optimizer.make_optimizer(how, specs)
    state = tx.init(params)
    for _ in range(10):
        step, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        params = jax.tree.map(lambda p, d: p - 1e-3 * d, params, step)
    moved = lambda *path: np.abs(np.asarray(_at(params, path)) - np.asarray(_at(begun, path))).max()
    jax.tree.map(np.testing.assert_array_equal, params["words"], begun["words"])
    jax.tree.map(np.testing.assert_array_equal, params["layers"][0]["feed_forward"], begun["layers"][0]["feed_forward"])
    jax.tree.map(np.testing.assert_array_equal, params["layers"][0]["beside"]["0"], begun["layers"][0]["beside"]["0"])
    own = moved("layers", 0, "beside", "1", "norm_reads")
    assert own > 0 and moved("layers", 0, "beside", "gate_1") == pytest.approx(20 * own, rel=1e-3)


def _at(tree, path):
    for step in path:
        tree = tree[step]
    return tree


@pytest.mark.parametrize("name", WANTED)
def test_what_was_put_together_comes_apart(name, tmp_path):
    """The base's parameters come back to the bit, and the rest is the memory's."""
    folder = Case(STORED, "llama").folder(tmp_path)
    source = retrofit.base_config(folder, WANTED[name])
    cfg, base = retrofit.around(WANTED[name], source), retrofit.base_params(folder, source, WANTED[name], ONE)
    fresh = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: bind(cfg).init(jax.random.key(0))))
    found, rest = retrofit.taken_apart(retrofit.graft(fresh, cfg, base, source), cfg, source)
    jax.tree.map(np.testing.assert_array_equal, found, base)
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(found) + count(rest) == count(fresh) and (count(rest) == 0) == (name in ("xl", "sinks"))


def test_rates_are_checked():
    with pytest.raises(UserError, match="optimizer.rates has 'gate'; it must be TEXT=FACTOR"):
        OptimizerConfig(1e-3, 1, 0, rates=("gate",))
    with pytest.raises(UserError, match="optimizer.rates names 'gates', which is in no parameter's path"):
        optimizer.make_optimizer(OptimizerConfig(1e-3, 1, 0, rates=("gates=2",)), lm.specs(template(WindowConfig(4))))


def test_the_command_takes_the_sizes_of_the_base(tmp_path):
    """`--start_from` of a pretrained folder: sizes, style and tokenizer are those of the folder, the memory that of the config."""
    folder = Case(STORED, "llama").folder(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    chosen = cli.experiment("retrofit", ("model.pattern.0.mixers.1.memory.head_dim=8",), None, None, str(folder))
    assert (chosen.model.width, chosen.model.layers, chosen.model.vocabulary) == (32, 3, 61)
    assert chosen.model.pattern[0].mixers[1].memory.head_dim == 8 and chosen.model.style.embedding == "matrix"
    assert chosen.data.tokenizer == str(folder / "tokenizer.json") and chosen.training.start_from == str(folder)
    assert config.from_json(config.to_json(chosen)) == chosen


@pytest.mark.slow
def test_a_run_begins_at_the_base(tmp_path):
    """train.py's own code, a pretrained folder and its tokenizer: after two updates the gate has moved, the backbone has not."""
    folder = tmp_path / "base"
    folder.mkdir()
    make(folder)
    text = tmp_path / "text.txt"
    text.write_text(tokenizer_toys.TEXT)
    changes = ("model.pattern.0.mixers.1.memory.head_dim=8", "model.pattern.0.mixers.1.memory.chunk=8", "data.sequence=16",
               "model.pattern.0.mixers.0.window=16", "training.call_tokens=16", "optimizer.steps=2", "optimizer.warmup_steps=0",
               "training.eval_every=0", "training.checkpoint_every=0", "training.sample_tokens=0", "data.eval_bytes=2000",
               "training.data=1", "optimizer.learning_rate=0.01")
    chosen = cli.experiment("retrofit:mag_memory", changes, str(text), None, str(folder))
    assert train(chosen, tmp_path / "run") == 0
    model = bind(chosen.model)
    with Checkpoints(tmp_path / "run", keep=None) as checkpoints:
        after, _ = checkpoints.restore_params(jax.eval_shape(lambda: model.init(jax.random.key(0))))
    source = retrofit.base_config(folder, chosen.model)
    base = retrofit.base_params(folder, source, chosen.model, ONE)
    kept = after["layers"][0]["beside"]["0"]
    jax.tree.map(np.testing.assert_array_equal, kept, {k: v for k, v in base["layers"][0]["window"].items() if k != "norm"})
    assert np.abs(after["layers"][0]["beside"]["gate_1"]).max() > 0
    said = []
    command.to_folder(tmp_path / "run", tmp_path / "out", said.append)
    before, written = (tensor_files.read_safetensors(path / "model.safetensors") for path in (folder, tmp_path / "out"))
    assert before.keys() == written.keys() and all(np.array_equal(before[name], written[name]) for name in before)
    assert "the memory is beside it in memory.safetensors" in said[-1]
    memory = tensor_files.read_safetensors(tmp_path / "out" / "memory.safetensors")
    assert any("gate_1" in name for name in memory) and not any("['0']" in name for name in memory)


@pytest.mark.slow
def test_a_run_of_ours_is_given_a_memory_and_written(tmp_path):
    """The base is a run that was trained here; low-rank changes of it are in the folder that is written, the memory beside it."""
    small = ("data.sequence=16", "training.call_tokens=16", "optimizer.steps=2", "optimizer.warmup_steps=0",
             "training.eval_every=0", "training.checkpoint_every=0", "training.sample_tokens=0", "data.eval_bytes=2000",
             "training.data=1", "optimizer.learning_rate=0.01")
    text = tmp_path / "text.txt"
    text.write_text(tokenizer_toys.TEXT)
    base = cli.experiment("transformer", ("model.width=32", "model.head_dim=8", "model.pattern.0.window=16", *small),
                          str(text), None)
    assert train(base, tmp_path / "base") == 0
    chosen = cli.experiment("retrofit:rmt_lora", ("model.model.model.segment=16", "model.model.tokens=2", "model.rank=2", *small),
                            str(text), None, str(tmp_path / "base"))
    assert train(chosen, tmp_path / "run") == 0
    for name in ("base", "run"):
        command.to_folder(tmp_path / name, tmp_path / f"{name}-out", lambda line: None)
    before, after = (tensor_files.read_safetensors(tmp_path / f"{name}-out" / "model.safetensors") for name in ("base", "run"))
    changed = {name.rpartition(".layers.")[2][2:] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {f"self_attn.{part}_proj.weight" for part in "qkvo"}
    memory = tensor_files.read_safetensors(tmp_path / "run-out" / "memory.safetensors")
    assert [array.shape for array in memory.values()] == [(2, 32)]
