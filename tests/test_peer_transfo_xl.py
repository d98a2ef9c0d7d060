"""Our Transformer-XL equals Hugging Face's (transformers 4.35.2), in values, cache and gradients; and weights convert.

`tests/data/transfo_xl_parity.npz` (made by `peers_export/export_transfo_xl.py`) holds five small models in float64 with
their options; each reads three segments from the empty cache on. One test runs the peer with other random numbers, where a
Python that has it is named:

    MEMTOK_PEER_TRANSFO_XL=/path/to/python pytest tests/test_peer_transfo_xl.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import assert_equal, jit
from peers import export

from memtok_jax.config import UserError
from memtok_jax.convert.transfo_xl import from_transfo_xl, to_transfo_xl
from memtok_jax.memory.compressive import CompressiveConfig
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.style import TRANSFORMER_XL

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "data" / "transfo_xl_parity.npz"
CASES = ("post", "pre", "clamp", "same_length", "untied", "clusters", "narrow")


def load(path: Path, case: str) -> tuple[LanguageModelConfig, dict[str, np.ndarray]]:
    """Our config for one of their models, and the arrays of the case."""
    stored = np.load(path)
    theirs = json.loads(str(stored["settings"]))[case]
    arrays = {name.removeprefix(f"{case}/"): stored[name] for name in stored.files if name.startswith(f"{case}/")}
    style = replace(TRANSFORMER_XL, order="pre" if theirs["pre_lnorm"] else "post", shared_position=not theirs["untie_r"],
                    clamp=max(theirs["clamp_len"], 0))
    cached = CachedConfig(XlConfig(theirs["mem_len"]), same_length="compat" if theirs["same_length"] else "off")
    cfg = LanguageModelConfig(
        vocabulary=theirs["vocab_size"], width=theirs["d_model"], layers=theirs["n_layer"], heads=theirs["n_head"],
        head_dim=theirs["d_head"], hidden=theirs["d_inner"], segment=arrays["ids"].shape[2], pattern=(cached,), style=style,
        cutoffs=tuple(theirs["cutoffs"]), shrink=theirs["div_val"])
    return cfg, arrays


def weights_of(arrays: dict[str, np.ndarray], group: str = "param/") -> dict[str, np.ndarray]:
    return {name.removeprefix(group): value for name, value in arrays.items() if name.startswith(group)}


def assert_equals(path: Path, case: str) -> None:
    """Log-probabilities and cache after each segment, and every gradient.

    One case goes through the code for any cut of a stream, the others promise whole segments, which compiles sooner.
    """
    cfg, arrays = load(path, case)
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, from_transfo_xl(weights_of(arrays), cfg))
        ids, weights = jnp.asarray(arrays["ids"], jnp.int32), jnp.asarray(arrays["weights"])
        model, slots = bind(cfg), cfg.pattern[0].memory.slots

        def scalar(params):
            def segment(state, x):
                logits, state = model.apply(params, state, x[0], whole=case != "post")
                scores = jax.nn.log_softmax(logits)
                return state, ((scores * x[1]).sum(), scores, state.layers[0]["cached"].memory)

            _, (sums, scores, states) = jax.lax.scan(segment, model.init_state(params, ids.shape[1]), (ids, weights))
            return sums.sum(), (scores, states)

        gradient, (scores, states) = jit(jax.grad(scalar, has_aux=True))(params)
        for n in range(ids.shape[0]):
            np.testing.assert_allclose(scores[n], arrays[f"scores/{n}"], rtol=0, atol=1e-11)
            mems = np.moveaxis(arrays[f"mems/{n}"], 1, 2)
            assert np.all(np.asarray(states.count[n]) == mems.shape[2])
            np.testing.assert_allclose(states.vectors[n][:, :, slots - mems.shape[2]:], mems, rtol=0, atol=1e-11)
        theirs = weights_of(arrays, "grad/")
        ours = to_transfo_xl(gradient, cfg)
        for name, value in theirs.items():
            assert np.abs(value).max() > 1e-2, f"{name} has hardly any gradient: the case tests nothing"
            np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-10 * max(np.abs(value).max(), 1), err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_equals_stored_case(case):
    assert_equals(STORED, case)


def test_each_option_matters():
    """With the options of another case the stored scores are missed: the equalities above are no accident."""
    cfg, arrays = load(STORED, "post")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), from_transfo_xl(weights_of(arrays), cfg))

    def last_scores(cfg):
        model = bind(cfg)
        state, apply = model.init_state(params, 2), jit(model.apply)
        for ids in arrays["ids"]:
            logits, state = apply(params, state, jnp.asarray(ids, jnp.int32))
        return jax.nn.log_softmax(logits)

    np.testing.assert_allclose(last_scores(cfg), arrays["scores/2"], rtol=0, atol=1e-4)
    for other in ("pre", "clamp", "same_length"):
        assert np.abs(last_scores(load(STORED, other)[0]) - arrays["scores/2"]).max() > 1e-2


@pytest.mark.parametrize("case", ["post", "untied", "clusters", "narrow"])
def test_weights_make_the_round_trip_exactly(case):
    cfg, arrays = load(STORED, case)
    theirs = weights_of(arrays)
    back = to_transfo_xl(from_transfo_xl(theirs, cfg), cfg)
    del theirs["transformer.pos_emb.inv_freq"]
    assert back.keys() == theirs.keys()
    assert_equal(back, theirs)


@pytest.mark.parametrize("change, message", [
    (lambda w: w.pop("transformer.layers.1.pos_ff.CoreNet.0.bias"), "lacks .transformer.layers.1.pos_ff.Core.* .1 missing"),
    (lambda w: w.update({"transformer.word_emb.emb_projs.0": np.zeros((8, 8))}), "emb_projs.0' has no place in a"),
    (lambda w: w.update({"crit.out_layers.0.bias": np.zeros(12)}), r"out_layers.0.bias has the shape \(12,\), .* has \(11,\)"),
    (lambda w: w.update({"crit.out_layers.0.weight": np.zeros((11, 8))}), "only models in which the two are the same array"),
], ids=["missing", "extra", "shape", "untied softmax"])
def test_weights_that_do_not_fit_are_named(change, message):
    cfg, arrays = load(STORED, "post")
    weights = weights_of(arrays)
    change(weights)
    with pytest.raises(UserError, match=message):
        from_transfo_xl(weights, cfg)


def test_prefixes_and_half_precision():
    """The names inside another module, and float16: the same parameters, in float32."""
    cfg, arrays = load(STORED, "post")
    half = {name: value.astype(np.float16) for name, value in weights_of(arrays).items()}
    found = from_transfo_xl({f"module.model.{name}": value for name, value in half.items()}, cfg)
    assert_equal(found, from_transfo_xl({name: value.astype(np.float32) for name, value in half.items()}, cfg))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_a_learnt_compression_has_no_weights_there():
    cfg, arrays = load(STORED, "post")
    with pytest.raises(UserError, match="convert with an XlConfig"):
        from_transfo_xl(weights_of(arrays), replace(cfg, pattern=(CachedConfig(CompressiveConfig(4, 2, 2)),)))


@pytest.mark.parametrize("change", [dict(prefix=2), dict(style=replace(TRANSFORMER_XL, norm="rms"))],
                         ids=["prefix", "norm"])
def test_another_backbone_has_no_weights_there(change):
    cfg, arrays = load(STORED, "post")
    with pytest.raises(UserError, match="convert with style.TRANSFORMER_XL"):
        from_transfo_xl(weights_of(arrays), replace(cfg, **change))


def test_equals_transformers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_transfo_xl", path, "--seed=100", variable="MEMTOK_PEER_TRANSFO_XL",
           imports=("torch", "transformers", "transformers.models.transfo_xl"), needs="torch and transformers==4.35.2")
    for case in ("post", "untied", "narrow"):
        assert_equals(path, case)
