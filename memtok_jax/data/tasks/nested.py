"""The controller of nested key-value tables: what a script reads and decides when it follows a key through an archive, as bytes.

    SYSTEM END USER what is the value of k1 END
    CALL q t STR key = k1 STR_END HB CALL_END RESULT page 1, the last / 7 passage: Key-value pair: key = k1, value = k2 END
    CALL q t STR key = k2 STR_END HB CALL_END RESULT page 1, the last / 9 passage: Key-value pair: key = k2, value = v END
    CALL q t STR key = v STR_END HB CALL_END RESULT nothing found END
    CALL s STR v STR_END CALL_END END

Nested key-value retrieval of MemGPT (arXiv 2310.08560, section 3.2): the value of a key may be a key. A table of `pairs` rows
lies in archival storage, which is searched for text. The script goes on with the value of the row that it finds. A word that is
no key is the answer. Each transcript is byte for byte the main context of a conversation (`virtual_context/main_context.py`) and
its decisions. Transcripts follow one another until a row is full.

    query "key"    looks for "key = word" (above): a search shows the word's own row or nothing, so that a controller can decide by
                   what was found and copy from fixed distances
    query "word"   looks for the word: a search also shows the row whose value it is, newest row first, and the last search that
                   row alone, as in the paper; a controller must compare words to tell the two apart

Only decisions are scored: from the letter of a call to the token behind its string. Words are random hexadecimal digits. Those
whose checksum (CRC-32) is a multiple of 8 are held out: training never has one, test and validation have no others.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.marks import (
    ARCHIVAL_SEARCH,
    CALL,
    CALL_END,
    END,
    HEARTBEAT,
    RESULT,
    SEND,
    STR,
    STR_END,
    SYSTEM,
    TEXT,
    USER,
)
from memtok_jax.data.tasks.scoring import IGNORED, Sample, places
from memtok_jax.data.tasks.seeds import split_of

# (length, random numbers, whether words are held out) -> (tokens, what of them is scored), both [length]
Row = Callable[[int, np.random.Generator, bool], tuple[np.ndarray, np.ndarray]]
QUESTION = "what is the value of "
QUERIES = {"key": "key = ", "word": ""}   # what stands in front of the word
HELD_OUT = 8   # one word of so many is held out
DIGITS = "0123456789abcdef"


@dataclass(frozen=True)
class NestedConfig:
    """Settings.

    digits: hexadecimal digits of a word.
    pairs: rows of a table.
    lookups: fewest and most of a question; one more search ends it.
    query: what a search looks for, "key" or "word", see above.
    """

    digits: int = 8
    pairs: int = 140
    lookups: tuple[int, int] = (1, 3)
    query: str = "key"

    def __post_init__(self):
        check_numbers("nested", self, at_least=dict(digits=3, pairs=1, lookups=1))
        choose("nested.query", self.query, QUERIES)
        if not self.lookups[0] <= self.lookups[1] <= self.pairs:
            raise DataError(f"nested.lookups is {self.lookups}; its numbers must ascend and not exceed pairs={self.pairs}")


def vocabulary(cfg: NestedConfig) -> int:
    """Bytes."""
    return 256


def symbols(cfg: NestedConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    names = {SYSTEM: "<system>", USER: "<user>", RESULT: "<result>", END: "<end>", CALL: "<call>", CALL_END: "</call>",
             STR: "<str>", STR_END: "</str>", HEARTBEAT: "<hb/>", 10: "\\n", 32: "_"}
    return tuple(names.get(i, chr(i) if 32 < i < 127 else f"<{i}>") for i in range(256))


def check(cfg: NestedConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold the first decision."""
    need = len(asked("0" * cfg.digits)) + len(search(cfg, "0" * cfg.digits))
    if sequence < need:
        raise DataError(f"nested: words of {cfg.digits} digits need a sequence of at least {need}, got {sequence}")


