"""MAD: six small tasks for the parts of a sequence model (Poli et al., arXiv 2403.17844, and its released code).

    recall        pairs k v; the value of every key that came before                      in-context recall
    noisy         the same, pairs replaced by two noise tokens with probability `noise`    noisy recall
    fuzzy         keys and values of one to three different symbols; one pair is asked for at the end (held-out keys have three)
    selective     symbols among blanks, then a sign: the symbols in order                  selective copying
    compression   symbols, then a sign: all of them, from the state at the last token alone (models/autoencoder.py)
    memorization  k sign: the value of k in one map that never changes

Tokens: signs and the blank stand at the top, noise below them; of the rest the lower half are keys and the upper half values. A
label stands at the predicting position. With labels="all" the three recall tasks train on every next token, as the paper does;
held-out rows score answers alone. Memorization asks for parameters, not for memory, and its published set of 256 rows shows 91 % of
the keys; noisy and plain recall are solved by anything that sees the whole row.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from memtok_jax.config import check_numbers, choose
from memtok_jax.data.errors import DataError
from memtok_jax.data.tasks.scoring import IGNORED, Sample, places
from memtok_jax.data.tasks.seeds import split_of

NAMES = ("recall", "noisy", "fuzzy", "selective", "compression", "memorization")
NEXT_TOKEN = ("recall", "noisy", "fuzzy")
SIGNS = {"fuzzy": 1, "selective": 2, "compression": 1, "memorization": 1}
MOTIF = 3            # most symbols of a key or value of "fuzzy"
MAP_SEED = 12345     # of "memorization", as released
Draw = Callable[[np.random.Generator, int], tuple[int, ...]]


@dataclass(frozen=True)
class MadConfig:
    """Settings.

    task: one of NAMES.
    tokens: V.
    noise_tokens, noise: of "noisy": noise symbols among the V, and the share of pairs that they replace.
    symbols: of "selective": symbols to copy.
    labels: "answers", or "all" for every next token in training rows of the recall tasks.
    """

    task: str = "recall"
    tokens: int = 16
    noise_tokens: int = 0
    noise: float = 0.0
    symbols: int = 16
    labels: str = "answers"

    def __post_init__(self):
        check_numbers("mad", self, at_least=dict(tokens=2, noise_tokens=0, symbols=1), between=dict(noise=(0, 1)))
        choose("mad.task", self.task, NAMES)
        choose("mad.labels", self.labels, ("answers", "all"))
        if (self.task == "noisy") != (self.noise > 0) or (self.noise > 0) != (self.noise_tokens > 0):
            raise DataError(f"mad: task {self.task!r} with noise={self.noise} and noise_tokens={self.noise_tokens}; both are above"
                            " 0 for 'noisy' and 0 for the others")
        least = {"fuzzy": 2 * MOTIF + 1}.get(self.task, 4)
        if self.plain < least - SIGNS.get(self.task, 0):
            raise DataError(f"mad: {self.tokens} tokens are too few for {self.task!r}; set mad.tokens to "
                            f"{least + self.noise_tokens} or more")

    @property
    def plain(self) -> int:
        """Tokens that are neither signs nor noise."""
        return self.tokens - SIGNS.get(self.task, 0) - self.noise_tokens

    @property
    def keys(self) -> np.ndarray:
        """The lower half of the plain tokens."""
        return np.arange(self.plain // 2)

    @property
    def values(self) -> np.ndarray:
        """The upper half."""
        return np.arange(self.plain // 2, self.plain)


def vocabulary(cfg: MadConfig) -> int:
    """Number of tokens."""
    return cfg.tokens


def symbols(cfg: MadConfig) -> tuple[str, ...]:
    """A readable name for each token."""
    halves = [f"k{i}" for i in cfg.keys] + [f"v{i}" for i in range(len(cfg.values))]
    plain = halves if cfg.task not in ("selective", "compression") else [f"s{i}" for i in range(cfg.plain)]
    signs = {"fuzzy": ["."], "selective": ["_", ">"], "compression": [">"], "memorization": [">"]}.get(cfg.task, [])
    return (*plain, *(f"n{i}" for i in range(cfg.noise_tokens)), *signs)


def check(cfg: MadConfig, sequence: int) -> None:
    """Raise DataError where `sequence` tokens cannot hold a row."""
    least = {"fuzzy": 4 * MOTIF + 1, "selective": 2 * cfg.symbols + 2}.get(cfg.task, 4)
    if sequence < least:
        raise DataError(f"mad: {cfg.task!r} needs a sequence of at least {least}, got {sequence}")
    if cfg.task in ("recall", "noisy", "memorization") and sequence % 2:
        raise DataError(f"mad: {cfg.task!r} is made of pairs and needs an even sequence, got {sequence}")


def sample(cfg: MadConfig, sequence: int, batch: int, seed: int) -> Sample:
    """Draw `batch` rows of `sequence` tokens; equal seeds give equal rows."""
    check(cfg, sequence)
    rng, train = np.random.default_rng(seed), split_of(seed) == "train"
    rows = [draw(cfg, sequence, rng, rng, train, distinct) for _ in range(batch)]
    ids, labels = (np.array(part, np.int32) for part in zip(*rows, strict=True))
    return Sample(ids, labels)


def draw(cfg: MadConfig, n: int, rng: np.random.Generator, blanks, train: bool, motifs: Callable) -> tuple[list, list]:
    """One row (ids [n], labels [n]) in the order of draws of the released code.

    blanks: generator of the places of blanks ("selective"; released: the global one). motifs: `distinct`, or `listed` as released.
    """
    if cfg.task == "fuzzy":
        ids, answers = _fuzzy(cfg, n, rng, train, motifs)
    elif cfg.task in ("recall", "noisy"):
        ids, answers = _recall(cfg, n, rng)
    else:
        return {"selective": _selective, "compression": _compression, "memorization": _memorization}[cfg.task](cfg, n, rng, blanks)
    if train and cfg.labels == "all":
        answers = ids
    return ids[:n], (answers[1:] + [IGNORED])[:n]


# ------------------------------------------------------------------------------------------------------------ the tasks

def _recall(cfg: MadConfig, n: int, rng) -> tuple[list, list]:
    """(ids [n], value or IGNORED at the place of each token): pairs, then one more whose key came before."""
    values, ids, answers = {}, [], []
    kept = rng.choice(n // 2)   # this pair is never noise
    for pair in range(n // 2 - 1):
        if cfg.noise and pair != kept and rng.random() < cfg.noise:
            ids += rng.choice(np.arange(cfg.plain, cfg.tokens), size=2).tolist()
            answers += [IGNORED, IGNORED]
            continue
        key = int(rng.choice(cfg.keys))
        known = key in values
        if not known:
            values[key] = int(rng.choice(cfg.values))
        ids += [key, values[key]]
        answers += [IGNORED, values[key] if known else IGNORED]
    key = int(rng.choice(list(values)))
    return [*ids, key, values[key]], [*answers, IGNORED, values[key]]


def distinct(rng, tokens: np.ndarray, sizes: tuple[int, ...]) -> Draw:
    """Motifs of different symbols, drawn when they are asked for."""
    return lambda rng, size: tuple(rng.permutation(tokens)[:size].tolist())


def listed(rng, tokens: np.ndarray, sizes: tuple[int, ...]) -> Draw:
    """The same from shuffled lists of all motifs, as the released code draws them: for its rows, number by number."""
    lists = {}
    for size in sizes:
        lists[size] = list(itertools.permutations(tokens.tolist(), size))
        rng.shuffle(lists[size])
    return lambda rng, size: tuple(rng.choice(lists[size]).tolist())


def _fuzzy(cfg: MadConfig, n: int, rng, train: bool, motifs: Callable) -> tuple[list, list]:
    """(ids [n + 1], answers [n + 1]): pairs of motifs, the asked one at a random place and at the end, filled up in front.

    A pair whose key happens to be the asked one takes its place. The asked pair is missing if the row is full before its place.
    """
    sizes = tuple(range(1, MOTIF + 1))
    key_sizes = sizes if train else (MOTIF,)
    new_key, new_value = motifs(rng, cfg.keys, key_sizes), motifs(rng, cfg.values, sizes)
    size = lambda: int(rng.choice(key_sizes)) if train else MOTIF   # noqa: E731
    asked_sizes = size(), int(rng.choice(sizes))
    asked, answer = new_key(rng, asked_sizes[0]), new_value(rng, asked_sizes[1])
    total = sum(asked_sizes)
    place, there, values, ids, answers = rng.choice(n - 2 * total), False, {}, [], []
    while len(ids) < n - total - 2 * MOTIF:
        key_size, value_size = size(), int(rng.choice(sizes))
        if len(ids) >= place and not there:
            key, known = asked, False
        else:
            key = new_key(rng, key_size)
            known = key in values
        if key == asked:
            there, values[key] = True, answer
        elif not known:
            values[key] = new_value(rng, value_size)
        ids += [*key, *values[key]]
        answers += [IGNORED] * len(key) + (list(values[key]) if known else [IGNORED] * len(values[key]))
    missing = n + 1 - total - len(ids)
    return ([cfg.tokens - 1] * missing + [*ids, *asked, *answer],
            [IGNORED] * missing + [*answers, *([IGNORED] * len(asked)), *answer])


def _selective(cfg: MadConfig, n: int, rng, blanks) -> tuple[list, list]:
    """Symbols with blanks before each of them, a sign, and as many blanks, at which the symbols are asked for."""
    blank, sign = cfg.tokens - 2, cfg.tokens - 1
    wanted = rng.choice(np.arange(cfg.plain), size=cfg.symbols)
    count = n - 2 * cfg.symbols - 1
    places_of = (blanks.randint if hasattr(blanks, "randint") else blanks.integers)(0, cfg.symbols, count)
    front = np.insert(wanted, places_of, blank).tolist()
    return [*front, sign, *([blank] * cfg.symbols)], [IGNORED] * (len(front) + 1) + wanted.tolist()


def _compression(cfg: MadConfig, n: int, rng, blanks) -> tuple[list, list]:
    """Symbols and a sign; every input is its own label."""
    ids = [*rng.choice(np.arange(cfg.plain), size=n - 1).tolist(), cfg.tokens - 1]
    return ids, ids


@lru_cache(maxsize=8)
def fixed_map(plain: int) -> dict[int, int]:
    """Key -> value of "memorization", by the number of plain tokens; no two keys have the same value."""
    rng, middle = np.random.default_rng(MAP_SEED), plain // 2
    keys, values = np.arange(middle), np.arange(middle, plain)
    return dict(zip(rng.permutation(keys).tolist(), rng.permutation(values).tolist(), strict=False))


def _memorization(cfg: MadConfig, n: int, rng, blanks) -> tuple[list, list]:
    """Keys, each followed by the sign at which its value is asked for."""
    known = fixed_map(cfg.plain)
    rng.choice(n // 2)          # the released code draws here the pair that is never noise
    keys = [int(rng.choice(list(known))) for _ in range(n // 2)]
    return ([token for key in keys for token in (key, cfg.tokens - 1)],
            [label for key in keys for label in (IGNORED, known[key])])


# --------------------------------------------------------------------------------------------------------- baselines

def answers(cfg: MadConfig, sequence: int) -> np.ndarray:
    """bool[T]: none; places differ from row to row, and copies are asked for at blanks."""
    return places(sequence, slice(0))


def chance(cfg: MadConfig, sequence: int) -> dict[str, float]:
    """Accuracy of guessing a value; of different symbols of one value those before are known ("fuzzy"), and so is the sign."""
    if cfg.task == "fuzzy":
        left = len(cfg.values) - np.arange(MOTIF)
        weights = MOTIF - np.arange(MOTIF)
        return {"chance": float((weights / left).sum() / weights.sum())}
    if cfg.task == "compression":
        return {"chance": ((sequence - 1) / cfg.plain + 1) / sequence}
    if cfg.task == "selective":
        # The last symbol always stands right in front of the sign.
        return {"chance": 1 / cfg.plain, "last_symbol": (1 + (cfg.symbols - 1) / cfg.plain) / cfg.symbols}
    return {"chance": 1 / len(cfg.values)}
