"""RULER: every needle once, lengths true in tokens, oracles that read the text, and scores of hand-made answers."""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from task_checks import samples_are_pure

from memtok_jax.config import UserError
from memtok_jax.data import ruler_texts as T
from memtok_jax.data.errors import DataError
from memtok_jax.data.task import HELD_OUT, TaskConfig
from memtok_jax.data.tasks import ruler
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.evaluation.suites import ruler as suite
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.training.experiment import EvaluationConfig

TEXTS = {split: b"One walks far. Two of them run! Do three stay? " * 300 + split.encode() for split in ("train", "valid", "test")}


@pytest.fixture(autouse=True)
def _corpus(monkeypatch):
    monkeypatch.setattr(ruler.haystack, "text", lambda source, split: TEXTS[split])
    ruler._text.cache_clear()
    ruler.amount.cache_clear()


def oracle(task: str, one: T.Example) -> list[str]:
    """The answers, read out of the prompt."""
    if task in T.NIAH:
        asked = re.search(r"for (.*) mentioned in the provided text\?$", one.prompt)[1]
        keys = re.split(r", and |, ", asked)
        found = dict.fromkeys(re.findall(r"One of the special magic \w+ for (\S+) is: (\S+)\.", one.prompt))
        return [value for key in keys for k, value in found if k == key]
    if task == "vt":
        text = one.prompt[one.prompt.rindex("Follow the variables"):]
        known = {re.search(r"hold (\d+)\?$", one.prompt)[1]}
        for _ in range(9):
            known |= {a for a, b in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", text) if b in known}
        return [name for name in known if name.isalpha()]
    if task == "cwe":
        text = one.prompt[one.prompt.rindex("Memorize the words"):]
        return [word for word, _ in Counter(re.findall(r"\d+\. (\S+)", text)).most_common(10)]
    return [word for word, _ in Counter(one.prompt.split("\n")[1].split()).most_common(4)[1:]]


@pytest.mark.parametrize("task", T.TASKS)
@pytest.mark.parametrize("sequence", [2600, 10_000])
def test_an_oracle_that_reads_the_text_is_always_right(task, sequence):
    cfg = ruler.RulerConfig((task,))
    for n in range(6):
        one = ruler.example(cfg, task, sequence, HELD_OUT + n)
        found = oracle(task, one)
        assert sorted(found) == sorted(one.answers) and T.match_all(" ".join(found), one.answers) == 1
        used = len((one.prompt + one.prefix).encode()) + ruler.room(cfg)
        assert sequence - 700 * (sequence > 4096) - 400 < used <= sequence, "as large as it can be"
        for answer in one.answers if task in T.NIAH else ():
            assert one.prompt.count(answer) == 1, "every needle stands there once"


@pytest.mark.parametrize("task", ["niah_single_2", "niah_multiquery", "vt", "fwe"])
def test_samples_are_pure_functions_of_the_seed(task):
    cfg = ruler.RulerConfig((task,))
    one = samples_are_pure(ruler, cfg, 2048, gaps=True)
    t = np.flatnonzero(ruler.answers(cfg, 2048))
    assert (one.labels[:, t[0] - 1] != IGNORED).all()
    for b in range(5):
        text = ruler.codec.codec("").decode(one.ids[b, :t[0]])
        expected = ruler.example(cfg, task, 2048, 7, b)
        assert text.endswith(expected.prompt + expected.prefix)
        said = suite.text_of(one.labels[b, t - 1], ruler.codec.codec(""))
        assert T.match_all(said, expected.answers) == 1
    with pytest.raises(DataError, match="needs a sequence of at least"):
        ruler.sample(cfg, 150, 1, 0)


def test_held_out_rows_have_words_of_their_own():
    train, test = set(T.words_of("train")), set(T.words_of("test"))
    assert len(train | test) == 4096 and not train & test and T.words_of("valid") == T.words_of("test")
    for seed, words in ((3, train), (HELD_OUT + 3, test), (HELD_OUT + 2**64, test)):
        one = ruler.example(ruler.RulerConfig(("niah_multikey_2",)), "niah_multikey_2", 2048, seed)
        keys = set(re.findall(r"numbers for (\S+) is:", one.prompt))
        assert len(keys) > 5 and keys <= words


def test_singular_and_plural():
    one = ruler.example(ruler.RulerConfig(), "niah_single_1", 2048, 1)
    assert one.prompt.startswith("A special magic number is hidden within the following text.")
    assert "What is the special magic number for " in one.prompt and "One of the special magic numbers for " in one.prompt
    assert one.prefix.endswith("mentioned in the provided text is") and " The special magic number for " in one.prefix
    many = ruler.example(ruler.RulerConfig(), "niah_multiquery", 2048, 1)
    assert many.prompt.startswith("Some special magic numbers are hidden")
    assert "What are all the special magic numbers for " in many.prompt
    assert many.prefix.endswith(" are") and many.prompt.count(", and ") == 1 and len(many.answers) == 4


def test_depths_spread_over_the_text():
    depths = []
    for n in range(300):
        one = ruler.example(ruler.RulerConfig(), "niah_single_2", 2048, n)
        depths.append(one.prompt.index("One of the special magic") / len(one.prompt))
    counts = np.histogram(depths, 5, (0.05, 0.95))[0]
    assert counts.min() > 25


def test_frequencies_fall_with_the_square_of_the_rank():
    np.testing.assert_array_equal(T.zipf(1000, 5), [607, 151, 67, 37, 24])


def test_references_in_hand_made_answers():
    for said, answers, share in (("It is 1234567.", ("1234567",), 1), ("123456", ("1234567",), 0),
                                 ("AbCdE fghij", ("ABCDE", "FGHIJ"), 1), ("one", ("one", "two"), 0.5), ("", ("x",), 0)):
        assert T.match_all(said, answers) == share


def test_the_suite_gives_full_marks_to_who_knows_the_answers(tmp_path, monkeypatch):
    """A model that says the labels; half of them wrong when its uuids are cut."""
    cfg = TaskConfig(ruler.RulerConfig(("niah_single_1", "niah_multivalue")), 2048, eval_samples=3)

    def labels(params, inputs, back, block, *, model):
        return np.roll(inputs, -1, axis=1)

    monkeypatch.setattr(suite.greedy, "answer", labels)
    experiment = SimpleNamespace(data=cfg, call_tokens=64, evaluation=EvaluationConfig(2, lengths=(1,)))
    found = dict(suite_named("ruler").run(experiment, None, None, None, tmp_path, lambda line: None))
    assert found["eval/niah_single_1_at_2048"] == found["eval/niah_multivalue_at_2048"] == found["eval/accuracy"] == 1
    with pytest.raises(UserError, match="suite 'ruler' judges a model on task:ruler"):
        dict(suite_named("ruler").run(SimpleNamespace(data=SimpleNamespace(source="stdlib")), None, None, None, tmp_path, print))


def test_mistakes_are_one_line():
    for wrong, message in ((dict(tasks=("nia",)), "ruler.tasks is 'nia'"), (dict(tasks=()), "is empty"),
                           (dict(generate=-1), "at least 0")):
        with pytest.raises(UserError, match=message):
            ruler.RulerConfig(**wrong)
