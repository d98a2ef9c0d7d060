"""Mistakes of the user that concern data: each error is one line naming the value and the rule."""

from __future__ import annotations

from memtok_jax.config import UserError
from memtok_jax.config import nearest as nearest


class DataError(UserError):
    """A data setting or a data file that cannot be used."""


class DataNotFoundError(DataError):
    """Data that is simply not there (a test that needs it skips)."""
