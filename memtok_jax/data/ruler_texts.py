"""RULER's tasks as texts (Hsieh et al., arXiv 2404.06654): a prompt, the beginning of its answer, and the answers.

Eleven of the thirteen; the two on question answering need data sets. Needles, their haystacks of noise and of needles, and the
counts of the other tasks follow the paper's released generator, so do the words of a needle and of its question. Different: running
text comes from a corpus of the user's choice instead of essays, from a random place in it; words are pairs of two own lists; the
wording of the last three tasks is ours.

A generator is a function (rng, amount, budget, source) -> Example. amount: lines, words or needles of the haystack. budget: tokens
of the whole sample, which some counts depend on. source: running text and words, in held-out rows others than in training.
"""

from __future__ import annotations

import functools
import math
import re
import uuid
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.words import ADJECTIVES, NOUNS

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
HELD_OUT = 4          # one in so many words is held out
LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
SMALL = 4096          # below this budget some counts are smaller
DEPTHS = np.round(np.linspace(0, 100, 40)).astype(int)
HOPS = 4


class Example(NamedTuple):
    """prompt: what is read. prefix: how the answer begins. answers: all of them must occur in it. joined: how they are written."""

    prompt: str
    prefix: str
    answers: tuple[str, ...]
    joined: str


class Source(NamedTuple):
    """text: running text. words: an adjective and a noun each."""

    text: str
    words: tuple[str, ...]


def words_of(split: str) -> tuple[str, ...]:
    """Words of "train", or those of the held-out splits: every adjective and every noun occurs in both."""
    return tuple(f"{a}-{n}" for i, a in enumerate(ADJECTIVES) for j, n in enumerate(NOUNS)
                 if ((i + j) % HELD_OUT == 0) == (split != "train"))


class Niah(NamedTuple):
    """haystack: "noise", "text" or "needles". key, value: "words", "numbers" or "uuids". keys, values, queries: how many."""

    haystack: str
    key: str
    value: str
    keys: int = 1
    values: int = 1
    queries: int = 1


NIAH = {
    "niah_single_1": Niah("noise", "words", "numbers"),
    "niah_single_2": Niah("text", "words", "numbers"),
    "niah_single_3": Niah("text", "words", "uuids"),
    "niah_multikey_1": Niah("text", "words", "numbers", keys=4),
    "niah_multikey_2": Niah("needles", "words", "numbers"),
    "niah_multikey_3": Niah("needles", "uuids", "uuids"),
    "niah_multivalue": Niah("text", "words", "numbers", values=4),
    "niah_multiquery": Niah("text", "words", "numbers", keys=4, queries=4),
}
TASKS = (*NIAH, "vt", "cwe", "fwe")
GENERATE = {"vt": 30, "cwe": 120, "fwe": 50}     # tokens of an answer; 128 for needles


def thing(kind: str, rng: np.random.Generator, words: tuple[str, ...]) -> str:
    """A key or value: seven digits, an adjective and a noun, or a uuid of version 4."""
    if kind == "numbers":
        return str(rng.integers(1_000_000, 10_000_000))
    return words[rng.integers(len(words))] if kind == "words" else str(uuid.UUID(bytes=rng.bytes(16), version=4))


def distinct(count: int, draw: Callable[[], str], taken: frozenset[str] = frozenset()) -> list[str]:
    """`count` different drawn texts, none of them taken."""
    found: dict[str, None] = {}
    while len(found) < count:
        one = draw()
        if one not in taken:
            found[one] = None
    return list(found)


def needle(spec: Niah, key: str, value: str) -> str:
    """One needle."""
    return f"One of the special magic {spec.value} for {key} is: {value}."


