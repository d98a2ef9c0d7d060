"""A memory for a model that is trained already: its config around the model's layers, its parameters beside the model's.

The base is a pretrained model in a folder or the model of a run. Attention of each layer stays, or gets the window, segments or
cache of the wanted model; everything else of the base stays as it was. Which parameters learn is said by `optimizer.rates`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import decoders
from memtok_jax.convert.decoders.folder import is_pretrained
from memtok_jax.models import block, lora
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.lora import LoraConfig
from memtok_jax.models.mixers import LayerConfig, MixerConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.mixers.styled import StyledConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import AroundConfig, bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.sharding import shardings
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.run_folder import read_config

Wanted = LanguageModelConfig | RmtConfig | LoraConfig


def _innermost(wanted: Wanted) -> LanguageModelConfig:
    """The language model itself."""
    return _innermost(wanted.model) if isinstance(wanted, AroundConfig) else wanted


def base_config(folder: Path, wanted: Wanted) -> LanguageModelConfig:
    """The config of the base in a folder. wanted: the model with memory, whose window or segment a pretrained base takes."""
    if is_pretrained(folder):
        context = _context(wanted)
        return decoders.config_of(decoders.read_config(decoders.folder.config(folder), context), context)
    model = read_config(folder).model
    if not isinstance(model, LanguageModelConfig):
        raise UserError(f"training.start_from={folder}: its model is a {type(model).__name__}; only a plain language model can be "
                        "given a memory")
    if block.depth(model.pattern) != len(model.pattern):
        raise UserError(f"training.start_from={folder}: layers of its model.pattern are repeated inside it (RepeatedConfig), and a "
                        "memory goes into layers that the pattern names one by one")
    return model


def has_memory(folder: Path, cfg: Wanted) -> bool:
    """Whether a folder is a run whose model has the parameters of cfg."""
    if is_pretrained(folder):
        return False
    theirs, ours = (P.abstract(bind(model).specs()) for model in (read_config(folder).model, cfg))
    return not P.first_difference(theirs, ours)


def _context(wanted: Wanted) -> int:
    """Tokens that attention sees: the largest window, or the segment."""
    inside = _innermost(wanted)
    layers = [layer.layer if isinstance(layer, StyledConfig) else layer for layer in inside.pattern]
    attention = [layer.mixers[0] if isinstance(layer, BesideConfig) else layer for layer in layers]
    return max([inside.segment, *(one.window for one in attention if isinstance(one, WindowConfig))])


def base_params(folder: Path, cfg: LanguageModelConfig, wanted: Wanted, mesh: Mesh) -> P.Tree:
    """The parameters of the base, divided over a mesh as they are read."""
    if is_pretrained(folder):
        return decoders.load_onto(mesh, folder, context=_context(wanted)).params
    specs = bind(cfg).specs()
    where = jax.tree.map(lambda s, where: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=where), P.abstract(specs),
                         shardings(mesh, specs))
    with Checkpoints(folder, keep=None) as checkpoints:
        return checkpoints.restore_params(where)[0]


def around(wanted: Wanted, base: LanguageModelConfig) -> Wanted:
    """The config of the base with the memory of `wanted`: sizes, style and words of the base, what layers remember of the other.

    The wanted pattern repeats over all layers of the base. Raises UserError where a layer of the base cannot take its part.
    """
    if isinstance(wanted, AroundConfig):
        return replace(wanted, model=around(wanted.model, base))
    segment = wanted.segment or base.segment
    pairs = [(wanted.pattern[n % len(wanted.pattern)], base.pattern[n % len(base.pattern)]) for n in range(base.layers)]
    pattern = tuple(_layer(*pair, segment) for pair in pairs)
    return replace(base, pattern=pattern[:decoders.period(pattern)], segment=segment, prefix=wanted.prefix, dtype=wanted.dtype,
                   remat=wanted.remat, unroll=1)


def _layer(wanted: MixerConfig, layer: MixerConfig, segment: int) -> MixerConfig:
    """One layer of the base with the wanted memory."""
    wanted = wanted.layer if isinstance(wanted, StyledConfig) else wanted
    if isinstance(layer, StyledConfig):
        if isinstance(wanted, LayerConfig):
            raise UserError(f"{wanted.name} is a layer by itself, and the base's layers differ in their styles: it cannot go "
                            "around them")
        return replace(layer, layer=_layer(wanted, layer.layer, segment))
    if isinstance(wanted, BesideConfig):
        return replace(wanted, mixers=(layer, *wanted.mixers[1:]))
    if isinstance(wanted, WindowConfig) and isinstance(layer, WindowConfig):
        return replace(wanted, window=min(wanted.window, layer.window))
    if isinstance(wanted, WindowConfig) and wanted.sinks:
        raise UserError(f"sinks={wanted.sinks} belong to a window, and a layer of the base is a {layer.name}: nothing is seen "
                        "beyond its positions")
    if isinstance(wanted, WindowConfig):  # no memory: the base's own attention
        return layer
    if isinstance(layer, WindowConfig) and layer.window < segment:
        raise UserError(f"model.segment={segment} is more than the window of {layer.window} tokens that a layer of the base has, "
                        f"and attention of {wanted.name} sees its whole segment; set model.segment to at most {layer.window}")
    return wanted


def in_layers(wanted: Wanted, chosen: str, layers: int) -> Wanted:
    """The wanted model with its memory in the chosen layers of L alone; in the others attention stays as it is.

    chosen: "all", "upper" (the upper half), "every:N" (the last of each N), or numbers from 0 as in "8,12,-1", negative ones from
    the end. Raises UserError for another text, and for a number that no layer has.
    """
    if isinstance(wanted, AroundConfig):
        return replace(wanted, model=in_layers(wanted.model, chosen, layers))
    have = numbers_of(chosen, layers)
    pattern = tuple(wanted.pattern[0] if n in have else _without(wanted.pattern[0]) for n in range(layers))
    return wanted if chosen == "all" else replace(wanted, pattern=pattern, layers=layers)


def numbers_of(chosen: str, layers: int) -> set[int]:
    """Numbers of the layers that a text such as "upper" stands for; see `in_layers`."""
    kind, _, rest = chosen.partition(":")
    if chosen in ("all", "upper"):
        return set(range(layers // 2 if chosen == "upper" else 0, layers))
    if kind == "every" and rest.isdecimal() and 0 < int(rest) <= layers:
        return set(range(int(rest) - 1, layers, int(rest)))
    try:
        numbers = [int(part) for part in chosen.split(",")]
    except ValueError:
        raise UserError(f"training.retrofit_layers is {chosen!r}; it must be all, upper, every:N with N up to {layers}, or numbers "
                        "of layers as in 4,5,-1") from None
    if outside := [n for n in numbers if not -layers <= n < layers]:
        raise UserError(f"training.retrofit_layers names layer {outside[0]}; the base has layers 0 to {layers - 1}")
    return {n % layers for n in numbers}


def _without(layer: MixerConfig) -> MixerConfig:
    """A layer's attention without its memory."""
    if isinstance(layer, BesideConfig):
        return layer.mixers[0]
    if isinstance(layer, ArmtLayerConfig):
        return layer.layer
    return replace(layer, sinks=0) if isinstance(layer, WindowConfig) else SegmentConfig()


