"""Memory tokens around a pretrained decoder, memories in chosen layers, and low-rank changes of one: what holds at step 0."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from decoder_cases import STORED, Case, distance
from neural_cases import jit, random_like
from test_retrofit import ONE, WANTED, fitted, logits, template

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.convert import decoders
from memtok_jax.models import language_model as lm
from memtok_jax.models.lora import LoraConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.training import cli, retrofit
from memtok_jax.training.experiment import TrainingConfig

T, M = 12, 2
BASES = ["llama", pytest.param("gpt2", marks=pytest.mark.slow)]


def rmt(tokens: int, segment: int) -> RmtConfig:
    return RmtConfig(template(SegmentConfig(), segment), tokens=tokens)


@pytest.mark.parametrize("base", BASES)
def test_without_memory_tokens_it_is_the_decoder(base, tmp_path):
    """RMT with M = 0 is the plain decoder, as the Hugging Face library computes it, in each segment by itself."""
    case = Case(STORED, base)
    folder = case.folder(tmp_path)
    model, params = fitted(rmt(0, 24), folder)
    assert distance(logits(model, params, case.ids)[..., :4], case.logits("redrawn")) < 2e-5
    apart, params = fitted(rmt(0, T), folder)
    rows = logits(model, params, case.ids.reshape(4, T)).reshape(2, 24, -1)
    assert distance(logits(apart, params, case.ids), rows) < 1e-5


@pytest.mark.parametrize("base", BASES)
def test_with_memory_tokens_it_is_the_decoder_on_their_vectors(base, tmp_path):
    """Segment n is what the decoder gives for the inputs [m ; x ; m] in their order, rotary or by the table, and the next m is its
    normed output at the last M of them. The oracle is the decoder alone, its vocabulary extended by one word for each vector."""
    case = Case(STORED, base)
    folder = case.folder(tmp_path)
    model, params = fitted(rmt(M, T), folder)
    loaded = decoders.load(folder, context=T + 2 * M)
    hidden = jit(lambda p, x: lm.hidden(p, lm.init_state(p, loaded.cfg, 2), x, loaded.cfg)[0])
    words, m = loaded.params["words"], jnp.broadcast_to(params["memory"]["tokens"], (2, M, 32))
    new = 61 + jnp.arange(2 * M).reshape(2, M)
    found, want = logits(model, params, case.ids), []
    for x in (case.ids[:, :T], case.ids[:, T:]):
        table = jnp.concatenate([words["embedding"], m.reshape(2 * M, 32)])
        h = hidden(loaded.params | {"words": words | {"embedding": table}}, jnp.concatenate([new, x, new], axis=1))
        want.append(lm.logits(loaded.params, h[:, M:-M], loaded.cfg))
        m = h[:, -M:]
    assert distance(found, np.concatenate(want, axis=1)) < 2e-5
    assert distance(found[:, :T], logits(*fitted(rmt(0, T), folder), case.ids[:, :T])) > 0.01  # read tokens are seen


def test_memory_tokens_are_as_large_as_the_bases_words(tmp_path):
    folder = Case(STORED, "llama").folder(tmp_path)
    _, params = fitted(rmt(64, T), folder)
    words = np.asarray(params["model"]["words"]["embedding"]).std()
    assert np.asarray(params["memory"]["tokens"]).std() == pytest.approx(words, rel=0.1) and words > 1


CHOSEN = {"upper": {1, 2}, "every:3": {2}, "0,-1": {0, 2}, "all": {0, 1, 2}}


def test_layers_are_chosen_by_words_and_numbers():
    assert {text: retrofit.numbers_of(text, 3) for text in CHOSEN} == CHOSEN
    assert retrofit.numbers_of("upper", 30) == set(range(15, 30)) and retrofit.numbers_of("every:4", 12) == {3, 7, 11}
    for wrong, match in (("half", "it must be all, upper, every:N with N up to 3"), ("every:4", "N up to 3"),
                         ("1,3", "names layer 3; the base has layers 0 to 2"), ("", "it must be all")):
        with pytest.raises(UserError, match=match):
            retrofit.numbers_of(wrong, 3)
    with pytest.raises(UserError, match="training.retrofit_layers is 'upper', but training.retrofit is false"):
        TrainingConfig(batch=1, retrofit_layers="upper")


KINDS = {"mag": (BesideConfig, WindowConfig), "armt": (ArmtLayerConfig, SegmentConfig), "xl": (CachedConfig, SegmentConfig)}


@pytest.mark.parametrize("name, chosen", [("mag", "upper"), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
    ("armt", "upper"), ("xl", "0,-1"), ("mag", "every:3")))])
def test_a_memory_in_some_layers(name, chosen, tmp_path):
    """The others keep their attention and have no memory; the first logits are the decoder's; both come apart again."""
    case = Case(STORED, "llama")
    folder, wanted = case.folder(tmp_path), retrofit.in_layers(WANTED[name], chosen, 3)
    model, params = fitted(wanted, folder)
    inside = model.cfg.model if name == "armt" else model.cfg
    assert [type(layer) for layer in inside.pattern] == [KINDS[name][n not in CHOSEN[chosen]] for n in range(3)]
    assert distance(logits(model, params, case.ids)[..., :4], case.logits("redrawn")) < 2e-5
    source = retrofit.base_config(folder, wanted)
    back, _ = retrofit.taken_apart(params, model.cfg, source)
    jax.tree.map(np.testing.assert_array_equal, back, retrofit.base_params(folder, source, wanted, ONE))


