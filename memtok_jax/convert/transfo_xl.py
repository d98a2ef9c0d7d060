"""Transformer-XL weights of Hugging Face `transformers` (TransfoXLLMHeadModel, up to 4.57) as ours, and back.

Their names and ours, for layer i (a matrix of theirs is [out, in], of ours [in, out]); ours are paths in the parameters of a
`LanguageModelConfig` whose pattern is one `CachedConfig` with an `XlConfig`:

| theirs | ours |
|---|---|
| transformer.word_emb.emb_layers.c.weight, crit.out_layers.c.weight (the same) | words.embedding, of cluster c |
| crit.out_layers.c.bias                                    | words.output_bias, in order |
| crit.cluster_weight, cluster_bias                         | words.clusters w, b |
| transformer.word_emb.emb_projs.c, crit.out_projs.c (the same for c > 0) | words.projections of cluster c |
| crit.out_projs.0                                          | words.output_projection |
| transformer.r_w_bias, r_r_bias (untied: layers.i.dec_attn.*) | position content, distance (untied: layers.0.cached.position) |
| layers.i.dec_attn.qkv_net.weight [3HK, D]                 | layers.0.cached q, k, v: w [L, D, H, K] |
| layers.i.dec_attn.r_net.weight, o_net.weight              | layers.0.cached position.w, o.w |
| layers.i.dec_attn.layer_norm, pos_ff.layer_norm           | layers.0.cached.norm, layers.0.feed_forward.norm |
| layers.i.pos_ff.CoreNet.0, CoreNet.3                      | layers.0.feed_forward up, down |

Their config and ours: d_inner is `hidden`, pre_lnorm is style.order="pre", untie_r is style.shared_position=False, clamp_len <= 0
is style.clamp=0, same_length is same_length="compat", div_val is `shrink`. Their cache is written after each call; ours after each
`segment` tokens. Their cache starts with mem_len slots of zeros unless they are given an empty one; ours starts empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import jax
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import names
from memtok_jax.memory.xl import XlConfig
from memtok_jax.models import language_model
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.cached import CachedConfig
from memtok_jax.models.style import TRANSFORMER_XL

WORDS, CRIT = "transformer.word_emb", "crit"
POSITION = {"content": "r_w_bias", "distance": "r_r_bias"}
FREQUENCIES = "transformer.pos_emb.inv_freq"


def from_transfo_xl(weights: Mapping[str, np.ndarray], cfg: LanguageModelConfig) -> P.Tree:
    """Our parameters, as NumPy arrays in float32, or in float64 if theirs are.

    weights: their state_dict as NumPy arrays, in any wrapper that `names.PARTS` lists. cfg: our config of the same model, without
    learnt compression. Raises UserError naming what is missing, what has no place, and what has another shape than cfg says.
    """
    weights = names.pick(weights, (f"{WORDS}.emb_layers.0.weight",))
    weights = names.floats({name: array for name, array in weights.items() if name != FREQUENCIES})
    _check(weights, cfg)
    layers = [_layer_from(weights, i, cfg) for i in range(cfg.layers)]
    out = {"words": _words_from(weights, cfg), "layers": (jax.tree.map(lambda *leaves: np.stack(leaves), *layers),),
           "prefix": {"tokens": np.zeros((0, cfg.width), layers[0]["cached"]["o"]["w"].dtype)}}
    if cfg.style.shared_position:
        out["position"] = {ours: np.asarray(weights[f"transformer.{theirs}"]) for ours, theirs in POSITION.items()}
    return out


def to_transfo_xl(params: P.Tree, cfg: LanguageModelConfig) -> dict[str, np.ndarray]:
    """Their state_dict, without what follows from the config (the frequencies of the positions)."""
    params = jax.tree.map(np.asarray, params)
    out = _words_to(params["words"], cfg)
    for i in range(cfg.layers):
        out |= _layer_to(jax.tree.map(lambda x, i=i: x[i], params["layers"][0]), i, cfg)
        for ours, theirs in POSITION.items():
            if cfg.style.shared_position:
                out[f"transformer.{theirs}"] = params["position"][ours]
                out[_name(i, f"dec_attn.{theirs}")] = params["position"][ours]
    return out


def _words_from(weights: Mapping[str, np.ndarray], cfg: LanguageModelConfig) -> P.Tree:
    """Our embeddings and output layer."""
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


def _words_to(params: P.Tree, cfg: LanguageModelConfig) -> dict[str, np.ndarray]:
    """Their embeddings and output layer."""
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


def _tables(cfg: LanguageModelConfig) -> range:
    """Numbers of their embedding tables: one for each cluster if the widths of clusters differ, else one."""
    return range(len(cfg.words.ranges) if cfg.shrink > 1 else 1)


def _copies(cfg: LanguageModelConfig) -> dict[str, str]:
    """Copy -> original, for names of theirs that repeat another array: the tied output layer, and the position biases of each layer
    if all layers share them. A file may leave the copies out."""
    tables = _tables(cfg)
    out = {f"{CRIT}.out_layers.{i}.weight": f"{WORDS}.emb_layers.{i}.weight" for i in tables}
    out |= {f"{CRIT}.out_projs.{i}": f"{WORDS}.emb_projs.{i}" for i in tables[1:]}
    if cfg.style.shared_position:
        out |= {_name(i, f"dec_attn.{theirs}"): f"transformer.{theirs}" for i in range(cfg.layers) for theirs in POSITION.values()}
    return out


def _name(i: int, rest: str) -> str:
    return f"transformer.layers.{i}.{rest}"


def _layer_from(weights: Mapping[str, np.ndarray], i: int, cfg: LanguageModelConfig) -> P.Tree:
    """Our parameters of one layer."""
    get = lambda rest: np.asarray(weights[_name(i, rest)])
    heads = lambda matrix: matrix.T.reshape(cfg.width, cfg.heads, cfg.head_dim)
    norm = lambda rest: {"scale": get(f"{rest}.layer_norm.weight"), "bias": get(f"{rest}.layer_norm.bias")}
    dense = lambda rest: {"w": get(f"{rest}.weight").T, "b": get(f"{rest}.bias")}
    position = {} if cfg.style.shared_position else {ours: get(f"dec_attn.{theirs}") for ours, theirs in POSITION.items()}
    projections = zip("qkv", np.split(get("dec_attn.qkv_net.weight"), 3), strict=True)
    attention = {name: {"w": heads(part)} for name, part in projections} | {
        "o": {"w": get("dec_attn.o_net.weight").T}, "position": {"w": heads(get("dec_attn.r_net.weight"))} | position}
    return {"cached": attention | {"norm": norm("dec_attn"), "memory": {}},
            "feed_forward": {"up": dense("pos_ff.CoreNet.0"), "down": dense("pos_ff.CoreNet.3"), "norm": norm("pos_ff")}}


def _layer_to(layer: P.Tree, i: int, cfg: LanguageModelConfig) -> dict[str, np.ndarray]:
    """Their arrays of one layer."""
    matrix = lambda w: w.reshape(cfg.width, -1).T
    attention, feed_forward = layer["cached"], layer["feed_forward"]
    out = {"dec_attn.qkv_net.weight": np.concatenate([matrix(attention[name]["w"]) for name in "qkv"]),
           "dec_attn.r_net.weight": matrix(attention["position"]["w"]), "dec_attn.o_net.weight": attention["o"]["w"].T}
    for ours, theirs in (("up", "pos_ff.CoreNet.0"), ("down", "pos_ff.CoreNet.3")):
        out |= {f"{theirs}.weight": feed_forward[ours]["w"].T, f"{theirs}.bias": feed_forward[ours]["b"]}
    for part, theirs in ((attention, "dec_attn"), (feed_forward, "pos_ff")):
        out |= {f"{theirs}.layer_norm.weight": part["norm"]["scale"], f"{theirs}.layer_norm.bias": part["norm"]["bias"]}
    if not cfg.style.shared_position:
        out |= {f"dec_attn.{theirs}": attention["position"][ours] for ours, theirs in POSITION.items()}
    return {_name(i, rest): value for rest, value in out.items()}


def _check_config(cfg: LanguageModelConfig) -> None:
    """Raise UserError unless their model has a place for each parameter of ours."""
    if len(cfg.pattern) != 1 or not isinstance(cfg.pattern[0], CachedConfig) or not isinstance(cfg.pattern[0].memory, XlConfig):
        raise UserError(f"a Transformer-XL has no weights for pattern={cfg.pattern}; "
                        "convert with an XlConfig in one CachedConfig")
    free = {name: getattr(cfg.style, name) for name in ("order", "shared_position", "clamp", "std", "distance_std")}
    if cfg.style != replace(TRANSFORMER_XL, **free) or cfg.prefix:
        raise UserError(f"a Transformer-XL has another backbone than {cfg.style} with prefix={cfg.prefix}; "
                        f"convert with style.TRANSFORMER_XL, of which {', '.join(free)} may differ, and prefix=0")


def _check(weights: Mapping[str, np.ndarray], cfg: LanguageModelConfig) -> None:
    """Raise UserError unless every name of theirs has one place, every place one name, shapes agree, and copies are equal."""
    _check_config(cfg)
    specs = language_model.specs(cfg)
    expected = to_transfo_xl(P.map_specs(lambda s: np.broadcast_to(np.float32(0), s.shape), specs), cfg)
    copies = _copies(cfg)
    told = {copy: expected[name].shape for copy, name in copies.items() if copy not in weights}
    names.check(told | names.shapes(weights), names.shapes(expected), _wanted(cfg))
    for copy, name in copies.items():
        if copy in weights and not np.array_equal(weights[copy], weights[name]):
            raise UserError(f"{copy} differs from {name}; only models in which the two are the same array can be converted")


def _wanted(cfg: LanguageModelConfig) -> str:
    return (f"a Transformer-XL of {cfg.layers} layers with style.shared_position={cfg.style.shared_position}, "
            f"cutoffs={cfg.cutoffs}, shrink={cfg.shrink}")
