"""Needles in a haystack: a key and its value at a random depth of a text, asked for at the end (after RULER, arXiv 2404.06654).

    text ... NEEDLE k1 k2 k3 k4 IS v1 ... vD END ... text   ASK k1 k2 k3 k4 IS v1 ... vD END

    passkey    one sentence, repeated; five digits               RULER's niah_single_1
    number     text of a corpus; five digits                     niah_single_2
    word       text of a corpus; an adjective and a noun         niah_single_3 in the Titans paper
    uuid       text of a corpus; sixteen hexadecimal digits      niah_single_3

The value and END are scored. Each row is of one of `kinds`. With one needle the key says nothing, as there is no other; of
several, each has a key of its own, and a needle that no question asks for is a distractor. Unlike `passkey`, whose noise cannot be
predicted, the haystack is text. Training, test and validation rows take their text from different parts of the corpus.

Tokens: 0 .. 15 hexadecimal digits, 16 .. 41 letters, space, ". , line end, other", then NEEDLE, ASK, IS, END. Digits of the text
are digits too, so a digit alone is no needle. What a row holds beyond its last answer is a space.
"""

from __future__ import annotations

import string
from collections import Counter
from dataclasses import dataclass

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks import haystack
from memtok_jax.data.tasks.scoring import Sample, places, unscored
from memtok_jax.data.tasks.seeds import split_of
from memtok_jax.data.tasks.words import ADJECTIVES, NOUNS

KINDS = ("passkey", "number", "word", "uuid")
CHARACTERS = string.digits + "ABCDEF" + string.ascii_lowercase + " .,\n"
OTHER = len(CHARACTERS)
NEEDLE, ASK, IS, END = range(OTHER + 1, OTHER + 5)
SPACE = CHARACTERS.index(" ")
SENTENCE = b"the grass is green. "
KEY, DIGITS, HEX = 4, 5, 16
WORD = len(ADJECTIVES[0]) + 1 + len(NOUNS[0])
LENGTHS = {"passkey": DIGITS, "number": DIGITS, "word": WORD, "uuid": HEX}
LAYOUTS = 2000  # of rows with several needles, over which `reader` takes a mean


@dataclass(frozen=True)
class NeedlesConfig:
    """Settings.

    kinds: of which a row is one, drawn evenly.
    needles: fewest and most in a row.
    questions: in a row. They ask for the needles in a random order; if there are more questions than needles, again.
    depth: where needles may stand, as shares of the places in the text, from 0 (in front) to 1 (at its end).
    tail: least number of text tokens between the last needle and the first question.
    text: the corpus of the haystack, as in `TextConfig.source`; "passkey" needs none.
    learn_text: training rows score every token, so that a model cannot ignore the text. Held-out rows score the values alone.
    """

    kinds: tuple[str, ...] = ("passkey",)
    needles: tuple[int, int] = (1, 1)
    questions: int = 1
    depth: tuple[float, float] = (0.0, 1.0)
    tail: int = 0
    text: str = "stdlib"
    learn_text: bool = False

    def __post_init__(self):
        check_numbers("needles", self, at_least=dict(needles=1, questions=1, tail=0), between=dict(depth=(0, 1)))
        for kind in self.kinds:
            choose("needles.kinds", kind, KINDS)
        if not self.kinds:
            raise DataError(f"needles.kinds is empty; it must name one or more of {', '.join(KINDS)}")
        for name in ("needles", "depth"):
            if getattr(self, name)[0] > getattr(self, name)[1]:
                raise DataError(f"needles.{name} is {getattr(self, name)}; the first number must not exceed the second")


def vocabulary(cfg: NeedlesConfig) -> int:
    """Number of tokens: 51."""
    return END + 1


