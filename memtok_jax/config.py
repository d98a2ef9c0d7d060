"""Experiments as frozen dataclasses: found by name, changed by dotted overrides, written as JSON.

`configs/<name>.py` defines `config(preset) -> Experiment` and `PRESETS`, a tuple of names whose first is the default.
On the command line `--config=name:preset --config.model.width=256` picks one and changes a field of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import json
import math
import numbers
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

PACKAGE_FOLDER = Path(__file__).resolve().parent
# An installed package holds the configs; in a checkout they lie beside the package.
CONFIG_FOLDER = (PACKAGE_FOLDER if (PACKAGE_FOLDER / "configs").is_dir() else PACKAGE_FOLDER.parent) / "configs"
PACKAGE = "memtok_jax."


class UserError(ValueError):
    """A mistake in what the user asked for. Its text is one line, meant to be printed without a traceback."""


class StoppedError(RuntimeError):
    """A run that cannot go on, through no mistake of the command. Its text is one line for the user."""


# ------------------------------------------------------------------------------------------------------- by name

def config_names(folder: Path = CONFIG_FOLDER) -> list[str]:
    """Names of all experiments in the folder, sorted."""
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def load(name: str, overrides: tuple[str, ...] = (), folder: Path = CONFIG_FOLDER) -> Any:
    """The experiment called `name`, with overrides applied.

    name: "titans_mac", or "titans_mac:340m" for one of its presets. overrides: texts such as "model.width=256".
    Raises UserError naming the nearest right name.
    """
    stem, _, preset = name.partition(":")
    known = config_names(folder)
    if stem not in known:
        raise UserError(f"no config called {stem!r}{nearest(stem, known)}; there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"configs.{stem}", folder / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preset = preset or module.PRESETS[0]
    if preset not in module.PRESETS:
        hint = nearest(preset, module.PRESETS)
        raise UserError(f"config {stem!r} has no preset {preset!r}{hint}; there are {', '.join(module.PRESETS)}")
    return override(module.config(preset), overrides)


def split_overrides(argv: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Take `--config.x.y=value` out of the command line, which absl would refuse.

    Returns the other arguments and the overrides ("x.y=value"). Raises UserError where "=value" is missing.
    """
    prefixes = ("--config.", "-config.")
    rest = [a for a in argv if not a.startswith(prefixes)]
    found = [a.split("config.", 1)[1] for a in argv if a.startswith(prefixes)]
    for text in found:
        if "=" not in text:
            raise UserError(f"--config.{text} needs a value: --config.{text}=VALUE")
    return rest, tuple(found)


# ----------------------------------------------------------------------------------------------------- overrides

def override(config: Any, overrides: tuple[str, ...]) -> Any:
    """The config with fields replaced; its own checks run once, after all of them.

    overrides: "dotted.path=text"; an item of a tuple is named by its index, as in "model.pattern.0.chunk=16". The text is read by
    the type of the field: int, float, bool (true/false), str as it stands, tuples as comma-separated items, None if the field
    allows it. A group of fields can be chosen by a name if its field has the metadata "named", a function (old value, name) ->
    new value; changes of fields in the group are then made in the new value.
    Raises UserError naming an unknown field with its neighbours, a text of the wrong type, or what the config itself refuses.
    """
    tree: dict[str, Any] = {}
    for item in overrides:
        path, _, text = item.partition("=")
        *groups, last = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node.setdefault(last, {})[""] = text
    return _apply(config, tree, "config")


def _apply(config: Any, changes: dict[str, Any], path: str) -> Any:
    """The config with changes: field -> changes of the parts of its value, and under "" the text for the whole of it."""
    hints, fields, new = _hints(type(config)), {f.name: f for f in dataclasses.fields(config)}, {}
    for name, change in changes.items():
        if name not in fields:
            raise UserError(f"unknown field {path}.{name}{nearest(name, fields)}; {path} has {', '.join(fields)}")
        named = fields[name].metadata.get("named")
        new[name] = _changed(getattr(config, name), change, hints[name], f"{path}.{name}", named)
    try:
        return dataclasses.replace(config, **new)
    except UserError:
        raise
    except ValueError as error:  # a config checks itself: what it refuses is a mistake of the user
        raise UserError(str(error)) from error


def _changed(value: Any, change: dict[str, Any], hint: Any, path: str, named: Callable | None = None) -> Any:
    """A value after the text for the whole of it, and then after the changes of its parts."""
    if "" in change:
        value = named(value, change[""]) if named else parse(change[""], hint, path)
    change = {name: part for name, part in change.items() if name}
    if not change:
        return value
    if dataclasses.is_dataclass(value):
        return _apply(value, change, path)
    if not isinstance(value, tuple):
        raise UserError(f"{path} is {value!r}, not a group; it has no field {next(iter(change))!r}")
    items = list(value)
    for index, part in change.items():
        if not index.isdecimal() or int(index) >= len(items):
            raise UserError(f"{path} has no item {index!r}; it has {len(items)}, numbered from 0")
        items[int(index)] = _changed(items[int(index)], part, _item_hint(hint, int(index)), f"{path}.{index}")
    return tuple(items)


