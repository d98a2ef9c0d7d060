"""Pretrained decoders equal those of the Hugging Face library (transformers 5.23.0), in logits, and convert both ways exactly.

`tests/data/decoder_parity.npz` (made by `peers_export/export_decoders.py`, which lists the cases) holds logits of every family and
every kind of rotary positions, computed in float64, at two kinds of random weights. It needs no torch. Two tests run the library
now, if a Python that has it is at hand:

    MEMTOK_HF5_PYTHON=/path/to/python pytest tests/test_peer_decoders.py
"""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest
from decoder_cases import STORED, Case, distance, in_float64, load, names_of, run, whole
from peers import export

from memtok_jax.convert import decoders, tensor_files
from memtok_jax.models import language_model
from memtok_jax.models.mixers.styled import StyledConfig
from memtok_jax.models.rotary import PLAIN

NAMES = names_of(STORED)
SLOWLY = [name if name == "llama" else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
PEER = dict(variable="MEMTOK_HF5_PYTHON", imports=("torch", "transformers"), needs="torch and transformers==5.23.0")


@pytest.mark.parametrize("name", SLOWLY)
def test_equals_stored_logits(name, tmp_path):
    case = Case(STORED, name)
    with jax.enable_x64(True):
        for init in ("default", "redrawn"):
            loaded = load(case.folder(tmp_path, init))
            found = whole(in_float64(loaded.params), loaded.cfg, case.ids)
            assert distance(found[..., :4], case.logits(init)) < 1e-10


# Other styles of a case -> how far the logits must be off, in standard deviations: what is told apart, and at which weights.
MISTAKES = {
    "qwen2: no biases": ("qwen2", "redrawn", None, 1.0),
    "gemma2: scores without a cap": ("gemma2", "redrawn", dict(score_cap=0.0), 0.1),
    "gemma2: logits without a cap": ("gemma2", "redrawn", dict(logit_cap=0.0), 0.1),
    "gemma2: scores by the head's size": ("gemma2", "redrawn", dict(score_scale=0.0), 0.01),
    "gpt_neox: tanh form": ("gpt_neox", "redrawn", dict(feed_forward="gelu"), 1e-4),
    "gpt_neox: all features turn": ("gpt_neox", "redrawn", dict(rotary=PLAIN), 0.1),
    "gpt_neox: branches in turn": ("gpt_neox", "redrawn", dict(order="pre"), 0.1),
    "llama: another epsilon": ("llama", "default", dict(eps=1e-5), 1e-3),
    "llama3: no scaling": ("llama_llama3", "redrawn", dict(rotary=PLAIN), 0.1),
    "yarn: no magnitude": ("llama_yarn", "redrawn", dict(magnitude=1.0), 0.1),
    "yarn: rounded ends": ("llama_yarn_plain_ends", "redrawn", dict(whole=True), 0.01),
    "mpt: no clip": ("mpt_clip", "redrawn", dict(clip=0.0), 0.1),
    "falcon: exact slopes": ("falcon_alibi", "redrawn", dict(slopes=()), 0.1),
    "olmo2: norms in front": ("olmo2", "redrawn", dict(order="pre"), 0.1),
    "smollm3: positions everywhere": ("smollm3", "redrawn", "same", 0.1),
    "gemma3: one base": ("gemma3", "redrawn", "same", 0.1),
}


def mistaken(loaded: decoders.Loaded, change):
    """(parameters, config) with a mistake."""
    cfg, params = loaded.cfg, loaded.params
    if change is None:
        return jax.tree_util.tree_map_with_path(lambda p, x: x * 0 if jax.tree_util.keystr(p[-1:]) == "['b']" else x, params), cfg
    if change == "same":
        return params, replace(cfg, pattern=tuple(m.layer if isinstance(m, StyledConfig) else m for m in cfg.pattern))
    inside = {name: value for name, value in change.items() if name in ("magnitude", "whole")}
    outside = {name: value for name, value in change.items() if name not in inside}
    return params, replace(cfg, style=replace(cfg.style, **outside, **(
        {"rotary": replace(cfg.style.rotary, **inside)} if inside else {})))


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_told_apart(mistake, tmp_path):
    name, init, change, least = MISTAKES[mistake]
    case = Case(STORED, name)
    with jax.enable_x64(True):
        loaded = load(case.folder(tmp_path, init))
        params, cfg = mistaken(loaded, change)
        found = whole(in_float64(params), cfg, case.ids)
    assert distance(found[..., :4], case.logits(init)) > least


def assert_split(name: str, tmp_path, lengths: list[tuple[int, int]], **options) -> None:
    """Calls of unequal rows give what one call for each row gives."""
    case = Case(STORED, name)
    with jax.enable_x64(True):
        loaded = load(case.folder(tmp_path), **options)
        params, cfg = in_float64(loaded.params), loaded.cfg
        want, call = whole(params, cfg, case.ids), run(cfg)
        state = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x,
                             language_model.init_state(params, cfg, 2))
        done, found = np.zeros(2, int), np.zeros_like(want)
        for length in lengths:
            ids = np.zeros((2, max(lengths[0])), np.int32)
            for row, n in enumerate(length):
                ids[row, :n] = case.ids[row, done[row]:done[row] + n]
            logits, state = call(params, state, ids, np.array(length, np.int32))
            for row, n in enumerate(length):
                found[row, done[row]:done[row] + n] = logits[row, :n]
            done += length
        for row, n in enumerate(done):
            np.testing.assert_allclose(found[row, :n], want[row, :n], rtol=0, atol=1e-11 * want.std())


