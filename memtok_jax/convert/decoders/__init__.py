"""Pretrained decoders of the Hugging Face library <-> `models/language_model.py`: config.json and safetensors in, and out again.

    loaded = load("folder/of/a/model", context=1024, sinks=4)
    model = bind(loaded.cfg)
    save("another/folder", loaded.params, loaded.cfg, loaded.theirs)

| family                     | file          | model_type |
|----------------------------|---------------|------------|
| Llama 2, 3, 3.x, SmolLM2   | `llama.py`    | llama |
| Mistral                    | `mistral.py`  | mistral |
| Qwen2, Qwen2.5; Qwen3      | `qwen2.py`, `qwen3.py` | qwen2; qwen3 |
| GPT-NeoX, Pythia           | `gpt_neox.py` | gpt_neox |
| Falcon; MPT                | `falcon.py`, `mpt.py` | falcon; mpt |
| SmolLM3; OLMo 2; Phi-3     | `smollm3.py`, `olmo2.py`, `phi3.py` | smollm3; olmo2; phi3 |
| Gemma; 2; 3 (text)         | `gemma.py`, `gemma2.py`, `gemma3.py` | gemma; gemma2; gemma3_text |
| GPT-2                      | `gpt2.py`     | gpt2 |

A layer with a window becomes a window of that size; one that sees everything becomes a window of `context` tokens, which is the
same for texts up to that length. GPT-2, whose positions are a table, becomes a segment of `context` tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from memtok_jax import params as P
from memtok_jax.config import UserError, nearest
from memtok_jax.convert import names as foreign
from memtok_jax.convert import tensor_files
from memtok_jax.convert.decoders import export, folder, layout, ours, placing
from memtok_jax.convert.decoders.family import Decoder, Entry, Names
from memtok_jax.convert.decoders.placing import Place
from memtok_jax.models import block, language_model
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers import MixerConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.styled import StyledConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.sharding import shardings

FAMILIES = {"llama": "llama", "mistral": "mistral", "qwen2": "qwen2", "qwen3": "qwen3", "gpt_neox": "gpt_neox", "falcon": "falcon",
            "mpt": "mpt", "smollm3": "smollm3", "olmo2": "olmo2", "phi3": "phi3", "gemma": "gemma", "gemma2": "gemma2",
            "gemma3_text": "gemma3", "gpt2": "gpt2"}
CONTEXT = 2048          # tokens that a layer without a window sees, unless the caller says otherwise
FILE_BYTES = 5 * 10**9  # of one file of weights


class Loaded(NamedTuple):
    """params, cfg: of `models/language_model.py`. theirs: the fields of config.json, from which `save` makes another."""

    params: P.Tree
    cfg: LanguageModelConfig
    theirs: dict[str, Any]


def load(source: str | Path, *, context: int = 0, sinks: int = 0, dtype: str = "float32", keep: bool = False,
         apart: bool = False) -> Loaded:
    """The model in a folder.

    context: tokens that a layer without a window sees, itself included; 0: `CONTEXT`, or the longest text of their config if
        that is shorter. sinks: first tokens of a stream that every later token sees beside them (StreamingLLM).
    dtype: of activations. keep: parameters keep the dtype of the file; without, they are float32 (float64 stays).
    apart: each layer has arrays of its own (the pattern is all layers), which a CPU decodes faster with; without, layers that are
        alike are stacked, which compiles faster.
    Arrays go from the mapped file into place one after the other: beside the parameters only one of them is in memory.
    Raises UserError (one line) that names the file, field or array that is wrong.
    """
    return _load(source, context, sinks, dtype, keep, apart, lambda specs: placing.whole)


def load_onto(mesh: Mesh, source: str | Path, *, context: int = 0, sinks: int = 0, dtype: str = "float32",
              keep: bool = False, apart: bool = False) -> Loaded:
    """`load`, each parameter divided over a mesh as `sharding.py` says. Every process reads the bytes of its own devices alone, and
    beside the parameters only one device's part of one of them is in memory."""
    return _load(source, context, sinks, dtype, keep, apart, lambda specs: placing.divided(shardings(mesh, specs)))


