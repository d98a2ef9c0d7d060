"""Training on a prepared corpus: rows of whole documents, resuming, process shards, scores, and one line for each mistake."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys
import toy_run

from memtok_jax import config, data
from memtok_jax.config import UserError
from memtok_jax.data import prepared_corpus as disk
from memtok_jax.data import shards, tokenizers
from memtok_jax.data.documents import document
from memtok_jax.data.errors import DataError
from memtok_jax.data.iterators import GrainIterator, NumpyIterator
from memtok_jax.data.prepare import PrepareConfig, prepare
from memtok_jax.data.shard_writer import is_held_out
from memtok_jax.data.shards import ShardsConfig
from memtok_jax.data.streams import BYTES, DocumentBatches, Marks
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.training.run import train

for package in ("array_record", "grain"):
    pytest.importorskip(package, reason=f"needs {package} (pip install 'memtok_jax[corpora]')")

TEXTS = tuple(f"text {i}: the memory of 世界 " + "words and tokens " * (i * 7 % 23) for i in range(60))
T = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A prepared corpus in many shards."""
    root = tmp_path_factory.mktemp("corpus")
    path = tokenizer_toys.bpe(root / "tokenizer.json")
    (root / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    cfg = PrepareConfig(str(root / "a.jsonl"), path, str(root / "out"), held_out=0.2, processes=1, part_bytes=2000)
    prepare(cfg, lambda line: None)
    return root / "out"


def take(iterator, n: int) -> list[dict]:
    with_end = list(itertools.islice(iterator, n))
    iterator.close()
    return with_end


def assert_same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    for key in one:
        np.testing.assert_array_equal(one[key], other[key], err_msg=key)
        assert one[key].dtype == other[key].dtype


def training_ids(folder: Path) -> list[list[int]]:
    """The training documents in tokens, from the texts themselves."""
    one = tokenizers.load(str(folder / "tokenizer.json"))
    return [one.encode(text).tolist() for text in TEXTS if not is_held_out(text.encode(), 0.2)]


def pieces_in_an_epoch(ids: list[list[int]]) -> int:
    return sum(-(-(len(one) + 1) // T) for one in ids)


# ---------------------------------------------------------------------------------------------------- rows of documents

@pytest.mark.parametrize("layout, rows", [("documents", 1), ("documents", 3), ("joined", 1)])
def test_an_epoch_is_a_permutation_of_the_documents(folder, layout, rows):
    """Put together from the batches, row after row: every document once and whole, in an order that changes with epoch and seed."""
    wanted, mark = training_ids(folder), 0
    orders = []
    for seed in (0, 1):
        cfg = ShardsConfig(str(folder), T, seed=seed, layout=layout)
        steps = pieces_in_an_epoch(wanted) // rows if layout == "documents" else (sum(map(len, wanted)) + len(wanted)) // T
        batches = take(data.open_train(cfg, rows), 2 * steps)
        for epoch in (batches[:steps], batches[steps:]):
            stream = [i for row in range(rows) for b in epoch for i in b["targets"][row].tolist() if i >= 0]
            found = [list(run) for is_mark, run in itertools.groupby(stream, lambda i: i == mark) if not is_mark]
            inner = found if rows == 1 and layout == "documents" else found[1:-1]
            numbers = [wanted.index(one) for one in inner]
            assert len(set(numbers)) == len(numbers) >= len(wanted) - 2
            orders.append(numbers)
    assert len(set(map(tuple, orders))) == 4


@pytest.mark.parametrize("parts", [1, 3])
def test_a_document_begins_at_the_front_of_a_piece_and_only_there_the_row_starts(folder, parts):
    """The pieces of rows of one piece, and of rows of three, which hold several documents."""
    wanted, cfg = training_ids(folder), ShardsConfig(str(folder), parts * T, piece=T)
    assert data.parts(cfg) == parts
    batches = take(data.open_train(cfg, 1), pieces_in_an_epoch(wanted) // parts)
    assert batches[0]["start"].shape == ((1,) if parts == 1 else (1, parts))
    pieces = [{"inputs": b["inputs"][0].reshape(parts, T)[n], "targets": b["targets"][0].reshape(parts, T)[n],
               "start": b["start"].reshape(parts)[n]} for b in batches for n in range(parts)]
    starts = [n for n, one in enumerate(pieces) if one["start"]]
    assert len(starts) >= len(wanted) - 2 * (parts > 1)
    whole = list(zip(starts, [*starts[1:], len(pieces)], strict=True))
    for begin, end in whole[1:-1] if parts > 1 else whole:  # the first and the last may be cut by the epoch
        inputs, targets = (np.concatenate([one[name] for one in pieces[begin:end]]).tolist() for name in ("inputs", "targets"))
        n = wanted[wanted.index([i for i in targets if i > 0])]
        assert inputs[:len(n) + 1] == [0, *n] and targets[:len(n) + 1] == [*n, 0]
        assert set(targets[len(n) + 1:]) <= {-100} and set(inputs[len(n) + 1:]) <= {0} and len(targets) - len(n) - 1 < T


def test_rows_continue_from_batch_to_batch(folder):
    batches = take(data.open_train(ShardsConfig(str(folder), T), 4), 40)
    continued = 0
    for now, after in itertools.pairwise(batches):
        for row in np.flatnonzero(~after["start"]):
            assert now["targets"][row, -1] == after["inputs"][row, 0] >= 0
            continued += 1
    assert continued > 20 and batches[0]["start"].all()


@pytest.mark.parametrize("tokens", [0, 1, T - 1, T, T + 1, 2 * T])
def test_documents_of_every_length(tokens):
    """Whose last piece is full, or holds nothing but the end."""
    marks = Marks(first=7, last=9)
    source = DocumentBatches([document("a", bytes(range(20, 20 + tokens)))], 1, T, 0, range(1), marks)
    assert source.steps_per_epoch == -(-(tokens + 1) // T)
    batches = [source[n] for n in range(source.steps_per_epoch)]
    inputs, targets = (np.concatenate([b[name][0] for b in batches]).tolist() for name in ("inputs", "targets"))
    ids = list(range(20, 20 + tokens))
    rest = len(targets) - tokens - 1
    assert inputs == [7, *ids] + [0] * rest and targets == [*ids, 9] + [-100] * rest


def test_the_first_row_begins_at_any_piece_so_that_the_same_end_is_not_always_left_out():
    """Three pieces for two rows: the middle one always, the first and the last in turns."""
    source = DocumentBatches([document("a", bytes(range(1, 12)))], 2, 4, 0, range(2), BYTES)
    assert source.steps_per_epoch == 1
    firsts = {tuple(source[epoch]["targets"][:, 0].tolist()) for epoch in range(30)}
    assert firsts == {(1, 5), (5, 9)}
    assert all(source[epoch]["start"].all() for epoch in range(30))


# ---------------------------------------------------------------------------------------------- positions and processes

@pytest.mark.parametrize("layout", shards.LAYOUTS)
def test_a_resumed_iterator_gives_the_same_batches_bit_for_bit(folder, layout):
    cfg = ShardsConfig(str(folder), T, layout=layout)
    whole = take(data.open_train(cfg, 2), 90)
    for stop in (1, 37, 80):
        first = data.open_train(cfg, 2)
        begun = list(itertools.islice(first, stop))
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        second = data.open_train(cfg, 2)
        second.set_state(state)
        for one, other in zip(begun + take(second, 90 - stop), whole, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("layout", shards.LAYOUTS)
def test_processes_together_read_what_one_reads(folder, layout):
    cfg = ShardsConfig(str(folder), T, layout=layout)
    whole = data.open_train(cfg, 4)
    parts = [data.open_train(cfg, 4, index, 2) for index in range(2)]
    for _ in range(50):
        batch, halves = next(whole), [next(part) for part in parts]
        assert_same(batch, {name: np.concatenate([half[name] for half in halves]) for name in batch})
    assert whole.get_state() == parts[0].get_state() == parts[1].get_state()
    for one in (whole, *parts):
        one.close()


def test_a_position_belongs_to_one_corpus_and_cut(folder, tmp_path):
    cfg = ShardsConfig(str(folder), T)
    state = data.open_train(cfg, 2).get_state()
    for changes in (dict(seed=1), dict(sequence=8), dict(layout="joined")):
        with pytest.raises(DataError, match="belongs to other data"):
            data.open_train(dataclasses.replace(cfg, **changes), 2).set_state(state)
    moved = shutil.copytree(folder, tmp_path / "moved")
    data.open_train(ShardsConfig(str(moved), T), 2).set_state(state)
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text + "!"}) + "\n" for text in TEXTS))
    other = PrepareConfig(str(tmp_path / "b.jsonl"), str(folder / "tokenizer.json"), str(tmp_path / "b"), processes=1)
    prepare(other, lambda line: None)
    with pytest.raises(DataError, match="belongs to other data"):
        data.open_train(ShardsConfig(str(tmp_path / "b"), T), 2).set_state(state)


def test_shards_are_read_through_grain(folder):
    iterator = data.open_train(ShardsConfig(str(folder), T), 2)
    assert isinstance(iterator, GrainIterator) and isinstance(iterator, NumpyIterator)
    iterator.close()


# ------------------------------------------------------------------------------------------------------------- scoring

@pytest.mark.parametrize("limit", [0, 100, 333])
def test_held_out_texts_are_scored_once(folder, limit):
    cfg = ShardsConfig(str(folder), T, eval_bytes=limit)
    texts = {text for text in TEXTS if is_held_out(text.encode(), 0.2)}
    size = len(shards.eval_text(cfg))
    assert size == (limit or sum(len(text.encode()) for text in texts))
    assert shards.reference_words(cfg) == len(shards.eval_text(cfg).split()) > 5
    batches = list(data.open_eval(cfg, 3))
    assert sum(int(b["bytes"].sum()) for b in batches) == size
    if not limit:
        streams: dict[int, list[int]] = {}
        for b in batches:
            for row in np.flatnonzero(b["length"]):
                streams.setdefault(int(b["document"][row]), []).extend(b["targets"][row, :b["length"][row]].tolist())
        assert {data.decode(cfg, ids) for ids in streams.values()} == texts
        assert sum(map(len, streams.values())) == disk.read_manifest(folder)["splits"]["valid"]["tokens"]


def test_a_run_on_shards(folder, tmp_path, capsys):
    """It trains, goes on after its checkpoint though the corpus has moved, writes text, is scored, and beats chance."""
    experiment = toy_run.experiment(f"shards:{folder}", "model.vocabulary=320", "optimizer.steps=8", "training.eval_every=0",
                                    "training.checkpoint_every=0")
    assert experiment.data == ShardsConfig(str(folder), T)
    train(config.override(experiment, ("optimizer.steps=4",)), tmp_path / "run")
    moved = shutil.copytree(folder, tmp_path / "moved")
    train(config.override(experiment, (f"data.folder={moved}", "training.sample_tokens=4")), tmp_path / "run")
    out = capsys.readouterr().out
    assert "continuing after step 4" in out and "<|endoftext|>text " in out.split("ends at the bar")[1]
    said: list[str] = []
    result = evaluate_run(tmp_path / "run", (), said.append)
    assert result["eval/bytes"] == len(shards.eval_text(experiment.data)) and result["eval/loss"] < np.log(320)
    assert result["eval/tokens"] < result["eval/bytes"] and result["baseline/zlib-9"] > 0
    assert "documents to train on" in said[0] and "is empty behind the ends" in said[0]
    with pytest.raises(UserError, match="the data has 320 symbols, model.vocabulary is 256"):
        train(config.override(experiment, ("model.vocabulary=256",)), tmp_path / "other")


def test_a_name_chooses_the_corpus(folder):
    chosen = data.named(TextConfig(sequence=24, seed=3), f"shards:{folder}")
    assert chosen == ShardsConfig(str(folder), 24, 3) and data.unit(chosen) == "tokens" and data.targets(chosen) == "tokens"
    joined = dataclasses.replace(chosen, layout="joined")
    assert data.named(joined, "other") == dataclasses.replace(joined, folder="other")
    assert config.from_json(config.to_json(joined)) == joined
    assert data.vocabulary(chosen) == 320 and data.tokenizer(chosen).name == "tokenizer.json"


# ------------------------------------------------------------------------------------------------------------ mistakes

def message_of(call) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_folders_that_are_no_corpus(folder, tmp_path):
    said = lambda path: message_of(lambda: data.open_train(ShardsConfig(str(path), T), 2))
    assert "is no prepared corpus; make one with python -m memtok_jax.data.prepare" in said(tmp_path)
    (tmp_path / disk.PLAN).write_text("{}")
    assert "is not prepared to the end" in said(tmp_path)
    for name, spoil, rule in (
            ("train-00000.array_record", lambda p: p.unlink(), "is missing, the manifest says"),
            ("train-00000.array_record", lambda p: p.write_bytes(p.read_bytes()[:-9]), "bytes, the manifest says"),
            ("train-00000.array_record", lambda p: p.write_bytes(bytes(p.stat().st_size)), "cannot be read"),
            ("train-00000.npy", lambda p: p.unlink(), "cannot read the lengths"),
            ("train-00000.npy", lambda p: np.save(p, np.load(p)[:-1]), "the lengths are of"),
            ("tokenizer.json", lambda p: tokenizer_toys.bpe(p, 300), "is not the tokenizer that"),
            (disk.MANIFEST, lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 9')), "has format 9")):
        copy = tmp_path / f"{name}-{rule[:9]}".replace(" ", "_")
        shutil.copytree(folder, copy)
        spoil(copy / name)
        assert rule in message_of(lambda copy=copy: take(data.open_train(ShardsConfig(str(copy), T), 2), 60)), name


def test_settings_that_do_not_fit(folder):
    assert "did you mean 'joined'?" in message_of(lambda: ShardsConfig(str(folder), layout="join"))
    assert "data.folder is empty" in message_of(lambda: ShardsConfig(""))
    separate, joined = (ShardsConfig(str(folder), T, layout=layout) for layout in shards.LAYOUTS)
    assert "pieces of 16 tokens, fewer than the 5000 pieces" in message_of(lambda: data.open_train(separate, 5000))
    assert "tokens is too short for 5000 rows" in message_of(lambda: data.open_train(joined, 5000))


def test_a_corpus_without_held_out_documents_trains_and_says_why_it_is_not_scored(tmp_path):
    path = tokenizer_toys.bpe(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text(TEXTS[5])
    said: list[str] = []
    prepare(PrepareConfig(str(tmp_path / "a.txt"), path, str(tmp_path / "out"), held_out=0.0, processes=1), said.append)
    assert any("no document is held out" in line for line in said)
    cfg = ShardsConfig(str(tmp_path / "out"), 4)
    assert take(data.open_train(cfg, 1), 1)[0]["inputs"].shape == (1, 4)
    assert "prepare again with a larger --held_out" in message_of(lambda: data.open_eval(cfg, 1))
