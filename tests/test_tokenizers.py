"""Tokenizers of text: round trips, exact bytes of tokens, marks, batches, scores, and one line for each mistake."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys
import toy_run

from memtok_jax import config, data
from memtok_jax.analysis import figures
from memtok_jax.config import UserError
from memtok_jax.data import text as text_source
from memtok_jax.data import tokenizers
from memtok_jax.data.errors import DataError
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.evaluation.score import Score
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.training.run import train

SAMPLES = ("the memory of a model", "", " ", "  two  spaces\n\n\tand a tab ", "Grüße, 世界",
           "\N{GRINNING FACE} \N{MATHEMATICAL BOLD CAPITAL A}", "a<|endoftext|>b <s>c</s>", "\r\n", "e\u0301")


@pytest.fixture(scope="module", params=tokenizer_toys.KINDS)
def path(request, tmp_path_factory) -> str:
    return tokenizer_toys.make(request.param, tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("text", SAMPLES)
def test_round_trip_and_bytes(path, text):
    one = tokenizers.load(path)
    ids = one.encode(text)
    assert ids.dtype == np.int32 and one.decode(ids) == text
    assert ((0 <= ids) & (ids < one.vocabulary)).all() and not set(ids.tolist()) & {one.first, one.last}
    again, sizes = one.measure(text)
    np.testing.assert_array_equal(again, ids)
    assert sizes.dtype == np.int32 and sizes.shape == ids.shape and (sizes >= 0).all() and sizes.sum() == len(text.encode())


@pytest.mark.parametrize("text", SAMPLES)
def test_bytes_of_tokens_joined_are_the_text(path, text):
    """Also where a character is cut between tokens; SentencePiece begins a text with a space of its own."""
    one = tokenizers.load(path)
    joined = b"".join(map(one.as_bytes, one.encode(text).tolist()))
    front = b" " if path.endswith(".model") and text else b""
    assert joined == front + text.encode()
    assert one.as_bytes(one.vocabulary + 5) == "\N{REPLACEMENT CHARACTER}".encode()


def test_what_the_file_puts_before_a_text(tmp_path):
    """A byte-level file without a rule puts nothing there, though `first` is its only mark; with a rule, and in SentencePiece, what
    the rule says, without the token that ends a text."""
    library = pytest.importorskip("tokenizers")
    plain = tokenizer_toys.make("bpe", tmp_path)
    file = library.Tokenizer.from_file(plain)
    file.add_special_tokens(["<s>", "</s>"])
    begin, end = file.token_to_id("<s>"), file.token_to_id("</s>")
    file.post_processor = library.processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", begin), ("</s>", end)])
    file.save(str(tmp_path / "ruled.json"))
    ruled, marked = (tokenizers.load(str(tmp_path / name)) for name in ("ruled.json", "tokenizer.json"))
    assert marked.front == () and marked.first == marked.last
    assert ruled.front == (begin,)
    assert tokenizers.load(tokenizer_toys.make("sentencepiece", tmp_path)).front == (1,)


@pytest.mark.parametrize("text", ["the memory of a model reads tokens", "Gedächtnis für 世界", "\N{GRINNING FACE} the memory"])
def test_bytes_of_tokens_are_those_of_their_text(path, text):
    """Wherever the first tokens decode to the beginning of the text, their bytes are the bytes of that beginning."""
    one = tokenizers.load(path)
    ids, sizes = one.measure(text)
    begun = [(n, one.decode(ids[:n])) for n in range(1, len(ids) + 1) if text.startswith(one.decode(ids[:n]))]
    assert len(begun) > 1
    for n, beginning in begun:
        assert sizes[:n].sum() == len(beginning.encode()), beginning


def test_bytes_that_a_tokenizer_drops_count(tmp_path):
    lossy = tokenizers.load(tokenizer_toys.sentencepiece(tmp_path / "lossy.model", remove_extra_whitespaces=True))
    assert lossy.decode(lossy.encode("the memory   ")) == "the memory"
    assert lossy.measure("the memory   ")[1].sum() == 13


def test_fingerprint_is_that_of_the_file(path):
    one = tokenizers.load(path)
    assert one.fingerprint == hashlib.sha256(Path(path).read_bytes()).hexdigest() and one.name == Path(path).name


def test_decode_stops_at_a_negative_id_and_shows_unknown_ids(path):
    one = tokenizers.load(path)
    ids = one.encode("the memory").tolist()
    assert one.decode([*ids, -1, *ids]) == "the memory"
    assert one.decode([*ids, one.vocabulary, one.vocabulary + 5]) == "the memory\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}"


def test_truncation_and_padding_of_a_file_are_not_applied(tmp_path):
    path = tokenizer_toys.bpe(tmp_path / "tokenizer.json", truncation=dict(max_length=4), padding=dict(length=64))
    one, text = tokenizers.load(path), "the memory of a model reads tokens and writes text"
    assert one.decode(one.encode(text)) == text and 4 < len(one.encode(text)) < 64


def test_marks(tmp_path):
    pieces = tokenizers.load(tokenizer_toys.sentencepiece(tmp_path / "both.model"))
    assert (pieces.first, pieces.last) == (1, 2)
    pieces = tokenizers.load(tokenizer_toys.sentencepiece(tmp_path / "one.model", bos_id=-1, eos_id=1))
    assert (pieces.first, pieces.last) == (1, 1)
    joined = tokenizers.load(tokenizer_toys.bpe(tmp_path / "tokenizer.json"))
    assert joined.first == joined.last == 0


# ------------------------------------------------------------------------------------------------------- mistakes

def message_of(call) -> str:
    with pytest.raises(DataError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_files_are_one_line(tmp_path):
    for name, content in (("bad.json", b"{"), ("bad.model", b"no model"), ("other.bin", b"")):
        (tmp_path / name).write_bytes(content)
    said = {name: message_of(lambda name=name: tokenizers.load(str(tmp_path / name)))
            for name in ("bad.json", "bad.model", "other.bin", "absent.json", "")}
    assert "cannot read the tokenizer" in said["bad.json"] and "cannot read the tokenizer" in said["bad.model"]
    assert "it must be a tokenizer.json or a SentencePiece .model" in said["other.bin"]
    assert "No such file" in said["absent.json"] and "as in" in said[""]


def test_a_file_without_marks_is_refused(tmp_path):
    path = tokenizer_toys.sentencepiece(tmp_path / "none.model", bos_id=-1, eos_id=-1)
    assert "no token that begins or ends a text" in message_of(lambda: tokenizers.load(path))


def test_absent_package_names_the_extra(path, monkeypatch, tmp_path):
    copy = tmp_path / Path(path).name
    copy.write_bytes(Path(path).read_bytes())
    package = tokenizers.READERS[copy.suffix][0]
    monkeypatch.setitem(sys.modules, package, None)
    assert f"needs the package {package}" in (said := message_of(lambda: tokenizers.load(str(copy))))
    assert said.endswith("pip install 'memtok_jax[tokens]'")


# ---------------------------------------------------------------------------------------------------- text in tokens

@pytest.fixture
def source(path, tmp_path) -> TextConfig:
    (tmp_path / "text.txt").write_text(tokenizer_toys.TEXT, encoding="utf-8")
    return TextConfig(source=str(tmp_path / "text.txt"), sequence=16, held_out=0.2, tokenizer=path)


def test_training_batches_are_the_encoded_text(source):
    one = data.tokenizer(source)
    expected = one.encode(text_source.train_text(source).decode(errors="replace"))
    batches = list(itertools.islice(data.open_train(source, 1), len(expected) // 16 - 1))
    ids = np.concatenate([b["targets"][0] for b in batches])
    place = next(n for n in range(17) if (expected[n:n + 40] == ids[:40]).all())
    np.testing.assert_array_equal(ids, expected[place:place + len(ids)])
    assert [bool(b["start"][0]) for b in batches] == [True] + [False] * (len(batches) - 1)
    assert data.vocabulary(source) == one.vocabulary and data.input_shape(source) == ((16,), np.int32)


@pytest.mark.parametrize("rows", [1, 3])
def test_held_out_text_is_scored_once_and_its_bytes_counted(source, rows):
    one, batches = data.tokenizer(source), list(data.open_eval(source, rows))
    assert sum(int(b["bytes"].sum()) for b in batches) == len(text_source.eval_text(source))
    assert batches[0]["inputs"][0, 0] == one.first
    by_row = [np.concatenate([b["targets"][r, :b["length"][r]] for b in batches]) for r in range(rows)]
    assert one.decode(np.concatenate(by_row)) == text_source.eval_text(source).decode(errors="replace")


def test_joined_texts_are_separated_by_the_mark(path, tmp_path):
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text(f"the memory {n} " * 5)
    cfg = TextConfig(source=str(tmp_path), sequence=8, held_out=0.3, tokenizer=path)
    one, texts = data.tokenizer(cfg), text_source.eval_text(cfg).decode().split("\0")
    expected = [i for number, t in enumerate(texts) for i in [one.last] * (number > 0) + one.encode(t).tolist()]
    batches = list(data.open_eval(cfg, 1))
    assert [i for b in batches for i in b["targets"][0, :b["length"][0]].tolist()] == expected and len(texts) > 2
    assert sum(int(b["bytes"].sum()) for b in batches) == len(text_source.eval_text(cfg))


def test_broken_utf8_and_lossy_tokenizers_are_named(path, tmp_path):
    (tmp_path / "a.txt").write_bytes(b"the memory \xff\xfe of " * 40)
    cfg = TextConfig(source=str(tmp_path / "a.txt"), sequence=8, held_out=0.3, tokenizer=path)
    assert "text(s) are not UTF-8" in data.describe(cfg) and "does not give back" not in data.describe(cfg)
    assert sum(int(b["bytes"].sum()) for b in data.open_eval(cfg, 2)) == len(text_source.eval_text(cfg))
    lossy = tokenizer_toys.sentencepiece(tmp_path / "lossy.model", remove_extra_whitespaces=True)
    (tmp_path / "b.txt").write_text("the  memory  of " * 40)
    said = data.describe(TextConfig(source=str(tmp_path / "b.txt"), held_out=0.3, tokenizer=lossy))
    assert "does not give back this text exactly" in said and "\n" not in said


def test_a_saved_position_belongs_to_its_tokenizer(source, tmp_path):
    state = data.open_train(source, 2).get_state()
    bytes_state = data.open_train(TextConfig(source=source.source, sequence=16, held_out=0.2), 2).get_state()
    assert state["identity"] != bytes_state["identity"]
    with pytest.raises(DataError, match="belongs to other data"):
        data.open_train(source, 2).set_state(bytes_state)


# --------------------------------------------------------------------------------------------------------- scores

def test_bits_per_byte_of_a_uniform_model():
    """log2 V bits for each token, over the bytes of the text: not over the tokens."""
    score = Score(nats=500 * math.log(320), correct=0, count=500, positions=(), bytes=2000)
    assert suite_named("text").HEADLINE.of(score) == pytest.approx(500 * math.log2(320) / 2000)


def test_a_run_on_tokens_reports_bits_per_byte_and_loss_per_token(source, tmp_path, monkeypatch):
    vocabulary = data.tokenizer(source).vocabulary
    fields = (f"data.tokenizer={source.tokenizer}", f"model.vocabulary={vocabulary}", "optimizer.steps=2", "training.eval_every=0",
              "training.sample_tokens=0")
    workdir = tmp_path / "run"
    drawn, said = [], []
    monkeypatch.setattr(figures, "available", lambda: True)
    monkeypatch.setattr(figures, "curves", lambda path, lines, *rest: drawn.append(lines))
    monkeypatch.setattr(figures, "by_distance", lambda path, points, *rest: drawn.append(points))
    train(toy_run.experiment(source.source, *fields), workdir)
    result = evaluate_run(workdir, ("data.eval_bytes=400",), said.append)
    cfg = config.override(toy_run.experiment(source.source, *fields), ("data.eval_bytes=400",)).data
    tokens = sum(int(b["length"].sum()) for b in data.open_eval(cfg, 1))
    assert result["eval/tokens"] == tokens < result["eval/bytes"] == 400
    assert result["eval/bits_per_byte"] == pytest.approx(result["eval/loss"] * tokens / (400 * math.log(2)))
    assert result["eval/loss"] == pytest.approx(math.log(vocabulary), rel=0.3)
    assert result["tokenizer"] == data.tokenizer(cfg).fingerprint
    assert any(line.startswith("loss per token") for line in said)
    lines, points = drawn
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    rate = records[-1]["eval/bits_per_byte"] / records[-1]["eval/loss"]
    np.testing.assert_allclose(lines["training batches"][1], [loss * rate for loss in losses])
    assert sum(bits * count for _, _, bits, count in points) / tokens == pytest.approx(result["eval/bits_per_byte"])
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["eval/bits_per_byte"] < last["eval/loss"] / math.log(2)


def test_a_vocabulary_that_does_not_fit_is_refused_before_anything_compiles(source, tmp_path, monkeypatch):
    experiment = toy_run.experiment(source.source, f"data.tokenizer={source.tokenizer}", "model.vocabulary=300")
    monkeypatch.setattr("memtok_jax.training.run.begin", None)
    vocabulary = data.tokenizer(source).vocabulary
    with pytest.raises(UserError, match=f"the data has {vocabulary} symbols, model.vocabulary is 300; set --config.model.voc"):
        train(experiment, tmp_path / "run")