def _load(source: str | Path, context: int, sinks: int, dtype: str, keep: bool, apart: bool,
          place: Callable[[P.Tree], Place]) -> Loaded:
    path = Path(source)
    theirs = folder.config(path)
    decoder = read_config(theirs, context)
    cfg = config_of(decoder, context, sinks, dtype, apart)
    where = f"the {decoder.kind} of {len(decoder.layers)} layers in {path}"
    given = foreign.pick(folder.tensors(path), (names_of(decoder).anchor,))
    return Loaded(from_tensors(given, decoder, cfg, where, keep, place(language_model.specs(cfg))), cfg, theirs)


def save(target: str | Path, params: P.Tree, cfg: LanguageModelConfig, theirs: Mapping[str, Any], *, like: str | Path = "",
         file_bytes: int = FILE_BYTES) -> None:
    """Write config.json and safetensors that the transformers library loads.

    cfg: of the parameters; theirs: as `load` gave it. like: a folder whose tokenizer files are copied. Weights keep their dtype.
    Raises UserError if the target holds a model already, and if layers have a memory, for which such a folder has no place.
    """
    path = Path(target)
    if (path / folder.CONFIG).exists():
        raise UserError(f"{path} holds a {folder.CONFIG} already; give another folder")
    check_plain(cfg)
    decoder = read_config(theirs)
    arrays = dict(to_tensors(params, decoder, cfg))
    path.mkdir(parents=True, exist_ok=True)
    folder.write(path, arrays, file_bytes)
    dtype = next(iter(arrays.values())).dtype.name
    tensor_files.write_json(path / folder.CONFIG, export.config(theirs, dtype, cfg.style.embedding == "tied"))
    for name in TOKENIZER_FILES if like else ():
        if (Path(like) / name).is_file():
            (path / name).write_bytes((Path(like) / name).read_bytes())


def save_ours(target: str | Path, params: P.Tree, cfg: LanguageModelConfig, *, like: str | Path = "",
              file_bytes: int = FILE_BYTES) -> dict[str, Any]:
    """`save` for a model that was never pretrained: its config.json is made of ours (`ours.py`). Returns the fields.

    Raises UserError, naming the first option, where no kind of theirs computes the same.
    """
    theirs = check_ours(cfg)
    params = ours.folded(params, cfg)
    save(target, params, ours.plain(cfg), theirs, like=like, file_bytes=file_bytes)
    return theirs


def check_ours(cfg: LanguageModelConfig) -> dict[str, Any]:
    """The fields of the config.json that `save_ours` writes. Raises UserError as it does."""
    theirs = ours.config(ours.plain(cfg))
    ours.check_same(ours.plain(cfg), config_of(read_config(theirs)))
    return theirs


def check_plain(cfg: Any) -> None:
    """Raise UserError unless all layers attend and nothing else: a window, or a segment."""
    inside = [layer.layer if isinstance(layer, StyledConfig) else layer for layer in getattr(cfg, "pattern", (cfg,))]
    if other := [type(layer).__name__ for layer in inside if not isinstance(layer, (WindowConfig, SegmentConfig))]:
        raise UserError(f"a pretrained model's folder holds attention and nothing else; this model has {other[0]}")


TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
                   "merges.txt", "generation_config.json")


# ----------------------------------------------------------------------------------------------------------------- configs

def _family(kind: str) -> ModuleType:
    if kind not in FAMILIES:
        raise UserError(f"config.json: model_type={kind!r} is not among {', '.join(FAMILIES)}{nearest(kind, FAMILIES)}")
    return importlib.import_module(f"{__name__}.{FAMILIES[kind]}")


