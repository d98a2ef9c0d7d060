"""stream.py on a folder of a pretrained model: its tokenizer, its perplexity, and streams that are kept and gone on with."""

from __future__ import annotations

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest
import tokenizer_toys
from decoder_cases import STORED, Case, weights, whole

from memtok_jax.config import UserError
from memtok_jax.convert import decoders, tensor_files
from memtok_jax.data import tokenizers
from memtok_jax.evaluation.streaming import StreamConfig, stream_text
from memtok_jax.inference.filters import Sampling

TEXT = "the memory of a model reads tokens, Grüße 世界 and writes text. " * 3
SIZE = {"bpe": 320, "sentencepiece": 400}
HOT = Sampling(1.0, top_k=20)


def make(folder: Path, kind: str = "bpe", name: str = "llama") -> Path:
    """A pretrained model with a tokenizer beside its weights, and a book."""
    case = Case(STORED, name)
    shapes = {key: [SIZE[kind] if n == 61 else n for n in shape] for key, shape in case.shapes.items()}
    (folder / "config.json").write_text(json.dumps(case.config | {"vocab_size": SIZE[kind]}))
    tensor_files.write_safetensors(folder / "model.safetensors", weights(shapes, "redrawn", case.offset, 0))
    tokenizer_toys.make(kind, folder)
    (folder / "book.txt").write_text(TEXT)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("pretrained"))


def command(folder: Path, overrides=(), **options):
    """(standard output, lines for the eye)."""
    out, lines = [], []
    cfg = StreamConfig(**{"sampling": HOT, "model": str(folder), "context": 64, "file": (str(folder / "book.txt"),)} | options)
    assert stream_text(Path("nowhere"), overrides, cfg, out.append, lines.append) == 0
    return "".join(out), lines


def nats(loaded, ids: np.ndarray) -> float:
    """-log p of all tokens but the first."""
    logits = jax.nn.log_softmax(whole(loaded.params, loaded.cfg, ids[None])[0, :-1])
    return -float(np.asarray(logits)[np.arange(len(ids) - 1), ids[1:]].sum())


def test_perplexity_is_that_of_the_model(folder):
    found = json.loads(command(folder, perplexity=True, context=512)[0])
    ids, sizes = tokenizers.load(str(folder / "tokenizer.json")).measure(TEXT)
    bits = nats(decoders.load(folder, context=len(ids)), ids) / math.log(2)
    assert found["tokens"] == len(ids) - 1 and found["bytes"] == sizes.sum()
    assert found["bits_per_token"] == pytest.approx(bits / (len(ids) - 1), rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(bits / sizes[1:].sum(), rel=1e-5)


@pytest.mark.slow
def test_a_kept_stream_goes_on(folder, tmp_path):
    """What is written in two parts, of which the second loads the stream, and again: the same text as the same command gives."""
    one = command(folder, tokens=24, sinks=4, context=16, save=str(tmp_path / "a"))
    assert one[0] and command(folder, tokens=24, sinks=4, context=16, save=str(tmp_path / "a"))[0] == one[0]
    assert "tokens by tokenizer.json" in one[1][0] and any("per token" in line for line in one[1])
    more = command(folder, tokens=8, sinks=4, context=16, file=(), load=str(tmp_path / "a"))
    assert more[0] != ""
    with pytest.raises(UserError, match="holds a stream with --sinks=4, now it is 0"):
        command(folder, tokens=24, context=16, save=str(tmp_path / "a"))


@pytest.mark.slow
def test_a_token_begins_the_text_if_the_tokenizer_says_so(tmp_path):
    make(tmp_path, "sentencepiece")
    found = json.loads(command(tmp_path, perplexity=True)[0])
    one = tokenizers.load(str(tmp_path / "tokenizer.model"))
    assert one.front == (1,) and found["bytes"] == len(TEXT.encode()) and found["tokens"] == len(one.encode(TEXT))


@pytest.mark.slow
def test_overrides_change_what_an_evaluation_may(folder):
    near = json.loads(command(folder, ("model.pattern.0.window=2",), perplexity=True)[0])
    assert near["bits_per_token"] != json.loads(command(folder, perplexity=True)[0])["bits_per_token"]
    with pytest.raises(UserError, match="config.model.heads is 4 in .* and cannot change to 2"):
        command(folder, ("model.heads=2",))


def test_mistakes(folder, tmp_path):
    with pytest.raises(UserError, match="--context and --sinks belong to --model"):
        StreamConfig(file=("x",), context=3)
    with pytest.raises(UserError, match="--checkpoint=best belongs to --workdir"):
        StreamConfig(file=("x",), model=str(folder), checkpoint="best")
    small = make(tmp_path)
    (small / "tokenizer.json").rename(small / "other.json")
    with pytest.raises(UserError, match="holds no tokenizer: neither tokenizer.json nor tokenizer.model lies beside the weights"):
        command(small)
