"""Configs: overrides by type, errors in one line that name the nearest right word, JSON round trip."""

from __future__ import annotations

import subprocess  # noqa: F401, named by a config that must be refused
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

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
    ("model.width=3_2", "config.model.width must be int, got '3_2'"),
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


@dataclass(frozen=True)
class Window:
    """A mixer whose window an evaluation may widen."""

    window: int = field(default=8, metadata={"evaluation": True})
    heads: int = 2


@dataclass(frozen=True)
class Branch:
    """A mixer with a memory inside, of which an evaluation may change all."""

    memory: Memory = field(default=Memory(), metadata={"evaluation": True})


@dataclass(frozen=True)
class Stack:
    """A pattern of mixers, each with its own options."""

    pattern: tuple[Window | Branch, ...] = (Window(), Branch())
    sizes: tuple[int, ...] = (1, 2)


@pytest.mark.parametrize("one", [Root(Model(width=8, layers=(1,), memory=None), 3), Stack((Window(4), Branch(Memory(2))), (3,))])
def test_json_round_trip(one):
    again = config.from_json(config.to_json(one))
    assert again == one and hash(again) == hash(one)


def test_items_of_a_tuple_are_overridden_by_their_index():
    out = config.override(Stack(), ("pattern.0.window=3", "pattern.1.memory.chunk=5", "sizes.1=7"))
    assert out == Stack((Window(3), Branch(Memory(5))), (1, 7))
    with pytest.raises(UserError, match="config.pattern has no item '2'; it has 2, numbered from 0"):
        config.override(Stack(), ("pattern.2.window=3",))
    with pytest.raises(UserError, match="unknown field config.pattern.0.windw; did you mean 'window'"):
        config.override(Stack(), ("pattern.0.windw=3",))


def test_a_group_is_chosen_by_name():
    @dataclass(frozen=True)
    class Chosen:
        memory: Any = field(default=Memory(), metadata={"named": lambda old, name: replace(old, chunk=len(name))})

    assert config.override(Chosen(), ("memory.rate=0.5", "memory=four")) == Chosen(Memory(4, 0.5))


def test_differences_and_evaluation_fields_share_their_paths():
    changed = config.override(Stack(), ("pattern.0.window=3", "pattern.0.heads=1", "pattern.1.memory.chunk=5", "sizes=9"))
    found = {path for path, *_ in config.differences(Stack(), changed)}
    assert found == {"config.pattern.0.window", "config.pattern.0.heads", "config.pattern.1.memory.chunk", "config.sizes"}
    assert found - config.evaluation_fields(Stack()) == {"config.pattern.0.heads", "config.sizes"}
    branches = Stack(pattern=((Window(), Branch()),))
    assert config.from_dict(config.to_dict(branches)) == branches
    (path, *_), = config.differences(branches, config.override(branches, ("pattern.0.1.memory.chunk=5",)))
    assert path == "config.pattern.0.1.memory.chunk" and path in config.evaluation_fields(branches)


@pytest.mark.parametrize("change", [{"speed": 3}, {"_type": "memtok_jax.config:Gone"}, {"_type": "memtok_jax.gone:Model"}])
def test_a_config_of_an_older_layout_is_refused(change):
    with pytest.raises(UserError, match=r"^this run was written by an older version of memtok_jax \(.*\); train it again$"):
        config.from_dict(config.to_dict(Root()) | change)


def test_a_saved_config_imports_nothing_foreign(monkeypatch):
    """Neither a module that is not in use, nor a class that is no config."""
    monkeypatch.setattr(config.importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    with pytest.raises(UserError, match="antigravity.*not of memtok_jax"):
        config.from_dict({"_type": "antigravity:fly"})
    monkeypatch.undo()
    with pytest.raises(UserError, match="subprocess.Popen, which is not a config"):
        config.from_dict({"_type": "subprocess:Popen", "args": "true"})


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
    with pytest.raises(UserError, match="cfg.size is 12; it must be one of 7, 11"):
        config.choose("cfg.size", 12, (7, 11))
