"""python -m memtok_jax.convert: a pretrained folder becomes a run that eval.py scores, and the run the same folder again."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_stream_pretrained import make

from memtok_jax.config import UserError
from memtok_jax.convert import __main__ as command
from memtok_jax.convert import tensor_files
from memtok_jax.evaluation.report import evaluate_run


def quiet(line: str) -> None:
    """No output."""


def test_there_and_back(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder)
    command.to_run(folder, tmp_path / "run", 16, 2, quiet)
    with pytest.raises(UserError, match="holds a run already; give another --workdir"):
        command.to_run(folder, tmp_path / "run", 16, 2, quiet)
    command.to_folder(tmp_path / "run", tmp_path / "back", quiet)
    before, after = (tensor_files.read(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys() and all(np.array_equal(before[name], after[name]) for name in before)
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert json.loads((tmp_path / "back" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.slow
def test_the_run_is_scored(tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder)
    command.to_run(folder, tmp_path / "run", 16, 2, quiet)
    found = evaluate_run(tmp_path / "run", (f"data.source={folder / 'book.txt'}", "data.sequence=16", "data.held_out=0.5"), quiet)
    assert found["eval/bits_per_byte"] > 1


def test_what_no_folder_can_hold_is_not_exported(tmp_path):
    import toy_run

    from memtok_jax import config

    (tmp_path / "config.json").write_text(config.to_json(toy_run.experiment("task:recall")))
    with pytest.raises(UserError, match="holds a ToyConfig, which is no plain language model, and was not made of one"):
        command.to_folder(tmp_path, tmp_path / "out", quiet)
