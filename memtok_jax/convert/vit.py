"""Checkpoints of vision transformers <-> `models/vision`: names tell the layout, shapes tell the config.

    checkpoint = load_vit("dinov2_vits14_reg4.safetensors")
    out = vit.features(checkpoint.params, images, checkpoint.config)
    save_vit("timm.safetensors", checkpoint, "timm")

Weights do not tell the number of heads and the grid of patches (a table of positions tells their number, but not the shape of the
grid). A config.json beside the weights tells them, or else the caller must. Only facebookresearch/dinov2 builds all of its models
alike: heads of 64 features, square images, ImageNet's mean and deviation. For other models mean and deviation are known only if a
file beside the weights gives them. Interpolation and epsilon are assumed as follows, unless an option or, for epsilon, config.json
gives them:

| checkpoint                        | interpolation | epsilon |
|-----------------------------------|---------------|---------|
| with registers; all of timm       | size_aa       | 1e-6    |
| transformers without registers    | size_noaa     | 1e-6    |
| facebookresearch without registers | offset_noaa  | 1e-6    |
| DINOv3                            | (no table)    | 1e-5    |

Every array of a file must have its place, and every place its array.
"""

from __future__ import annotations

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
from memtok_jax.convert import beside, tensor_files
from memtok_jax.convert import names as file_names
from memtok_jax.convert.beside import Beside
from memtok_jax.convert.vit_layouts import ANCHORS, LAYOUTS, detect, feed_forward_of, layers_of, names, usual_name
from memtok_jax.models.vision import block, vit
from memtok_jax.models.vision.config import VitConfig

Plain = dict[str, np.ndarray]  # plain name (see vit_layouts.py) -> array in torch's shape; tokens are [number, D]