# --------------------------------------------------------------------------------------------------------------- parameters

def graft(params: P.Tree, cfg: Wanted, base: P.Tree, source: LanguageModelConfig) -> P.Tree:
    """The parameters of the model with memory, those of the base in their places.

    params, cfg: new ones. base, source: parameters and config of the base. Memory tokens of RMT that shall be as large as word
    embeddings become as large as those of the base.
    """
    if isinstance(cfg, AroundConfig):
        out = params | {"model": graft(params["model"], cfg.model, base, source)}
        return out | {"memory": _as_large(params["memory"], cfg, base)} if isinstance(cfg, RmtConfig) else out
    theirs = _regrouped(base["layers"], len(cfg.pattern), cfg.layers)
    trees = zip(params["layers"], cfg.pattern, theirs, _sources(source, len(cfg.pattern)), strict=True)
    return params | {name: part for name, part in base.items() if name != "prefix"} | {
        "layers": tuple(_grafted(*tree) for tree in trees)}


def _as_large(memory: dict, cfg: RmtConfig, base: P.Tree) -> dict:
    """Memory tokens with the deviation of the base's word embeddings as they enter the layers."""
    if cfg.init != "scaled" or not cfg.tokens or "embedding" not in base["words"]:
        return memory
    std = base["words"]["embedding"].astype(jnp.float32).std() * cfg.model.embedding_scale
    return memory | {"tokens": memory["tokens"] * (std / cfg.model.embedding_std).astype(memory["tokens"].dtype)}