def niah(spec: Niah, rng: np.random.Generator, amount: int, budget: int, source: Source) -> Example:
    """Needles in a haystack of `amount` lines of noise, words of text, or needles that nobody asks for."""
    key, value = (functools.partial(thing, kind, rng, source.words) for kind in (spec.key, spec.value))
    keys = distinct(spec.keys, key)
    values = [distinct(spec.values, value) for _ in keys]
    needles = [needle(spec, k, v) for k, own in zip(keys, values, strict=True) for v in own]
    needles = [needles[n] for n in rng.permutation(len(needles))]
    if spec.haystack == "text":
        context = in_sentences(needles, _running(source.text, amount, rng), rng)
    else:
        lines = [NOISE] * amount
        if spec.haystack == "needles":
            lines = [needle(spec, k, value()) for k in distinct(amount, key, frozenset(keys))]
        context = "\n".join(in_lines(needles, lines, rng))
    asked = rng.permutation(spec.keys)[:spec.queries]
    return question(spec, context, [keys[n] for n in asked], [v for n in asked for v in values[n]])


def question(spec: Niah, context: str, queries: list[str], answers: list[str]) -> Example:
    """The prompt around a context; in the singular if there is one answer."""
    joined = ", ".join(queries[:-1]) + ", and " + queries[-1] if len(queries) > 1 else queries[0]
    one, kind = len(answers) == 1, spec.value
    some, are, every, kind = ("A", "is", "is", kind[:-1]) if one else ("Some", "are", "are all", kind)
    asked = f"special magic {kind} for {joined} mentioned in the provided text"
    prompt = (f"{some} special magic {kind} {are} hidden within the following text. Make sure to memorize it. I will quiz you "
              f"about the {kind} afterwards.\n{context}\nWhat {every} the {asked}?")
    return Example(prompt, f" The {asked} {are}", tuple(answers), ", ")


def in_lines(needles: list[str], lines: list[str], rng: np.random.Generator) -> list[str]:
    """Lines with the needles at random different places among them."""
    out = list(lines)
    places = np.sort(rng.choice(len(lines) + len(needles), len(needles), replace=False))
    for place, one in zip(places, needles, strict=True):
        out.insert(place, one)
    return out


def in_sentences(needles: list[str], words: list[str], rng: np.random.Generator) -> str:
    """Running text with needles between its sentences, at random different depths of a grid of 40."""
    sentences = re.split(r"(?<=[.!?])\s+", " ".join(words))
    depths = rng.choice(DEPTHS, len(needles), replace=False)
    order = np.argsort(-depths, kind="stable")      # from the back: what stands in front keeps its place
    for n in order:
        sentences.insert(int(len(sentences) * depths[n] / 100), needles[n])
    return " ".join(sentences)


