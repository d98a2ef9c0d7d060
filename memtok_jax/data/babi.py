"""bAbI's stories and questions from their text files (Weston et al., arXiv 1502.05698).

A line is "number sentence", or "number question<TAB>answer<TAB>numbers of supporting lines"; the number is 1 where a story begins.
A sample is all earlier statements of a story, one question and its answer.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from memtok_jax.data import files
from memtok_jax.data.errors import DataError, DataNotFoundError

FOLDERS = {"train": ("en-10k", "en", ""), "test": ("en", "en-10k", "")}
VALID = 10          # each tenth story of the training file is for validation
PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")


class Question(NamedTuple):
    """facts: the statements before it. text: as in the file, a space at its end included. story: number of the story."""

    facts: tuple[str, ...]
    text: str
    answer: str
    support: tuple[int, ...]
    story: int


@functools.lru_cache(maxsize=16)
def questions(folder: str, task: str, split: str) -> tuple[Question, ...]:
    """All questions of one task.

    folder: as published, or a folder with the files of one of its sizes; "babi" is looked for below the folder of local data sets.
    task: "qa1" ... "qa20". split: "test" has files of its own, "valid" is each tenth story of the training file, "train" the rest.
    Raises DataNotFoundError for files that are not there, DataError for a file of another format.
    """
    read = parse(_find(folder, task, "test" if split == "test" else "train"))
    return tuple(q for q in read if split == "test" or (q.story % VALID == VALID - 1) == (split == "valid"))


def _find(folder: str, task: str, split: str) -> Path:
    root = Path(folder).expanduser()
    root = files.real_folder("babi", "") if folder == "babi" and not root.is_dir() else root
    for place in FOLDERS[split]:
        for found in sorted(root.joinpath(place).glob(f"{task}_*_{split}.txt*")):
            return found
    raise DataNotFoundError(f"no file {task}_*_{split}.txt or .txt.gz in {root} or its folders en-10k and en; name the folder "
                            "of the bAbI tasks (v1.2) with --config.data.task.facts=FOLDER")


def parse(path: Path) -> list[Question]:
    """The questions of a file."""
    out, story, facts = [], -1, {}
    for line in files.read_file(path, path.name).data.tobytes().decode().splitlines():
        number, _, rest = line.partition(" ")
        if not number.isdigit() or not rest:
            raise DataError(f"{path} holds the line {line[:40]!r}; a line of bAbI begins with its number and a space")
        if number == "1":
            story, facts = story + 1, {}
        if "\t" not in rest:
            facts[int(number)] = rest
            continue
        text, answer, support = (rest.split("\t") + [""])[:3]
        order = {n: k for k, n in enumerate(facts)}
        out.append(Question(tuple(facts.values()), text, answer, tuple(order[int(n)] for n in support.split()), story))
    return out


def majority(train: tuple[Question, ...], test: tuple[Question, ...]) -> float:
    """Share of test answers that are the most frequent answer of the training questions."""
    (best, _), = Counter(q.answer for q in train).most_common(1)
    return sum(q.answer == best for q in test) / len(test)


def last_place(facts: list[str] | tuple[str, ...], person: str = "") -> str:
    """The place that was mentioned last, by statements about one person if it is named; "" if none was."""
    for fact in reversed(facts):
        words = fact.rstrip(".").split()
        if (not person or words[0] == person) and words[-1] in PLACES:
            return words[-1]
    return ""
