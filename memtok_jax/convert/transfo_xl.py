"""Transformer-XL weights of Hugging Face `transformers` (TransfoXLLMHeadModel, up to 4.57) as ours, and back.

Their names and ours, for layer i (a matrix of theirs is [out, in], of ours [in, out]):

| theirs | ours |
|---|---|
| transformer.word_emb.emb_layers.c.weight, crit.out_layers.c.weight (the same) | embedding, of cluster c where they are many |
| crit.out_layers.c.bias                                    | output_bias, in order |
| crit.cluster_weight, cluster_bias                         | clusters w, b |
| transformer.word_emb.emb_projs.c, crit.out_projs.c (the same for c > 0) | projections of cluster c |
| crit.out_projs.0                                          | output_projection |
| transformer.r_w_bias, r_r_bias (untied: layers.i.dec_attn.*)        | position u, w (untied: in layers) |
| layers.i.dec_attn.qkv_net.weight [3HK, D]                 | attention wq, wk, wv [D, H, K] |
| layers.i.dec_attn.r_net.weight, o_net.weight              | attention wr, wo |
| layers.i.dec_attn.layer_norm, pos_ff.layer_norm           | norm_attention, norm_mlp |
| layers.i.pos_ff.CoreNet.0, CoreNet.3                      | mlp w1, b1, w2, b2 |

Their config's clamp_len <= 0 is our clamp 0, their same_length is our same_length="compat", their div_val our shrink. They start
from a cache of mem_len rows of zeros unless they are given empty ones; ours starts empty.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import names
from memtok_jax.models import transformer_xl
from memtok_jax.models.transformer_xl import TransformerXlConfig

WORDS, CRIT = "transformer.word_emb", "crit"
POSITION = {"u": "r_w_bias", "w": "r_r_bias"}
FREQUENCIES = "transformer.pos_emb.inv_freq"


def from_transfo_xl(weights: Mapping[str, np.ndarray], cfg: TransformerXlConfig) -> P.Tree:
    """Our parameters, as NumPy arrays in float32, or in float64 if theirs are.

    weights: their state_dict as NumPy arrays, in any wrapper that `names.PARTS` lists. cfg: our config of the same model, without
    learnt compression. Raises UserError naming what is missing, what has no place, and what has another shape than cfg says.
    """
    weights = names.pick(weights, (f"{WORDS}.emb_layers.0.weight",))
    weights = names.floats({name: array for name, array in weights.items() if name != FREQUENCIES})
    _check(weights, cfg)
    layers = [_layer_from(weights, i, cfg) for i in range(cfg.layers)]
    out = _words_from(weights, cfg) | {"layers": jax.tree.map(lambda *leaves: np.stack(leaves), *layers)}
    if not cfg.untie_r:
        out["position"] = {ours: np.asarray(weights[f"transformer.{theirs}"]) for ours, theirs in POSITION.items()}
    return out


def to_transfo_xl(params: P.Tree, cfg: TransformerXlConfig) -> dict[str, np.ndarray]:
    """Their state_dict, without what follows from the config (the frequencies of the positions)."""
    params = jax.tree.map(np.asarray, params)
    out = _words_to(params, cfg)
    for i in range(cfg.layers):
        out |= _layer_to(jax.tree.map(lambda x, i=i: x[i], params["layers"]), i, cfg)
        for ours, theirs in POSITION.items():
            if not cfg.untie_r:
                out[f"transformer.{theirs}"] = params["position"][ours]
                out[_name(i, f"dec_attn.{theirs}")] = params["position"][ours]
    return out


def _words_from(weights: Mapping[str, np.ndarray], cfg: TransformerXlConfig) -> P.Tree:
    """Embeddings and output layer of ours."""
    get = lambda name: np.asarray(weights[name])
    tables = _tables(cfg)
    embedding = [get(f"{WORDS}.emb_layers.{i}.weight") for i in tables]
    out = {"embedding": embedding if cfg.shrink > 1 else embedding[0],
           "output_bias": np.concatenate([get(f"{CRIT}.out_layers.{i}.bias") for i in tables])}
    if cfg.cutoffs:
        out["clusters"] = {"w": get(f"{CRIT}.cluster_weight"), "b": get(f"{CRIT}.cluster_bias")}
    if cfg.shrink > 1:
        out |= {"projections": [get(f"{WORDS}.emb_projs.{i}").T for i in tables],
                "output_projection": get(f"{CRIT}.out_projs.0").T}
    return out


def _words_to(params: P.Tree, cfg: TransformerXlConfig) -> dict[str, np.ndarray]:
    """Embeddings and output layer of theirs."""
    tables = params["embedding"] if cfg.shrink > 1 else [params["embedding"]]
    biases = np.split(params["output_bias"], cfg.cutoffs) if cfg.shrink > 1 else [params["output_bias"]]
    out = {}
    for i, (table, bias) in enumerate(zip(tables, biases, strict=True)):
        out |= {f"{WORDS}.emb_layers.{i}.weight": table,
                f"{CRIT}.out_layers.{i}.weight": table, f"{CRIT}.out_layers.{i}.bias": bias}
    if cfg.cutoffs:
        out |= {f"{CRIT}.cluster_weight": params["clusters"]["w"], f"{CRIT}.cluster_bias": params["clusters"]["b"]}
    for i, projection in enumerate(params["projections"] if cfg.shrink > 1 else []):
        out |= {f"{WORDS}.emb_projs.{i}": projection.T,
                f"{CRIT}.out_projs.{i}": (projection if i else params["output_projection"]).T}
    return out


def _tables(cfg: TransformerXlConfig) -> range:
    """Numbers of their embedding tables: one for each cluster only where widths differ."""
    return range(len(cfg.words.ranges) if cfg.shrink > 1 else 1)


def _copies(cfg: TransformerXlConfig) -> dict[str, str]:
    """Names of theirs that hold what another name holds, which a file may leave out: the tied output layer, and one u and w for
    each layer that all share."""
    tables = _tables(cfg)
    out = {f"{CRIT}.out_layers.{i}.weight": f"{WORDS}.emb_layers.{i}.weight" for i in tables}
    out |= {f"{CRIT}.out_projs.{i}": f"{WORDS}.emb_projs.{i}" for i in tables[1:]}
    if not cfg.untie_r:
        out |= {_name(i, f"dec_attn.{theirs}"): f"transformer.{theirs}" for i in range(cfg.layers) for theirs in POSITION.values()}
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
    """Every name of theirs has one place, every place one name, the shapes agree, and copies are equal."""
    specs = transformer_xl.specs(cfg)
    if specs["layers"]["memory"]:
        raise UserError(f"a Transformer-XL has no weights for {cfg.memory}; convert with an XlConfig")
    expected = to_transfo_xl(P.map_specs(lambda s: np.broadcast_to(np.float32(0), s.shape), specs), cfg)
    copies = _copies(cfg)
    told = {copy: expected[name].shape for copy, name in copies.items() if copy not in weights}
    names.check(told | names.shapes(weights), names.shapes(expected), _wanted(cfg))
    for copy, name in copies.items():
        if copy in weights and not np.array_equal(weights[copy], weights[name]):
            raise UserError(f"{copy} differs from {name}; only models in which the two are the same array can be converted")


def _wanted(cfg: TransformerXlConfig) -> str:
    return f"a Transformer-XL of {cfg.layers} layers with untie_r={cfg.untie_r}, cutoffs={cfg.cutoffs}, shrink={cfg.shrink}"
