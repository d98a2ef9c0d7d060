"""Does an answer pass through the carry? What a model answers after its carry was changed at two known places of the rows.

    intact          nothing is changed
    reset_before    a fresh carry in front of the evidence
    reset_after     a fresh carry behind it
    frozen          the carry behind the evidence is the one in front of it: the evidence was read and nothing kept
    swap            behind the evidence each row goes on with the carry, and the question, of the next row; the right answer
                    is then the next row's

A model that answers from its carry is right when intact, after reset_before and after swap, and no better than chance otherwise.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from memtok_jax import params as P
from memtok_jax.data.tasks.scoring import exact_match
from memtok_jax.evaluation import greedy
from memtok_jax.models.protocol import Model

CONTROLS = ("intact", "reset_before", "reset_after", "frozen", "swap")


def swapped(carry: P.Tree, model: Model, rows: int) -> P.Tree:
    """The carry of the next row in the place of each, the first one's in the last."""
    return P.map_rows(lambda leaf, axis: jnp.roll(leaf, -1, axis), model.state_specs(rows), carry)


def said_after(params: P.Tree, inputs_BT: np.ndarray, back_T: np.ndarray, evidence: tuple[int, int], block: int, *,
               model: Model) -> dict[str, np.ndarray]:
    """Most likely token after each position from the end of the evidence on, i32[B, T - end], by control.

    back_T: bool[T], answers that are replaced by the model's own; all behind the evidence. evidence: first position, and the one
    behind the last, the same in all rows. block: tokens of a call.
    """
    begin, end = evidence
    rows, question = len(inputs_BT), int(np.argmax(back_T)) if back_T.any() else len(back_T)
    fresh = greedy.fresh(params, rows=rows, model=model)
    read = lambda carry, first, last: greedy.read_on(params, carry, inputs_BT[:, first:last], block=block, model=model)[1]  # noqa: E731
    before = read(fresh, 0, begin)
    after = read(before, begin, end)
    carries = {"intact": after, "reset_before": read(fresh, begin, end), "reset_after": fresh, "frozen": before,
               "swap": swapped(after, model, rows)}

    def answer(name: str) -> np.ndarray:
        given = inputs_BT[:, end:].copy()
        if name == "swap":
            given[:, question - end:] = np.roll(given[:, question - end:], -1, axis=0)
        said, carry = greedy.read_on(params, carries[name], given[:, :question - end], block=block, model=model)
        if question < len(back_T):
            rest = greedy.written(params, carry, said[:, -1], given[:, question - end:], back_T[question:], model=model)
            said = np.concatenate([said, rest], axis=1)
        return said

    return {name: answer(name) for name in CONTROLS}


def right_after(params: P.Tree, batch: dict[str, np.ndarray], back_T: np.ndarray, evidence: tuple[int, int], block: int, *,
                model: Model) -> dict[str, float]:
    """Share of rows whose scored answers, all behind the evidence, are right, by control; for "swap" those of the next row."""
    labels = batch["targets"][:, evidence[1]:]
    said = said_after(params, batch["inputs"], back_T, evidence, block, model=model)
    return {name: exact_match(found, np.roll(labels, -1, axis=0) if name == "swap" else labels) for name, found in said.items()}
