"""Texts packed into rows, each document at the front of a piece: order, gaps, records of files, and what is said of them."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest
import tokenizer_toys
from toy_run import experiment

from memtok_jax import data
from memtok_jax.data.errors import DataError
from memtok_jax.data.streams import BYTES, packing
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.data.text import TextConfig
from memtok_jax.training import metrics
from memtok_jax.training.run import train

P, T = 4, 12


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return ["".join(chr(97 + (n + i) % 26) for i in range(length)) for n, length in enumerate((1, 3, 4, 9, 14, 2, 7, 30, 5, 11))]


@pytest.fixture(scope="module")
def folder(texts, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("texts")
    for n, text in enumerate(texts):
        (path / f"{n}.txt").write_text(text)
    return str(path)


@pytest.fixture(scope="module")
def lines(texts, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("lines") / "texts.jsonl.gz"
    records = [*(json.dumps({"id": n, "body": text}) for n, text in enumerate(texts)), "{half", json.dumps({"id": 99})]
    path.write_bytes(gzip.compress("\n".join(records).encode()))
    return str(path)


def config(source: str, **fields) -> TextConfig:
    return TextConfig(source=source, **{"sequence": T, "layout": "documents", "piece": P, "held_out": 0.1} | fields)


def training(cfg: TextConfig) -> set[str]:
    return {one.data.tobytes().decode() for one in data.source_of(cfg)._documents(cfg, "training")}


@pytest.mark.parametrize("kind", ["folder", "lines"])
def test_each_document_begins_at_a_piece_and_is_read_whole(kind, texts, request):
    """An epoch of one row gives every training document once, none twice, and starts a stream exactly where one begins."""
    cfg = config(request.getfixturevalue(kind), **({"column": "body"} if kind == "lines" else {}))
    wanted = training(cfg)
    assert wanted < set(texts) and len(wanted) >= 7
    pieces = sum(-(-(len(text) + 1) // P) for text in wanted)
    source, found, current = data.open_train(cfg, 1), [], None
    for _ in range(pieces // 3):
        batch = next(source)
        assert batch["start"].shape == (1, 3)
        for part in range(3):
            targets = batch["targets"].reshape(3, P)[part]
            if batch["start"][0, part]:
                current = []
                found.append(current)
                assert batch["inputs"].reshape(3, P)[part, 0] == BYTES.first or not found[1:]
            current.extend(targets[targets != IGNORED])
    whole = [bytes(ids[:-1]).decode() for ids in map(np.array, found[1:-1]) for ids in [ids.astype(np.uint8)]]
    assert set(whole) <= wanted and len(whole) == len(set(whole)) and len(whole) >= len(wanted) - 4
    assert all(ids[-1] == BYTES.last for ids in found[1:-1])


def test_the_gaps_are_those_of_the_batches(folder):
    """The share of positions without a target, over an epoch whose pieces fill the batches."""
    cfg = config(folder, sequence=P, piece=0)
    source = data.open_train(cfg, 1)
    lengths = np.array([len(text) for text in training(cfg)])
    facts = data.facts(cfg)
    empty = np.mean([(next(source)["targets"] == IGNORED).mean() for _ in range(int((-(-(lengths + 1) // P)).sum()))])
    assert facts["data/empty_share"] == pytest.approx(empty)
    assert facts["data/documents_per_row"] == pytest.approx(len(lengths) / (-(-(lengths + 1) // P)).sum())
    assert f"{empty:.0%} of a batch is empty behind the ends of documents" in data.describe(cfg)
    assert data.facts(config(folder, layout="joined", piece=0)) == {}


def test_packing_by_hand():
    """With one token to end each, documents of 3, 4 and 11 tokens take 1, 2 and 3 pieces of 4: 21 of 24 places; rows hold 3."""
    assert packing(np.array([3, 4, 11]), 12, 3) == {"data/empty_share": 1 - 21 / 24, "data/documents_per_row": 1.5}


def test_records_that_cannot_be_used_are_counted(lines):
    assert "2 record(s) left out, damaged" in data.describe(config(lines, column="body"))
    with pytest.raises(DataError, match="gives no text in the field 'text' .*is data.column right"):
        data.describe(config(lines, column="text"))


@pytest.mark.parametrize("layout", ["documents", "joined"])
def test_processes_together_read_what_one_reads_and_go_on(layout, folder):
    cfg = config(folder, layout=layout, piece=P if layout == "documents" else 0, sequence=P)
    alone, halves = data.open_train(cfg, 2), [data.open_train(cfg, 2, index, 2) for index in (0, 1)]
    for _ in range(5):
        whole, parts = next(alone), [next(half) for half in halves]
        for name in whole:
            np.testing.assert_array_equal(whole[name], np.concatenate([part[name] for part in parts]))
    again = data.open_train(cfg, 2)
    again.set_state(alone.get_state())
    np.testing.assert_array_equal(next(again)["targets"], next(alone)["targets"])


def test_in_tokens(folder, tmp_path):
    cfg = config(folder, tokenizer=tokenizer_toys.make("bpe", tmp_path))
    mark = data.tokenizer(cfg).first
    source = data.open_train(cfg, 1)
    batches = [next(source) for _ in range(4)]
    fronts = np.concatenate([one["inputs"].reshape(-1, P)[one["start"].reshape(-1)] for one in batches])
    assert (fronts[1:, 0] == mark).all() and len(fronts) > 1


def test_a_run_says_what_is_empty_in_its_first_line_of_metrics(folder, tmp_path, capsys):
    exp = experiment(folder, "data.layout=documents", "data.sequence=8", "data.piece=4", "data.held_out=0.1",
                     "training.call_tokens=4", "training.batch=2", "optimizer.steps=2", "optimizer.warmup_steps=1",
                     "training.log_every=1", "training.eval_every=0")
    for _ in range(2):
        train(exp, tmp_path / "run")
        records = metrics.read(tmp_path / "run")
        assert [r["step"] for r in records] == [0, 1, 2, 2]
        assert records[0]["data/empty_share"] == data.facts(exp.data)["data/empty_share"] > 0
    assert "is empty behind the ends of documents" in capsys.readouterr().out


@pytest.mark.parametrize("fields, message", [
    (dict(piece=5), "data.piece=5 does not divide data.sequence=12"),
    (dict(layout="joined"), "data.piece=4 is for data.layout=documents"),
    (dict(contiguous=False), "data.contiguous=False is for data.layout=joined"),
    (dict(layout="document"), "did you mean 'documents'")])
def test_settings_that_do_not_fit(fields, message):
    with pytest.raises(ValueError, match=message):
        config("stdlib", **fields)
