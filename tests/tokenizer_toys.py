"""Tiny tokenizers for tests, trained on the spot: byte-level BPE for `tokenizers`, BPE with byte pieces for SentencePiece."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

WORDS = ("the memory of a model reads tokens and writes text", "Grüße an die Welt, ein Gedächtnis für Texte", "世界 memory 世界")
TEXT = "\n".join(f"{WORDS[i % 3]} {i}" for i in range(300))


def bpe(path: Path, size: int = 320, **settings) -> str:
    """A tokenizer.json of `size` ids. settings: of `truncation` and `padding`, as a published file may have them."""
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers (pip install 'memtok_jax[tokens]')")
    one = tokenizers.Tokenizer(tokenizers.models.BPE())
    one.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    one.decoder = tokenizers.decoders.ByteLevel()
    one.train_from_iterator([TEXT], tokenizers.trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<|endoftext|>"], initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    for name, values in settings.items():
        getattr(one, f"enable_{name}")(**values)
    one.save(str(path))
    return str(path)


def sentencepiece(path: Path, size: int = 400, **changes) -> str:
    """A SentencePiece model of `size` ids that gives back any text."""
    package = pytest.importorskip("sentencepiece", reason="needs the package sentencepiece (pip install 'memtok_jax[tokens]')")
    out = io.BytesIO()
    package.SentencePieceTrainer.train(**dict(
        sentence_iterator=iter(TEXT.split("\n")), model_writer=out, vocab_size=size, byte_fallback=True, model_type="bpe",
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2) | changes)
    path.write_bytes(out.getvalue())
    return str(path)


KINDS = {"bpe": ("tokenizer.json", bpe), "sentencepiece": ("tokenizer.model", sentencepiece)}


def make(kind: str, folder: Path) -> str:
    """A tokenizer of one of KINDS in a folder; its path."""
    name, train = KINDS[kind]
    return train(folder / name)
