"""Experiments as frozen dataclasses: found by name, changed by dotted overrides, written as JSON.

`configs/<name>.py` defines `config(preset) -> Experiment` and `PRESETS`, a tuple of names whose first is the default.
On the command line `--config=name:preset --config.model.width=256` picks one and changes a field of it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import importlib
import importlib.util
import json
import types
import typing
from pathlib import Path
from typing import Any

CONFIG_FOLDER = Path(__file__).resolve().parent.parent / "configs"


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
        raise UserError(f"no config called {stem!r}{_nearest(stem, known)}; there are {', '.join(known)}")
    spec = importlib.util.spec_from_file_location(f"configs.{stem}", folder / f"{stem}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    preset = preset or module.PRESETS[0]
    if preset not in module.PRESETS:
        hint = _nearest(preset, module.PRESETS)
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

    overrides: "dotted.path=text". The text is read by the type of the field: int, float, bool (true/false), str as
    it stands, tuples as comma-separated items, None where the field allows it.
    Raises UserError naming an unknown field with its neighbours, or a text of the wrong type.
    """
    tree: dict[str, Any] = {}
    for item in overrides:
        path, _, text = item.partition("=")
        *groups, last = path.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise UserError(f"config.{path}: {group!r} was given a value before")
        node[last] = text
    return _apply(config, tree, "config")


def _apply(config: Any, changes: dict[str, Any], path: str) -> Any:
    hints = typing.get_type_hints(type(config))
    fields = [f.name for f in dataclasses.fields(config)]
    new = {}
    for name, change in changes.items():
        here = f"{path}.{name}"
        if name not in fields:
            raise UserError(f"unknown field {here}{_nearest(name, fields)}; {path} has {', '.join(fields)}")
        value = getattr(config, name)
        if not isinstance(change, dict):
            new[name] = parse(change, hints[name], here)
        elif dataclasses.is_dataclass(value):
            new[name] = _apply(value, change, here)
        else:
            raise UserError(f"{here} is {value!r}, not a group; it has no field {next(iter(change))!r}")
    return dataclasses.replace(config, **new)


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
            raise UserError(f"{path} must be one of {', '.join(by_text)}, got {text!r}{_nearest(text, by_text)}")
        return by_text[text]
    words = {"true": True, "false": False, "none": None}
    if hint in (bool, types.NoneType):
        value = words.get(text.lower(), text)
        if type(value) is hint:
            return value
        raise UserError(f"{path} must be {'true or false' if hint is bool else 'None'}, got {text!r}")
    try:
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


def _nearest(name: str, known) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


# ---------------------------------------------------------------------------------------------------------- JSON

def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain values; `_type` beside the fields names the class."""
    kind = type(config)
    out: dict[str, Any] = {"_type": f"{kind.__module__}:{kind.__qualname__}"}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        out[field.name] = to_dict(value) if dataclasses.is_dataclass(value) else value
    return out


def from_dict(data: dict[str, Any]) -> Any:
    """The config that `to_dict` wrote; lists become tuples again.

    Raises UserError where the class, or one of its fields, is not there any more.
    """
    module, _, name = data["_type"].partition(":")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        raise UserError(f"a saved config names the class {module}.{name}, which this version does not have") from None
    fields = [f.name for f in dataclasses.fields(kind)]
    values = {key: _plain(value) for key, value in data.items() if key != "_type"}
    for key in values:
        if key not in fields:
            raise UserError(f"a saved config has the field {key!r}, but {name} has {', '.join(fields)}")
    return kind(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return from_dict(value) if "_type" in value else {k: _plain(v) for k, v in value.items()}
    return tuple(_plain(v) for v in value) if isinstance(value, list) else value


def to_json(config: Any) -> str:
    """The config as JSON text."""
    return json.dumps(to_dict(config), indent=2)


def from_json(text: str) -> Any:
    """The config from `to_json`. Raises UserError as `from_dict` does."""
    return from_dict(json.loads(text))


def fingerprint(config: Any) -> str:
    """Twelve hexadecimal digits that are equal for equal configs, on every machine and in every process."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:12]


def differences(old: Any, new: Any, path: str = "config") -> list[tuple[str, Any, Any]]:
    """(dotted path, old value, new value) of every field in which two configs differ."""
    if not (dataclasses.is_dataclass(old) and type(old) is type(new)):
        return [] if old == new else [(path, old, new)]
    return [d for f in dataclasses.fields(old)
            for d in differences(getattr(old, f.name), getattr(new, f.name), f"{path}.{f.name}")]
