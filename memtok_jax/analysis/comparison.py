"""Compare the unchanged model with every option against artifacts, in one table.

| option                               | what it needs                                                   |
|--------------------------------------|-----------------------------------------------------------------|
| test-time registers                  | only the model (arXiv 2506.08010)                               |
| registers zero, mean, noise, shuffle | a model with registers; controls, no repair (`models/vision/edits.py`) |
| softmax-off-by-one, gated attention  | a model trained with it, given by --beside                      |
| trained registers                    | a model trained with them, given by --beside                    |

An option that cannot be measured is listed below the table with the reason. "worst" is the largest value of any layer; the
embedding does not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from memtok_jax.analysis import register_neurons, repair
from memtok_jax.analysis.subject import Model
from memtok_jax.config import UserError
from memtok_jax.models.vision import edits as E

PLAIN, REPAIRED = "as it is", "test-time registers"
ATTENTION = {"softmax": "softmax", "zero": "softmax-off-by-one", "logit": "sink logits", "kv": "sink keys and values",
             "gate": "gated attention"}
TRAINED = ("zero", "gate")    # alternatives that --repair=all always names, measured or not

# field: (heading, format). Norms are those of patches before the final norm; accuracy is that of the model's own head.
COLUMNS = {
    "outlier_share": ("outliers, last", "{:.2%}"), "worst_outlier_share": ("worst", "{:.2%}"),
    "share_above_5_medians": (">5 medians, worst", "{:.2%}"),
    "max_over_median": ("max/median, last", "{:.2f}"), "worst_max_over_median": ("worst", "{:.2f}"),
    "mass_on_registers": ("attention on registers", "{:.1%}"), "accuracy": ("accuracy", "{:.2%}"),
    "class_from_cls": ("class from cls", "{:.2%}"),
    "corloc": ("CorLoc", "{:.2%}"), "corloc_native": ("CorLoc, own shape", "{:.2%}")}


class Arm(NamedTuple):
    """One way to run a model.

    edits: changes of the forward pass. neurons: (layer, unit) of the register neurons that are moved. note: a line for the log.
    drawn: whether the arm gets its own figures and table by layer.
    """

    name: str
    model: Model
    edits: E.Edits = ()
    neurons: tuple[tuple[int, int], ...] = ()
    note: str = ""
    drawn: bool = True


def arms(model: Model, batches: Callable[[], Iterable[np.ndarray]], layers: Sequence[dict[str, Any]], wanted: str, cutoff: float,
         top_k: int, beside: Sequence[Model]) -> tuple[list[Arm], dict[str, str]]:
    """The arms to measure beside the unchanged model, and name -> reason for each option that cannot be measured.

    batches: starts a new pass over the normalised images. layers: from `measures.by_layer` for the unchanged model. wanted: "none",
    "test_time", "replace" or "all". cutoff, top_k: as in `repair.test_time_registers`. beside: other models for the same images.
    Raises UserError if the one option that is wanted cannot be done; with "all" the message becomes a reason instead.
    """
    makers = {REPAIRED: (("test_time", "all"), lambda: [moved(model, batches(), layers, cutoff, top_k)]),
              "replaced registers": (("replace", "all"), lambda: replaced(model, batches()))}
    found, missing = [], {}
    for name, (asked, make) in makers.items():
        if wanted not in asked:
            continue
        try:
            found += make()
        except UserError as error:
            if wanted != "all":
                raise
            missing[name] = str(error)
    found += [Arm(f"{described(other)} ({other.name})", other) for other in beside]
    return found, missing | (untrained([model, *beside]) if wanted == "all" else {})


def moved(model: Model, batches: Iterable[np.ndarray], layers: Sequence[dict[str, Any]], cutoff: float, top_k: int) -> Arm:
    """The arm with test-time registers; arguments and errors are those of `repair.test_time_registers`."""
    found = repair.test_time_registers(model.params, batches, model.cfg, layers, cutoff, top_k)
    note = (f"{len(found.neurons)} register neurons (layer, unit) from patches with a norm above {found.cutoff:.4g} after layer "
            f"{found.state}: {', '.join(map(str, found.neurons[:5]))}{', ...' if len(found.neurons) > 5 else ''}")
    return Arm(REPAIRED, model, found.edits, found.neurons, note)


def replaced(model: Model, batches: Iterable[np.ndarray]) -> list[Arm]:
    """The replacement controls, each at every hidden state, with means and deviations of the same images.

    Raises UserError if the model has no registers.
    """
    if not model.cfg.registers:
        raise UserError("the model has no registers to replace")
    statistics = register_neurons.register_statistics(model.params, batches, model.cfg)
    states = range(model.cfg.layers + 1)
    return [Arm(f"registers: {mode}", model, (E.replace_registers(mode, states, statistics),), drawn=False) for mode in E.MODES]


def described(model: Model) -> str:
    """A few words about the model: its attention and its number of registers."""
    return f"{ATTENTION[model.cfg.attention]}, {model.cfg.registers} registers"


def untrained(models: Sequence[Model]) -> dict[str, str]:
    """Options that need training and that none of the models was trained with: name -> reason."""
    lacking = {ATTENTION[kind]: f"attention={kind}" for kind in TRAINED if all(m.cfg.attention != kind for m in models)}
    if all(m.cfg.registers == 0 for m in models):
        lacking["trained registers"] = "registers=4"
    return {name: f"needs a model trained so (train.py --config.model.vit.{field}), given by --beside"
            for name, field in lacking.items()}


def row(result: dict[str, Any]) -> dict[str, float]:
    """One line of the table from all numbers of one arm; numbers that are not known are left out."""
    layers, last = result["layers"][1:], result["layers"][-1]
    worst = {name: max(layer[name] for layer in layers) for name in ("outlier_share", "share_above_5_medians", "max_over_median")}
    known = {"outlier_share": last["outlier_share"], "worst_outlier_share": worst["outlier_share"],
             "share_above_5_medians": worst["share_above_5_medians"], "max_over_median": last["max_over_median"],
             "worst_max_over_median": worst["max_over_median"], "mass_on_registers": last["mass_on_registers"],
             "accuracy": result["head"].get("accuracy"), "class_from_cls": result["global"].get("class_from_cls"),
             "corloc": result["boxes"].get("corloc_lost"), "corloc_native": result["boxes"].get("corloc_native")}
    return {name: value for name, value in known.items() if value is not None}


def table(rows: dict[str, dict[str, float]], missing: dict[str, str]) -> list[str]:
    """The table in Markdown, aligned, without empty columns; below it each option that could not be measured, with the reason."""
    shown = {field: column for field, column in COLUMNS.items() if any(field in one for one in rows.values())}
    cells = [["option", *(heading for heading, _ in shown.values())]]
    cells += [[name, *(form.format(one[field]) if field in one else "-" for field, (_, form) in shown.items())]
              for name, one in rows.items()]
    widths = [max(len(line[n]) for line in cells) for n in range(len(cells[0]))]
    lines = ["| " + " | ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return lines + ([""] if missing else []) + [f"- {name}: not measured, {why}" for name, why in missing.items()]