HEAD_DIM = 64    # of all models of facebookresearch/dinov2; for others only a suggestion
IMAGENET = Beside({}, None, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
TOKENS = ("class", "registers", "mask", "positions")


class VitCheckpoint(NamedTuple):
    """A model from a file. mean, std: of each channel of its training images, for pixels in 0 .. 1; None if no file gives them."""

    params: Any                 # as `vit.specs(config)` says, float32
    config: VitConfig
    head: dict[str, jax.Array]  # classifier: "w" [features, classes], "b" [classes]; empty if the file has none
    layout: str
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


def load_vit(source: str | Path | Mapping[str, Any], **options) -> VitCheckpoint:
    """A checkpoint as parameters and config.

    source: a `.safetensors` or `.pth` file, a folder of `.safetensors` files, or name -> array; files in the same folder (see
    `beside.py`) are read too. options: fields of `VitConfig`; a field that the weights tell must agree with them.
    Raises UserError naming the file's fault, the arrays that are missing or left over, the option that disagrees, or the one that
    must be given.
    """
    is_file = isinstance(source, (str, Path))
    tensors, told = (tensor_files.read(source), beside.read(Path(source))) if is_file else (source, beside.NOTHING)
    given = _by_usual_name(file_names.pick(tensors, ANCHORS))
    layout = detect(given)
    plain, rest = unpack(file_names.floats(given), layout)
    cfg = config_of(plain, layout, told, options)
    _check(plain, rest, cfg, layout)
    usual = IMAGENET if LAYOUTS[layout].uniform and cfg.channels == 3 else beside.NOTHING
    mean, std = told.mean or usual.mean, told.std or usual.std
    for values in (mean, std):
        if values is not None and len(values) != cfg.channels:
            raise UserError(f"mean or deviation of the model's images are {values}, but it takes {cfg.channels} channels")
    head = {ours: jnp.asarray(plain[f"head.{theirs}"].T, jnp.float32) for ours, theirs in (("w", "weight"), ("b", "bias"))
            if f"head.{theirs}" in plain}
    return VitCheckpoint(params_of(plain, cfg), cfg, head, layout, mean, std)


def _by_usual_name(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {usual: given[name] for usual, name in file_names.renamed({name: usual_name(name) for name in given}).items()}


def save_vit(path: str | Path, checkpoint: VitCheckpoint, layout: str) -> None:
    """Write a checkpoint as a `.safetensors` file in one of the layouts. Raises UserError as `to_layout` does."""
    tensor_files.write_safetensors(path, to_layout(checkpoint, layout))


def to_layout(checkpoint: VitCheckpoint, layout: str) -> dict[str, np.ndarray]:
    """Their names -> arrays.

    For "timm", the position of the class token is added to the class token and the mask token is left out, because the layout has
    no place for them; the function of images is the same. Raises UserError if the layout cannot represent the model.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} must be one of {', '.join(LAYOUTS)}")
    params, cfg, head = checkpoint[:3]
    if layout == "timm" and cfg.prefix_rows == 1 and cfg.table_rows == "cls+patches":
        params, cfg = without_class_row(params, cfg)
    _refuse(cfg, layout)
    plain = plain_of(params, cfg) | {f"head.{theirs}": np.asarray(head[ours]).T for ours, theirs in (("w", "weight"), ("b", "bias"))
                                     if ours in head}
    return pack(plain, cfg, layout)


def without_class_row(params, cfg: VitConfig) -> tuple[Any, VitConfig]:
    """The same model in timm's form: positions of patches only, that of the class token added to the token; no mask token."""
    position = params["positions"]
    new = {"class": {"tokens": params["class"]["tokens"] + position["prefix"]}, "mask": {"tokens": params["mask"]["tokens"][:0]},
           "positions": position | {"prefix": position["prefix"][:0]}}
    return params | new, replace(cfg, table_rows="patches", mask_token=False)


# ------------------------------------------------------------------------------------------- their arrays <-> plain ones

def unpack(given: Mapping[str, np.ndarray], layout: str) -> tuple[Plain, dict[str, np.ndarray]]:
    """Plain name -> array, and the arrays that have no place in the layout. Raises UserError if an array cannot be divided."""
    table = names(layout, feed_forward_of(given, layout), layers_of(given, layout))
    plain = {}
    for theirs, parts in table.items():
        if theirs not in given:
            continue
        array = given[theirs]
        if parts[0] in TOKENS and array.ndim:
            array = array.reshape(-1, array.shape[-1])
        if len(parts) > 1 and (not array.ndim or len(array) % len(parts)):
            raise UserError(f"{theirs} has the shape {array.shape}, which does not divide into {', '.join(parts)}")
        plain |= dict(zip(parts, np.split(array, len(parts)) if len(parts) > 1 else [array], strict=True))
    return plain, {name: array for name, array in given.items() if name not in table}


def pack(plain: Plain, cfg: VitConfig, layout: str) -> dict[str, np.ndarray]:
    """Their names -> arrays. Raises UserError if the layout has no name for one."""
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
    """Raise UserError for a model that the layout cannot represent, although it may have a place for every array."""
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
    """All arrays of a model under plain names; tokens that it does not have are left out."""
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
    """Our tree, float32, from plain arrays that are complete and have the right shapes."""
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

def config_of(plain: Plain, layout: str, told: Beside, options: Mapping[str, Any]) -> VitConfig:
    """The config that the shapes of a checkpoint imply; files beside it and `options` give what the shapes leave open.

    Raises UserError if the two disagree with the shapes, and if heads or grid are given nowhere.
    """
    shown = _told(plain, layout)
    for origin, fields in (("config.json beside it says", told.fields), ("the option is", options)):
        for name, value in fields.items():
            if shown.get(name, value) != value:
                raise UserError(f"the checkpoint has {name}={shown[name]!r}, but {origin} {name}={value!r}")
    grid = {"grid": tuple(n // shown["patch"] for n in told.size)} if told.size else {}
    likely = _likely(plain, layout, shown)
    given = {**(likely if LAYOUTS[layout].uniform else {}), **grid, **told.fields, **options}
    if missing := [name for name in ("heads", "grid") if name not in given]:
        guess = {"heads": "NUMBER", "grid": "(ROWS, COLUMNS)"} | likely
        raise UserError(f"neither the weights nor a config.json beside them tell {' and '.join(missing)}; give "
                        + " and ".join(f"{name}={guess[name]}" for name in missing)
                        + (", if that is right" if likely.keys() & set(missing) else ""))
    assumed = {"epsilon": 1e-5 if layout == "dinov3" else 1e-6, "interpolation": _interpolation(layout, shown["registers"])}
    table = _table(len(plain["positions"]), layout, shown, given) if "positions" in plain else {}
    try:
        return VitConfig(**(shown | assumed | table | given))
    except (TypeError, ValueError) as error:
        raise UserError(f"the options {given} do not fit the checkpoint: {error}") from None


def _likely(plain: Plain, layout: str, shown: Mapping[str, Any]) -> dict[str, Any]:
    """Heads of 64 features and a square grid, as far as the sizes allow them."""
    heads, rest = divmod(shown["width"], HEAD_DIM)
    patches = [len(plain["positions"]) - rows for rows in _prefixes(shown, layout).values()] if "positions" in plain else []
    sides = [math.isqrt(n) for n in patches if n > 0 and math.isqrt(n)**2 == n]
    return ({} if rest else {"heads": heads}) | ({"grid": (sides[0],) * 2} if sides else {})


def _prefixes(shown: Mapping[str, Any], layout: str) -> dict[str, int]:
    """Each value of `table_rows` that the layout allows -> number of rows of its table that belong to no patch."""
    c, m = int(shown["class_token"]), shown["registers"]
    rows = {"cls+patches": c, "patches": 0, "all": c + m}
    return {name: rows[name] for name in LAYOUTS[layout].table_rows}


def _told(plain: Plain, layout: str) -> dict[str, Any]:
    """The fields of VitConfig that the arrays tell."""
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


def _table(rows: int, layout: str, shown: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The field `table_rows`, from the number of rows of the table. Raises UserError if none fits the grid."""
    for table_rows, prefix in _prefixes(shown, layout).items():
        if rows - prefix == math.prod(given["grid"]) and given.get("table_rows", table_rows) == table_rows:
            return {"table_rows": table_rows}
    raise UserError(f"grid={given['grid']} does not fit the table of positions, which has {rows} rows with "
                    f"{int(shown['class_token'])} class tokens and {shown['registers']} registers")


# -------------------------------------------------------------------------------------------------------------- the check

def _check(plain: Plain, rest: Mapping[str, np.ndarray], cfg: VitConfig, layout: str) -> None:
    """Raise UserError unless every array that the config asks for is there, in its shape, and no other."""
    empty = P.map_specs(lambda spec: np.broadcast_to(np.float32(0), spec.shape), vit.specs(cfg))
    given = file_names.shapes({name: array for name, array in plain.items() if not name.startswith("head.")} | dict(rest))
    file_names.check(given, file_names.shapes(plain_of(empty, cfg)), f"a {layout} model of {cfg.layers} layers and {cfg.registers} "
                     "registers", lambda name: _their_name(name, layout, plain))


def _their_name(name: str, layout: str, plain: Plain) -> str:
    """The name of their array that a plain array is part of."""
    feed_forward = "swiglu" if "layers.0.gate.weight" in plain else "gelu"
    layers = 1 + max((int(known.split(".")[1]) for known in [*plain, name] if known.startswith("layers.")), default=0)
    return next((theirs for theirs, parts in names(layout, feed_forward, layers).items() if name in parts), name)
