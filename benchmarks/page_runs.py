"""The runs of one page of the table of all memories: what is known from records, and training of what is not, while time lasts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import memories, protocol, records, sweep
from benchmarks.memories import MEMORIES
from benchmarks.pages import Page
from benchmarks.protocol import Chosen, Run
from benchmarks.records import Key, Record, Records


class Work(NamedTuple):
    """One page in one sitting.

    name, budget: of the page. folder: of its run directories. rates, seeds: that every row shall have. records: of all runs so far;
    new ones join. again: whether records of another experiment count for nothing. until: `time.monotonic()` after which no run
    begins. save: called when a record has joined.
    """

    name: str
    page: Page
    budget: str
    folder: Path
    rates: tuple[float, ...]
    seeds: int
    records: Records
    again: bool
    until: float
    save: Callable[[], None]


class Judge(NamedTuple):
    """How runs are evaluated. suite: "" is that of their data. overrides: of a run. twins: runs that its evaluation reads."""

    suite: str
    overrides: Callable[[Run], tuple[str, ...]]
    twins: Callable[[Run], list[Run]]


def run_page(work: Work, asked: list[str]) -> dict[str, Any]:
    """Choose rates, train and test the rows that are asked for; the other rows that have records are shown as they are.

    Returns all rows: "chosen" (those that have a rate), "models", "results" (a record of each seed), "columns", and in words
    "seeds" and "missing".
    """
    asked = with_twins(asked, work.page)
    score = lambda runs: {run: found[work.page.judged] for run, found in gained(work, runs, validation(work)).items()}
    chosen = protocol.choose_rates(asked, work.rates, score, work.page.lower_is_better)
    others = {key.model for key in work.records if (key.page, key.budget) == (work.name, work.budget)} - {*asked}
    chosen |= recorded_rates(work, sorted(others))
    judge = test(work, chosen)
    final = [run for run in protocol.final_runs(chosen, work.seeds) if run.model in asked]
    gained(work, [run for run in final if has_twin(run, chosen, work.page)], judge)
    rows = [name for name in MEMORIES if name in {*asked, *others}]
    results = {name: list(known(work, tested(work, name, chosen[name]), judge).values()) if name in chosen else [] for name in rows}
    return {"about": work.page.about, "chosen": {name: chosen[name] for name in rows if name in chosen}, "results": results,
            "models": {name: memories.model_of(name, work.page.sizes) for name in rows},
            "columns": {name: [work.page.columns(one) for one in seeds] for name, seeds in results.items()},
            "seeds": {name: seeds_of(len(seeds), work.seeds) for name, seeds in results.items()},
            "missing": missing(work, chosen, results)}


def with_twins(names: list[str], page: Page) -> list[str]:
    """Rows, and where positions are compared also those that they are compared with."""
    twins = [MEMORIES[name].twin for name in names if page.suite == "positions" and MEMORIES[name].twin]
    return list(dict.fromkeys([*names, *twins]))


def has_twin(run: Run, chosen: dict[str, Chosen], page: Page) -> bool:
    """Whether the row that this one is compared with has a rate, or there is none."""
    return all(name in chosen for name in with_twins([run.model], page))


# ------------------------------------------------------------------------------------------------------------------------ judges

def validation(work: Work) -> Judge:
    """By which a rate is chosen."""
    return Judge("", lambda run: work.page.valid, lambda run: [])


def test(work: Work, chosen: dict[str, Chosen]) -> Judge:
    """Of the final runs. The twin of a run is that of the same seed."""
    def overrides(run: Run) -> tuple[str, ...]:
        return (*work.page.test, *(text.format(longest=work.page.longest) for text in MEMORIES[run.model].evaluation))

    def twins(run: Run) -> list[Run]:
        return [Run(name, chosen[name].rate, run.seed) for name in with_twins([run.model], work.page)[1:] if name in chosen]

    return Judge(work.page.suite, overrides, twins)


def experiment(work: Work, run: Run) -> Any:
    """What a run trains."""
    return work.page.experiment(memories.model_of(run.model, work.page.sizes), run.rate, run.seed)


# ------------------------------------------------------------------------------------------------------------- known, or trained

def known(work: Work, runs: list[Run], judge: Judge) -> dict[Run, dict[str, Any]]:
    """What is recorded of these runs. Leaves with one line for a record of another experiment, unless they are to run again."""
    wanted = {key_of(work, run, judge): digest_of(work, run, judge) for run in runs}
    found = records.current(work.records, wanted, work.again)
    return {run: found[key] for run, key in zip(runs, wanted, strict=True) if key in found}


def gained(work: Work, runs: list[Run], judge: Judge) -> dict[Run, dict[str, Any]]:
    """The same after training and evaluating, while time lasts, those that have no record."""
    there = known(work, runs, judge)
    new = [run for run in runs if run not in there]
    twins = {twin.folder: twin for run in new for twin in judge.twins(run)}
    # Evaluation reads the run directory of a twin, which may exist as a record only: then it is trained again.
    trained = sweep.run_all({name: experiment(work, twin) for name, twin in twins.items()}, work.folder, work.page.valid,
                            until=work.until) if twins else {}
    ready = {run.folder: run for run in new if all(twin.folder in trained for twin in judge.twins(run))}

    def join(name: str, result: dict[str, Any]) -> None:
        run = ready[name]
        work.records[key_of(work, run, judge)] = Record(digest_of(work, run, judge), without_folders(result))
        work.save()

    if ready:
        against = lambda run: (f"evaluation.positions.against={work.folder / twin.folder / 'run'}" for twin in judge.twins(run))
        sweep.run_all({name: experiment(work, run) for name, run in ready.items()}, work.folder,
                      {name: (*judge.overrides(run), *against(run)) for name, run in ready.items()}, suite=judge.suite,
                      until=work.until, finished=join)
    return known(work, runs, judge)


def key_of(work: Work, run: Run, judge: Judge) -> Key:
    """The name of a record."""
    return Key(work.name, work.budget, *run, judge.suite)


def digest_of(work: Work, run: Run, judge: Judge) -> str:
    """Of all that the result of a run depends on."""
    return records.digest(experiment(work, run), judge.overrides(run), judge.suite,
                          [experiment(work, twin) for twin in judge.twins(run)])


def without_folders(result: dict[str, Any]) -> dict[str, Any]:
    """A result without the paths in it, which mean nothing on another machine."""
    plain = {name: value for name, value in result.items() if name != "workdir"}
    if "by_position" in plain and isinstance(plain["by_position"], dict):
        plain["by_position"] = {name: value for name, value in plain["by_position"].items() if name != "against"}
    return plain


# -------------------------------------------------------------------------------------------------------------- rows of a table

def finals(work: Work, model: str) -> list[Run]:
    """Runs of a row with fresh seeds that have a record."""
    return sorted(Run(model, key.rate, key.seed) for key in work.records if key.seed != protocol.SELECTION_SEED
                  and (key.page, key.budget, key.model, key.suite) == (work.name, work.budget, model, work.page.suite))


def tested(work: Work, model: str, chosen: Chosen) -> list[Run]:
    """Those at the chosen rate."""
    return [run for run in finals(work, model) if run.rate == chosen.rate]


def recorded_rates(work: Work, models: list[str]) -> dict[str, Chosen]:
    """The rates of rows that are not asked for: that of most of their final runs, else the best of their validation runs."""
    scores = lambda runs: {run: found[work.page.judged] for run, found in known(work, runs, validation(work)).items()}
    best = protocol.choose_rates(models, work.rates, scores, work.page.lower_is_better)
    for model in models:
        rates = [run.rate for run in finals(work, model)]
        if rates:
            tried = sorted(key.rate for key in work.records if key.seed == protocol.SELECTION_SEED
                           and (key.page, key.budget, key.model) == (work.name, work.budget, model))
            found = scores([Run(model, rate, protocol.SELECTION_SEED) for rate in tried])
            best[model] = Chosen(max(rates, key=rates.count), {run.rate: value for run, value in found.items()})
    return best


def seeds_of(count: int, wanted: int) -> str:
    """How many seeds a row has, for a table."""
    return f"{count} of {wanted}" if count < wanted else f"{count}"


def missing(work: Work, chosen: dict[str, Chosen], results: dict[str, list]) -> list[str]:
    """The rows that are not complete, in words."""
    return [f"{name} ({seeds_of(len(seeds), work.seeds)} seeds{'' if name in chosen else ', no learning rate yet'})"
            for name, seeds in results.items() if len(seeds) < work.seeds]
