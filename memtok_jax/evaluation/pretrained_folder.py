"""A pretrained model to stream: a folder of weights with the tokenizer beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import decoders
from memtok_jax.data.tokenizers import Tokenizer, load
from memtok_jax.evaluation import saved_model, saved_stream
from memtok_jax.evaluation.report import changed
from memtok_jax.evaluation.units import Units, token_units
from memtok_jax.models import language_model
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.checksums import describe

TOKENIZERS = ("tokenizer.json", "tokenizer.model")


@dataclass(frozen=True)
class Pretrained:
    """A config whose field `model` overrides may change, as that of a run."""

    model: Any


def load_model(folder: Path, overrides: tuple[str, ...], context: int, sinks: int,
               say: Callable[[str], None]) -> tuple[Model, saved_model.Saved, Units]:
    """The model, its parameters on one device, and what its tokens are. A text begins with what the tokenizer file puts before it.

    overrides: changes of the model that an evaluation may make. context, sinks: as in `convert.decoders.load`. On a CPU each layer
        has arrays of its own, because decoding would copy each out of a stack for every token.
    Raises UserError for a folder that cannot be read, and for a tokenizer with more words than the model.
    """
    own = jax.default_backend() == "cpu"
    loaded, tokenizer = decoders.load(folder, context=context, sinks=sinks, apart=own), tokenizer_of(folder)
    if tokenizer.vocabulary > loaded.cfg.vocabulary:
        raise UserError(f"{folder}: {tokenizer.name} has ids up to {tokenizer.vocabulary - 1}, the model only "
                        f"{loaded.cfg.vocabulary} words")
    stacked = decoders.config_of(decoders.read_config(loaded.theirs, context), context, sinks)
    cfg = changed(Pretrained(stacked), overrides, folder).model
    model = bind(language_model.apart(cfg) if own else cfg)
    found = saved_model.Saved(loaded.params, 0, str(folder), saved_stream.fingerprint(describe(loaded.params)))
    say(f"model  {saved_model.named(model)}, {P.count(model.specs()):,} parameters of a {loaded.theirs['model_type']} from "
        f"{found.origin}, tokens by {tokenizer.name}")
    return model, found, token_units(tokenizer, tokenizer.front)


def tokenizer_of(folder: Path) -> Tokenizer:
    """The tokenizer in a folder. Raises UserError if there is none."""
    for name in TOKENIZERS:
        if (folder / name).is_file():
            return load(str(folder / name))
    raise UserError(f"{folder} holds no tokenizer: neither {' nor '.join(TOKENIZERS)} lies beside the weights")