def sample(cfg: NestedConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; equal seeds give equal samples."""
    check(cfg, sequence)
    return rows_of(partial(_row, cfg), sequence, batch, seed)


def rows_of(row: Row, sequence: int, batch: int, seed: int) -> Sample:
    """A batch of rows that are drawn one after the other with the words of the seed's split."""
    rng, held_out = np.random.default_rng(seed), split_of(seed) != "train"
    ids, labels = np.empty((batch, sequence), np.int32), np.empty((batch, sequence), np.int32)
    for b in range(batch):
        tokens, scored = row(sequence + 1, rng, held_out)
        ids[b], labels[b] = tokens[:-1], np.where(scored[1:], tokens[1:], IGNORED)
    return Sample(ids, labels)


def _row(cfg: NestedConfig, count: int, rng: np.random.Generator, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, what of them is scored), both [count]. The first transcript begins at its question or at one of its searches."""
    first = transcript(cfg, *chain(cfg, rng, held_out))
    begins = int(rng.integers(len(first) // 2))
    pieces, tokens = first[max(0, 2 * begins - 1):], bytearray()
    scored: list[np.ndarray] = []
    while len(tokens) < count:
        for number, (piece, begin, stop) in enumerate(pieces):
            known = bool(tokens) and number > 0   # a decision at the very beginning has nothing to go by
            scored.append(places(len(piece), slice(begin, stop)) & known)
            tokens += piece
        pieces = transcript(cfg, *chain(cfg, rng, held_out))
    return np.frombuffer(bytes(tokens), np.uint8)[:count].astype(np.int32), np.concatenate(scored)[:count]


def chain(cfg: NestedConfig, rng: np.random.Generator, held_out: bool) -> tuple[list[str], list[int]]:
    """(words of one question: keys in the order of the lookups, and the answer; number of each key's row, from 1)."""
    lookups = int(rng.integers(cfg.lookups[0], cfg.lookups[1] + 1))
    return words(rng, lookups + 1, cfg.digits, held_out), (1 + rng.choice(cfg.pairs, lookups, replace=False)).tolist()


def words(rng: np.random.Generator, count: int, digits: int, held_out: bool) -> list[str]:
    """Different words, of the held-out ones or of the others."""
    found: dict[str, None] = {}
    while len(found) < count:
        for word in rng.integers(16, size=(2 * count * (HELD_OUT if held_out else 1), digits)):
            text = "".join(DIGITS[i] for i in word)
            if is_held_out(text) == held_out:
                found[text] = None
    return list(found)[:count]


def is_held_out(word: str) -> bool:
    """Whether training never has this word."""
    return zlib.crc32(word.encode()) % HELD_OUT == 0


def table(rng: np.random.Generator, cfg: NestedConfig, held_out: bool = True) -> tuple[list[tuple[str, str]], str, str]:
    """(rows, the key that is asked for, the answer behind `cfg.lookups[1]` lookups). All words differ but those of the chain."""
    drawn = words(rng, 2 * cfg.pairs, cfg.digits, held_out)
    keys, values = drawn[:cfg.pairs], drawn[cfg.pairs:]
    chosen = rng.choice(cfg.pairs, cfg.lookups[1], replace=False)
    for here, there in zip(chosen, chosen[1:], strict=False):
        values[here] = keys[there]
    return list(zip(keys, values, strict=True)), keys[chosen[0]], values[chosen[-1]]


# ------------------------------------------------------------------------------------------------------------- transcripts

def transcript(cfg: NestedConfig, path: list[str], rows: list[int]) -> list[tuple[bytes, int, int]]:
    """Pieces (tokens, begin and stop of what is scored in them). path, rows: of `chain`."""
    pieces = [(asked(path[0]), 0, 0)]
    for step, word in enumerate(path):
        shown = (step - 1, step) if cfg.query == "word" else (step,)
        found = [(rows[place], row_text(path[place], path[place + 1])) for place in shown if 0 <= place < len(rows)]
        call = search(cfg, word)
        pieces += [(call, 1, len(call) - 1), (result(sorted(found, reverse=True)), 0, 0)]
    reply = said(path[-1])
    return [*pieces, (reply, 1, len(reply) - 1)]


def asked(word: str) -> bytes:
    """The context in front of the first decision."""
    return bytes((SYSTEM, END, USER)) + (QUESTION + word).encode() + bytes((END,))


def search(cfg: NestedConfig, word: str) -> bytes:
    """The call that looks for a word."""
    return bytes((CALL,)) + (ARCHIVAL_SEARCH + TEXT).encode() + string(QUERIES[cfg.query] + word) + bytes((HEARTBEAT, CALL_END))


def said(word: str) -> bytes:
    """The call that replies."""
    return bytes((CALL,)) + SEND.encode() + string(word) + bytes((CALL_END, END))


def string(text: str) -> bytes:
    """A string of a call."""
    return bytes((STR,)) + text.encode() + bytes((STR_END,))


def row_text(key: str, value: str) -> str:
    """A row of the table in archival storage (format of the paper's experiment)."""
    return f"Key-value pair: key = {key}, value = {value}"


def result(found: list[tuple[int, str]]) -> bytes:
    """What a search shows. found: (number, text) of each row."""
    lines = ["page 1, the last", *(f"{number} passage: {text}" for number, text in found)] if found else ["nothing found"]
    return bytes((RESULT,)) + "\n".join(lines).encode() + bytes((END,))


# ----------------------------------------------------------------------------------------------------------- free baselines

def answers(cfg: NestedConfig, sequence: int) -> np.ndarray:
    """bool[T]: nothing, as decisions stand at other places in every row; `benchmarks.virtual_context` lets the model decide."""
    return places(sequence, np.zeros(0, int))


def chance(cfg: NestedConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing digits and knowing everything else of a search."""
    known = len(search(cfg, "")) - 2   # scored tokens that are no digits
    return {"chance_digits": (known + cfg.digits / 16) / (known + cfg.digits)}
