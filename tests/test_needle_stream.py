"""Needles in endless streams: the rows, a reader whose score is known, cuts that change nothing, and the table of models."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import needle_reader
import numpy as np
import pytest

from benchmarks import sweep, two_million
from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.data import task
from memtok_jax.data.tasks import needles as N
from memtok_jax.evaluation.options import NeedleStreamConfig
from memtok_jax.evaluation.suites import needle_stream as suite
from memtok_jax.inference.compiles import compile_count
from memtok_jax.models.protocol import bind

TEXT = b"zz yy, x " * 60
OPTIONS = NeedleStreamConfig(depths=(0.0, 0.5, 1.0), repeats=2)
PASSKEY = replace(OPTIONS, kind="passkey")


@pytest.fixture(autouse=True)
def _corpus(monkeypatch):
    monkeypatch.setattr(N.haystack, "text", lambda source, split: TEXT)


def test_a_stream_is_the_text_with_its_needle_in_it():
    """At any cut; the text goes on behind the needle where it stopped, and begins anew at its end."""
    streams = suite.planted(N.NeedlesConfig(), OPTIONS, 1300, "test")
    whole, size = streams.tokens(0, 1301), N.needle_tokens("number")
    np.testing.assert_array_equal(np.concatenate([streams.tokens(a, b) for a, b in ((0, 7), (7, 650), (650, 1301))], 1), whole)
    assert streams.place.tolist() == [0, 0, 644, 644, 1288, 1288]
    text = N.encode(TEXT)
    for row, place, offset, needle, question in zip(whole, streams.place, streams.offset, streams.needle, streams.question(),
                                                    strict=True):
        assert row[place:place + size].tolist() == needle.tolist() and needle[0] == N.NEEDLE and needle[-1] == N.END
        hay = np.delete(row, np.arange(place, place + size))
        assert hay.tolist() == [text[(offset + n) % len(text)] for n in range(len(hay))]
        assert question[0] == N.ASK and question[1:].tolist() == needle[1:-1].tolist()
    assert len({tuple(needle[1:5]) for needle in streams.needle}) == 6, "each needle has a key of its own"


@pytest.fixture(scope="module")
def read():
    """(points, parts) of the scripted reader, which forgets nothing, from streams cut into blocks of 40 and of 64 tokens."""
    model = bind(needle_reader.ReaderConfig())
    streams = suite.planted(N.NeedlesConfig(), PASSKEY, 640, "test")
    return [suite.streamed({}, streams, 640, block, 8, model, lambda line: None) for block in (40, 64)]


def test_a_reader_that_forgets_nothing_is_always_right(read):
    for points, parts in read:
        assert all(point["exact"] and point["symbols"] == 1 for point in points)
        ends = [point for point in points if point["at"] == 640]
        assert [point["place"] for point in ends] == [0, 0, 314, 314, 628, 628] and len(points) > len(ends)
        assert all(point["distance"] == point["at"] - point["place"] - 12 >= 0 for point in points)
        assert parts[-1]["tokens"] == 640 and len(parts) == suite.PARTS


def test_blocks_and_questions_on_the_way_do_not_matter(read):
    """Loss and answers at the end are the same, though questions came at other places. One-hot logits bound the loss."""
    ends = [[point for point in points if point["at"] == 640] for points, _ in read]
    assert ends[0] == ends[1]
    bits = [np.average([part["bits_per_token"] for part in parts], weights=np.diff([0, *(part["tokens"] for part in parts)]))
            for _, parts in read]
    assert bits[0] == pytest.approx(bits[1], rel=1e-5)
    likely, other = (-np.log2(np.exp(z) / (np.e + 50)) for z in (1, 0))
    assert likely < bits[0] < other


def test_one_program_reads_a_stream_of_any_length(read):
    model = bind(needle_reader.ReaderConfig())
    streams = suite.planted(N.NeedlesConfig(), PASSKEY, 1280, "test")
    before = compile_count()
    points, _ = suite.streamed({}, streams, 1280, 64, 8, model, lambda line: None)
    assert compile_count() == before and all(point["exact"] for point in points)


def test_distances_and_times_of_asking_double():
    points = [{"distance": d, "exact": d < 100, "symbols": float(d < 100)} for d in (3, 40, 50, 70, 130, 200)]
    assert suite.by_distance(points) == [(2, 1, 1, 1), (32, 1, 1, 2), (64, 1, 1, 1), (128, 0, 0, 2)]
    assert suite.askings(1000, 100) == [1, 2, 4, 8, 10] and suite.askings(100, 100) == [1]


def test_the_suite_reports_depths_and_parts(tmp_path):
    said, options = [], NeedleStreamConfig(tokens=300, block=50, depths=(0.0, 1.0), repeats=2)
    cfg = task.TaskConfig(N.NeedlesConfig(("number",)), 64)
    experiment = SimpleNamespace(data=cfg, call_tokens=16, evaluation=SimpleNamespace(needle_stream=options))
    found = dict(suite.run(experiment, bind(needle_reader.ReaderConfig()), {}, None, tmp_path, said.append))
    assert found["eval/exact"] == found["eval/accuracy"] == 1 and found["by_depth"] == [[0.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    assert found["parts"][-1]["tokens"] == 288, "whole blocks of whole calls"
    assert found["eval/peak_mb"] > 0 and found["baseline/chance"] == 1e-5 and (tmp_path / "needle_stream.png").exists()
    assert "by depth: 0: 1.00 (1.00), 1: 1.00 (1.00)" in said[-1]


def test_mistakes_are_one_line():
    with pytest.raises(UserError, match="evaluation.needle_stream.depths is .* between 0 and 1"):
        NeedleStreamConfig(depths=(0.5, 1.5))
    with pytest.raises(UserError, match="depths is empty"):
        NeedleStreamConfig(depths=())


def test_text_is_learned_in_training_alone():
    ids, labels = N.sample(N.NeedlesConfig(("number",), learn_text=True), 64, 5, 0)
    plain = N.sample(N.NeedlesConfig(("number",)), 64, 5, 0)
    np.testing.assert_array_equal(ids, plain.ids)
    assert (labels[:, :-1] == ids[:, 1:]).all() and (labels[:, -1] == plain.labels[:, -1]).all()
    held = [N.sample(N.NeedlesConfig(("number",), learn_text=learned), 64, 2, 2**126).labels for learned in (True, False)]
    np.testing.assert_array_equal(*held)


# ------------------------------------------------------------------------------------------------------------------- the table

def stand_in(calls):
    """`sweep.run_all` without training and streaming."""
    def run_all(experiments, folder, overrides=(), at_once=0, suite="", **_):
        calls.append((suite, overrides, experiments))
        parts = [{"tokens": 1000 * n, "bits_per_token": 2.0, "tokens_per_second": 5.0, "peak_mb": 100.0 + n} for n in (1, 2)]
        return {name: {"eval/accuracy": 0.5, "by_depth": [[0.0, 0.0, 0.25], [1.0, 1.0, 1.0]], "parts": parts, "workdir": "x",
                       "by_distance": [(16, 1.0, 1.0, 3), (32, 0.0, 0.2, 3)], "eval/tokens_per_second": 5.0,
                       "baseline/chance": 1e-5, "baseline/symbols": 0.25} for name in experiments}
    return run_all


def test_models_become_one_table_and_one_figure(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(sweep, "run_all", stand_in(calls))
    two_million.main(["--budget=tiny", "--models", "RMT", "window + sinks", "--tokens=2048", "--depths", "0", "1",
                      f"--output={tmp_path / 'out'}"])
    (_, _, experiments), (name, overrides, _) = calls
    assert name == "needle_stream" and set(experiments) == {"RMT-0.002-0", "window_+_sinks-0.002-0"}
    for one in experiments.values():
        changed = config.override(one, overrides).evaluation.needle_stream
        assert changed == NeedleStreamConfig(2048, 1024, (0.0, 1.0), 1, "number") and one.data.task.learn_text
        assert config.from_json(config.to_json(one)) == one
    text = (tmp_path / "out.md").read_text()
    assert "| RMT " in text and "| 0.00    | 1.00 " in text and "101.0, 102.0" in text
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert "workdir" not in json.loads((tmp_path / "out.json").read_text())["runs"][0]


def test_sizes_of_the_models_fit():
    args = two_million.parse(["--kind=word"])
    page = two_million.pages.needles(two_million.pages.BUDGETS["tiny"])
    for name in two_million.MODELS:
        one = two_million.experiment(two_million.Run(name, 1e-3, 1), page, args)
        assert one.call_tokens % bind(one.model).call_tokens == 0 and "word" in one.data.task.kinds
        assert jax.tree.leaves(bind(one.model).state_specs(1)), "something is carried"
