"""A memory for a model that is trained already: its config around the model's layers, its parameters beside the model's.

The base is a pretrained model in a folder or the model of a run. Attention of each layer stays, or gets the window, segments or
cache of the wanted model; everything else of the base stays as it was. Which parameters learn is said by `optimizer.rates`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import decoders
from memtok_jax.convert.decoders.folder import is_pretrained
from memtok_jax.models import block
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers import LayerConfig, MixerConfig
from memtok_jax.models.mixers.armt import ArmtLayerConfig
from memtok_jax.models.mixers.beside import BesideConfig
from memtok_jax.models.mixers.styled import StyledConfig
from memtok_jax.models.mixers.window import WindowConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.run_folder import read_config

Wanted = LanguageModelConfig | RmtConfig


def base_config(folder: Path, wanted: Wanted) -> LanguageModelConfig:
    """The config of the base in a folder. wanted: the model with memory, whose window or segment a pretrained base takes."""
    if is_pretrained(folder):
        inside = wanted.model if isinstance(wanted, RmtConfig) else wanted
        return decoders.config_of(decoders.read_config(decoders.folder.config(folder), _context(inside)), _context(inside))
    model = read_config(folder).model
    if not isinstance(model, LanguageModelConfig):
        raise UserError(f"training.start_from={folder}: its model is a {type(model).__name__}; only a plain language model can be "
                        "given a memory")
    return model


def has_memory(folder: Path, cfg: Wanted) -> bool:
    """Whether a folder is a run whose model has the parameters of cfg."""
    if is_pretrained(folder):
        return False
    theirs, ours = (P.abstract(bind(model).specs()) for model in (read_config(folder).model, cfg))
    return not P.first_difference(theirs, ours)


def _context(inside: LanguageModelConfig) -> int:
    """Tokens that attention sees: its window, or its segment."""
    layer = inside.pattern[0]
    attention = layer.mixers[0] if isinstance(layer, BesideConfig) else layer
    return attention.window if isinstance(attention, WindowConfig) else inside.segment


def base_params(folder: Path, cfg: LanguageModelConfig, wanted: Wanted) -> P.Tree:
    """The parameters of the base."""
    if is_pretrained(folder):
        inside = wanted.model if isinstance(wanted, RmtConfig) else wanted
        return decoders.load(folder, context=_context(inside)).params
    with Checkpoints(folder, keep=None) as checkpoints:
        return checkpoints.restore_params(jax.eval_shape(lambda: bind(cfg).init(jax.random.key(0))))[0]


def around(wanted: Wanted, base: LanguageModelConfig) -> Wanted:
    """The config of the base with the memory of `wanted`: sizes, style and words of the base, what layers remember of the other."""
    if isinstance(wanted, RmtConfig):
        return replace(wanted, model=around(wanted.model, base))
    pattern = tuple(_layer(wanted.pattern[0], layer) for layer in base.pattern)
    return replace(base, pattern=pattern, segment=wanted.segment or base.segment, prefix=wanted.prefix, dtype=wanted.dtype,
                   remat=wanted.remat, unroll=1)


def _layer(wanted: MixerConfig, layer: MixerConfig) -> MixerConfig:
    """One layer of the base with the wanted memory."""
    if isinstance(layer, StyledConfig):
        if isinstance(wanted, LayerConfig):
            raise UserError(f"{wanted.name} is a layer by itself, and the base's layers differ in their styles: it cannot go "
                            "around them")
        return replace(layer, layer=_layer(wanted, layer.layer))
    if isinstance(wanted, BesideConfig):
        return replace(wanted, mixers=(layer, *wanted.mixers[1:]))
    if isinstance(wanted, WindowConfig) and isinstance(layer, WindowConfig):
        return replace(wanted, window=min(wanted.window, layer.window))
    return wanted


def graft(params: P.Tree, cfg: Wanted, base: P.Tree, source: LanguageModelConfig) -> P.Tree:
    """The parameters of the model with memory, those of the base in their places.

    params, cfg: new ones. base, source: parameters and config of the base.
    """
    if isinstance(cfg, RmtConfig):
        return params | {"model": graft(params["model"], cfg.model, base, source)}
    layers = tuple(_grafted(*trees) for trees in zip(params["layers"], cfg.pattern, base["layers"], source.pattern, strict=True))
    return params | {name: part for name, part in base.items() if name != "prefix"} | {"layers": layers}


def taken_apart(params: P.Tree, cfg: Wanted, source: LanguageModelConfig) -> tuple[P.Tree, P.Tree]:
    """The opposite of `graft`: (parameters of the base's shape, what is left: those of the memory)."""
    if isinstance(cfg, RmtConfig):
        base, rest = taken_apart(params["model"], cfg.model, source)
        return base, {name: part for name, part in params.items() if name != "model"} | {"model": rest}
    apart = [_apart(*trees) for trees in zip(params["layers"], cfg.pattern, source.pattern, strict=True)]
    base = params | {"layers": tuple(layer for layer, _ in apart), "prefix": {"tokens": params["prefix"]["tokens"][:0]}}
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
