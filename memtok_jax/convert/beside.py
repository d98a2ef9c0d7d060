"""What files beside the weights of a vision transformer say: config.json of transformers or timm, and preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from memtok_jax.config import UserError
from memtok_jax.convert.tensor_files import read_json

# Field of VitConfig -> its names, of transformers and of timm's "model_args".
FIELDS = {"heads": ("num_attention_heads", "num_heads"), "width": ("hidden_size", "embed_dim"),
          "layers": ("num_hidden_layers", "depth"), "patch": ("patch_size",), "registers": ("num_register_tokens", "reg_tokens"),
          "epsilon": ("layer_norm_eps",), "rope_base": ("rope_theta",)}
IMAGE = ("img_size", "image_size", "input_size")    # one number, [rows, columns], or [channels, rows, columns] (timm)
MEAN, STD = ("image_mean", "mean"), ("image_std", "std")


class Beside(NamedTuple):
    """What the files say; None for what no file says.

    fields: of VitConfig. size: (rows, columns) of the images in pixels. mean, std: of each channel, for pixels in 0 .. 1.
    """

    fields: Mapping[str, Any]
    size: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None


NOTHING = Beside({})


def read(path: Path) -> Beside:
    """What the files in a folder, or in the folder of a file, say.

    Raises UserError for a damaged file, a value of another form, and an activation that cannot be converted.
    """
    folder = path if path.is_dir() else path.parent
    file = folder / "config.json"
    theirs = read_json(file) if file.is_file() else {}
    images = read_json(folder / "preprocessor_config.json") if (folder / "preprocessor_config.json").is_file() else {}
    activation = "silu" if theirs.get("use_gated_mlp") else "gelu"
    if theirs.get("hidden_act", activation) != activation:
        raise UserError(f"{file}: hidden_act={theirs['hidden_act']!r}; only {activation!r} can be converted")
    inner = [theirs.get(name) for name in ("model_args", "rope_parameters", "pretrained_cfg")]
    sources = [part for part in (*inner, theirs) if isinstance(part, dict)]
    found = {ours: _first(sources, names) for ours, names in FIELDS.items()}
    size = _first(sources, IMAGE)
    mean, std = (_first([images, *sources], names) for names in (MEAN, STD))
    return Beside({ours: _number(file, ours, value) for ours, value in found.items() if value is not None},
                  None if size is None else _sides(file, size), *(None if x is None else _numbers(folder, x) for x in (mean, std)))


def _first(sources: list[dict[str, Any]], names: tuple[str, ...]) -> Any:
    """The first value that one of the objects has under one of the names; None if there is none."""
    return next((source[name] for source in sources for name in names if source.get(name) is not None), None)


def _number(file: Path, name: str, value: Any) -> Any:
    """The value, checked to be a number of at least 0; a patch may be given by two equal sides."""
    if name == "patch" and isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    whole = name not in ("epsilon", "rope_base")
    if type(value) not in ((int,) if whole else (int, float)) or value < 0:
        raise UserError(f"{file} says {name}={value!r}; it must be a {'whole number' if whole else 'number'} of at least 0")
    return value


def _sides(file: Path, value: Any) -> tuple[int, int]:
    """(rows, columns) of 224, [224, 336] or [3, 224, 336]."""
    sides = value if isinstance(value, list) else [value, value]
    if not (len(sides) in (2, 3) and all(type(n) is int and n > 0 for n in sides)):
        raise UserError(f"{file} says that images have the size {value!r}; it must be one number, or rows and columns")
    return sides[-2], sides[-1]


def _numbers(folder: Path, value: Any) -> tuple[float, ...]:
    if not (isinstance(value, list) and all(type(x) in (int, float) for x in value)):
        raise UserError(f"{folder}: the mean or the deviation of images is {value!r}; it must be one number for each channel")
    return tuple(map(float, value))
