"""GPT-2 of the Hugging Face library <-> `models/rmt.py` around a decoder of style GPT2: the same arrays, other names, exactly.

Their names, with or without "transformer." in front, and ours inside `params["model"]`. Those of h.N are in `layers[0]`, stacked
on a leading axis:

    wte.weight [V, D]                    words.embedding        wpe.weight [P, D]          positions
    h.N.ln_1.weight, .bias               segment.norm           h.N.ln_2.weight, .bias     feed_forward.norm
    h.N.attn.c_attn.weight [D, 3 D]      segment.q, .k, .v      h.N.attn.c_proj.weight     segment.o
    h.N.mlp.c_fc.weight [D, F]           feed_forward.up        h.N.mlp.c_proj.weight      feed_forward.down
    ln_f.weight, .bias                   norm

Their Conv1D weights are (in, out), like ours. The output layer is the embedding in both, so lm_head.weight is not stored twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.models import rmt
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2

PREFIX = "transformer."
NORMS = {("segment", "norm"): "ln_1", ("feed_forward", "norm"): "ln_2"}
DENSE = {("segment", "o"): "attn.c_proj", ("feed_forward", "up"): "mlp.c_fc", ("feed_forward", "down"): "mlp.c_proj"}
# What a decoder of another kind would say; each must have this value for the two models to be the same function.
FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True}


def config_of(theirs: Mapping[str, Any], segment: int, tokens: int, **options) -> RmtConfig:
    """Our config for the fields of their config.json.

    segment: tokens of a segment. tokens, options: of `RmtConfig`; GPT-2 has neither. Raises ValueError naming the field where their
    model is another function, or has too few positions.
    """
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{name}={theirs[name]!r}: only GPT-2 with {name}={value!r} can be converted")
    inside = LanguageModelConfig(
        vocabulary=theirs["vocab_size"], width=theirs["n_embd"], layers=theirs["n_layer"],
        head_dim=theirs["n_embd"] // theirs["n_head"], hidden=theirs.get("n_inner") or 4 * theirs["n_embd"], segment=segment,
        style=GPT2, positions=theirs["n_positions"], pattern=(SegmentConfig(),))
    return RmtConfig(inside, tokens, **options)


def from_gpt2(tensors: Mapping[str, Any], cfg: RmtConfig, key: jax.Array) -> dict:
    """Our parameters from their state dict, as anything that `numpy.asarray` takes.

    key: typed PRNG key of the memory tokens, which GPT-2 does not have; drawn with the standard deviation of its word embeddings.
    Raises ValueError naming the array where one is missing, left over, or of another shape, and for an output layer of its own.
    """
    _check_output(cfg)
    given = {name.removeprefix(PREFIX): np.asarray(array) for name, array in tensors.items()}
    given = {name: array for name, array in given.items() if not _left_out(name)}
    shapes = {name: array.shape for name, array in _theirs(P.abstract(rmt.specs(cfg))["model"], cfg, _shape).items()}
    _check(given, shapes)
    layers = [_layer(given, f"h.{n}.", cfg) for n in range(cfg.model.layers)]
    model = {
        "words": {"embedding": jnp.asarray(given["wte.weight"])}, "positions": jnp.asarray(given["wpe.weight"]),
        "prefix": {"tokens": jnp.asarray(given["wte.weight"][:0])},
        "layers": (jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *layers),),
        "norm": {"scale": jnp.asarray(given["ln_f.weight"]), "bias": jnp.asarray(given["ln_f.bias"])},
    }
    memory = given["wte.weight"].std() * jax.random.normal(key, (cfg.tokens, cfg.model.width), model["positions"].dtype)
    return {"model": model, "memory": {"tokens": memory}}


def to_gpt2(params: Mapping[str, Any], cfg: RmtConfig) -> dict[str, np.ndarray]:
    """Their state dict from our parameters, names with "transformer." and lm_head.weight; memory tokens are left out.

    Raises ValueError for an output layer of its own.
    """
    _check_output(cfg)
    model = jax.tree.map(np.asarray, params["model"])
    out = {PREFIX + name: array for name, array in _theirs(model, cfg, lambda x: x).items()}
    return out | {"lm_head.weight": model["words"]["embedding"]}


def _check_output(cfg: RmtConfig) -> None:
    if cfg.model.style.embedding != "tied":
        raise ValueError(f"style.embedding={cfg.model.style.embedding!r}: the output layer of GPT-2 is its embedding, 'tied'")


def _left_out(name: str) -> bool:
    """Buffers of masks, and the output layer, which is the embedding again."""
    return name == "lm_head.weight" or name.endswith((".attn.bias", ".attn.masked_bias"))


class _Shape:
    """An array of which only the shape counts."""

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape

    def __getitem__(self, n: int) -> _Shape:
        return _Shape(self.shape[1:])


def _shape(x) -> _Shape:
    return _Shape(tuple(x.shape))


def _join(parts: list, shape: tuple[int, ...]):
    """q, k and v side by side."""
    if isinstance(parts[0], _Shape):
        return _Shape(shape)
    return np.concatenate([part.reshape(*shape[:-1], -1) for part in parts], axis=-1)


def _theirs(model: Mapping[str, Any], cfg: RmtConfig, leaf) -> dict[str, Any]:
    """Their names -> arrays (or shapes) made of ours."""
    own, d = jax.tree.map(leaf, model), cfg.model.width
    out = {"wte.weight": own["words"]["embedding"], "wpe.weight": own["positions"],
           "ln_f.weight": own["norm"]["scale"], "ln_f.bias": own["norm"]["bias"]}
    for n in range(cfg.model.layers):
        layers, front = own["layers"][0], f"h.{n}."
        for (branch, ours), name in NORMS.items():
            norm = layers[branch][ours]
            out |= {f"{front}{name}.weight": norm["scale"][n], f"{front}{name}.bias": norm["bias"][n]}
        for (branch, ours), name in DENSE.items():
            dense = layers[branch][ours]
            out |= {f"{front}{name}.weight": dense["w"][n], f"{front}{name}.bias": dense["b"][n]}
        attention = layers["segment"]
        out[f"{front}attn.c_attn.weight"] = _join([attention[name]["w"][n] for name in "qkv"], (d, 3 * d))
        out[f"{front}attn.c_attn.bias"] = _join([attention[name]["b"][n] for name in "qkv"], (3 * d,))
    return out


def _check(given: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    missing, more = sorted(shapes.keys() - given.keys()), sorted(given.keys() - shapes.keys())
    if missing:
        raise ValueError(f"GPT-2 arrays are missing: {', '.join(missing[:3])}{' ...' if missing[3:] else ''}")
    if more:
        raise ValueError(f"these are no arrays of a GPT-2 with the given config: {', '.join(more[:3])}{' ...' if more[3:] else ''}")
    for name, shape in shapes.items():
        if given[name].shape != shape:
            raise ValueError(f"{name} has shape {given[name].shape}, the config asks for {shape}")


def _layer(given: Mapping[str, np.ndarray], front: str, cfg: RmtConfig) -> dict:
    """One layer of ours."""
    of = lambda name: (given[f"{front}{name}.weight"], given[f"{front}{name}.bias"])
    out = {"segment": {}, "feed_forward": {}}
    for (branch, ours), name in NORMS.items():
        out[branch][ours] = dict(zip(("scale", "bias"), of(name), strict=True))
    for (branch, ours), name in DENSE.items():
        out[branch][ours] = dict(zip("wb", of(name), strict=True))
    weights, biases = (np.split(part, 3, axis=-1) for part in of("attn.c_attn"))
    heads = (cfg.stack.b.heads, cfg.model.head_dim)
    for name, w, b in zip("qkv", weights, biases, strict=True):
        out["segment"][name] = {"w": w.reshape(cfg.model.width, *heads), "b": b.reshape(heads)}
    return out
