"""GPT-2 of the Hugging Face library <-> `models/recurrent.py`: the same arrays under other names, exactly.

Their names, with or without "transformer." in front, and ours inside `params["decoder"]` (layers are stacked on a leading axis):

    wte.weight [V, D]                    embedding              wpe.weight [P, D]          positions
    h.N.ln_1.weight, .bias               norm_attention         h.N.ln_2.weight, .bias     norm_mlp
    h.N.attn.c_attn.weight [D, 3 D]      q, k, v                h.N.attn.c_proj.weight     o
    h.N.mlp.c_fc.weight [D, F]           up                     h.N.mlp.c_proj.weight      down
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
from memtok_jax.models import recurrent
from memtok_jax.models.recurrent import RecurrentConfig

PREFIX = "transformer."
NORMS = {"norm_attention": "ln_1", "norm_mlp": "ln_2"}
DENSE = {"o": "attn.c_proj", "up": "mlp.c_fc", "down": "mlp.c_proj"}
# What a decoder of another kind would say; each must have this value for the two models to be the same function.
FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True}


def config_of(theirs: Mapping[str, Any], segment: int, tokens: int, **options) -> RecurrentConfig:
    """Our config for the fields of their config.json.

    segment, tokens, options: of `RecurrentConfig`, what GPT-2 does not have. Raises ValueError naming the field where their
    model is another function, or has too few positions.
    """
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise ValueError(f"{name}={theirs[name]!r}: only GPT-2 with {name}={value!r} can be converted")
    return RecurrentConfig(
        vocabulary=theirs["vocab_size"], width=theirs["n_embd"], layers=theirs["n_layer"],
        head_dim=theirs["n_embd"] // theirs["n_head"], hidden=theirs.get("n_inner") or 4 * theirs["n_embd"], segment=segment,
        tokens=tokens, positions=theirs["n_positions"], scaled=False, **options)


def from_gpt2(tensors: Mapping[str, Any], cfg: RecurrentConfig, key: jax.Array) -> dict:
    """Our parameters from their state dict, as anything that `numpy.asarray` takes.

    key: typed PRNG key of the memory tokens, which GPT-2 does not have; drawn with the standard deviation of its word embeddings.
    Raises ValueError naming the array where one is missing, left over, or of another shape, and for an output layer of its own.
    """
    _check_output(cfg)
    given = {name.removeprefix(PREFIX): np.asarray(array) for name, array in tensors.items()}
    given = {name: array for name, array in given.items() if not _left_out(name)}
    shapes = {name: array.shape for name, array in _theirs(P.abstract(recurrent.specs(cfg))["decoder"], cfg, _shape).items()}
    _check(given, shapes)
    layers = [_layer(given, f"h.{n}.", cfg) for n in range(cfg.layers)]
    decoder = {
        "embedding": jnp.asarray(given["wte.weight"]), "positions": jnp.asarray(given["wpe.weight"]),
        "layers": jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *layers),
        "norm": {"scale": jnp.asarray(given["ln_f.weight"]), "bias": jnp.asarray(given["ln_f.bias"])},
    }
    memory = given["wte.weight"].std() * jax.random.normal(key, (cfg.tokens, cfg.width), decoder["embedding"].dtype)
    return {"decoder": decoder, "memory": {"tokens": memory}}


def to_gpt2(params: Mapping[str, Any], cfg: RecurrentConfig) -> dict[str, np.ndarray]:
    """Their state dict from our parameters, names with "transformer." and lm_head.weight; memory tokens are left out.

    Raises ValueError for an output layer of its own.
    """
    _check_output(cfg)
    decoder = jax.tree.map(np.asarray, params["decoder"])
    out = {PREFIX + name: array for name, array in _theirs(decoder, cfg, lambda x: x).items()}
    return out | {"lm_head.weight": decoder["embedding"]}


def _check_output(cfg: RecurrentConfig) -> None:
    if not cfg.tied:
        raise ValueError("tied=False: the output layer of GPT-2 is its embedding")


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


def _theirs(decoder: Mapping[str, Any], cfg: RecurrentConfig, leaf) -> dict[str, Any]:
    """Their names -> arrays (or shapes) made of ours."""
    own = jax.tree.map(leaf, decoder)
    out = {"wte.weight": own["embedding"], "wpe.weight": own["positions"],
           "ln_f.weight": own["norm"]["scale"], "ln_f.bias": own["norm"]["bias"]}
    for n in range(cfg.layers):
        layers, front, d = own["layers"], f"h.{n}.", cfg.width
        for ours, name in NORMS.items():
            out |= {f"{front}{name}.weight": layers[ours]["scale"][n], f"{front}{name}.bias": layers[ours]["bias"][n]}
        for ours, name in DENSE.items():
            out |= {f"{front}{name}.weight": layers[ours]["w"][n], f"{front}{name}.bias": layers[ours]["b"][n]}
        out[f"{front}attn.c_attn.weight"] = _join([layers[name]["w"][n] for name in "qkv"], (d, 3 * d))
        out[f"{front}attn.c_attn.bias"] = _join([layers[name]["b"][n] for name in "qkv"], (3 * d,))
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


def _layer(given: Mapping[str, np.ndarray], front: str, cfg: RecurrentConfig) -> dict:
    """One layer of ours."""
    of = lambda name: (given[f"{front}{name}.weight"], given[f"{front}{name}.bias"])
    out = {ours: dict(zip(("scale", "bias"), of(name), strict=True)) for ours, name in NORMS.items()}
    out |= {ours: dict(zip("wb", of(name), strict=True)) for ours, name in DENSE.items()}
    weights, biases = (np.split(part, 3, axis=-1) for part in of("attn.c_attn"))
    heads = (cfg.decoder.heads, cfg.head_dim)
    for name, w, b in zip("qkv", weights, biases, strict=True):
        out[name] = {"w": w.reshape(cfg.width, *heads), "b": b.reshape(heads)}
    return out