def _item_hint(hint: Any, index: int) -> Any:
    """Type of one item of a tuple type."""
    args = typing.get_args(hint)
    return (args[0] if args[1:] == (Ellipsis,) else args[index]) if typing.get_origin(hint) is tuple else Any


def parse(text: str, hint: Any, path: str) -> Any:
    """Read the text of one override by the type of its field.

    hint: int, float, bool, str, Literal, tuple[...], or a union of such types. path: for the message.
    Raises UserError where the text is not of that type.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _parse_union(text, args, path)
    if dataclasses.is_dataclass(hint) or hint is Any:
        raise UserError(f"{path} is a group of fields; set one of them, as in {path}.NAME=VALUE")
    if origin is tuple:
        return _parse_tuple(text, args, path)
    if origin is typing.Literal:
        by_text = {str(a): a for a in args}
        if text not in by_text:
            raise UserError(f"{path} must be one of {', '.join(by_text)}, got {text!r}{nearest(text, by_text)}")
        return by_text[text]
    words = {"true": True, "false": False, "none": None}
    if hint in (bool, types.NoneType):
        value = words.get(text.lower(), text)
        if type(value) is hint:
            return value
        raise UserError(f"{path} must be {'true or false' if hint is bool else 'None'}, got {text!r}")
    try:
        if hint in (int, float) and ("_" in text or not text.isascii()):
            raise ValueError(text)
        return hint(text)
    except ValueError:
        raise UserError(f"{path} must be {hint.__name__}, got {text!r}") from None


def _parse_union(text: str, members: tuple, path: str) -> Any:
    # None first, str last: everything can be read as str.
    order = sorted(members, key=lambda m: (m is not types.NoneType, m is str))
    failures = []
    for member in order:
        try:
            return parse(text, member, path)
        except UserError as error:
            failures.append(str(error))
    raise UserError(failures[-1])


def _parse_tuple(text: str, args: tuple, path: str) -> tuple:
    items = [item.strip() for item in text.strip().strip("()[]").split(",")]
    items = [item.strip("'\"") for item in items if item]
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(parse(item, args[0], path) for item in items)
    if len(items) != len(args):
        raise UserError(f"{path} must have {len(args)} items, got {len(items)} in {text!r}")
    return tuple(parse(item, hint, path) for item, hint in zip(items, args, strict=True))


def nearest(name: Any, known: Iterable[str]) -> str:
    """"; did you mean 'x'?" for the most similar of the known names; empty if none is similar."""
    near = difflib.get_close_matches(str(name), list(map(str, known)), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


# -------------------------------------------------------------------------------------------------------- checks

def choose(name: str, value: Any, known: Iterable[str]) -> None:
    """Raise UserError if `value` is none of the known words. name: of the field, as the user writes it."""
    known = tuple(known)
    if value not in known:
        raise UserError(f"{name} is {value!r}; it must be one of {', '.join(map(str, known))}{nearest(value, known)}")


_NO_BOUNDS: Mapping[str, Any] = types.MappingProxyType({})


def check_numbers(owner: str, cfg: Any, *, at_least: Mapping[str, float] = _NO_BOUNDS, above: Mapping[str, float] = _NO_BOUNDS,
                  below: Mapping[str, float] = _NO_BOUNDS,
                  between: Mapping[str, tuple[float, float]] = _NO_BOUNDS) -> None:
    """Raise UserError if a field of a dataclass holds what its type or its bound forbids. Call it first in `__post_init__`.

    All fields, with or without a bound: the value has the annotated type (int, float, bool, str, tuples and unions of them),
    numbers are finite and whole numbers lie between -2^63 and 2^63.
    owner: name of the config in messages, "" for none. at_least, above, below: field -> bound. between: field -> (lowest,
    highest), both allowed. A bound of a tuple holds for each item; None is not compared.
    """
    for name, hint in _hints(type(cfg)).items():
        value, full = getattr(cfg, name), _full(owner, name)
        if not _fits(value, hint):
            raise UserError(f"{full} is {value!r}; it must be {_describe(hint)}")
        for number in _numbers(value):
            if isinstance(number, numbers.Integral) and abs(number) >= 2**63:
                raise UserError(f"{full} is {value!r}; it must be between -2^63 and 2^63")
            if not math.isfinite(number):
                raise UserError(f"{full} is {value!r}; it must be finite")
    rules = [*((n, f"at least {b}", lambda x, b=b: x >= b) for n, b in at_least.items()),
             *((n, f"above {b}", lambda x, b=b: x > b) for n, b in above.items()),
             *((n, f"below {b}", lambda x, b=b: x < b) for n, b in below.items()),
             *((n, f"between {lo} and {hi}", lambda x, lo=lo, hi=hi: lo <= x <= hi) for n, (lo, hi) in between.items())]
    for name, rule, holds in rules:
        value = getattr(cfg, name)
        if not all(map(holds, _numbers(value))):
            raise UserError(f"{_full(owner, name)} is {value!r}; it must be {rule}")


def _full(owner: str, name: str) -> str:
    return f"{owner}.{name}" if owner else name


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Type of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the annotated type; types that are not listed here pass."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, member) for member in args)
    if origin is typing.Literal:
        return value in args
    if origin is tuple and args:
        items = args[:1] * len(value) if isinstance(value, tuple) and args[-1] is Ellipsis else args
        return isinstance(value, tuple) and len(value) == len(items) and all(map(_fits, value, items))
    abstract = {int: numbers.Integral, float: numbers.Real, bool: bool, str: str, types.NoneType: types.NoneType}
    return hint not in abstract or (isinstance(value, abstract[hint]) and isinstance(value, bool) == (hint is bool))


def _describe(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_describe, args))
    if origin is typing.Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple and args[-1:] == (Ellipsis,):
        return f"a tuple, each item {_describe(args[0])}"
    if origin is tuple:
        return f"a tuple of {len(args)} items: {', '.join(map(_describe, args))}"
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "a text", types.NoneType: "None"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


def _numbers(value: Any) -> list[Any]:
    """The numbers in a value: itself, or those in a tuple; booleans do not count."""
    if isinstance(value, tuple):
        return [number for item in value for number in _numbers(item)]
    return [value] if isinstance(value, numbers.Real) and not isinstance(value, bool) else []


# ---------------------------------------------------------------------------------------------------------- JSON

def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values; `_type` beside the fields names the class."""
    kind = type(config)
    out: dict[str, Any] = {"_type": f"{kind.__module__}:{kind.__qualname__}"}
    return out | {field.name: _to_plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _to_plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    return [_to_plain(item) for item in value] if isinstance(value, tuple) else value


def from_dict(data: dict[str, Any]) -> Any:
    """The config that `to_dict` wrote; lists become tuples again.

    Raises UserError if a class or field is not there any more, or a field is missing.
    """
    kind = _class(data["_type"])
    fields = {f.name: f for f in dataclasses.fields(kind)}
    values = {key: _from_plain(value) for key, value in data.items() if key != "_type"}
    for key in values:
        if key not in fields:
            raise _older(f"{kind.__name__} has no field {key!r}")
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise _older(f"{kind.__name__} has a new field {name!r}")
    return kind(**values)


def _class(text: str) -> type:
    """The config class "module:name". Only modules of this package are imported; others must be in use already."""
    module, _, name = text.partition(":")
    if not module.startswith(PACKAGE) and module not in sys.modules:
        raise UserError(f"a saved config names the class {module}.{name}, which is not of {PACKAGE.removesuffix('.')}")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise _older(f"there is no class {module}.{name}") from None
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise UserError(f"a saved config names {module}.{name}, which is not a config")
    return kind


def _older(reason: str) -> UserError:
    return UserError(f"this run was written by an older version of memtok_jax ({reason}); train it again")


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return from_dict(value) if "_type" in value else {k: _from_plain(v) for k, v in value.items()}
    return tuple(_from_plain(v) for v in value) if isinstance(value, list) else value


def to_json(config: Any) -> str:
    """The config as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def from_json(text: str) -> Any:
    """The config from `to_json`. Raises UserError as `from_dict` does."""
    return from_dict(json.loads(text))


def differences(old: Any, new: Any, path: str = "config") -> list[tuple[str, Any, Any]]:
    """(dotted path, old value, new value) of every field in which two configs differ; items of a tuple are numbered."""
    if dataclasses.is_dataclass(old) and type(old) is type(new):
        pairs = [(f.name, getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)]
    elif _holds_configs(old) and _holds_configs(new) and len(old) == len(new):
        pairs = [(str(index), *both) for index, both in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [(path, old, new)]
    return [difference for name, a, b in pairs for difference in differences(a, b, f"{path}.{name}")]


def evaluation_fields(config: Any, path: str = "config") -> set[str]:
    """Dotted paths of the fields that an evaluation may change: those declared with `field(metadata={"evaluation": True})`.

    Nested configs are searched, also those in tuples; all of a group that is marked may change. The paths are those of
    `differences`.
    """
    return set(_marked(config, path, False))


def _marked(value: Any, path: str, marked: bool) -> Iterator[str]:
    if marked:
        yield path
    if dataclasses.is_dataclass(value):
        for f in dataclasses.fields(value):
            yield from _marked(getattr(value, f.name), f"{path}.{f.name}", marked or f.metadata.get("evaluation", False))
    elif _holds_configs(value):
        for index, item in enumerate(value):
            yield from _marked(item, f"{path}.{index}", marked)


def _holds_configs(value: Any) -> bool:
    return isinstance(value, tuple) and any(dataclasses.is_dataclass(item) or _holds_configs(item) for item in value)
