"""Made-up texts with known answers for `benchmarks.virtual_context`: documents about towns, and talks over several conversations.

Documents (after the retrieval task of MemGPT, arXiv 2310.08560, section 3.2): a town has one number for each year, each in a
document of its own. A question names the year in words, the documents in figures: to a search all documents of a town are equal,
a reader knows the right one. The other years are the distractors.

Talks (after its deep memory retrieval, section 3.1): in several conversations a person tells facts among small talk; some are told
again, changed, in a later one. In the last conversation each fact is asked for in other words; the newest one counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

SYLLABLES = ("ka", "lo", "mi", "ru", "te", "so", "na", "vi", "de", "pu")
ONES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
        "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")


class Question(NamedTuple):
    """text: what is asked. key: what a reader looks for, see `right_number` and `told`. answer: one word."""

    text: str
    key: tuple[str, str]
    answer: str


def name(rng: np.random.Generator, syllables: int = 4) -> str:
    """A made-up word."""
    return "".join(rng.choice(SYLLABLES, syllables))


def in_words(number: int) -> str:
    """A number from 0 to 9,999 in words, year by year: 1987 is "nineteen eighty seven"."""
    pair = lambda n: ONES[n] if n < 20 else f"{TENS[n // 10]} {ONES[n % 10]}".removesuffix(" zero")   # noqa: E731
    return pair(number) if number < 100 else f"{pair(number // 100)} {pair(number % 100)}"


# ------------------------------------------------------------------------------------------------------------- documents

def documents(towns: int, distractors: int, seed: int) -> tuple[list[str], list[Question]]:
    """(documents in a random order, one question for each town): K distractors fit a question as well as the right document."""
    rng, texts, questions, known = np.random.default_rng([seed, distractors]), [], [], set()
    while len(questions) < towns:
        town = name(rng)
        if town in known:
            continue
        known.add(town)
        years = 1000 + rng.choice(1000, distractors + 1, replace=False)
        numbers = ["".join(rng.choice(list("0123456789"), 6)) for _ in years]
        texts += [f"In {year} the town of {town} by the sea had the number {number} in the list."
                  for year, number in zip(years, numbers, strict=True)]
        questions.append(Question(f"town {town}, number in the year {in_words(int(years[0]))}", (town, str(years[0])), numbers[0]))
    return [texts[i] for i in rng.permutation(len(texts))], questions


def right_number(question: Question, text: str) -> str:
    """What a reader finds in documents that it sees; "" if the right one is not among them."""
    _, _, behind = text.partition(f"In {question.key[1]} the town of {question.key[0]} by the sea had the number ")
    return behind[:6]


# ------------------------------------------------------------------------------------------------------------------ talks

FACTS = {   # what is told, what is asked, what the answer is drawn from
    "sister": ("My sister {} came to see me yesterday.", "What is the name of my sister?", "name"),
    "dog": ("We went out with {}, our dog, before breakfast.", "How do we call our dog?", "name"),
    "town": ("I have moved to {} now.", "Where was it that I moved to?", "name"),
    "job": ("At work they made me a {}.", "What do I do at work?", ("baker", "nurse", "pilot", "painter", "teacher", "farmer")),
    "colour": ("My favourite colour is {}.", "Which colour do I like best?", ("red", "blue", "green", "orange", "violet", "white")),
    "food": ("I could eat {} every day.", "What do I like to eat?", ("rice", "soup", "plums", "bread", "cheese", "beans")),
    "sport": ("On Sundays I always play {}.", "What do I do on Sundays?",
              ("tennis", "chess", "golf", "rugby", "hockey", "cricket")),
    "instrument": ("I am learning the {}.", "Which instrument am I learning?",
                   ("flute", "piano", "cello", "harp", "lute", "organ")),
}
SMALL_TALK = ("It rained in {}, so I read a book about {} by {}.", "The bus from {} to {} was late again, said {}.",
              "I heard that {} and {} have built a bridge to {}.", "Someone called {} asked for {} in the shop of {}.",
              "In {} street I met {}, who goes to {} tomorrow.", "Have you heard the songs of {}, {} or {}?")


def talks(conversations: int, messages: int, seed: int) -> tuple[list[list[str]], list[Question]]:
    """(messages of each conversation but the last, the questions of the last one).

    Each fact is told in one conversation; half of them again, with another answer, in a later one, if there is one.
    """
    rng = np.random.default_rng(seed)
    said = [[str(rng.choice(SMALL_TALK)).format(name(rng), name(rng), name(rng)) for _ in range(messages)]
            for _ in range(conversations - 1)]
    questions = []
    for place, (key, (tells, asks, drawn)) in enumerate(FACTS.items()):
        first = int(rng.integers(conversations - 1))
        times = [first] + ([int(rng.integers(first + 1, conversations - 1))] if place % 2 and first + 2 < conversations else [])
        answers = [name(rng, 3).capitalize() for _ in times] if drawn == "name" else rng.choice(drawn, len(times), replace=False)
        for at, answer in zip(times, answers, strict=True):
            said[at].insert(int(rng.integers(len(said[at]) + 1)), tells.format(answer))
        questions.append(Question(asks, (key, tells), str(answers[-1])))
    return said, [questions[i] for i in rng.permutation(len(questions))]


def told(question: Question, lines: list[str]) -> str:
    """What a reader takes from lines that it sees, oldest first: the newest that tells the fact; "" if none does."""
    before, _, behind = question.key[1].partition("{}")
    found = [line[len(before):-len(behind)] for line in lines if line.startswith(before) and line.endswith(behind)]
    return found[-1] if found else ""
