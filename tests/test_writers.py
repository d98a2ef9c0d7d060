"""Where numbers go beside metrics.jsonl: to packages that are there, by name, and in one line if they are not."""

from __future__ import annotations

import sys
import types

import pytest
import toy_run

from memtok_jax.config import UserError
from memtok_jax.training import metrics, writers
from memtok_jax.training.run import train


class Board(list):
    """Stands for both packages: it notes what it is given."""

    def add_scalar(self, name, value, step):
        self.append((step, name, value))

    def log(self, values, step):
        self.extend((step, name, value) for name, value in values.items())

    def close(self):
        self.append("closed")

    finish = close


@pytest.fixture
def boards(monkeypatch) -> dict[str, list]:
    opened: dict[str, list] = {"tensorboardX": [], "wandb": []}

    def opener(name):
        def open_(*args, **fields):
            opened[name].append((args, fields, Board()))
            return opened[name][-1][2]
        return open_

    for name, word in (("tensorboardX", "SummaryWriter"), ("wandb", "init")):
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        setattr(module, word, opener(name))
        monkeypatch.setitem(sys.modules, name, module)
    return opened


def test_the_same_numbers_go_everywhere(boards, tmp_path):
    writer = metrics.Metrics(tmp_path, 4, ("tensorboard", "wandb"))
    writer.write(5, {"train/loss": 1.5, "eval/loss": 2.5})
    writer.close()
    for name, found in boards.items():
        assert found[0][2] == [(5, "train/loss", 1.5), (5, "eval/loss", 2.5), "closed"], name
    assert boards["tensorboardX"][0][:2] == ((str(tmp_path / "tensorboard"),), {"purge_step": 5})
    assert boards["wandb"][0][1] == {"name": tmp_path.name, "id": tmp_path.name, "resume": "allow", "dir": str(tmp_path)}
    assert metrics.read(tmp_path)[0]["train/loss"] == 1.5


def test_without_a_word_only_the_file_is_written(boards, tmp_path):
    metrics.Metrics(tmp_path, 0).close()
    assert boards == {"tensorboardX": [], "wandb": []}


def test_a_package_that_is_missing_is_one_line_before_anything_is_written(tmp_path, monkeypatch):
    exp = toy_run.experiment("stdlib", "training.writers=wandb")
    monkeypatch.setattr(writers.WeightsAndBiases, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="training.writers has .wandb., which needs the package no_such_package") as error:
        train(exp, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_a_writer_that_does_not_exist():
    with pytest.raises(UserError, match="training.writers is 'tensorbord'.*did you mean 'tensorboard'"):
        toy_run.experiment("stdlib", "training.writers=tensorbord")