def _sources(source: LanguageModelConfig, kinds: int) -> list[MixerConfig]:
    """The first layer of the base that goes into each of so many stacks."""
    return [source.pattern[n % len(source.pattern)] for n in range(kinds)]


def _regrouped(stacked: tuple, kinds: int, layers: int) -> tuple:
    """The parameters of L layers, stacked for a pattern of another length: layer n goes into stack n modulo `kinds`."""
    if len(stacked) == kinds:
        return stacked
    each = [jax.tree.map(lambda x, n=n: x[n // len(stacked)], stacked[n % len(stacked)]) for n in range(layers)]
    return tuple(jax.tree.map(lambda *x: jnp.stack(x), *each[kind::kinds]) for kind in range(kinds))


def taken_apart(params: P.Tree, cfg: Wanted, source: LanguageModelConfig) -> tuple[P.Tree, P.Tree]:
    """The opposite of `graft`: (parameters of the base's shape, what is left: those of the memory).

    Low-rank changes are added to the weights that they change, and nothing is left of them.
    """
    if isinstance(cfg, LoraConfig):
        return taken_apart(lora.merged(params, cfg), cfg.model, source)
    if isinstance(cfg, RmtConfig):
        base, rest = taken_apart(params["model"], cfg.model, source)
        return base, {name: part for name, part in params.items() if name != "model"} | {"model": rest}
    apart = [_apart(*tree) for tree in zip(params["layers"], cfg.pattern, _sources(source, len(cfg.pattern)), strict=True)]
    layers = _regrouped(tuple(layer for layer, _ in apart), len(source.pattern), cfg.layers)
    base = params | {"layers": layers, "prefix": {"tokens": params["prefix"]["tokens"][:0]}}
    return base, {"layers": tuple(rest for _, rest in apart), "prefix": params["prefix"]}


def _apart(tree: dict, layer: MixerConfig, source: MixerConfig) -> tuple[dict, dict]:
    """(one layer of the base, what is left of the layer)."""
    layer, name, theirs = _inside(layer), block.names(_inside(layer))[-1], block.names(_inside(source))[-1]
    own, rest = dict(tree[name]), {key: part for key, part in tree.items() if key not in (name, "feed_forward")}
    if isinstance(layer, BesideConfig):
        memory = {key: own.pop(key) for key in list(own) if key not in ("0", "norm", "norm_after")}
        own = own.pop("0") | own
    else:
        memory = {"memory": own.pop("memory")} if "memory" in own else {}
    return {theirs: own, "feed_forward": tree["feed_forward"]}, rest | ({name: memory} if memory else {})


def _inside(layer: Any) -> Any:
    return _inside(layer.layer) if isinstance(layer, (StyledConfig, ArmtLayerConfig)) else layer


def _grafted(tree: dict, layer: MixerConfig, theirs: dict, source: MixerConfig) -> dict:
    """One layer."""
    layer, name = _inside(layer), block.names(_inside(layer))[-1]
    attention = theirs[block.names(_inside(source))[-1]]
    if isinstance(layer, BesideConfig):
        norms = {key: part for key, part in attention.items() if key in ("norm", "norm_after")}
        attention = norms | {"0": {key: part for key, part in attention.items() if key not in norms}}
    return tree | {name: tree[name] | attention, "feed_forward": theirs["feed_forward"]}
