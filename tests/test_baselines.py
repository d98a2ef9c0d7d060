"""Free baselines of text: compressors, the count model against a slow copy of its definition, units."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict

import numpy as np
import pytest

from memtok_jax.data import DataNotFoundError, files
from memtok_jax.data import compressors as baselines
from memtok_jax.data.text import TextConfig, eval_text
from memtok_jax.evaluation.suites import text as suite


def real_folder_or_skip(source: str) -> None:
    try:
        files.real_folder(source, "")
    except DataNotFoundError as error:
        pytest.skip(str(error))


def count_model_by_definition(train: bytes, test: bytes, order: int) -> float:
    """The smoothed probabilities byte by byte, with dictionaries."""
    successors = defaultdict(Counter)
    padded = b"\n" * order + train
    for i in range(order, len(padded)):
        for k in range(order + 1):
            successors[padded[i - k:i]][padded[i]] += 1
    bits, padded = 0.0, b"\n" * order + test
    for i in range(order, len(padded)):
        p = 1 / 256
        for k in range(order + 1):
            seen = successors.get(padded[i - k:i])
            if seen:
                p = (seen[padded[i]] + len(seen) * p) / (seen.total() + len(seen))
        bits -= math.log2(p)
    return bits / len(test)


@pytest.mark.parametrize("order", range(8))
def test_count_model_is_its_definition(order):
    rng = np.random.default_rng(order)
    train = bytes(rng.choice([97, 98, 99, 10, 255], 600).astype(np.uint8))
    test = bytes(rng.choice([97, 98, 99, 10, 200, 0], 90).astype(np.uint8))
    found = baselines.count_model_bits_per_byte(train, test, order)
    assert found == pytest.approx(count_model_by_definition(train, test, order), rel=1e-12)


def test_count_model_probabilities_sum_to_one():
    """Over the 256 possible next bytes after the same context."""
    train, context = b"abracadabra " * 5, b"abra"

    def bits(text: bytes) -> float:
        return len(text) * baselines.count_model_bits_per_byte(train, text, 3)

    mass = sum(2 ** (bits(context) - bits(context + bytes([c]))) for c in range(256))
    assert mass == pytest.approx(1, rel=1e-9)


def test_count_model_without_training_is_uniform():
    assert baselines.count_model_bits_per_byte(b"", b"anything", 3) == 8


def test_count_model_learns_a_repeating_text():
    text = b"the quick brown fox\n" * 300
    assert baselines.count_model_bits_per_byte(text, text, 3) < 0.3 < baselines.count_model_bits_per_byte(text, text, 0)


def test_compressors_on_random_and_on_constant_bytes():
    noise = np.random.default_rng(0).bytes(20_000)
    for rate in (baselines.zlib_bits_per_byte, baselines.bz2_bits_per_byte, baselines.xz_bits_per_byte):
        assert 8 <= rate(noise) < 8.2 and rate(bytes(20_000)) < 0.1


def test_all_baselines_of_a_text(monkeypatch):
    names = list(baselines.text_baselines(b"abc" * 50, b"abcab"))
    assert names == ["zlib-9", "bz2-9", "xz-9e", "order-3 counts"]
    monkeypatch.setattr(baselines, "COUNT_MODEL_BYTES", 100)
    assert list(baselines.text_baselines(b"abc" * 50, b"abcab"))[-1] == "order-3 counts (0 MB of train)"


def test_wrong_arguments():
    with pytest.raises(ValueError, match="0 .. 7, got 8"):
        baselines.count_model_bits_per_byte(b"a", b"a", 8)
    for rate in (baselines.xz_bits_per_byte, lambda text: baselines.count_model_bits_per_byte(b"a", text)):
        with pytest.raises(ValueError, match="empty text"):
            rate(b"")


def test_units():
    """The published conversion: the bz2 code length of the WikiText-2 test set."""
    size, packed, words = 1_256_449, 316_785, 245_569
    rate = suite.bits_per_byte(8 * math.log(2) * packed, size)
    assert rate == pytest.approx(2.0170, abs=5e-5)
    assert suite.word_perplexity(rate, size, words) == pytest.approx(1278.3, abs=0.05)
    assert suite.word_perplexity(8.0, 1000, 1000) == 256


def test_count_model_is_fast():
    """Three million bytes in seconds (twenty million take about five on an idle core)."""
    text = np.random.default_rng(0).zipf(1.3, 3_000_000).clip(0, 255).astype(np.uint8).tobytes()
    begin = time.perf_counter()
    baselines.count_model_bits_per_byte(text, text[:200_000], 3)
    assert time.perf_counter() - begin < 20


@pytest.mark.realdata
@pytest.mark.parametrize("source, split, expected", [
    ("wikitext2", "test", {"zlib-9": 2.6165, "xz-9e": 2.1429, "bz2-9": 2.0170}),
    ("tinyshakespeare", "valid", {"zlib-9": 3.1898, "xz-9e": 2.9470, "bz2-9": 2.6353}),
])
def test_compressors_on_real_text(source, split, expected):
    real_folder_or_skip(source)
    text = eval_text(TextConfig(source=source, eval_split=split, eval_bytes=0))
    found = baselines.text_baselines(text[:1000], text)
    for name, rate in expected.items():
        assert found[name] == pytest.approx(rate, rel=5e-3)