def symbols(cfg: NeedlesConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    shown = {" ": "_", "\n": "\\n"}
    return (*(shown.get(c, c) for c in CHARACTERS), "*", "NEEDLE", "ASK", "IS", "END")


def needle_tokens(kind: str) -> int:
    """Length of a needle, and of a question with its answer."""
    return 1 + KEY + 1 + LENGTHS[kind] + 1


def question_tokens(cfg: NeedlesConfig) -> int:
    """Length of the place of a question: that of the longest kind."""
    return max(map(needle_tokens, cfg.kinds))


def questions_begin(cfg: NeedlesConfig, sequence: int) -> int:
    """Position of the first question."""
    return sequence - cfg.questions * question_tokens(cfg)


def slots(cfg: NeedlesConfig, kind: str, sequence: int, needles: int) -> np.ndarray:
    """int[N]: numbers of text tokens that may stand in front of a needle; before each sentence for "passkey"."""
    room = questions_begin(cfg, sequence) - needles * needle_tokens(kind) - cfg.tail
    every = np.arange(0, room + 1, len(SENTENCE) if kind == "passkey" else 1)
    if not len(every):
        raise DataError(f"needles: {needles} needles of kind {kind!r}, {cfg.questions} questions and a tail of {cfg.tail} need a "
                        f"sequence of at least {sequence - room}, got {sequence}")
    low, high = (round(share * (len(every) - 1)) for share in cfg.depth)
    return every[low:high + 1]


def check(cfg: NeedlesConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold needles, tail and questions."""
    for kind in cfg.kinds:
        slots(cfg, kind, sequence, cfg.needles[1])


def sample(cfg: NeedlesConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` samples of `sequence` tokens; the places of needles are uniform over all that are allowed."""
    check(cfg, sequence)
    rng = np.random.default_rng(seed)
    ids, labels = np.full((batch, sequence), SPACE, np.int32), unscored(batch, sequence)
    for b in range(batch):
        _fill(cfg, ids[b], labels[b], rng, split_of(seed))
    return Sample(ids, labels)


def _fill(cfg: NeedlesConfig, ids: np.ndarray, labels: np.ndarray, rng: np.random.Generator, split: str) -> None:
    """Write one row into ids [T] and labels [T]."""
    kind = cfg.kinds[rng.integers(len(cfg.kinds))]
    count = int(rng.integers(cfg.needles[0], cfg.needles[1] + 1))
    stands, asked = _layout(cfg, kind, len(ids), count, rng)
    names, values = keys(count, rng), [value(kind, rng) for _ in range(count)]
    hay = _hay(cfg, kind, questions_begin(cfg, len(ids)) - count * needle_tokens(kind), rng, split)
    pieces = np.split(hay, stands)
    for n in range(count):
        pieces.insert(2 * n + 1, np.array([NEEDLE, *names[n], IS, *values[n], END]))
    row = np.concatenate(pieces)
    ids[:len(row)] = row
    for begin, n in zip(_questions(cfg, len(ids)), asked, strict=True):
        said = np.array([ASK, *names[n], IS, *values[n], END])
        ids[begin:begin + len(said)] = said
        labels[begin + KEY + 1:begin + len(said) - 1] = said[KEY + 2:]
    if cfg.learn_text and split == "train":
        labels[:-1] = ids[1:]


def _layout(cfg: NeedlesConfig, kind: str, sequence: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Text tokens in front of each of `count` needles, ascending, and the needle that each question asks for."""
    return np.sort(rng.choice(slots(cfg, kind, sequence, count), count)), np.resize(rng.permutation(count), cfg.questions)


def _questions(cfg: NeedlesConfig, sequence: int) -> np.ndarray:
    """Where each question begins."""
    return questions_begin(cfg, sequence) + question_tokens(cfg) * np.arange(cfg.questions)


def keys(count: int, rng: np.random.Generator) -> np.ndarray:
    """int[count, 4]: letters, no key twice."""
    while True:
        drawn = CHARACTERS.index("a") + rng.integers(26, size=(count, KEY))
        if len(np.unique(drawn, axis=0)) == count:
            return drawn


def value(kind: str, rng: np.random.Generator) -> np.ndarray:
    """int[D]: what a needle says."""
    if kind == "word":
        return encode(f"{ADJECTIVES[rng.integers(len(ADJECTIVES))]} {NOUNS[rng.integers(len(NOUNS))]}".encode())
    return rng.integers(16 if kind == "uuid" else 10, size=LENGTHS[kind])


def _hay(cfg: NeedlesConfig, kind: str, count: int, rng: np.random.Generator, split: str) -> np.ndarray:
    """int[count]: text without needles."""
    if kind == "passkey":
        return np.resize(encode(SENTENCE), count)
    return encode(haystack.excerpt(haystack.text(cfg.text, split), count, rng, "needles.text"))


def encode(text: bytes) -> np.ndarray:
    """Tokens of a text, in lower case."""
    return _TABLE[np.frombuffer(text, np.uint8)]


def _byte_table() -> np.ndarray:
    """int32[256]: token of each byte."""
    table = np.full(256, OTHER, np.int32)
    for character in string.digits + string.ascii_lowercase + " .,\n":
        table[ord(character)] = table[ord(character.upper())] = CHARACTERS.index(character)
    return table


_TABLE = _byte_table()


# ----------------------------------------------------------------------------------------------------- free baselines

def answers(cfg: NeedlesConfig, sequence: int) -> np.ndarray:
    """bool[T]: values and END; behind a value that is shorter than the longest kind's nothing is scored."""
    begins = _questions(cfg, sequence)[:, None] + np.arange(KEY + 2, question_tokens(cfg))
    return places(sequence, begins.ravel())


def guesses(kind: str) -> np.ndarray:
    """float[D + 1]: how often a symbol of the value and END is guessed by one who knows the kind and the symbols before."""
    if kind == "word":
        return np.array([*_next_letter(ADJECTIVES), 1.0, *_next_letter(NOUNS), 1.0])
    return np.array([1 / (16 if kind == "uuid" else 10)] * LENGTHS[kind] + [1.0])


def _next_letter(words: tuple[str, ...]) -> list[float]:
    """Share of words whose letter is the most frequent one behind the letters before it, for each place."""
    shares = []
    for n in range(len(words[0])):
        best = {}
        for prefix, count in Counter(word[:n + 1] for word in words).items():
            best[prefix[:n]] = max(best.get(prefix[:n], 0), count)
        shares.append(sum(best.values()) / len(words))
    return shares


def chance(cfg: NeedlesConfig, sequence: int) -> dict[str, float]:
    """Share of scored symbols that are guessed without evidence."""
    return {"chance": float(np.concatenate([guesses(kind) for kind in cfg.kinds]).mean())}


def exact_chance(kind: str) -> float:
    """Probability of guessing a whole value."""
    return {"word": 1 / (len(ADJECTIVES) * len(NOUNS)), "uuid": 16.0 ** -HEX}.get(kind, 10.0 ** -DIGITS)


def reader(cfg: NeedlesConfig, sequence: int, first: np.ndarray) -> float:
    """Best reader from `first` on: exact for one needle of digits.

    Of several needles it is an upper bound, as if the key of a value in sight were always in sight too. Of words it takes no hint
    from later letters.
    """
    found = [_visible(cfg, kind, sequence, first) for kind in cfg.kinds]
    right = [seen + (1 - seen) * guesses(kind) for seen, kind in zip(found, cfg.kinds, strict=True)]
    return float(np.concatenate(right).mean())


def exact_reader(cfg: NeedlesConfig, kind: str, sequence: int, first: np.ndarray) -> float:
    """Probability that the best reader from `first` on says a whole value, of one needle: what it does not see it guesses."""
    stands = slots(cfg, kind, sequence, 1)[:, None] + KEY + 2 + np.arange(LENGTHS[kind] + 1)
    at = questions_begin(cfg, sequence) + KEY + 1 + np.arange(LENGTHS[kind] + 1)
    hidden = stands < first[at]
    if kind != "word":
        return float(np.prod(np.where(hidden, guesses(kind), 1.0), axis=1).mean())
    halves = hidden[:, :5].any(1), hidden[:, 6:11].any(1)
    return float(np.prod([np.where(half, 1 / len(ADJECTIVES), 1.0) for half in halves], axis=0).mean())


def _visible(cfg: NeedlesConfig, kind: str, sequence: int, first: np.ndarray) -> np.ndarray:
    """float[D + 1]: how often a symbol of the value, or END, is in sight where it is asked for, in its needle or in a question."""
    symbol, begins = KEY + 2 + np.arange(LENGTHS[kind] + 1), _questions(cfg, sequence)
    seen = []
    for stands, asked in _layouts(cfg, kind, sequence):
        needle = stands + np.arange(len(stands)) * needle_tokens(kind)
        latest = dict(enumerate(needle))   # where the value of each needle stood last
        for begin, n in zip(begins, asked, strict=True):
            seen.append(latest[n] + symbol >= first[begin + symbol - 1])
            latest[n] = begin
    return np.mean(seen, axis=0)


def _layouts(cfg: NeedlesConfig, kind: str, sequence: int):
    """Layouts of rows: every one if there is one needle, else some of a fixed seed."""
    if cfg.needles == (1, 1):
        return [(np.array([place]), np.zeros(cfg.questions, int)) for place in slots(cfg, kind, sequence, 1)]
    rng = np.random.default_rng(0)
    counts = rng.integers(cfg.needles[0], cfg.needles[1] + 1, size=LAYOUTS)
    return [_layout(cfg, kind, sequence, int(count), rng) for count in counts]
