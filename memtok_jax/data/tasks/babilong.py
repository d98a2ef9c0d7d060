"""BABILong: facts of bAbI scattered in the sentences of books, then a question (Kuratov et al., arXiv 2406.10149).

    sentence fact sentence sentence fact ... sentence   question ASK answer END filler ...

Every row has the same place for its answer, so the text is exactly as long as the question leaves room for. Facts keep their order
and stand before sentences drawn evenly, several before one if so drawn. Stories of more than an eighth of the text's tokens
(counting statements) are left out, as published. The answer and END are scored. Books of the user's choice stand in for PG-19, so
numbers are "BABILong-style". Rows for training, validation and test have other stories and text; held-out row i asks question i.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import babi
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import codec, haystack
from memtok_jax.data.tasks.scoring import Sample, places, unscored
from memtok_jax.data.tasks.seeds import SPLITS, split_of

NAMES = tuple(f"qa{n}" for n in range(1, 21))
SHORTEST, PER_FACT = 10, 8     # tokens of a sentence that is used; tokens of text for each statement


@dataclass(frozen=True)
class BabilongConfig:
    """Settings.

    tasks: of which a row is one, drawn evenly.
    facts: folder of the bAbI tasks, as published.
    text: books, as in `TextConfig.source`.
    tokenizer: a tokenizer.json or a SentencePiece .model; "": tokens are bytes.
    generate: tokens for the answer and its end.
    alone: facts without any text around them, filled up in front ("0k").
    """

    tasks: tuple[str, ...] = ("qa1",)
    facts: str = "babi"
    text: str = "gutenberg_books"
    tokenizer: str = ""
    generate: int = 10
    alone: bool = False

    def __post_init__(self):
        check_numbers("babilong", self, at_least=dict(generate=2))
        if not self.tasks:
            raise DataError("babilong.tasks is empty; it must name one or more of qa1 to qa20")
        for task in self.tasks:
            choose("babilong.tasks", task, NAMES)


def vocabulary(cfg: BabilongConfig) -> int:
    """Number of tokens."""
    return codec.codec(cfg.tokenizer).vocabulary


def symbols(cfg: BabilongConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return codec.names(cfg.tokenizer)


def check(cfg: BabilongConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens have no room for text."""
    if sequence < cfg.generate + 64:
        raise DataError(f"babilong: an answer of {cfg.generate} tokens needs a sequence of at least {cfg.generate + 64}, "
                        f"got {sequence}")


def sample(cfg: BabilongConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` rows of `sequence` tokens; equal seeds give equal rows."""
    check(cfg, sequence)
    rng, made = np.random.default_rng(seed), codec.codec(cfg.tokenizer)
    ids, labels = np.full((batch, sequence), made.end, np.int32), unscored(batch, sequence)
    at = sequence - cfg.generate - 1     # of the sign that asks
    for b in range(batch):
        question = choose_question(cfg, at, rng, seed)
        asked, answer = made.encode(question.text), np.append(made.encode(question.answer), made.end)
        if len(answer) > cfg.generate:
            raise DataError(f"babilong: the answer {question.answer!r} has {len(answer)} tokens with its end, more than "
                            f"babilong.generate={cfg.generate}; raise it")
        ids[b, :at - len(asked)] = text_of(cfg, question.facts, at - len(asked), rng, split_of(seed))
        ids[b, at - len(asked):at], ids[b, at] = asked, made.ask
        ids[b, at + 1:at + 1 + len(answer)] = answer
        labels[b, at:at + len(answer)] = answer
    return Sample(ids, labels)


def choose_question(cfg: BabilongConfig, room: int, rng: np.random.Generator, seed: int) -> babi.Question:
    """A question whose story fits into `room` tokens: any for training, else that with the number of the row or the next."""
    split, encode = split_of(seed), codec.codec(cfg.tokenizer).encode
    task = cfg.tasks[rng.integers(len(cfg.tasks))]
    found = babi.questions(cfg.facts, task, split)
    first = int(rng.integers(len(found))) if split == "train" else (seed - SPLITS[split]) % len(found)
    for n in range(len(found)):
        one = found[(first + n) % len(found)]
        tokens = sum(len(encode(" " + fact)) for fact in one.facts) + len(encode(one.text))
        if tokens <= room and (cfg.alone or PER_FACT * (len(one.facts) + 1) <= room):
            return one
    raise DataError(f"babilong: no story of {task} fits into {room} tokens; it needs a longer sequence")


def text_of(cfg: BabilongConfig, facts: tuple[str, ...], size: int, rng: np.random.Generator, split: str) -> np.ndarray:
    """int32[size]: the facts in sentences of a book."""
    made = codec.codec(cfg.tokenizer)
    coded = [made.encode(" " + fact) for fact in facts]
    rest = size - sum(map(len, coded))
    if cfg.alone:
        return np.concatenate([np.full(rest, made.fill, np.int32), *coded])
    sentences = background(cfg, rest, rng, split)
    slots, pieces, n = np.sort(rng.integers(len(sentences) + 1, size=len(coded))), [], 0
    for place, sentence in enumerate([*sentences, np.zeros(0, np.int32)]):
        while n < len(coded) and slots[n] == place:
            pieces.append(coded[n])
            n += 1
        pieces.append(sentence)
    return np.concatenate(pieces)


def background(cfg: BabilongConfig, size: int, rng: np.random.Generator, split: str) -> list[np.ndarray]:
    """Sentences of `size` tokens in all, from a random place of the books; the last one is cut."""
    made, books, out, total = codec.codec(cfg.tokenizer), haystack.text(cfg.text, split), [], 0
    while total < size:
        piece = haystack.excerpt(books, min(10 * size + 1000, len(books) // 2), rng, "babilong.text").decode(errors="ignore")
        for sentence in re.split(r"(?<=[.!?])\s+", " ".join(piece.split()))[1:-1]:
            coded = made.encode(" " + sentence)[:size - total]
            if total < size and (len(coded) >= SHORTEST or total + len(coded) == size):
                out.append(coded)
                total += len(coded)
        if not out:
            raise DataError(f"babilong.text: {cfg.text!r} has no sentences of {SHORTEST} tokens or more; name another text")
    return out


def answers(cfg: BabilongConfig, sequence: int) -> np.ndarray:
    """bool[T]: behind the sign that asks; what lies behind the end of an answer is not scored."""
    return places(sequence, slice(sequence - cfg.generate, sequence))


def chance(cfg: BabilongConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a token."""
    return {"chance": 1 / vocabulary(cfg)}
