"""GPT-2 of the Hugging Face library <-> `models/rmt.py`: the same arrays under other names, exactly.

`TOP`, `OUTPUT` and `LAYER` are the whole map. Their Conv1D weights are (in, out), like ours. Their output layer is the embedding
(`tied=True`) unless the file holds another lm_head.weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import names, tensor_files
from memtok_jax.models import rmt
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2

PREFIX, WORDS, OUTPUT = "transformer.", "wte.weight", "lm_head.weight"

# Their name -> ours inside `params["model"]`. If ours are several, theirs holds them side by side on its last axis.
TOP = {WORDS: ("words/embedding",), "wpe.weight": ("positions",), "ln_f.weight": ("norm/scale",), "ln_f.bias": ("norm/bias",)}
LAYER = {                       # "h.N." before theirs; ours are stacked on a leading axis in "layers"
    "ln_1.weight": ("segment/norm/scale",), "ln_1.bias": ("segment/norm/bias",),
    "ln_2.weight": ("feed_forward/norm/scale",), "ln_2.bias": ("feed_forward/norm/bias",),
    "attn.c_attn.weight": ("segment/q/w", "segment/k/w", "segment/v/w"),
    "attn.c_attn.bias": ("segment/q/b", "segment/k/b", "segment/v/b"),
    "attn.c_proj.weight": ("segment/o/w",), "attn.c_proj.bias": ("segment/o/b",),
    "mlp.c_fc.weight": ("feed_forward/up/w",), "mlp.c_fc.bias": ("feed_forward/up/b",),
    "mlp.c_proj.weight": ("feed_forward/down/w",), "mlp.c_proj.bias": ("feed_forward/down/b",),
}
# Fields of their config that change the function; it is the same as ours only if each has this value.
FIXED = {"activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
         "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
SIZES = ("vocab_size", "n_embd", "n_layer", "n_head", "n_positions")


def load_gpt2(source: str | Path, segment: int, tokens: int, key: jax.Array, **options) -> tuple[dict, RmtConfig]:
    """(parameters, config) of a checkpoint: a file or a folder, with their config.json beside the weights.

    The output layer is tied if the file has none or one that equals the embedding, and config.json does not say otherwise.
    segment, tokens, options: as in `config_of`. key: as in `from_gpt2`. Raises UserError naming what is wrong.
    """
    path = Path(source)
    file = (path if path.is_dir() else path.parent) / "config.json"
    tensors = tensor_files.read(path)
    if not file.is_file():
        raise UserError(f"{file} does not exist; the number of heads is told nowhere else")
    theirs = tensor_files.read_json(file)
    given = _pick(tensors)
    if OUTPUT in given and WORDS in given and not np.array_equal(given[OUTPUT], given[WORDS]):
        theirs |= {"tie_word_embeddings": False}
    cfg = config_of(theirs, segment, tokens, **options)
    return from_gpt2(tensors, cfg, key), cfg


def config_of(theirs: Mapping[str, Any], segment: int, tokens: int, **options) -> RmtConfig:
    """Our config for the fields of their config.json.

    segment, tokens, options: fields of `RmtConfig` that GPT-2 does not have. Raises UserError naming the field if their
    model computes another function, or has too few positions.
    """
    for name, value in FIXED.items():
        if theirs.get(name, value) != value:
            raise UserError(f"{name}={theirs[name]!r}: only GPT-2 with {name}={value!r} can be converted")
    for name in SIZES:
        if type(theirs.get(name)) is not int or theirs[name] < 1:
            raise UserError(f"{name}={theirs.get(name)!r}: the config of a GPT-2 must have a whole number above 0 there")
    style = replace(GPT2, embedding="tied" if theirs.get("tie_word_embeddings", True) else "matrix")
    inside = LanguageModelConfig(
        vocabulary=theirs["vocab_size"], width=theirs["n_embd"], layers=theirs["n_layer"],
        head_dim=theirs["n_embd"] // theirs["n_head"], hidden=theirs.get("n_inner") or 4 * theirs["n_embd"], segment=segment,
        positions=theirs["n_positions"], style=style, pattern=(SegmentConfig(),))
    return RmtConfig(inside, tokens, **options)


def from_gpt2(tensors: Mapping[str, Any], cfg: RmtConfig, key: jax.Array) -> dict:
    """Our parameters from their state dict.

    tensors: name -> anything that `numpy.asarray` takes; names may have any wrapper that `names.PARTS` lists. key: typed PRNG key
    of the memory tokens, which GPT-2 does not have; they are drawn with the standard deviation of its word embeddings.
    Half precision becomes float32. Raises UserError naming the array if one is missing, left over, or of another shape, and if
    the output layer is not the embedding although cfg says so.
    """
    specs = P.abstract(rmt.specs(cfg))["model"]
    given = names.floats(_pick(tensors))
    names.check(names.shapes(given), _shapes(specs, cfg) | ({OUTPUT: given[WORDS].shape} if _twice(given, cfg) else {}),
                f"a GPT-2 of {cfg.model.layers} layers")
    if _twice(given, cfg) and not np.array_equal(given[OUTPUT], given[WORDS]):
        raise UserError(f"{OUTPUT} differs from {WORDS}: the output layer is not the embedding; set "
                        "style.embedding='matrix' in the config")
    layers = [_from(given, LAYER, specs["layers"][0], f"h.{n}.") for n in range(cfg.model.layers)]
    model = _from(given, TOP, specs) | {"layers": (jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays)), *layers),)}
    model["prefix"] = {"tokens": np.zeros(specs["prefix"]["tokens"].shape, given[WORDS].dtype)}
    if not _tied(cfg):
        model["words"]["output"] = given[OUTPUT].T
    model = jax.tree.map(jnp.asarray, model)
    memory = given[WORDS].std() * jax.random.normal(key, (cfg.tokens, cfg.model.width), model["words"]["embedding"].dtype)
    return {"model": model, "memory": {"tokens": memory}}


def to_gpt2(params: Mapping[str, Any], cfg: RmtConfig) -> dict[str, np.ndarray]:
    """Their state dict from our parameters: names that begin with "transformer.", and lm_head.weight; without memory tokens."""
    model = jax.tree.map(np.asarray, params["model"])
    out = _to(model, TOP)
    for n in range(cfg.model.layers):
        out |= _to(jax.tree.map(lambda x, n=n: x[n], model["layers"][0]), LAYER, f"h.{n}.")
    return {PREFIX + name: array for name, array in out.items()} | {
        OUTPUT: model["words"]["embedding"] if _tied(cfg) else model["words"]["output"].T}


def _tied(cfg: RmtConfig) -> bool:
    """Whether the output layer is the embedding."""
    return cfg.model.style.embedding == "tied"


def _pick(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of a GPT-2 without prefixes and without the buffers of its masks."""
    return {name: array for name, array in names.pick(tensors, (WORDS,)).items()
            if not name.endswith((".attn.bias", ".attn.masked_bias"))}


