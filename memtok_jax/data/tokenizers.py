"""Tokenizers of text: a `tokenizer.json` (package `tokenizers`) or a SentencePiece `.model` (package `sentencepiece`)."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import numpy as np

from memtok_jax.data import token_bytes
from memtok_jax.data.errors import DataError

EXTRA = "pip install 'memtok_jax[tokens]'"
# Tokens that begin or end a text, in the vocabularies of published models; the first that a tokenizer has is taken.
FIRST = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[CLS]")
LAST = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[SEP]")
UNKNOWN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer file, loaded.

    name: of the file. fingerprint: its SHA-256 in hexadecimal digits. vocabulary: one more than the largest id.
    first: id that stands before a text. last: id that ends a text, between two texts that are joined. One stands for both if the
        file has only one.
    encode: str -> int32[n], without `first` and `last`. Text that looks like a special token is text.
    measure: str -> (int32[n] as `encode`, int32[n] UTF-8 bytes of each token); the bytes add up to those of the text. Of the
        tokens that share a symbol one counts all its bytes.
    decode: ids [n] up to the first negative one -> str. Ids outside the vocabulary show as a replacement sign.
    as_bytes: id -> the bytes that it stands for inside a text; a character may be cut between tokens.
    front: ids that the file itself puts before a text.
    """

    name: str
    fingerprint: str
    vocabulary: int
    first: int
    last: int
    encode: Callable[[str], np.ndarray] = field(compare=False, repr=False)
    measure: Callable[[str], tuple[np.ndarray, np.ndarray]] = field(compare=False, repr=False)
    decode: Callable[[Any], str] = field(compare=False, repr=False)
    as_bytes: Callable[[int], bytes] = field(compare=False, repr=False)
    front: tuple[int, ...] = field(compare=False)


def load(path: str) -> Tokenizer:
    """The tokenizer in a file; its ending, .json or .model, tells the kind.

    Raises DataError (one line) for a file that is not there or cannot be used, and for a package that is not installed.
    """
    file = Path(path).expanduser()
    if file.suffix not in READERS:
        hint = f"; name the file in it, as in {file / 'tokenizer.json'}" if file.is_dir() else ""
        raise DataError(f"data.tokenizer is {path!r}; it must be a tokenizer.json or a SentencePiece .model{hint}")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the tokenizer {path}: {error.strerror or error}") from None
    return _read(str(file), hashlib.sha256(content).hexdigest())


@functools.lru_cache(maxsize=4)
def _read(path: str, fingerprint: str) -> Tokenizer:
    package, read = READERS[Path(path).suffix]
    try:
        vocabulary, first, last, encode, measure, decode, as_bytes, front = read(path)
    except ImportError as error:
        raise DataError(f"the tokenizer {path} needs the package {package} ({error}); {EXTRA}") from None
    except DataError:
        raise
    except Exception as error:  # each package raises classes of its own
        raise DataError(f"cannot read the tokenizer {path}: {str(error).strip().splitlines()[0]}") from None
    first, last = _marks(path, first, last)
    return Tokenizer(Path(path).name, fingerprint, vocabulary, first, last, encode, measure, _readable(decode, vocabulary),
                     functools.lru_cache(maxsize=None)(as_bytes), front)


def _marks(path: str, first: int, last: int) -> tuple[int, int]:
    """Both ids, if the file has at least one of them. -1: it has none."""
    if first < 0 and last < 0:
        raise DataError(f"the tokenizer {path} has no token that begins or ends a text, none of {', '.join(FIRST + LAST)}; add one")
    return (first if first >= 0 else last), (last if last >= 0 else first)


def _readable(decode: Callable[[list[int]], str], vocabulary: int) -> Callable[[Sequence[int]], str]:
    """`decode` for any ids: up to the first negative one, with a sign for those outside the vocabulary."""
    def readable(ids: Sequence[int]) -> str:
        numbers = [int(i) for i in ids]
        numbers = numbers[:next((n for n, i in enumerate(numbers) if i < 0), len(numbers))]
        runs = [(known, list(run)) for known, run in groupby(numbers, lambda i: i < vocabulary)]
        return "".join(decode(run) if known else UNKNOWN * len(run) for known, run in runs)

    return readable


def _huggingface(path: str):
    """(vocabulary, first, last, encode, measure, decode, as_bytes, front) of a tokenizer.json. An id that it lacks is -1."""
    from tokenizers import Tokenizer as File

    file = File.from_file(path)
    # Settings of a model's input that a file may carry: they would cut or fill the text.
    file.no_truncation()
    file.no_padding()
    file.encode_special_tokens = True
    ids = file.get_vocab(with_added_tokens=True)
    first, last = (next((ids[name] for name in names if name in ids), -1) for names in (FIRST, LAST))

    def encode(text: str) -> np.ndarray:
        return np.array(file.encode(text, add_special_tokens=False).ids, np.int32)

    def measure(text: str) -> tuple[np.ndarray, np.ndarray]:
        done = file.encode(text, add_special_tokens=False)
        ends = np.array([end for _, end in done.offsets], np.int64)
        return np.array(done.ids, np.int32), _differences(_byte_places(text)[ends], len(text.encode()))

    decode = lambda run: file.decode(run, skip_special_tokens=False)
    return max(ids.values()) + 1, first, last, encode, measure, decode, token_bytes.of_huggingface(file), _front(file)


def _front(file: Any) -> tuple[int, ...]:
    """The ids that the rules of a tokenizer.json put before a text."""
    done = file.encode("a", add_special_tokens=True)
    return tuple(i for i, _ in takewhile(lambda pair: pair[1], zip(done.ids, done.special_tokens_mask, strict=True)))


def _byte_places(text: str) -> np.ndarray:
    """int64[symbols + 1]: where each symbol begins in UTF-8, and the end."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(widths)])


def _differences(ends: np.ndarray, size: int) -> np.ndarray:
    """Bytes of each token from where the tokens end; the last one ends with the text."""
    if not len(ends):
        return np.zeros(0, np.int32)
    ends = np.maximum.accumulate(ends)
    ends[-1] = size
    return np.diff(ends, prepend=0).astype(np.int32)


def _sentencepiece(path: str):
    """As `_huggingface`, of a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    file = SentencePieceProcessor(model_file=path)

    def encode(text: str) -> np.ndarray:
        return np.array(file.encode(text), np.int32)

    def measure(text: str) -> tuple[np.ndarray, np.ndarray]:
        done = file.encode(text, return_type="offset_mapping", return_bytes=True)
        ends = np.array([end for _, end in done["offsets"]], np.int64)
        return np.array(done["ids"], np.int32), _differences(ends, len(text.encode()))

    return (file.vocab_size(), file.bos_id(), file.eos_id(), encode, measure, file.decode,
            token_bytes.of_sentencepiece(file), (file.bos_id(),) if file.bos_id() >= 0 else ())


READERS = {".json": ("tokenizers", _huggingface), ".model": ("sentencepiece", _sentencepiece)}
