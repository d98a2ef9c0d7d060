"""Transformer-XL weights of Hugging Face `transformers` (TransfoXLLMHeadModel, up to 4.57) as ours, and back.

Their names and ours, for layer i (a matrix of theirs is [out, in], of ours [in, out]):

| theirs | ours |
|---|---|
| transformer.word_emb.emb_layers.0.weight, crit.out_layers.0.weight (the same) | embedding |
| crit.out_layers.0.bias                                    | output_bias |
| transformer.r_w_bias, r_r_bias (untied: layers.i.dec_attn.*)        | position u, w (untied: in layers) |
| layers.i.dec_attn.qkv_net.weight [3HK, D]                 | attention wq, wk, wv [D, H, K] |
| layers.i.dec_attn.r_net.weight, o_net.weight              | attention wr, wo |
| layers.i.dec_attn.layer_norm, pos_ff.layer_norm           | norm_attention, norm_mlp |
| layers.i.pos_ff.CoreNet.0, CoreNet.3                      | mlp w1, b1, w2, b2 |

Their config's clamp_len <= 0 is our clamp 0, their same_length is our same_length="compat". They start from a cache of
mem_len rows of zeros unless they are given empty ones; ours starts empty. Models with an adaptive softmax have no place here.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.models import transformer_xl
from memtok_jax.models.transformer_xl import TransformerXlConfig

EMBEDDING, TIED, BIAS = "transformer.word_emb.emb_layers.0.weight", "crit.out_layers.0.weight", "crit.out_layers.0.bias"
POSITION = {"u": "r_w_bias", "w": "r_r_bias"}
FREQUENCIES = "transformer.pos_emb.inv_freq"


def from_transfo_xl(weights: Mapping[str, np.ndarray], cfg: TransformerXlConfig) -> P.Tree:
    """Our parameters, as NumPy arrays of the dtype of theirs.

    weights: their state_dict as NumPy arrays. cfg: our config of the same model, without learnt compression.
    Raises UserError naming what is missing, what has no place, and what has another shape than cfg says.
    """
    _check(weights, cfg)
    layers = [_layer_from(weights, i, cfg) for i in range(cfg.layers)]
    out = {"embedding": np.asarray(weights[EMBEDDING]), "output_bias": np.asarray(weights[BIAS]),
           "layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    if not cfg.untie_r:
        out["position"] = {ours: np.asarray(weights[f"transformer.{theirs}"]) for ours, theirs in POSITION.items()}
    return out


def to_transfo_xl(params: P.Tree, cfg: TransformerXlConfig) -> dict[str, np.ndarray]:
    """Their state_dict, without what follows from the config (the frequencies of the positions)."""
    params = jax.tree.map(np.asarray, params)
    out = {EMBEDDING: params["embedding"], TIED: params["embedding"], BIAS: params["output_bias"]}
    for i in range(cfg.layers):
        out |= _layer_to(jax.tree.map(lambda x, i=i: x[i], params["layers"]), i, cfg)
        for ours, theirs in POSITION.items():
            if not cfg.untie_r:
                out[f"transformer.{theirs}"] = params["position"][ours]
                out[_name(i, f"dec_attn.{theirs}")] = params["position"][ours]
    return out


def _name(i: int, rest: str) -> str:
    return f"transformer.layers.{i}.{rest}"


def _layer_from(weights: Mapping[str, np.ndarray], i: int, cfg: TransformerXlConfig) -> P.Tree:
    """One layer of ours."""
    get = lambda rest: np.asarray(weights[_name(i, rest)])
    heads = lambda matrix: matrix.T.reshape(cfg.width, cfg.heads, cfg.head_dim)
    norm = lambda rest: {"scale": get(f"{rest}.layer_norm.weight"), "bias": get(f"{rest}.layer_norm.bias")}
    wq, wk, wv = (heads(part) for part in np.split(get("dec_attn.qkv_net.weight"), 3))
    out = {
        "attention": {"wq": wq, "wk": wk, "wv": wv, "wr": heads(get("dec_attn.r_net.weight")),
                      "wo": get("dec_attn.o_net.weight").T},
        "norm_attention": norm("dec_attn"), "norm_mlp": norm("pos_ff"), "memory": {},
        "mlp": {"w1": get("pos_ff.CoreNet.0.weight").T, "b1": get("pos_ff.CoreNet.0.bias"),
                "w2": get("pos_ff.CoreNet.3.weight").T, "b2": get("pos_ff.CoreNet.3.bias")},
    }
    return out | ({"position": {ours: get(f"dec_attn.{theirs}") for ours, theirs in POSITION.items()}} if cfg.untie_r else {})


def _layer_to(layer: P.Tree, i: int, cfg: TransformerXlConfig) -> dict[str, np.ndarray]:
    """One layer of theirs."""
    matrix = lambda w: w.reshape(cfg.width, -1).T
    attention, mlp = layer["attention"], layer["mlp"]
    out = {
        "dec_attn.qkv_net.weight": np.concatenate([matrix(attention[name]) for name in ("wq", "wk", "wv")]),
        "dec_attn.r_net.weight": matrix(attention["wr"]), "dec_attn.o_net.weight": attention["wo"].T,
        "pos_ff.CoreNet.0.weight": mlp["w1"].T, "pos_ff.CoreNet.0.bias": mlp["b1"],
        "pos_ff.CoreNet.3.weight": mlp["w2"].T, "pos_ff.CoreNet.3.bias": mlp["b2"],
    }
    for ours, theirs in (("norm_attention", "dec_attn"), ("norm_mlp", "pos_ff")):
        out |= {f"{theirs}.layer_norm.weight": layer[ours]["scale"], f"{theirs}.layer_norm.bias": layer[ours]["bias"]}
    if cfg.untie_r:
        out |= {f"dec_attn.{theirs}": layer["position"][ours] for ours, theirs in POSITION.items()}
    return {_name(i, rest): value for rest, value in out.items()}


def _check(weights: Mapping[str, np.ndarray], cfg: TransformerXlConfig) -> None:
    """Every name of theirs has one place, every place one name, and the shapes agree."""
    specs = transformer_xl.specs(cfg)
    if specs["layers"]["memory"]:
        raise UserError(f"a Transformer-XL has no weights for {cfg.memory}; convert with an XlConfig")
    expected = to_transfo_xl(P.map_specs(lambda s: np.broadcast_to(np.float32(0), s.shape), specs), cfg)
    # Copies that a file may leave out: the tied output layer, and one u and w for each layer that all share.
    copies = {TIED} | {_name(i, f"dec_attn.{theirs}") for i in range(cfg.layers) for theirs in POSITION.values() if not cfg.untie_r}
    if missing := sorted(expected.keys() - weights.keys() - copies):
        raise UserError(f"{len(missing)} weights are missing, the first is {missing[0]!r}; a model of {cfg.layers} layers "
                        f"with untie_r={cfg.untie_r} has {len(expected)}")
    if extra := sorted(weights.keys() - expected.keys() - {FREQUENCIES}):
        raise UserError(f"{len(extra)} weights have no place in a model of {cfg.layers} layers with untie_r={cfg.untie_r}, "
                        f"the first is {extra[0]!r}; an adaptive softmax or embedding is not supported")
    for name in expected.keys() & weights.keys():
        if np.shape(weights[name]) != expected[name].shape:
            raise UserError(f"{name} has shape {np.shape(weights[name])}, the config says {expected[name].shape}")
    if TIED in weights and not np.array_equal(weights[TIED], weights[EMBEDDING]):
        raise UserError(f"{TIED} differs from {EMBEDDING}: only tied models are supported")
