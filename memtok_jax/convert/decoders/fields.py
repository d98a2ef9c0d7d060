"""Fields of a config.json: read with a check of their type, and refused where they mean another function than the decoder has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from memtok_jax.config import UserError
from memtok_jax.models.rotary import RotaryConfig

Fields = Mapping[str, Any]
# Their names of activations -> our feed-forward networks, without a gate and with one.
PLAIN_UNITS = {"gelu": "gelu_erf", "gelu_new": "gelu", "gelu_fast": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
GATED_UNITS = {"silu": "swiglu", "swish": "swiglu", "gelu_pytorch_tanh": "geglu", "gelu_new": "geglu"}
ROPE_KINDS = {"default": "plain", "mrope": "", "su": "longrope"}


def whole(theirs: Fields, name: str, default: int = 0) -> int:
    """A whole number above 0; the default, if not 0, stands for a field that is null or not there."""
    value = theirs.get(name)
    value = default if value is None and default else value
    if type(value) is not int or value < 1:
        raise UserError(f"config.json: {name}={value!r}; it must be a whole number of at least 1")
    return value


def number(theirs: Fields, name: str, default: float = 0.0) -> float:
    """A finite number of at least 0; the default stands for a field that is null or not there."""
    value = theirs.get(name)
    value = default if value is None else value
    if type(value) not in (int, float) or not (math.isfinite(value) and value >= 0):
        raise UserError(f"config.json: {name}={value!r}; it must be a number of at least 0")
    return float(value)


def flag(theirs: Fields, name: str, default: bool = False) -> bool:
    """True or false; the default stands for a field that is null or not there."""
    value = theirs.get(name)
    value = default if value is None else value
    if type(value) is not bool:
        raise UserError(f"config.json: {name}={value!r}; it must be true or false")
    return value


def only(theirs: Fields, **allowed: Any) -> None:
    """Raise UserError if a field that is there has another value than the allowed one: it would be another function."""
    for name, value in allowed.items():
        if theirs.get(name, value) not in (value, None):
            raise UserError(f"config.json: {name}={theirs[name]!r} means a function that the decoder does not have; only "
                            f"{name}={value!r} can be converted")


def units(theirs: Fields, name: str, known: Mapping[str, str]) -> str:
    """Our word for an activation."""
    value = theirs.get(name)
    if value not in known:
        raise UserError(f"config.json: {name}={value!r} means a function that the decoder does not have; only one of "
                        f"{', '.join(known)} can be converted")
    return known[value]


def window_of_layers(theirs: Fields, layers: int, window: int, windowed: list[bool]) -> tuple[int, ...]:
    """Window of each layer, 0 where it sees everything: by `layer_types` if the file has them, else where `windowed` says so."""
    kinds = theirs.get("layer_types")
    if kinds is not None:
        known = {"sliding_attention": True, "full_attention": False}
        if not (isinstance(kinds, list) and len(kinds) == layers and all(kind in known for kind in kinds)):
            raise UserError(f"config.json: layer_types must name sliding_attention or full_attention for each of {layers} layers")
        windowed = [known[kind] for kind in kinds]
    if any(windowed) and window < 1:
        raise UserError(f"config.json: layers have a window, but sliding_window={theirs.get('sliding_window')!r}")
    return tuple(window if there else 0 for there in windowed)


# ----------------------------------------------------------------------------------------------------------------- rotary

def rope_fields(theirs: Fields, base: float, share: float = 1.0, kind: str = "", base_name: str = "rope_theta") -> dict[str, Any]:
    """What a config says of rotary positions, in the spelling of transformers 5, with `rope_theta` and `partial_rotary_factor`.

    base, share: of a file that names none. kind: of the layers ("full_attention"), where the file tells them apart. base_name: the
    name that files of transformers 4 have for the base.
    """
    new, old = theirs.get("rope_parameters") or {}, theirs.get("rope_scaling") or {}
    new = new.get(kind) or {} if kind in new else new if not any(isinstance(value, dict) for value in new.values()) else {}
    found = {"rope_theta": theirs.get(base_name) or base, "partial_rotary_factor": theirs.get("partial_rotary_factor") or share}
    found |= {name: theirs[name] for name in ("original_max_position_embeddings",) if theirs.get(name)} | new | old
    found["rope_type"] = found.get("rope_type") or found.pop("type", "default")
    return {name: value for name, value in found.items() if value is not None}


def rotary(found: Fields, positions: int, context: int) -> tuple[float, RotaryConfig]:
    """(base, scaling) of `rope_fields`.

    positions: of the config, the longest text. context: tokens that a stream will see, by which the kinds that depend on the length
    of a text are chosen.
    """
    base, share, kind = number(found, "rope_theta"), number(found, "partial_rotary_factor", 1.0), found["rope_type"]
    kind, trained = ROPE_KINDS.get(kind, kind), whole(found, "original_max_position_embeddings", positions)
    if kind == "plain":
        return base, RotaryConfig(share=share)
    if kind == "linear":
        return base, RotaryConfig("linear", share, number(found, "factor"))
    if kind == "llama3":
        return base, RotaryConfig("llama3", share, number(found, "factor"), trained, number(found, "low_freq_factor", 1.0),
                                  number(found, "high_freq_factor", 4.0))
    if kind == "dynamic":
        return base, RotaryConfig("dynamic", share, number(found, "factor"), positions, tokens=context)
    factor = number(found, "factor", positions / trained)
    if kind == "yarn":
        return base, RotaryConfig("yarn", share, factor, trained, fast=number(found, "beta_fast") or 32.0,
                                  slow=number(found, "beta_slow") or 1.0, whole=flag(found, "truncate", True),
                                  magnitude=_yarn_magnitude(found, factor))
    if kind == "longrope":
        divisors = found.get("long_factor" if context > trained else "short_factor")
        if not (isinstance(divisors, list) and all(type(x) in (int, float) for x in divisors)):
            raise UserError("config.json: rope_parameters of longrope must have the lists short_factor and long_factor")
        grown = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
        return base, RotaryConfig("longrope", share, factor, trained, magnitude=number(found, "attention_factor", grown),
                                  divisors=tuple(map(float, divisors)))
    raise UserError(f"config.json: rope_type={found['rope_type']!r} is not known; known are default, linear, llama3, yarn, "
                    "longrope, dynamic")


def _yarn_magnitude(found: Fields, factor: float) -> float:
    """Factor of cosines and sines: as given, or 0.1 m ln s + 1, of one m or as a quotient of two."""
    grown = lambda m: 0.1 * m * math.log(factor) + 1 if factor > 1 else 1.0
    one, other = number(found, "mscale"), number(found, "mscale_all_dim")
    return number(found, "attention_factor", grown(one) / grown(other) if one and other else grown(1.0))
