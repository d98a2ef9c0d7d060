"""Attention of the stack equals that of Llama, Mistral, MPT, GPT-NeoX, gpt-oss and Falcon-H1 in transformers 5.23.0.

`tests/data/attention_parity.npz` (made by `peers_export/export_attention.py`, which says what each case is) holds outputs of full
passes and all gradients, in float64, from random weights. It needs no torch. One test makes other cases where a Python that has
torch and transformers is at hand:

    MEMTOK_HF5_PYTHON=/path/to/python pytest tests/test_peer_attention.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from neural_cases import jit
from peers import assert_close_to_peer, export, part

from memtok_jax import params as P
from memtok_jax.memory.ssm import Mamba2Config
from memtok_jax.models import language_model, layers
from memtok_jax.models.attend import attend, flat
from memtok_jax.models.call import Call
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.ssm import SsmConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.sinks import column
from memtok_jax.models.style import TITANS, Backbone
from memtok_jax.numerics import dense

STORED = Path(__file__).with_name("data") / "attention_parity.npz"
# As in the exporter.
VOCABULARY, WIDTH, HIDDEN, HEADS, GROUPS, SIZE, WINDOW, SINKS = 24, 16, 20, 4, 2, 4, 6, 4
EVERYTHING = WindowConfig(64)


def into(array, heads: int = 0) -> dict:
    """A torch Linear as `w` [in, out] or [in, heads, K]."""
    w = jnp.asarray(array).T
    return {"w": w.reshape(len(w), heads, -1) if heads else w}


def attention_of(theirs, front: str, out: str = "o_proj") -> dict:
    """q, k, v and o out of projections of their own."""
    names = {"q": HEADS, "k": GROUPS, "v": GROUPS}
    return {n: into(theirs[f"{front}{n}_proj.weight"], h) for n, h in names.items()} | {"o": into(theirs[f"{front}{out}.weight"])}


def swiglu_of(theirs, front: str) -> dict:
    return {n: into(theirs[f"{front}{n}_proj.weight"]) for n in ("up", "down", "gate")}


def scale(array) -> dict:
    return {"scale": jnp.asarray(array)}


def decoder(window: WindowConfig):
    """A whole Llama or Mistral: (parameters of ours from theirs, function of parameters and ids)."""
    cfg = LanguageModelConfig(VOCABULARY, WIDTH, 2, (window,), SIZE, HEADS, HIDDEN, kv_heads=GROUPS,
                              style=replace(TITANS, scale_embedding=False, embedding="matrix"))

    def params_of(theirs):
        def layer(n):
            front = f"model.layers.{n}."
            norm = lambda name: {"norm": scale(theirs[f"{front}{name}_layernorm.weight"])}
            return {"window": attention_of(theirs, f"{front}self_attn.") | norm("input"),
                    "feed_forward": swiglu_of(theirs, f"{front}mlp.") | norm("post_attention")}

        words = {"embedding": jnp.asarray(theirs["model.embed_tokens.weight"]), "output": into(theirs["lm_head.weight"])["w"]}
        return {"words": words, "prefix": {"tokens": jnp.zeros((0, WIDTH))}, "norm": scale(theirs["model.norm.weight"]),
                "layers": (jax.tree.map(lambda *both: jnp.stack(both), layer(0), layer(1)),)}

    return params_of, lambda params, ids: language_model.run(params, language_model.init_state(params, cfg, len(ids)), ids, cfg)[0]


def mixer(style, heads_of):
    """One attention that sees everything before."""
    b = Backbone(style, WIDTH, 1, HEADS, SIZE, HIDDEN)

    def run(params, x):
        _, state, _ = EVERYTHING.module.begin(params, jnp.zeros((0, WIDTH)), EVERYTHING, b, len(x), {})
        return EVERYTHING.module.run(params, state, x, EVERYTHING, b, Call(P.full_length(x)), {})[0]

    return heads_of, run


def mpt_params(theirs) -> dict:
    """One matrix for q, k and v, one after the other."""
    parts = np.split(theirs["Wqkv.weight"], 3)
    return {name: into(part, HEADS) for name, part in zip("qkv", parts, strict=True)} | {"o": into(theirs["out_proj.weight"])}


def neox_params(theirs) -> dict:
    """One matrix in which each head has its q, k and v."""
    w, b = theirs["query_key_value.weight"].reshape(HEADS, 3, SIZE, WIDTH), theirs["query_key_value.bias"].reshape(HEADS, 3, SIZE)
    each = {name: into(w[:, n].reshape(-1, WIDTH), HEADS) | {"b": jnp.asarray(b[:, n])} for n, name in enumerate("qkv")}
    return each | {"o": into(theirs["dense.weight"]) | {"b": jnp.asarray(theirs["dense.bias"])}}


def gpt_oss_params(theirs) -> dict:
    return {n: into(theirs[f"{n}.weight"], h) for n, h in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))} | {
        "sink": jnp.asarray(theirs["sinks"])}


def gpt_oss(params, x):
    """The core of attention with a logit that stands for no token."""
    q, k, v = (dense(x, params[name], "float32") for name in "qkv")
    t = jnp.arange(x.shape[1])
    visible = (t[None] <= t[:, None]) & (t[:, None] - t[None] < WINDOW)
    return flat(attend(q, k, v, visible, sink=column(params, q, "logit"))[0])


FALCON = Backbone(replace(TITANS, eps=1e-5), WIDTH, 1, HEADS, SIZE, HIDDEN, kv_heads=GROUPS)
SCAN = SsmConfig(Mamba2Config(WIDTH, 24, 4, groups=2, state=5, conv=4, block=4))


def falcon_params(theirs) -> dict:
    w = lambda name: jnp.asarray(theirs[f"mamba.{name}"])
    projected = w("in_proj.weight").T
    branch = {"conv": {"w": w("conv1d.weight")[:, 0].T, "b": w("conv1d.bias")}, "step_bias": w("dt_bias"), "log_rate": w("A_log"),
              "skip": w("D")}
    memory = {"x": {"w": projected[:, 24:]}, "z": {"w": projected[:, :24]}, "o": into(w("out_proj.weight")), "branch": branch,
              "norm": w("norm.weight")}
    return {"norm": scale(theirs["input_layernorm.weight"]), "window": attention_of(theirs, "self_attn."),
            "ssm": {"memory": memory},
            "feed_forward": swiglu_of(theirs, "feed_forward.") | {"norm": scale(theirs["pre_ff_layernorm.weight"])}}


def falcon_h1(params, x):
    """Both mixers on one normed input, added; then the feed-forward network."""
    y = x
    for cfg, name in ((EVERYTHING, "window"), (SCAN, "ssm")):
        own = params[name] | {"norm": params["norm"]}
        _, state, _ = cfg.module.begin(own, jnp.zeros((0, WIDTH)), cfg, FALCON, len(x), {})
        state = jax.tree.map(lambda s: s.astype(x.dtype) if jnp.issubdtype(s.dtype, jnp.floating) else s, state)
        y = y + cfg.module.run(own, state, x, cfg, FALCON, Call(P.full_length(x)), {})[0]
    own = params["feed_forward"]
    return y + layers.feed_forward(own, layers.enter(own, y, FALCON), "swiglu", "float32")


CASES = {"llama": decoder(WindowConfig(WINDOW, SINKS, "absolute")), "mistral": decoder(WindowConfig(WINDOW)),
         "mpt": mixer(replace(TITANS, positions="alibi"), mpt_params), "neox": mixer(replace(TITANS, bias=True), neox_params),
         "gpt_oss": (gpt_oss_params, gpt_oss), "falcon_h1": (falcon_params, falcon_h1)}


def check(path: Path, name: str) -> None:
    """Outputs, and gradients of all parameters and of inputs that are no ids."""
    stored, (params_of, function) = np.load(path), CASES[name]
    with jax.enable_x64(True):
        theirs, x = part(stored, name, "grad"), jnp.asarray(stored[f"{name}/x"])
        by_input = "x" in theirs
        want = params_of(theirs), theirs["x"] if by_input else None
        args = (0, 1) if by_input else (0,)

        def scalar(params, x):
            y = function(params, x)
            return (y * stored[f"{name}/weights"]).sum(), y

        x = x if by_input else x.astype(jnp.int32)
        found, y = jit(jax.grad(scalar, args, has_aux=True))(params_of(part(stored, name, "param")), x)
    assert_close_to_peer((y, found), (stored[f"{name}/y"], want[:len(args)]))
    sizes = [np.abs(g).max() for g in jax.tree.leaves(want[0]) if g.size]
    assert min(sizes) > 1e-3, "the case tests nothing"


@pytest.mark.parametrize("name", CASES)
def test_equals_stored_case(name):
    check(STORED, name)


def test_equals_transformers_run_now(tmp_path):
    path = tmp_path / "live.npz"
    export("export_attention", path, "--seed=5", "--batch=3", "--tokens=27", variable="MEMTOK_HF5_PYTHON",
           imports=("torch", "transformers"), needs="torch and transformers==5.23.0")
    for name in CASES:
        check(path, name)
