"""Mistakes of the user that concern data: each error is one line naming the value and the rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from memtok_jax.config import UserError


class DataError(UserError):
    """A data setting or a data file that cannot be used."""


class DataNotFoundError(DataError):
    """Data that is simply not there (a test that needs it skips)."""


def nearest(name: str, names: Iterable[str]) -> str:
    """"; did you mean 'x'?" for the most similar of the names, or an empty string where none is similar."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else ""
