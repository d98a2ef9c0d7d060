"""Further held-out data that is scored beside that of the run, each under a name of its own.

A set is one text, "NAME=SOURCE FIELD=VALUE ...": what --data=SOURCE would take in the place of the run's data, and what differs in
it ("test=wikitext2 eval_split=test", "book=moby.txt held_out=1"). Its numbers are called eval/NAME/loss and, for the headline of
its suite, eval/NAME/bits_per_byte or eval/NAME/accuracy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from jax.sharding import Mesh

from memtok_jax import config, data
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.evaluation.suites import Headline, suite_named
from memtok_jax.models.protocol import Model

if TYPE_CHECKING:
    from memtok_jax.training.experiment import Experiment

FORM = "it must be NAME=SOURCE, with FIELD=VALUE of the data behind it, as in 'test=wikitext2 eval_split=test'"


class NamedSet(NamedTuple):
    """name: in metrics. data: config of a source."""

    name: str
    data: Any

    @property
    def headline(self) -> Headline:
        """The number by which a model is judged on it."""
        return suite_named(data.suite(self.data)).HEADLINE

    @property
    def metrics(self) -> tuple[str, str]:
        """Names of its loss and of its headline."""
        return f"eval/{self.name}/loss", f"eval/{self.name}/{self.headline.name.removeprefix('eval/')}"


def parse(texts: tuple[str, ...], base: Any) -> tuple[NamedSet, ...]:
    """The sets that `evaluation.sets` names. base: the data of the run. Raises UserError for a text of another form."""
    found = tuple(_parse_one(text, base) for text in texts)
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"evaluation.sets names {name!r} {names.count(name)} times; give each set a name of its own")
    return found


def _parse_one(text: str, base: Any) -> NamedSet:
    try:
        first, *fields = shlex.split(text)
    except ValueError as error:
        raise UserError(f"evaluation.sets has {text!r} ({error}); {FORM}") from None
    name, _, source = first.partition("=")
    if not source or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise UserError(f"evaluation.sets has {text!r}; {FORM}")
    try:
        return NamedSet(name, config.override(data.named(base, source), tuple(fields)))
    except ValueError as error:
        raise UserError(f"evaluation.sets, {name}: {error}") from None


def refuse_other_tokens(one: NamedSet, base: Any) -> None:
    """Raise UserError if a set of text is cut into other tokens than the text of the run. The data is opened."""
    if data.suite(one.data) != "text" or data.suite(base) != "text":
        return
    theirs, ours = data.tokenizer(one.data), data.tokenizer(base)
    if (theirs and theirs.fingerprint) != (ours and ours.fingerprint):
        what = [f"tokens of {tokenizer.name}" if tokenizer else "bytes" for tokenizer in (theirs, ours)]
        raise UserError(f"evaluation.sets, {one.name}: its text is read as {what[0]}, that of the run as {what[1]}; give it the "
                        f"same tokenizer, as in '{one.name}=text:FILE tokenizer=tokenizer.json'")


def scores(experiment: Experiment, model: Model, params: P.Tree, mesh: Mesh, most: int,
           streams: int) -> Iterator[tuple[str, float]]:
    """(name, number) of loss and headline of each set.

    most: batches of each to score, 0 for all. streams: rows into which a text is cut; other data takes `evaluation.batch` rows.
    """
    from memtok_jax.evaluation.score import score_data

    for one in experiment.sets:
        rows = streams if data.suite(one.data) == "text" else experiment.evaluation.batch
        result = score_data(experiment, model, params, mesh, one.data, rows, most)
        yield from zip(one.metrics, (result.loss, one.headline.of(result)), strict=True)
