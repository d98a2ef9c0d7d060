"""Iterators with a position that can be saved, over any endless source of batches.

`GrainIterator` reads through grain, `NumpyIterator` without it; both give the same batches and take each other's state.
"""

from __future__ import annotations

from memtok_jax.data.errors import DataError
from memtok_jax.data.streams import Batch


class NumpyIterator:
    """Batches of `source[0], source[1], ...` in order.

    identity: checksum of everything that decides the order; a state with another one is refused.
    """

    def __init__(self, source, identity: str):
        self._source, self._identity, self._step = source, identity, 0
        self._open()

    def __iter__(self):
        return self

    def __next__(self) -> Batch:
        batch = self._read()
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int | str]:
        """The number of the next batch, and the identity of the data: JSON-able."""
        return {"step": self._step, "identity": self._identity}

    def set_state(self, state: dict[str, int | str]) -> None:
        """Continue from a saved state. Raises DataError where it belongs to other data or another cut of it."""
        if set(state) != {"step", "identity"} or not isinstance(state["step"], int) or state["step"] < 0:
            raise DataError(f"not a position in the data: {state}; it must hold 'step' and 'identity'")
        if state["identity"] != self._identity:
            raise DataError(f"the saved position belongs to other data (checksum {state['identity']}, here "
                            f"{self._identity}): source, seed, batch, sequence or the files themselves have changed")
        self.close()
        self._step = state["step"]
        self._open()

    def close(self) -> None:
        """Let go of what the reader holds."""

    def _open(self) -> None:
        """Prepare to read from `self._step` on."""

    def _read(self) -> Batch:
        return self._source[self._step]


class _Endless:
    """A source with the length that grain asks for."""

    LENGTH = 2**62

    def __init__(self, source):
        self._source = source

    def __len__(self) -> int:
        return self.LENGTH

    def __getitem__(self, step: int) -> Batch:
        return self._source[step]


class GrainIterator(NumpyIterator):
    """The same through grain.

    Without threads: a batch is a few slices, cheaper than handing it from one thread to another.
    """

    def _open(self) -> None:
        import grain

        dataset = grain.MapDataset.source(_Endless(self._source)).slice(slice(self._step, None))
        self._iterator = iter(dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))

    def _read(self) -> Batch:
        return next(self._iterator)

    def close(self) -> None:
        """Close grain's iterator."""
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def open_iterator(source, identity: str) -> NumpyIterator:
    """Through grain where it is installed, else without."""
    try:
        import grain  # noqa: F401
    except ImportError:
        return NumpyIterator(source, identity)
    return GrainIterator(source, identity)