SPLITTED = {"mistral": (), "falcon_alibi": pytest.mark.slow, "gemma3": pytest.mark.slow, "gpt2": pytest.mark.slow,
            "llama_llama3": pytest.mark.exhaustive, "gpt_neox": pytest.mark.exhaustive, "falcon": pytest.mark.exhaustive,
            "smollm3": pytest.mark.exhaustive}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks) for name, marks in SPLITTED.items()])
def test_any_split_and_unequal_rows(name, tmp_path):
    """Mistral's window of 5 is left far behind, and token 13 of one row comes beside token 17 of the other."""
    assert_split(name, tmp_path, [(7, 4), (0, 7), (7, 1), (2, 7), (7, 5)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_token_by_token(name, tmp_path):
    assert_split(name, tmp_path, [(1, 1)] * 24)


@pytest.mark.slow
def test_beyond_the_context_sinks_stay(tmp_path):
    """A context of 8 with two sinks: the same for any split, and not what the whole text gives."""
    assert_split("llama", tmp_path, [(7, 4), (0, 7), (7, 1), (2, 7), (7, 5)], context=8, sinks=2)
    case = Case(STORED, "llama")
    loaded = load(case.folder(tmp_path), context=8, sinks=2)
    found, theirs = whole(loaded.params, loaded.cfg, case.ids)[..., :4], case.logits("redrawn")
    assert distance(found[:, :8], theirs[:, :8]) < 2e-5 < 0.1 < distance(found[:, 12:], theirs[:, 12:])


# -------------------------------------------------------------------------------------------------------------- both ways

@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_exact(name, tmp_path):
    """Folder -> ours -> folder: the same arrays, to the bit, under the same names, and a config that means the same."""
    case = Case(STORED, name)
    loaded = load(case.folder(tmp_path))
    decoders.save(tmp_path / "back", loaded.params, loaded.cfg, loaded.theirs)
    back, weights = tensor_files.read(tmp_path / "back" / "model.safetensors"), case.weights("redrawn")
    assert back.keys() == weights.keys()
    for array in weights:
        np.testing.assert_array_equal(back[array], weights[array])
    again = load(tmp_path / "back")
    assert again.cfg == loaded.cfg
    jax.tree.map(np.testing.assert_array_equal, again.params, loaded.params)


# Spelling of transformers 4 -> the case whose config it must equal.
OLD = {
    "llama_llama3": dict(rope_theta=1e4, rope_scaling=dict(type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                           original_max_position_embeddings=32)),
    "llama_linear": dict(rope_theta=1e4, rope_scaling=dict(type="linear", factor=4.0)),
    "gpt_neox": dict(rotary_emb_base=10000, rotary_pct=0.25),
    "gemma3": dict(rope_theta=1e6, rope_local_base_freq=1e4, rope_scaling=dict(rope_type="linear", factor=8.0)),
    "phi3_longrope": dict(rope_theta=1e4, partial_rotary_factor=0.5, original_max_position_embeddings=16,
                          rope_scaling=dict(type="su", short_factor=[1.0, 1.1], long_factor=[1.5, 2.5])),
}


@pytest.mark.parametrize("name", OLD)
def test_both_spellings_of_rotary_positions_mean_the_same(name):
    new = Case(STORED, name).config
    old = {field: value for field, value in new.items() if field != "rope_parameters"} | OLD[name]
    assert decoders.read_config(old, 24) == decoders.read_config(new, 24)


def test_half_precision_is_kept_or_widened(tmp_path):
    case = Case(STORED, "qwen2")
    folder = case.folder(tmp_path)
    half = {name: array.astype(ml_dtypes.bfloat16) for name, array in case.weights("redrawn").items()}
    tensor_files.write_safetensors(folder / "model.safetensors", half)
    kept, widened = load(folder, keep=True), load(folder)
    assert {x.dtype for x in jax.tree.leaves(kept.params["layers"])} == {np.dtype(ml_dtypes.bfloat16)}
    assert {x.dtype for x in jax.tree.leaves(widened.params)} == {np.dtype(np.float32)}
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a, np.float32), b), kept.params, widened.params)
    decoders.save(tmp_path / "back", kept.params, kept.cfg, kept.theirs)
    back = tensor_files.read(tmp_path / "back" / "model.safetensors")
    assert all(np.array_equal(back[name].view(np.uint16), half[name].view(np.uint16)) for name in half)
    assert json.loads((tmp_path / "back" / "config.json").read_text())["dtype"] == "bfloat16"


