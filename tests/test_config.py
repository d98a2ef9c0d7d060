"""Configs: overrides by type, errors in one line that name the nearest right word, JSON round trip."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from memtok_jax import config
from memtok_jax.config import UserError


@dataclass(frozen=True)
class Memory:
    chunk: int = 16
    rate: float = 0.1


@dataclass(frozen=True)
class Model:
    width: int = 64
    heads: int = 4
    kind: Literal["mac", "mag"] = "mac"
    memory: Memory | None = Memory()
    layers: tuple[int, ...] = (0, 2)
    window: int | None = None
    name: str = "plain"
    remat: bool = False

    def __post_init__(self):
        if self.width % self.heads:
            raise ValueError(f"width {self.width} does not divide into {self.heads} heads")


@dataclass(frozen=True)
class Root:
    model: Model = Model()
    steps: int = 10


@pytest.mark.parametrize("text, path, value", [
    ("model.width=128", ("model", "width"), 128),
    ("model.memory.rate=1", ("model", "memory", "rate"), 1.0),
    ("model.memory.rate=3e-4", ("model", "memory", "rate"), 3e-4),
    ("model.memory=None", ("model", "memory"), None),
    ("model.window=32", ("model", "window"), 32),
    ("model.window=none", ("model", "window"), None),
    ("model.layers=1,3,5", ("model", "layers"), (1, 3, 5)),
    ("model.layers=(1,)", ("model", "layers"), (1,)),
    ("model.layers=()", ("model", "layers"), ()),
    ("model.remat=TRUE", ("model", "remat"), True),
    ("model.name=a=b 7", ("model", "name"), "a=b 7"),
    ("model.kind=mag", ("model", "kind"), "mag"),
])
def test_override_reads_the_type_of_the_field(text, path, value):
    out = config.override(Root(), (text,))
    for name in path:
        out = getattr(out, name)
    assert out == value and type(out) is type(value)


@pytest.mark.parametrize("text, message", [
    ("model.widht=128", "unknown field config.model.widht; did you mean 'width'.*config.model has width, heads"),
    ("model.width=128.5", "config.model.width must be int, got '128.5'"),
    ("model.memory.rate=fast", "config.model.memory.rate must be float, got 'fast'"),
    ("model.remat=1", "config.model.remat must be true or false, got '1'"),
    ("model.kind=mak", "must be one of mac, mag, got 'mak'; did you mean 'ma"),
    ("model.layers=1,b", "config.model.layers must be int, got 'b'"),
    ("model=3", "config.model is a group of fields"),
    ("steps.n=3", "config.steps is 10, not a group"),
    ("model.width=101", "width 101 does not divide into 4 heads"),
])
def test_override_errors_are_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        config.override(Root(), (text,))
    assert "\n" not in str(error.value)


def test_checks_run_after_all_overrides():
    out = config.override(Root(), ("model.width=9", "model.heads=3"))
    assert (out.model.width, out.model.heads) == (9, 3)


def test_group_that_is_none():
    with pytest.raises(UserError, match="config.model.memory is None, not a group"):
        config.override(Root(Model(memory=None)), ("model.memory.chunk=3",))


def test_split_overrides():
    rest, found = config.split_overrides(["train.py", "--config=a:b", "--config.x.y=1", "-config.z=2", "--workdir=w"])
    assert rest == ["train.py", "--config=a:b", "--workdir=w"] and found == ("x.y=1", "z=2")
    with pytest.raises(UserError, match="--config.x needs a value"):
        config.split_overrides(["--config.x", "1"])


def test_json_round_trip():
    one = Root(Model(width=8, layers=(1,), memory=None), 3)
    assert config.from_json(config.to_json(one)) == one
    assert hash(config.from_json(config.to_json(one))) == hash(one)


def test_json_with_an_unknown_field():
    data = config.to_dict(Root())
    data["speed"] = 3
    with pytest.raises(UserError, match="field 'speed', but Root has model, steps"):
        config.from_dict(data)


def test_differences_name_the_dotted_path():
    assert config.differences(Root(), Root(Model(memory=Memory(chunk=8)))) == [("config.model.memory.chunk", 16, 8)]
    assert config.differences(Root(), Root()) == []


def test_load_by_name_and_preset(tmp_path: Path):
    (tmp_path / "small.py").write_text("PRESETS = ('laptop', '340m')\ndef config(preset): \n    return __import__("
                                       "'tests.test_config', fromlist=['Root']).Root(steps=len(preset))\n")
    assert config.load("small", folder=tmp_path).steps == 6
    assert config.load("small:340m", ("steps=9",), tmp_path).steps == 9
    with pytest.raises(UserError, match="no config called 'smal'; did you mean 'small'"):
        config.load("smal", folder=tmp_path)
    with pytest.raises(UserError, match="no preset '350m'; did you mean '340m'.*there are laptop, 340m"):
        config.load("small:350m", folder=tmp_path)


@dataclass(frozen=True)
class Bounded:
    """Fields of every kind that `check_numbers` looks at."""

    count: int = 1
    rate: float = 1
    share: float = 0.5
    sizes: tuple[float, ...] = (1, 2.5)
    pair: tuple[int, int] = (0, 1)
    name: str = "a"
    on: bool = True
    maybe: int | None = None

    def __post_init__(self):
        config.check_numbers("cfg", self, at_least={"count": 1, "sizes": 0, "maybe": 1}, above={"rate": 0}, below={"rate": 10},
                             between={"share": (0, 1)})


@pytest.mark.parametrize(("field", "value", "rule"), [
    ("count", 0, "at least 1"), ("count", 2.5, "a whole number"), ("count", True, "a whole number"),
    ("count", 2**63, r"between -2\^63 and 2\^63"), ("rate", float("nan"), "finite"), ("rate", float("inf"), "finite"),
    ("rate", 0.0, "above 0"), ("rate", 10, "below 10"), ("rate", "1", "a number"), ("share", 1.1, "between 0 and 1"),
    ("sizes", [1.0], "a tuple, each item a number"), ("sizes", (1.0, float("nan")), "finite"), ("sizes", (1, -1), "at least 0"),
    ("pair", (1,), "a tuple of 2 items"), ("name", 1, "a text"), ("on", "no", "True or False"), ("maybe", 0, "at least 1")])
def test_a_number_that_a_field_cannot_hold_is_refused_by_name(field, value, rule):
    assert Bounded(maybe=None) == Bounded()
    with pytest.raises(UserError, match=rf"^cfg\.{field} is .*; it must be {rule}"):
        Bounded(**{field: value})


def test_an_unknown_word_is_refused_with_the_nearest_known_one():
    config.choose("cfg.rule", "lamb", ("adamw", "lamb"))
    with pytest.raises(UserError, match="cfg.rule is 'adam'; it must be one of adamw, lamb; did you mean 'adamw'?"):
        config.choose("cfg.rule", "adam", ("adamw", "lamb"))