def read_config(theirs: Mapping[str, Any], context: int = 0) -> Decoder:
    """What the fields of their config.json mean. Raises UserError for a field whose meaning the decoder does not have."""
    family = _family(theirs["model_type"])
    filled = {**family.DEFAULTS, **theirs}
    longest = next((filled[name] for name in ("max_position_embeddings", "max_seq_len", "n_positions") if name in filled), 0)
    return family.read(filled, context or min(CONTEXT, longest))


def names_of(decoder: Decoder) -> Names:
    """Their names of the arrays."""
    return _family(decoder.kind).names(decoder)


def config_of(decoder: Decoder, context: int = 0, sinks: int = 0, dtype: str = "float32",
              apart: bool = False) -> LanguageModelConfig:
    """Our config; options as in `load`."""
    context, table = context or min(CONTEXT, decoder.positions), decoder.style.positions == "table"
    if table and (context > decoder.positions or sinks):
        raise UserError(f"the positions of {decoder.kind} are a table of {decoder.positions} rows: context={context} must not be "
                        f"more, and sinks={sinks} must be 0, because nothing can be seen beyond it")
    layers = tuple(_layer(window, style, decoder, context, sinks) for window, style in decoder.layers)
    return LanguageModelConfig(
        vocabulary=decoder.vocabulary, width=decoder.width, layers=len(layers),
        pattern=layers[:len(layers) if apart else period(layers)],
        heads=decoder.heads, kv_heads=decoder.kv_heads, head_dim=decoder.head_dim, hidden=decoder.hidden, style=decoder.style,
        dtype=dtype, segment=context if table else 0, positions=decoder.positions if table else 0)


def _layer(window: int, style: Any, decoder: Decoder, context: int, sinks: int) -> MixerConfig:
    """The mixer of one layer, in a style of its own if it has one."""
    own = SegmentConfig() if style.positions == "table" else WindowConfig(min(window, context) if window else context, sinks)
    return own if style == decoder.style else StyledConfig(own, style)