@pytest.mark.parametrize("base", ["llama", "mistral", "gemma3", "smollm3", "gpt2"])
@pytest.mark.parametrize("name", ["mag", "sinks"])
def test_a_run_finds_the_same_config_again(base, name, tmp_path):
    """What a run keeps is the config of the whole model; made again of it and the folder, it is itself."""
    folder = Case(STORED, base).folder(tmp_path)
    wanted = WANTED[name]
    if name == "sinks" and base == "gpt2":
        wanted = template(SegmentConfig(), 24)
    if name == "mag":
        wanted = replace(wanted, pattern=(replace(wanted.pattern[0], mixers=(WindowConfig(24), replace(
            wanted.pattern[0].mixers[1], memory=replace(wanted.pattern[0].mixers[1].memory, head_dim=16)))),))
    for chosen in ("all", "0"):
        whole = retrofit.around(retrofit.in_layers(wanted, chosen, 3), retrofit.base_config(folder, wanted))
        assert retrofit.around(whole, retrofit.base_config(folder, whole)) == whole


def test_a_table_of_positions_keeps_its_segments(tmp_path):
    """GPT-2: layers without a memory, and a model without one, have the base's own attention; a window with sinks is refused."""
    folder = Case(STORED, "gpt2").folder(tmp_path)
    base = retrofit.base_config(folder, WANTED["mag"])
    chosen = retrofit.around(retrofit.in_layers(WANTED["mag"], "0", 3), base)
    assert [type(layer) for layer in chosen.pattern] == [BesideConfig, SegmentConfig, SegmentConfig]
    assert retrofit.around(template(WindowConfig(24)), base) == base
    with pytest.raises(UserError, match="sinks=4 belong to a window, and a layer of the base is a segment"):
        retrofit.around(WANTED["sinks"], base)


def test_a_window_smaller_than_a_segment_is_refused(tmp_path):
    folder = Case(STORED, "mistral").folder(tmp_path)
    with pytest.raises(UserError, match="model.segment=12 is more than the window of 5 tokens .* set model.segment to at most 5"):
        retrofit.around(rmt(2, T), retrofit.base_config(folder, rmt(2, T)))
    retrofit.around(rmt(2, 5), retrofit.base_config(folder, rmt(2, 5)))


@pytest.mark.parametrize("name", ["mag", pytest.param("armt", marks=pytest.mark.slow)])
def test_low_rank_changes_of_a_pretrained_decoder(name, tmp_path):
    """Nothing at first; taken apart, the base has the changed weights and the memory what is its own."""
    case = Case(STORED, "llama")
    folder, wanted = case.folder(tmp_path), LoraConfig(WANTED[name], rank=2, targets=("0.q",) if name == "mag" else ("segment.q",))
    model, params = fitted(wanted, folder)
    plain, same = fitted(WANTED[name], folder)
    np.testing.assert_array_equal(logits(model, params, case.ids), logits(plain, same, case.ids))
    drawn = params | {"lora": random_like(params["lora"], 0, 0.3, jnp.float32)}
    source = retrofit.base_config(folder, wanted)
    base, _ = retrofit.taken_apart(drawn, model.cfg, source)
    kept = retrofit.base_params(folder, source, wanted, ONE)
    change = base["layers"][0]["window"]["q"]["w"] - kept["layers"][0]["window"]["q"]["w"]
    (factors,) = drawn["lora"].values()
    np.testing.assert_allclose(change, 8 * np.einsum("lir,lrhk->lihk", factors["low"], factors["high"]), rtol=0, atol=2e-6)
    jax.tree.map(np.testing.assert_array_equal, base["layers"][0]["window"]["k"], kept["layers"][0]["window"]["k"])


def test_the_command_chooses_layers_and_low_rank_changes(tmp_path):
    folder = Case(STORED, "llama").folder(tmp_path)
    changes = ("model.model.pattern.0.mixers.1.memory.head_dim=8", "training.retrofit_layers=upper", "model.rank=2")
    chosen = cli.experiment("retrofit:mag_lora", changes, None, None, str(folder))
    assert [type(layer) for layer in chosen.model.model.pattern] == [WindowConfig, BesideConfig, BesideConfig]
    rates = dict(chosen.optimizer.factors)
    assert rates == {"": 0, "['beside']['1']": 1, "gate_": 20, "['lora']": 10} and chosen.model.rank == 2
    assert bind(chosen.model).specs()["lora"].keys() == {f"layers.{n}.beside.0.{part}" for n in (1, 2) for part in "qkvo"}


def test_a_task_is_read_in_the_tokens_of_the_base(tmp_path):
    """BABILong for a pretrained decoder: its tokenizer, sizes and words, and stages that end in the same model."""
    folder = Case(STORED, "llama").folder(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    chosen = cli.experiment("babilong:qa2_rmt_pretrained", ("model.model.segment=24", "training.call_tokens=24", "data.sequence=48",
                                                            "data.lengths=24,48", "training.curriculum="), None, None, str(folder))
    assert chosen.data.task.tokenizer == str(folder / "tokenizer.json") and chosen.data.task.tasks == ("qa2",)
    assert chosen.training.retrofit and (chosen.model.vocabulary, chosen.model.segment, chosen.model.tokens) == (61, 24, 16)


def test_layers_that_repeat_inside_a_pattern_take_no_memory(tmp_path):
    """A run whose pattern does not name its layers one by one is refused in one line."""
    (tmp_path / "config.json").write_text(config.to_json(config.load("hymba:125m")))
    with pytest.raises(UserError, match="layers of its model.pattern are repeated inside it .* one by one"):
        retrofit.base_config(tmp_path, WANTED["mag"])
