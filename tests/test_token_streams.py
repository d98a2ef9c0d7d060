"""stream.py on a run with a tokenizer: text comes in and goes out right, whatever is cut where; measured by byte and by token."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys
import toy_run

from memtok_jax import config
from memtok_jax.data import token_reading, tokenizers
from memtok_jax.data.reading import Pieces
from memtok_jax.data.token_reading import ByteText, TokenText
from memtok_jax.evaluation import streaming
from memtok_jax.evaluation.streaming import StreamConfig, stream_text
from memtok_jax.evaluation.units import units_of
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.text import TextRow
from memtok_jax.training.run import train


def long_text(words: int) -> str:
    chance = random.Random(3)
    kinds = ("the memory", "of a model", "Gedächtnis", "世界", "\n", "\n\n  ", "Grüße,", "writes", "\N{GRINNING FACE}", "x" * 40)
    return " ".join(chance.choice(kinds) for _ in range(words))


@pytest.fixture(scope="module", params=tokenizer_toys.KINDS)
def tokenizer(request, tmp_path_factory):
    return tokenizers.load(tokenizer_toys.make(request.param, tmp_path_factory.mktemp("tokenizer")))


def read_all(source, sizes) -> np.ndarray:
    parts = []
    while len(part := source.read(sizes[len(parts) % len(sizes)])):
        parts.append(part)
    return np.concatenate(parts)


@pytest.mark.parametrize("window", [64, 997, 8192])
def test_tokens_of_a_long_text_are_those_of_the_whole(tokenizer, tmp_path, monkeypatch, window):
    """In windows of any size, and whatever characters they cut."""
    monkeypatch.setattr(token_reading, "WINDOW", window)
    text = long_text(1500)
    (tmp_path / "text").write_text(text)
    source = TokenText(Pieces(str(tmp_path / "text")), tokenizer, True, (tokenizer.first,))
    found = read_all(source, (1, 100, 7))
    assert found[0] == tokenizer.first and source.bytes == len(text.encode())
    np.testing.assert_array_equal(found[1:], tokenizer.encode(text))


def test_a_reader_goes_on_where_another_stopped(tokenizer, tmp_path, monkeypatch):
    """In the middle of a window and of a character."""
    monkeypatch.setattr(token_reading, "WINDOW", 301)
    (tmp_path / "text").write_text(long_text(400))
    for stop in (1, 17, 160, 700):
        one, other = (TokenText(Pieces(str(tmp_path / "text")), tokenizer, True, (tokenizer.first,)) for _ in range(2))
        one.read(stop)
        state = json.loads(json.dumps([one.source.taken, one.source.checksum, one.state()]))
        other.source.skip(*state[:2])
        other.go_on(state[2])
        np.testing.assert_array_equal(read_all(one, (50,)), read_all(other, (9, 33)))
        assert one.bytes == other.bytes and one.scored == other.scored == one.bytes


def test_the_first_token_of_a_stream_is_scored_by_nobody(tokenizer, tmp_path):
    """With nothing in front it is a token of the text; a reader that goes on knows of it."""
    (tmp_path / "text").write_text("Gedächtnis of a model")
    sizes = tokenizer.measure("Gedächtnis of a model")[1]
    one, other = (TokenText(Pieces(str(tmp_path / "text")), tokenizer, True, ()) for _ in range(2))
    one.read(2)
    other.source.skip(one.source.taken, one.source.checksum)
    other.go_on(json.loads(json.dumps(one.state())))
    for source in (one, other):
        read_all(source, (3,))
        assert (source.bytes, source.scored) == (sizes.sum(), sizes[1:].sum())


def test_a_reply_ends_with_the_token_that_ends_a_text(tokenizer):
    units = units_of(tokenizer)
    assert units.ends == (tokenizer.last,) and units.as_bytes(tokenizer.last) == b"" and units_of(None).ends == ()
    word = int(tokenizer.encode("memory")[-1])
    assert units.as_bytes(word) == tokenizer.as_bytes(word)


def test_bytes_that_are_no_text_are_read_with_a_sign(tokenizer, tmp_path):
    (tmp_path / "text").write_bytes(b"one \xff\xfe two \xe4\xb8")
    found = read_all(TokenText(Pieces(str(tmp_path / "text")), tokenizer, False, ()), (4,))
    np.testing.assert_array_equal(found, tokenizer.encode("one \ufffd\ufffd two \ufffd"))


def test_a_text_in_bytes_is_its_bytes(tmp_path):
    (tmp_path / "text").write_text("Grüße")
    assert read_all(ByteText(Pieces(str(tmp_path / "text"))), (2,)).tobytes() == "Grüße".encode()


def test_half_characters_wait_for_their_other_half(tokenizer):
    """Shown after each token is only what is whole; at the end it is the text."""
    text = "Gedächtnis 世界 \N{GRINNING FACE}!"
    row, shown = TextRow((), tokenizer.as_bytes), []
    for token in tokenizer.encode(text):
        shown.append(row.push([token])[0])
    assert "\ufffd" not in "".join(shown) and "" in shown
    assert "".join([*shown, row.finish()]).removeprefix(" ") == text


def test_tokens_are_kept_in_files_as_they_are(tokenizer):
    ids = np.array([0, 5, tokenizer.vocabulary - 1], np.int32)
    units = units_of(tokenizer)
    np.testing.assert_array_equal(units.ids(units.kept(ids)), ids)
    plain = units_of(None)
    assert plain.kept(np.array([65, 300])) == b"A\xff" and plain.size(np.array([65, 300])) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    path = tokenizer_toys.make("bpe", folder)
    (folder / "words.txt").write_text(long_text(800))
    exp = toy_run.experiment(str(folder / "words.txt"), f"data.tokenizer={path}", "model.vocabulary=320", "optimizer.steps=4",
                             "training.eval_every=0")
    assert train(exp, folder / "run") == 0
    return folder / "run"


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("book") / "book.txt"
    path.write_text(long_text(300))
    return str(path)


def command(workdir, **options):
    out, lines = [], []
    status = stream_text(workdir, (), StreamConfig(**{"sampling": Sampling(1.0, top_k=20), **options}), out.append, lines.append)
    return status, "".join(out), lines


def test_perplexity_by_byte_and_by_token(run, book):
    """The mean over one call of the model that begins with the mark of training, by the definition."""
    status, out, lines = command(run, file=(book,), perplexity=True)
    found = json.loads(out)
    model, params, _, _ = streaming._load_model(run, (), StreamConfig(file=("x",)), lambda line: None)
    one = tokenizers.load(config.from_json((run / "config.json").read_text()).data.tokenizer)
    text = Path(book).read_text()
    ids = np.concatenate([[one.first], one.encode(text)])
    logits = np.asarray(model.apply(params, model.init_state(params, 1), ids[None, :-1])[0][0], np.float64)
    p = np.exp(logits - logits.max(-1, keepdims=True))
    nats = -np.log((p / p.sum(-1, keepdims=True))[np.arange(len(ids) - 1), ids[1:]]).sum()
    size = len(text.encode())
    assert status == 0 and (found["bytes"], found["tokens"]) == (size, len(ids) - 1)
    assert found["bits_per_byte"] == pytest.approx(nats / np.log(2) / size, rel=1e-4)
    assert found["perplexity_per_byte"] == pytest.approx(np.exp(nats / size), rel=1e-4)
    assert found["perplexity_per_token"] == pytest.approx(np.exp(nats / (len(ids) - 1)), rel=1e-4)
    assert f"read {len(ids):,} tokens" in lines[-1] and "per token" in lines[-1] and "per byte" in lines[-1]


def test_what_is_written_is_text_and_goes_on(run, book, tmp_path):
    """A command that saves and is given again with more to read and write says the same as one in one go; the text is what its
    tokens stand for."""
    whole = command(run, file=(book,), tokens=40, save=str(tmp_path / "whole"), save_every=0.0)
    again = command(run, file=(book,), tokens=40, save=str(tmp_path / "whole"))
    assert whole[0] == again[0] == 0 and whole[1] == again[1]
    one = tokenizers.load(config.from_json((run / "config.json").read_text()).data.tokenizer)
    said = np.frombuffer((tmp_path / "whole" / "said_0").read_bytes(), "<u4")
    assert len(said) == 40 and (said < 320).all()
    assert whole[1] == b"".join(map(one.as_bytes, said.tolist())).decode(errors="replace")
    assert any("after" in line and "tokens" in line and "going on from" in line for line in again[2])