def period(layers: tuple) -> int:
    """The smallest number of layers whose repetition gives all of them."""
    return next(n for n in range(1, len(layers) + 1) if len(layers) % n == 0 and layers == layers[:n] * (len(layers) // n))


# ------------------------------------------------------------------------------------------------------------------ arrays

def from_tensors(given: Mapping[str, np.ndarray], decoder: Decoder, cfg: LanguageModelConfig, where: str, keep: bool = False,
                 place: Place = placing.whole) -> P.Tree:
    """Our parameters from their arrays, whose names have no wrapper.

    where: the model, for messages. keep: as in `load`. place: where arrays go, see `placing.py`.
    """
    table, specs = names_of(decoder), P.abstract(language_model.specs(cfg))
    given = {name: array for name, array in given.items() if not name.endswith(table.ignored)}
    given = _one_head(given, table, cfg, where)
    expected = {name: shape for name, _, _, shape in _entries(table, specs, cfg)}
    foreign.check(foreign.shapes(given), expected, where)
    none = specs["prefix"]["tokens"].shape
    prefix = place(("prefix", "tokens"), none, lambda index: np.zeros(none, np.float32)[index])
    out: dict[str, Any] = {"prefix": {"tokens": prefix}, "layers": tuple({} for _ in cfg.pattern)}
    for names, places, entry, shapes in _stacks(table, specs, cfg):
        dtype, inner = _dtype(names[0], given[names[0]], keep), [_one(shape, places) for shape in shapes]
        for n, (path, shape) in enumerate(zip(entry.ours, shapes, strict=True)):
            views = [partial(_view, given[name], entry, inner, n) for name in names]
            read = placing.stacked(views, shape, dtype) if places[0] == "layers" else placing.single(views[0], dtype)
            _put(out, places, path, place(_steps(places, path), shape, read))
    return out


def _view(theirs: np.ndarray, entry: Entry, shapes: list[tuple[int, ...]], n: int) -> np.ndarray:
    """Array n of ours in one of theirs."""
    return layout.to_ours(theirs, entry, shapes)[n]


def _one_head(given: Mapping[str, np.ndarray], table: Names, cfg: LanguageModelConfig, where: str) -> dict[str, np.ndarray]:
    """The arrays with the output layer under its first name, and without it where the embedding serves as one."""
    heads = [name for name in table.head if name in given]
    out = {name: array for name, array in given.items() if name not in table.head}
    if not heads:
        return out
    head = given[heads[0]]
    if cfg.style.embedding == "matrix":
        return out | {table.head[0]: head}
    if table.anchor in out and not np.array_equal(head, out[table.anchor]):
        raise UserError(f"{heads[0]} differs from {table.anchor}, but config.json says tie_word_embeddings of {where}; set it to "
                        "false")
    return out


def _dtype(name: str, array: np.ndarray, keep: bool) -> np.dtype:
    """The dtype of ours. Raises UserError for an array that holds no floating-point numbers."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise UserError(f"{name} holds {array.dtype} numbers; only weights in floating point can be converted")
    return array.dtype if keep else np.promote_types(array.dtype, np.float32)


def to_tensors(params: P.Tree, decoder: Decoder, cfg: LanguageModelConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Their arrays under the names of a whole model, from our parameters."""
    table, specs = names_of(decoder), P.abstract(language_model.specs(cfg))
    for name, places, entry, _ in _entries(table, specs, cfg):
        arrays = [np.asarray(_at(params, places, path)) for path in entry.ours]
        arrays = [x[places[2]] for x in arrays] if places[0] == "layers" else arrays
        yield name if name in table.head else table.wrapper + name, layout.to_theirs(arrays, entry)


# Where an entry of theirs lies in our tree: ("top",), or ("layers", place in the pattern, repeat, name of the mixer).
Places = tuple


def _entries(table: Names, specs: P.Tree, cfg: LanguageModelConfig) -> Iterator[tuple[str, Places, Entry, Any]]:
    """(their name, where, entry, their shape) of each array of theirs."""
    for names, places, entry, shapes in _stacks(table, specs, cfg):
        for n, name in enumerate(names):
            own = (*places[:2], n, *places[3:]) if places[0] == "layers" else places
            yield name, own, entry, layout.theirs_shape(entry, [_one(shape, places) for shape in shapes])


def _stacks(table: Names, specs: P.Tree, cfg: LanguageModelConfig) -> Iterator[tuple[list[str], Places, Entry, list]]:
    """(their names, where, entry, our shapes) of the arrays of theirs that fill the same arrays of ours: one for each repeat."""
    head = {table.head[0]: Entry(("words/output",))} if cfg.style.embedding == "matrix" else {}
    for name, entry in {**table.top, **head}.items():
        yield [name], ("top",), entry, [_at(specs, ("top",), path).shape for path in entry.ours]
    repeats = cfg.repeats
    for place, layer in enumerate(cfg.pattern):
        inside = layer.layer if isinstance(layer, StyledConfig) else layer
        places = ("layers", place, 0, block.names(inside)[-1])
        for name, entry in table.layer.items():
            names = [f"{table.front}{repeat * len(cfg.pattern) + place}.{name}" for repeat in range(repeats)]
            yield names, places, entry, [_at(specs, places, path).shape for path in entry.ours]


def _one(shape: tuple[int, ...], places: Places) -> tuple[int, ...]:
    """The shape in one layer."""
    return shape[1:] if places[0] == "layers" else shape


def _steps(places: Places, path: str) -> tuple:
    """Keys of an array in our tree."""
    if places[0] == "top":
        return tuple(path.split("/"))
    return ("layers", places[1], *(places[3] if part == "mixer" else part for part in path.split("/")))


def _at(tree: P.Tree, places: Places, path: str) -> Any:
    for step in _steps(places, path):
        tree = tree[step]
    return tree


def _put(tree: P.Tree, places: Places, path: str, value: jax.Array) -> None:
    *groups, last = _steps(places, path)
    for group in groups:
        tree = tree[group] if isinstance(tree, tuple) else tree.setdefault(group, {})
    tree[last] = value
