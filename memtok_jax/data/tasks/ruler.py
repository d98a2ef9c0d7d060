"""RULER's synthetic tasks at lengths that are true in tokens: needles, variable tracking, common and frequent words.

    filler ... prompt  answer prefix | answer END filler ...        `|` stands in front of the last G tokens, G those of an answer

The texts are those of `ruler_texts.py`. Prompt, prefix and G tokens for the answer fit into the sequence, with as large a haystack
as does; what remains is filler in front. Labels are the answer and the sign of its end. `eval.py --suite=ruler` writes answers and
looks for the references in them, as published. Rows for training have other text and other words than held-out ones. The
lists of words are short: beyond some 50,000 bytes niah_multikey_2 and cwe have more filler in front instead of more words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data import ruler_texts as texts
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import codec, haystack
from memtok_jax.data.tasks.scoring import Sample, places, unscored
from memtok_jax.data.tasks.seeds import split_of


@dataclass(frozen=True)
class RulerConfig:
    """Settings.

    tasks: of which a row is one, drawn evenly; of `ruler_texts.TASKS`.
    text: running text, as in `TextConfig.source`.
    tokenizer: a tokenizer.json or a SentencePiece .model; "": tokens are bytes.
    generate: G; 0: as published, 30 to 128 tokens.
    """

    tasks: tuple[str, ...] = ("niah_single_1",)
    text: str = "stdlib"
    tokenizer: str = ""
    generate: int = 0

    def __post_init__(self):
        check_numbers("ruler", self, at_least=dict(generate=0))
        if not self.tasks:
            raise DataError(f"ruler.tasks is empty; it must name one or more of {', '.join(texts.TASKS)}")
        for task in self.tasks:
            choose("ruler.tasks", task, texts.TASKS)


def vocabulary(cfg: RulerConfig) -> int:
    """Number of tokens."""
    return codec.codec(cfg.tokenizer).vocabulary


def symbols(cfg: RulerConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    return codec.names(cfg.tokenizer)


def room(cfg: RulerConfig) -> int:
    """G: tokens for an answer."""
    return cfg.generate or max(map(texts.generated_tokens, cfg.tasks))


def check(cfg: RulerConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold a prompt and its answer."""
    for task in cfg.tasks:
        amount(cfg, task, sequence)


@lru_cache(maxsize=64)
def amount(cfg: RulerConfig, task: str, sequence: int) -> int:
    """Size of the largest haystack with which a row of a fixed seed fits, among those that the task's step leads to."""
    sizes = texts.sizes(task, sequence)
    fits = lambda k: _tokens(cfg, task, sequence, sizes[k]) + room(cfg) <= sequence   # noqa: E731
    if not fits(0):
        raise DataError(f"ruler: {task!r} with {room(cfg)} tokens for an answer needs a sequence of at least "
                        f"{_tokens(cfg, task, sequence, sizes[0]) + room(cfg)}, got {sequence}")
    low, high = 0, 1
    while high < len(sizes) and fits(high):
        low, high = high, 2 * high
    high = min(high, len(sizes))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return sizes[low]


def _tokens(cfg: RulerConfig, task: str, sequence: int, size: int) -> int:
    """Tokens of prompt and prefix of the row of a fixed seed."""
    one = _example(cfg, task, sequence, size, (0,), "train")
    return len(codec.codec(cfg.tokenizer).encode(one.prompt + one.prefix))


def _example(cfg: RulerConfig, task: str, sequence: int, size: int, seed: tuple[int, ...], split: str) -> texts.Example:
    text = _text(cfg.text, split) if task in texts.NIAH and texts.NIAH[task].haystack == "text" else ""
    return texts.generator(task)(np.random.default_rng(seed), size, sequence, texts.Source(text, texts.words_of(split)))


@lru_cache(maxsize=4)
def _text(source: str, split: str) -> str:
    return haystack.text(source, split).decode(errors="replace")


def example(cfg: RulerConfig, task: str, sequence: int, seed: int, row: int = 0) -> texts.Example:
    """The text of one row of the batch with this seed, its haystack made smaller until it fits. Raises DataError if none fits."""
    made, sizes = codec.codec(cfg.tokenizer), texts.sizes(task, sequence)
    for k in range(sizes.index(amount(cfg, task, sequence)), -1, -1):
        one = _example(cfg, task, sequence, sizes[k], (seed, row), split_of(seed))
        if len(made.encode(one.prompt + one.prefix)) + room(cfg) <= sequence:
            return one
    raise DataError(f"ruler: {task!r} with {room(cfg)} tokens for an answer does not fit into {sequence} tokens; it needs a longer "
                    "sequence")


def sample(cfg: RulerConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` rows of `sequence` tokens; equal seeds give equal rows."""
    check(cfg, sequence)
    made, begin = codec.codec(cfg.tokenizer), sequence - room(cfg)
    ids, labels = np.full((batch, sequence), made.fill, np.int32), unscored(batch, sequence)
    for b, task in enumerate(np.random.default_rng(seed).integers(len(cfg.tasks), size=batch)):
        one = example(cfg, cfg.tasks[task], sequence, seed, b)
        prompt = made.encode(one.prompt + one.prefix)
        answer = np.append(made.encode(" " + one.joined.join(one.answers)), made.end)[:room(cfg)]
        ids[b, begin - len(prompt):begin], ids[b, begin:begin + len(answer)] = prompt, answer
        labels[b, begin - 1:begin - 1 + len(answer)] = answer
    return Sample(ids, labels)


def answers(cfg: RulerConfig, sequence: int) -> np.ndarray:
    """bool[T]: the last G positions; what lies behind the end of an answer is not scored."""
    return places(sequence, slice(sequence - room(cfg), sequence))


def chance(cfg: RulerConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a token."""
    return {"chance": 1 / vocabulary(cfg)}
