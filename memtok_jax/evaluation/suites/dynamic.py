"""Text under dynamic evaluation: bits per byte of a model whose weights learn from what they have scored, beside plain scoring.

The learning rate is chosen on the validation split and used once on the split that is scored (--config.data.eval_split=test). A
text is one stream and begins with the trained weights. With `evaluation.streams` above 1 the rows of a text share the weights, so
each learns from later parts of the text too: that is another protocol, and the report says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from memtok_jax import data
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.evaluation import dynamic
from memtok_jax.evaluation.score import score_data
from memtok_jax.evaluation.suites.text import HEADLINE as HEADLINE
from memtok_jax.evaluation.suites.text import bits_per_byte, word_perplexity
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment


def run(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, workdir: Path,
        say: Callable[[str], None]) -> Iterator[tuple[str, Any]]:
    """Bits per byte without and with dynamic evaluation. Options: `evaluation.dynamic`.

    Raises UserError for data that is no text, for tokens that do not divide a batch, and if a rate must be chosen and the split to
    score is the one to choose on.
    """
    cfg, options, streams = experiment.data, experiment.evaluation.dynamic, experiment.evaluation.streams
    tokens = options.tokens or experiment.call_tokens
    check(experiment, tokens)
    root = None
    if options.rule == "rms":
        batches = data.open_train(cfg, streams)
        root = dynamic.root_mean_square(params, islice(batches, options.statistics), model=model, tokens=tokens)
        batches.close()
    nats = lambda cfg, rate: dynamic.score(params, data.open_eval(cfg, streams), dynamic.rule_of(options, root, rate), model=model,
                                           tokens=tokens)
    found = {}
    if len(options.rates) > 1:
        choose = replace(cfg, eval_split="valid", eval_bytes=options.choose_bytes)
        found = {rate: bits_per_byte(nats(choose, rate), size_of(choose)) for rate in options.rates}
        say("validation, bits per byte by learning rate: " + ", ".join(f"{rate:g}: {bits:.4f}" for rate, bits in found.items()))
    rate = min(found, key=found.get) if found else options.rates[0]
    if found and rate in (min(found), max(found)):
        say(f"note   the best rate, {rate:g}, is at the edge of evaluation.dynamic.rates; widen them")
    size, words = size_of(cfg), data.source_of(cfg).reference_words(cfg)
    plain = HEADLINE.of(score_data(experiment, model, params, mesh, cfg, streams))
    bits, free = bits_per_byte(nats(cfg, rate), size), data.baselines(cfg, model.reach, model.segment)
    shared = "" if streams == 1 else f"; {streams} streams share their weights, so this is no score of one stream"
    say(f"bits per byte {plain:.4f}; with dynamic evaluation {bits:.4f} ({options.rule}, rate {rate:g}, a step after {tokens} "
        f"tokens{shared}) on {size:,} bytes ({cfg.eval_split}); on the same bytes "
        + ", ".join(f"{name} {value:.4f}" for name, value in free.items()))
    yield "split", cfg.eval_split
    yield "streams", streams
    yield HEADLINE.name, plain
    yield "eval/dynamic_bits_per_byte", bits
    yield "eval/dynamic_rate", rate
    yield "rates", [[rate, bits] for rate, bits in found.items()]
    if words and bits * size / words < 1000:
        yield "eval/dynamic_word_perplexity", word_perplexity(bits, size, words)
    yield from ((f"baseline/{name}", value) for name, value in free.items())


def size_of(cfg: Any) -> int:
    """Bytes of the held-out text."""
    return len(data.source_of(cfg).eval_text(cfg))


def check(experiment: Experiment, tokens: int) -> None:
    """Raise UserError where the options do not suit the run."""
    cfg, options = experiment.data, experiment.evaluation.dynamic
    if data.suite(cfg) != "text":
        raise UserError(f"suite 'dynamic' judges a model of text, and this run is on {cfg.source}; leave out --suite")
    if cfg.sequence % tokens:
        raise UserError(f"evaluation.dynamic.tokens is {tokens}, which does not divide data.sequence {cfg.sequence}")
    if len(options.rates) > 1 and getattr(cfg, "eval_split", "valid") == "valid":
        raise UserError("the learning rate is chosen on the split 'valid', which cannot be scored too: give --config.data."
                        "eval_split=test, or a single rate in --config.evaluation.dynamic.rates")