def _twice(given: Mapping[str, Any], cfg: RmtConfig) -> bool:
    """Whether the file holds an output layer although the embedding serves as one."""
    return _tied(cfg) and OUTPUT in given and WORDS in given


def _shapes(specs: Mapping[str, Any], cfg: RmtConfig) -> dict[str, tuple[int, ...]]:
    """Their names -> shapes."""
    empty = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), specs)
    layer = names.shapes(_to(jax.tree.map(lambda x: x[0], empty["layers"][0]), LAYER))
    out = names.shapes(_to(empty, TOP)) | {f"h.{n}.{name}": shape for n in range(cfg.model.layers) for name, shape in layer.items()}
    return out if _tied(cfg) else out | {OUTPUT: empty["words"]["output"].T.shape}


def _at(tree: Mapping[str, Any], path: str) -> Any:
    for part in path.split("/"):
        tree = tree[part]
    return tree


def _to(ours: Mapping[str, Any], table: Mapping[str, tuple[str, ...]], front: str = "") -> dict[str, np.ndarray]:
    """Their arrays from ours. A weight has its inputs on the first axis and its outputs on the second; a bias has one axis."""
    flat = lambda path, x: x.reshape(len(x), -1) if path.endswith("/w") else x.reshape(-1) if path.endswith("/b") else x
    return {front + theirs: np.concatenate([flat(path, _at(ours, path)) for path in paths], axis=-1)
            for theirs, paths in table.items()}


def _from(given: Mapping[str, np.ndarray], table: Mapping[str, tuple[str, ...]], specs: Mapping[str, Any], front: str = "") -> dict:
    """Our arrays from theirs. specs: of the same tree; with a `front` (layers), each shape begins with the number of layers."""
    out: dict[str, Any] = {}
    for theirs, paths in table.items():
        for path, part in zip(paths, np.split(given[front + theirs], len(paths), axis=-1), strict=True):
            *groups, last = path.split("/")
            node = out
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = part.reshape(_at(specs, path).shape[1 if front else 0:])
    return out