def test_many_files_are_one_model(tmp_path):
    """Small files with an index, beside the same weights in another layout."""
    case = Case(STORED, "llama")
    loaded = load(case.folder(tmp_path))
    decoders.save(tmp_path / "parts", loaded.params, loaded.cfg, loaded.theirs, file_bytes=10_000)
    assert len(list((tmp_path / "parts").glob("model-*.safetensors"))) > 5
    tensor_files.write_safetensors(tmp_path / "parts" / "consolidated.safetensors", {"wq": np.ones(3, np.float32)})
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "parts").params, loaded.params)


# --------------------------------------------------------------------------------------------------------- the library itself

@pytest.mark.slow
def test_equals_transformers_run_now(tmp_path):
    """Other weights, all logits, as the library computes them in float32; and in float64."""
    path = tmp_path / "live.npz"
    export("export_decoders", path, "--seed=5", "--columns=0", "--float32", **PEER)
    for name in names_of(path):
        case = Case(path, name)
        for init in ("default", "redrawn"):
            loaded = load(case.folder(tmp_path, init))
            found = whole(loaded.params, loaded.cfg, case.ids)
            assert distance(found, case.logits(init, "single")) < 2e-5, name
            assert distance(found, case.logits(init)) < 2e-5, name


@pytest.mark.slow
def test_transformers_loads_what_is_written(tmp_path):
    """Our folders: no array missing or left over, the same logits, and what the library saves of them is what it was."""
    for name in NAMES:
        case = Case(STORED, name)
        loaded = load(case.folder(tmp_path / "theirs"))
        decoders.save(tmp_path / "ours" / name, loaded.params, loaded.cfg, loaded.theirs)
    export("export_decoders", tmp_path / "read.npz", f"--read={tmp_path / 'ours'}", **PEER)
    found = np.load(tmp_path / "read.npz")
    for name in NAMES:
        case = Case(STORED, name)
        assert distance(found[f"{name}/logits"][..., :4], case.logits("redrawn")) < 2e-5, name
        back, weights = tensor_files.read(tmp_path / "ours" / name / "back" / "model.safetensors"), case.weights("redrawn")
        assert back.keys() == weights.keys(), name
        assert all(np.array_equal(back[array], weights[array]) for array in weights), name
