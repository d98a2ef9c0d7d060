"""Tables that are told: samples are what a conversation reads, and streams side by side answer as a conversation does."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from task_checks import samples_are_pure

from benchmarks import virtual_nested, virtual_summary
from memtok_jax import config
from memtok_jax.data.errors import DataError
from memtok_jax.data.marks import END, SYSTEM
from memtok_jax.data.tasks import nested, nested_told
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.data.tasks.seeds import SPLITS
from memtok_jax.models.protocol import bind

CFG = nested_told.NestedToldConfig(digits=5, pairs=3)
TABLE = nested.NestedConfig(digits=8, pairs=140, lookups=(1, 1))


def text_of(ids: np.ndarray) -> str:
    """Tokens as letters."""
    return bytes(ids.astype(np.uint8)).decode("latin1")


@pytest.mark.parametrize("length", [400, 397])
def test_every_scored_digit_is_the_value_of_the_key_that_is_asked_for(length):
    ids, labels = samples_are_pure(nested_told, CFG, length)
    with pytest.raises(DataError, match="at least"):
        nested_told.check(CFG, 150)
    for row, label in zip(ids, labels, strict=True):
        table = dict(virtual_nested.PAIR.findall(text_of(row)))
        asked = re.findall(r"value of (\w{5})\xf7\xf8s\xfa", text_of(row))
        said = text_of(label[label != IGNORED])
        assert len(table) == CFG.pairs and set(asked) <= set(table) and len(asked) > 3
        assert "".join(table[key] for key in asked).startswith(said) and len(said) > 5 * (len(asked) - 1)


def test_words_of_training_and_test_never_meet():
    for seed, held_out in ((5, False), (SPLITS["test"] + 5, True)):
        ids, _ = nested_told.sample(CFG, 400, 8, seed)
        found = re.findall(r"key = (\w{5}), value = (\w{5})", "".join(map(text_of, ids)))
        assert len(found) == 24 and all(nested.is_held_out(word) == held_out for pair in found for word in pair)


def test_the_reader_counts_rows_and_answers_that_are_in_sight():
    """Against a count over samples: where the answer stands in front of the place that predicts it."""
    length, t = 380, np.arange(380)
    ids, labels = nested_told.sample(CFG, length, 100, 7)
    for reach in (30, 70, 120, length):
        right = []
        for row, label in zip(ids, labels, strict=True):
            for begin in re.finditer(r"value of (\w{5})\xf7\xf8s\xfa", text_of(row)):
                value = dict(virtual_nested.PAIR.findall(text_of(row)))[begin[1]]
                places = [found.start() for found in re.finditer(value, text_of(row)) if found.start() < begin.end()]
                scored = [d for d in range(CFG.digits) if begin.end() - 1 + d < length and label[begin.end() - 1 + d] != IGNORED]
                right += [1.0 if places[-1] + d >= begin.end() - 1 + d - reach else 1 / 16 for d in scored]
        np.testing.assert_allclose(nested_told.reader(CFG, length, np.maximum(t - reach, 0)), np.mean(right), atol=0.03)


def test_the_preset_sees_no_row_by_attention():
    """A reader of what attention and the convolution behind it reach is at chance; of everything, always right."""
    experiment = config.load("memgpt:told")
    model, t = bind(experiment.model), np.arange(experiment.data.sequence)
    sight = model.reach + experiment.model.pattern[-1].memory.conv - 1
    found = [nested_told.reader(experiment.data.task, len(t), np.maximum(t - seen + 1, 0)) for seen in (sight, len(t))]
    assert found == [1 / 16, 1.0]


def test_the_main_context_is_the_end_of_the_stream():
    """`evicted_rows` asserts it byte for byte; a sample of the task begins like such a stream."""
    assert virtual_summary.evicted_rows(virtual_summary.CONTEXT, TABLE) == 140
    evicted = virtual_summary.evicted_rows(virtual_nested.context(TABLE), TABLE)
    assert 100 < evicted < 140
    (rows, key, _), = virtual_summary.tables(TABLE, 1, 0, 0)
    read = virtual_summary.stream(rows, key, evicted)
    assert read.index(bytes((SYSTEM, END))) == 50 * evicted and read.endswith(nested_told.question(key))
    ids, _ = nested_told.sample(nested_told.NestedToldConfig(pairs=3), 400, 20, 0)
    begins = {text_of(row).index("\xc0\xf7") for row in ids}
    assert begins == {0, 50, 100, 150}
    for row in ids:
        found = virtual_nested.PAIR.findall(text_of(row))
        asked = re.search(r"value of (\w+)", text_of(row))[1]
        expected = virtual_summary.stream(found, asked, text_of(row).index("\xc0\xf7") // 50)
        assert bytes(row.astype(np.uint8)).startswith(expected)


def test_kinds_of_replies_add_up():
    asked = virtual_summary.tables(nested.NestedConfig(pairs=6), 40, 0, 1)
    right, hop, other = ([dict(rows)[dict(rows)[key]] for rows, key, _ in asked], [dict(rows)[key] for rows, key, _ in asked],
                         [next(v for k, v in rows if v not in dict(rows) and v != answer) for rows, _, answer in asked])
    for said, kind in ((right, "right"), (hop, "stopped"), (other, "other value"), (["0" * 8] * 40, "wrong")):
        given = iter(said)
        found = virtual_summary.scores(lambda read, given=given: [next(given) for _ in read], asked, 6)
        assert found[kind] == 1.0 and (found["digits"] == 1.0) == (kind == "right")


def scrambled(params):
    """Other parameters, with which a reply depends on all that was read; initial ones repeat one digit."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    return tree.unflatten([leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


@pytest.mark.slow
def test_streams_side_by_side_answer_as_a_conversation_does():
    from memtok_jax.virtual_context.session_device import SessionDevice
    model = bind(config.load("memgpt:told").model)
    params = scrambled(model.init(jax.random.key(0)))
    cfg = nested.NestedConfig(pairs=7, lookups=(1, 1))
    asked = virtual_summary.tables(cfg, 3, 0, 0)
    evicted = virtual_summary.evicted_rows(virtual_summary.CONTEXT, cfg)
    read = np.array([np.frombuffer(virtual_summary.stream(rows, key, evicted), np.uint8) for rows, key, _ in asked])
    found = virtual_summary.replies(model, params, 8, batch=4)(read)
    device = SessionDevice(model, params)
    assert found == [virtual_summary.in_conversation(device, rows, key, virtual_summary.CONTEXT) for rows, key, _ in asked]
    assert len(set(found)) > 1
