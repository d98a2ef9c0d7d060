"""Checkpoints of vision transformers <-> `models/vision`: the layout is found by its names, the config by its shapes.

    checkpoint = load_vit("dinov2_vits14_reg4.safetensors")
    out = vit.features(checkpoint.params, images, checkpoint.config)
    save_vit("timm.safetensors", checkpoint, "timm")

What weights do not tell is assumed, and may be given: heads of 64 features, LayerNorm's epsilon, and how positions are resized:

| checkpoint                        | interpolation | epsilon |
|-----------------------------------|---------------|---------|
| with registers; all of timm       | size_aa       | 1e-6    |
| transformers without registers    | size_noaa     | 1e-6    |
| facebookresearch without registers | offset_noaa  | 1e-6    |
| DINOv3                            | (no table)    | 1e-5    |

Every array of a file must have its place, and every place its array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import tensor_files
from memtok_jax.convert.vit_layouts import LAYOUTS, detect, feed_forward_of, layers_of, names, usual_name
from memtok_jax.models.vision import block, vit
from memtok_jax.models.vision.config import VitConfig

Plain = dict[str, np.ndarray]  # plain name (see vit_layouts.py) -> array in torch's shape; tokens are [rows, D]

HEAD_DIM = 64
TOKENS = ("class", "registers", "mask", "positions")


class VitCheckpoint(NamedTuple):
    """A model out of a file."""

    params: Any                 # as `vit.specs(config)` says, float32
    config: VitConfig
    head: dict[str, jax.Array]  # classifier: "w" [features, classes], "b" [classes]; empty where the file has none
    layout: str


def load_vit(source: str | Path | Mapping[str, Any], **options) -> VitCheckpoint:
    """A checkpoint as parameters and config.

    source: a `.safetensors` or `.pth` file, a folder of `.safetensors` files (with transformers' config.json or without), or names
    with arrays. options: fields of `VitConfig`; those that the weights tell must agree with them.
    Raises UserError naming the file's fault, the arrays that are missing or left over, or the option that disagrees.
    """
    if isinstance(source, (str, Path)):
        return load_vit(tensor_files.read(source), **(_folder_options(Path(source)) | options))
    given = _by_usual_name(source)
    layout = detect(given)
    plain = unpack(given, layout)
    cfg = config_of(plain, layout, options)
    _check(plain, cfg, layout)
    head = {ours: jnp.asarray(plain[f"head.{theirs}"].T, jnp.float32) for ours, theirs in (("w", "weight"), ("b", "bias"))
            if f"head.{theirs}" in plain}
    return VitCheckpoint(params_of(plain, cfg), cfg, head, layout)


def _by_usual_name(source: Mapping[str, Any]) -> dict[str, np.ndarray]:
    given: dict[str, np.ndarray] = {}
    for name, array in source.items():
        usual = usual_name(name)
        if usual in given:
            raise UserError(f"the checkpoint holds several models: {name!r} and another array both stand for {usual!r}")
        given[usual] = np.asarray(array)
    return given


def _folder_options(path: Path) -> dict[str, Any]:
    """What the config.json of transformers says beside the weights that these do not tell."""
    file = path / "config.json"
    if not (path.is_dir() and file.exists()):
        return {}
    try:
        theirs = dict(json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is damaged ({error})") from None
    activation = "silu" if theirs.get("use_gated_mlp") else "gelu"
    if theirs.get("hidden_act", activation) != activation:
        raise UserError(f"{file}: hidden_act={theirs['hidden_act']!r}; only {activation!r} can be converted")
    known = {"heads": "num_attention_heads", "epsilon": "layer_norm_eps", "rope_base": "rope_theta"}
    return {ours: theirs[name] for ours, name in known.items() if name in theirs}


def save_vit(path: str | Path, checkpoint: VitCheckpoint, layout: str) -> None:
    """Write a checkpoint as a `.safetensors` file in one of the layouts. Raises UserError as `to_layout` does."""
    tensor_files.write_safetensors(path, to_layout(checkpoint, layout))


def to_layout(checkpoint: VitCheckpoint, layout: str) -> dict[str, np.ndarray]:
    """Their names -> arrays.

    A class token's row in the table of positions, which timm lacks, is added to the class token there, and the mask token is left
    out: the same function of images. Raises UserError where a layout cannot say what the model is.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    params, cfg, head, _ = checkpoint
    if layout == "timm" and cfg.prefix_rows == 1 and cfg.table_rows == "cls+patches":
        params, cfg = without_class_row(params, cfg)
    _refuse(cfg, layout)
    plain = plain_of(params, cfg) | {f"head.{theirs}": np.asarray(head[ours]).T for ours, theirs in (("w", "weight"), ("b", "bias"))
                                     if ours in head}
    return pack(plain, cfg, layout)


def without_class_row(params, cfg: VitConfig) -> tuple[Any, VitConfig]:
    """The same model as timm has it: positions of patches only, the class token's added to it once and for all; no mask token."""
    position = params["positions"]
    new = {"class": {"tokens": params["class"]["tokens"] + position["prefix"]}, "mask": {"tokens": params["mask"]["tokens"][:0]},
           "positions": position | {"prefix": position["prefix"][:0]}}
    return params | new, replace(cfg, table_rows="patches", mask_token=False)


# ------------------------------------------------------------------------------------------- their arrays <-> plain ones

def unpack(given: Mapping[str, np.ndarray], layout: str) -> Plain:
    """Plain names -> arrays. Raises UserError where an array has no place in the layout."""
    table = names(layout, feed_forward_of(given, layout), layers_of(given, layout))
    if left := sorted(given.keys() - table.keys()):
        raise UserError(f"{len(left)} arrays have no place in a {layout} model, the first is {left[0]!r}")
    plain = {}
    for theirs in given:
        array, parts = given[theirs], table[theirs]
        if parts[0] in TOKENS:
            array = array.reshape(-1, array.shape[-1])
        if len(array) % len(parts):
            raise UserError(f"{theirs} has {len(array)} rows, which do not divide into {', '.join(parts)}")
        plain |= dict(zip(parts, np.split(array, len(parts)), strict=True))
    return plain


def pack(plain: Plain, cfg: VitConfig, layout: str) -> dict[str, np.ndarray]:
    """Their names -> arrays. Raises UserError where the layout has no name for one."""
    out, used = {}, set()
    ranks = {"class": 3, "registers": 3, "mask": LAYOUTS[layout].mask_rank, "positions": 3}
    for theirs, parts in names(layout, cfg.feed_forward, cfg.layers).items():
        if all(part in plain for part in parts):
            array = np.concatenate([plain[part] for part in parts])
            out[theirs] = array.reshape((1,) * (ranks.get(parts[0], array.ndim) - array.ndim) + array.shape)
            used |= set(parts)
    if left := sorted(plain.keys() - used):
        raise UserError(f"the layout {layout} has no place for {left[0]!r} of this model")
    return out


def _refuse(cfg: VitConfig, layout: str) -> None:
    """What a layout cannot say, though it may have a place for every array."""
    rows, usual = LAYOUTS[layout].table_rows, _interpolation(layout, cfg.registers)
    if cfg.attention != "softmax":
        raise UserError(f"no layout has attention={cfg.attention!r}")
    if (cfg.positions == "rope") != (layout == "dinov3"):
        raise UserError(f"the layout {layout} has no positions={cfg.positions!r}; {'dinov3' if rows else 'the others'} would")
    if rows and cfg.table_rows not in rows or ("cls+patches" in rows and not cfg.class_token):
        raise UserError(f"the layout {layout} has no model with table_rows={cfg.table_rows!r} and class_token={cfg.class_token}")
    if rows and cfg.interpolation != usual:
        raise UserError(f"a {layout} model with {cfg.registers} registers resizes positions by {usual}, this one by "
                        f"{cfg.interpolation}: at other image sizes they would differ")


# ------------------------------------------------------------------------------------------------------ plain ones <-> ours

def plain_of(params, cfg: VitConfig) -> Plain:
    """All arrays of a model under plain names; what it has no rows of is left out."""
    params = jax.tree.map(np.asarray, params)
    out = {name: params[name]["tokens"] for name in ("class", "registers", "mask")}
    if cfg.positions == "table":
        out["positions"] = np.concatenate([params["positions"]["prefix"], params["positions"]["patches"].reshape(-1, cfg.width)])
    out = {name: rows for name, rows in out.items() if len(rows)}
    kernel = params["patch"]["w"].reshape(cfg.patch, cfg.patch, cfg.channels, cfg.width)
    out |= {"patch.weight": kernel.transpose(3, 2, 0, 1), "patch.bias": params["patch"]["b"]}
    out |= {f"{_norm_name(cfg)}.weight": params["norm"]["scale"], f"{_norm_name(cfg)}.bias": params["norm"]["bias"]}
    for name, leaf in zip(_block_names(cfg), jax.tree.leaves(params["layers"]), strict=True):
        for n in range(cfg.layers):
            out[f"layers.{n}.{name}"] = _to_torch(name, leaf[n])
    return out


def params_of(plain: Plain, cfg: VitConfig):
    """Our tree, float32. All plain arrays are there and have the right shapes."""
    get = lambda name: jnp.asarray(plain[name], jnp.float32)
    tokens = lambda name: get(name) if name in plain else jnp.zeros((0, cfg.width), jnp.float32)
    shapes, treedef = jax.tree.flatten(P.abstract(block.specs(cfg)))
    stacked = [jnp.stack([_from_torch(name, get(f"layers.{n}.{name}"), shape.shape) for n in range(cfg.layers)])
               for name, shape in zip(_block_names(cfg), shapes, strict=True)]
    out = {name: {"tokens": tokens(name)} for name in ("class", "registers", "mask")} | {
        "patch": {"w": get("patch.weight").transpose(2, 3, 1, 0).reshape(-1, cfg.width), "b": get("patch.bias")},
        "layers": treedef.unflatten(stacked),
        "norm": {"scale": get(f"{_norm_name(cfg)}.weight"), "bias": get(f"{_norm_name(cfg)}.bias")},
    }
    if cfg.positions == "rope":
        return out
    prefix, patches = jnp.split(get("positions"), [cfg.prefix_rows])
    return out | {"positions": {"prefix": prefix, "patches": patches.reshape(*cfg.grid, cfg.width)}}


def _norm_name(cfg: VitConfig) -> str:
    return "norm_pooled" if cfg.final_norm == "pooled" else "norm"


def _block_names(cfg: VitConfig) -> list[str]:
    """Plain names of a block's arrays, in the order of its leaves: ("attention", "q", "w") is "q.weight"."""
    paths = [[key.key for key in path] for path, _ in jax.tree_util.tree_flatten_with_path(P.abstract(block.specs(cfg)))[0]]
    words = {"w": "weight", "b": "bias", "scale": "weight"}
    return [".".join(words.get(key, key) for key in path if key not in ("attention", "mlp")) for path in paths]


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and not name.startswith("norm")


def _to_torch(name: str, x: np.ndarray) -> np.ndarray:
    """w[in, ...] -> (out, in); everything else -> a vector."""
    return x.reshape(len(x), -1).T if _is_matrix(name) else x.reshape(-1)


def _from_torch(name: str, x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    return (x.T if _is_matrix(name) else x).reshape(shape)


# ------------------------------------------------------------------------------------------------------------- the config

def config_of(plain: Plain, layout: str, options: Mapping[str, Any]) -> VitConfig:
    """The config that the shapes of a checkpoint imply, with `options` for what they leave open."""
    told = _told(plain, layout)
    for name, value in options.items():
        if told.get(name, value) != value:
            raise UserError(f"{name}={value!r} was asked for, but the checkpoint has {name}={told[name]!r}")
    if told["width"] % HEAD_DIM and "heads" not in options:
        raise UserError(f"width {told['width']} does not divide into heads of {HEAD_DIM} features; give heads=NUMBER")
    assumed = {"heads": told["width"] // HEAD_DIM, "epsilon": 1e-5 if layout == "dinov3" else 1e-6,
               "interpolation": _interpolation(layout, told["registers"])}
    table = _table(len(plain["positions"]), layout, told, options) if "positions" in plain else {"grid": (1, 1)}
    try:
        return VitConfig(**(told | assumed | table | dict(options)))
    except (TypeError, ValueError) as error:
        raise UserError(f"the options {dict(options)} do not fit the checkpoint: {error}") from None


def _told(plain: Plain, layout: str) -> dict[str, Any]:
    """What the arrays say of their model."""
    for name in ("patch.weight", "layers.0.down.weight"):
        if name not in plain:
            raise UserError(f"the checkpoint lacks {_their_name(name, layout, plain)!r}")
    width, channels, patch, _ = plain["patch.weight"].shape
    return {
        "width": width, "channels": channels, "patch": patch, "hidden": plain["layers.0.down.weight"].shape[1],
        "layers": 1 + max(int(name.split(".")[1]) for name in plain if name.startswith("layers.")),
        "registers": len(plain.get("registers", ())), "class_token": "class" in plain, "mask_token": "mask" in plain,
        "positions": "rope" if layout == "dinov3" else "table",
        "feed_forward": "swiglu" if "layers.0.gate.weight" in plain else "gelu",
        "layerscale": 1e-5 if "layers.0.scale_attention" in plain else 0.0,
        "qkv_bias": "layers.0.q.bias" in plain, "key_bias": "layers.0.k.bias" in plain or "layers.0.q.bias" not in plain,
        "qk_norm": "layers.0.norm_q.weight" in plain, "final_norm": "pooled" if "norm_pooled.weight" in plain else "tokens",
    }


def _interpolation(layout: str, registers: int) -> str:
    without = {"transformers": "size_noaa", "transformers_hub": "size_noaa", "facebookresearch": "offset_noaa"}
    return "size_aa" if registers else without.get(layout, "size_aa")


def _table(rows: int, layout: str, told: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Who has rows in the table of positions, and the grid of its patches."""
    c, m = int(told["class_token"]), told["registers"]
    prefix = {"cls+patches": c, "patches": 0, "all": c + m}
    for table_rows in LAYOUTS[layout].table_rows:
        patches = rows - prefix[table_rows]
        side = math.isqrt(max(patches, 0))
        grid = tuple(options.get("grid", (side, side)))
        if patches > 0 and math.prod(grid) == patches and options.get("table_rows", table_rows) == table_rows:
            return {"table_rows": table_rows, "grid": grid}
    if "grid" in options:
        raise UserError(f"grid={options['grid']} does not fit the table of positions, which has {rows} rows with {c} class tokens "
                        f"and {m} registers")
    raise UserError(f"the table of positions has {rows} rows, no square of patches with {c} class tokens and {m} registers; if its "
                    "images were not square, give grid=(ROWS, COLUMNS)")


# -------------------------------------------------------------------------------------------------------------- the check

def _check(plain: Plain, cfg: VitConfig, layout: str) -> None:
    """Every array that the config asks for is there, in its shape, and no other."""
    empty = P.map_specs(lambda spec: np.broadcast_to(np.float32(0), spec.shape), vit.specs(cfg))
    expected = {name: array.shape for name, array in plain_of(empty, cfg).items()}
    told = f"a {layout} model of {cfg.layers} layers and {cfg.registers} registers"
    if missing := [name for name in expected if name not in plain]:
        raise UserError(f"the checkpoint lacks {_their_name(missing[0], layout, plain)!r} of {told} ({len(missing)} missing)")
    if extra := [name for name in plain if name not in expected and not name.startswith("head.")]:
        raise UserError(f"{told} has no place for {_their_name(extra[0], layout, plain)!r} ({len(extra)} left over)")
    for name, shape in expected.items():
        if plain[name].shape != shape:
            raise UserError(f"{_their_name(name, layout, plain)} has the shape {plain[name].shape} where {told} has {shape}")


def _their_name(name: str, layout: str, plain: Plain) -> str:
    """The array of theirs that a plain one is part of."""
    feed_forward = "swiglu" if "layers.0.gate.weight" in plain else "gelu"
    layers = 1 + max((int(known.split(".")[1]) for known in [*plain, name] if known.startswith("layers.")), default=0)
    return next(theirs for theirs, parts in names(layout, feed_forward, layers).items() if name in parts)
