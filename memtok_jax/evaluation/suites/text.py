"""Text: bits per byte, loss per token and word perplexity of the held-out text, and the loss by position in its stream."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.analysis import figures
from memtok_jax.evaluation.frozen import can_freeze, frozen
from memtok_jax.evaluation.score import score_data
from memtok_jax.evaluation.suites import Headline
from memtok_jax.models.protocol import Model, bind

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment


def bits_per_byte(nats: float, size: int) -> float:
    """Bits per byte of a text of `size` bytes with a total negative log-likelihood of `nats`."""
    return nats / (math.log(2) * size)


def word_perplexity(bits_per_byte: float, size: int, words: int) -> float:
    """Perplexity per word of a text of `size` bytes and `words` reference words, from its bits per byte.

    The words are those of the data set's own tokenisation, whatever the units of the model.
    """
    return 2.0 ** (bits_per_byte * size / words)


# The scale is that of tokens of one byte; `report.draw_curve` divides it by the bytes of a token.
HEADLINE = Headline("eval/bits_per_byte", "bits per byte", lambda score: bits_per_byte(score.nats, score.bytes), "train/loss",
                    bits_per_byte(1.0, 1))


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Bits per byte. Every text is one stream: its carry is not reset inside the text, and every token is scored once.

    Bits per byte divide by the UTF-8 bytes of the text, so they compare models with different tokenizers; what is between joined
    texts is scored too and counts one byte.

    If `evaluation.streams` is above 1, a text is cut into that many streams, each without history at its start. Raises ValueError
    if the number of scored bytes is not that of the text.
    """
    cfg, streams = experiment.data, experiment.evaluation.streams
    source, tokenizer = data.source_of(cfg), data.tokenizer(cfg)
    size, words = len(source.eval_text(cfg)), source.reference_words(cfg)
    result = score_data(experiment, model, params, mesh, cfg, streams)
    if result.bytes != size:
        raise ValueError(f"{result.bytes} bytes were scored, the held-out text has {size}")
    bits, free = HEADLINE.of(result), data.baselines(cfg, model.reach, model.segment)
    say(f"bits per byte {bits:.4f} on {size:,} bytes ({cfg.eval_split}, {streams} stream(s)); on the same bytes "
        + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    if can_freeze(model.cfg):
        still = HEADLINE.of(score_data(experiment, bind(frozen(model.cfg)), params, mesh, cfg, streams))
        say(f"the same with its memory frozen (no writes): bits per byte {still:.4f}")
        yield "eval/frozen_bits_per_byte", still
    yield "split", cfg.eval_split
    yield "streams", streams
    yield "eval/loss", result.loss
    yield HEADLINE.name, bits
    yield "eval/accuracy", result.accuracy
    yield "eval/bytes", size
    if tokenizer:
        say(f"loss per token {result.loss:.4f} nats over {result.count:,} tokens of {tokenizer.name}")
        yield "eval/tokens", result.count
        yield "tokenizer", tokenizer.fingerprint
    yield "eval/words", words
    # Far from convergence the word perplexity overflows a float, so it is left out.
    if words and bits * size / words < 1000:
        perplexity = word_perplexity(bits, size, words)
        say(f"word perplexity {perplexity:.2f} over {words:,} words")
        yield "eval/word_perplexity", perplexity
    if figures.available():
        scale = HEADLINE.scale * result.count / result.bytes
        points = [(first, last, nats * scale, count) for first, last, nats, count in result.positions]
        figures.by_distance(workdir / "loss_by_position.png", points, free, HEADLINE.label,
                            f"{workdir.name}: held-out loss by position in its stream, {cfg.source}")
    yield from ((f"baseline/{name}", value) for name, value in free.items())
    yield "positions", result.positions