def _running(text: str, count: int, rng: np.random.Generator) -> list[str]:
    """`count` words from a random place of a text, repeated if it is short."""
    size = 12 * count + 200
    begin = int(rng.integers(max(len(text) - size, 1)))
    words = text[begin:begin + size].split()[1:]
    if not words:
        raise DataError("ruler.text: the text has no words; name another one")
    return (words * (count // len(words) + 1))[:count]


def chain(rng: np.random.Generator, letters: int, amount: int) -> tuple[str, str, list[str]]:
    """(context, value, names): variables that hand one value on, in `amount` lines of noise."""
    names = distinct(HOPS + 1, lambda: "".join(rng.choice(LETTERS, letters)).upper())
    value = str(rng.integers(10_000, 100_000))
    steps = [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a} " for a, b in zip(names, names[1:], strict=False))]
    return "\n".join(in_lines(steps, [NOISE] * amount, rng)), value, names


def vt(rng: np.random.Generator, amount: int, budget: int, source: Source) -> Example:
    """Variable tracking: all names that hold a value, after a short example with names of three letters."""
    shown, (context, value, names) = chain(rng, 3, 2), chain(rng, 5, amount)
    ask = lambda context, value: (f"Follow the variables in this text.\n{context}\nQuestion: which variables hold {value}?",  # noqa: E731
                                  f" Answer: {HOPS + 1} variables hold {value}:")
    front = "".join(ask(*shown[:2])) + " " + " ".join(shown[2])
    prompt, prefix = ask(context, value)
    return Example(f"{front}\n{prompt}", prefix, tuple(names), " ")


def counted(rng: np.random.Generator, words: list[str], common: int, often: int, seldom: int) -> str:
    """A numbered list in random order: the first `common` words this often, the others seldom."""
    every = [word for n, word in enumerate(words) for _ in range(often if n < common else seldom)]
    return " ".join(f"{n}. {every[k]}" for n, k in enumerate(rng.permutation(len(every)), 1))


def cwe(rng: np.random.Generator, amount: int, budget: int, source: Source) -> Example:
    """Common words: the ten most frequent words of a numbered list of `amount` different ones, after a short example."""
    small = budget < 2 * SMALL   # published below SMALL; words of two parts have more tokens
    words = [source.words[n] for n in rng.permutation(len(source.words))]
    counts, example = ((6, 1), (20, 3, 1)) if small else ((30, 3), (40, 10, 3))
    ask = lambda listed: (f"Memorize the words of this numbered list.\n{listed}\nQuestion: which ten words are the most common?",  # noqa: E731
                          " Answer: the ten most common words are:")
    shown, rest = words[:example[0]], words[example[0]:example[0] + max(amount, 10)]
    front = "".join(ask(counted(rng, shown, 10, *example[1:]))) + " " + " ".join(shown[:10])
    prompt, prefix = ask(counted(rng, rest, 10, *counts))
    return Example(f"{front}\n{prompt}", prefix, tuple(rest[:10]), " ")


def zipf(amount: int, words: int) -> np.ndarray:
    """int[words]: how often each of the words comes in `amount`, by rank to the power of -2."""
    return np.floor(amount * np.arange(1, words + 1) ** -2.0 / (math.pi ** 2 / 6)).astype(int)


def fwe(rng: np.random.Generator, amount: int, budget: int, source: Source) -> Example:
    """Frequent words: the three most frequent made-up words of about `amount`, apart from "...", which comes most often."""
    counts = zipf(amount, max((budget - 50) // 50, 5))
    if not (counts[1] > counts[2] > counts[3] > counts[4]):
        raise DataError(f"ruler: fwe of {amount} words has no three most frequent ones; it needs a longer sequence")
    words = ["...", *distinct(len(counts) - 1, lambda: "".join(rng.choice(LETTERS, 6)))]
    every = [word for word, count in zip(words, counts, strict=True) for _ in range(count)]
    coded = " ".join(every[k] for k in rng.permutation(len(every)))
    prompt = f"Find the most frequent words of this coded text. Three dots are no word.\n{coded}\nQuestion: which three are they?"
    return Example(prompt, " Answer: the three most frequent words are:", tuple(words[1:4]), " ")


def generator(task: str) -> Callable[[np.random.Generator, int, int, Source], Example]:
    """The generator of one of TASKS."""
    if task in NIAH:
        return functools.partial(niah, NIAH[task])
    return {"vt": vt, "cwe": cwe, "fwe": fwe}[task]


def generated_tokens(task: str) -> int:
    """Tokens of an answer, as published."""
    return GENERATE.get(task, 128)


def sizes(task: str, budget: int) -> range:
    """Haystacks to choose from, in ascending order. There are no more words than those of `words_of`."""
    small, words = budget < SMALL, len(words_of("test"))
    spec = NIAH.get(task, NIAH["niah_single_1"])
    least, step, most = 1, 1 if small else 5, budget
    if task == "cwe":
        least, step, most = 10, 10, words - 40
    elif task == "fwe":
        least, step = 80, 10
    elif spec.haystack == "text":
        least, step = 20, 20 if small else 100
    elif (spec.haystack, spec.key) == ("needles", "words"):
        most = words // 2
    return range(least, max(most, least) + 1, step)


def match_all(said: str, answers: tuple[str, ...]) -> float:
    """Share of the answers that occur in what was said, whatever the case."""
    return float(np.mean([answer.lower() in said.lower() for answer in answers]))
