"""Documents out of the records of files: lines of JSON or rows of tables, each a text of its own, read into memory.

A corpus that does not fit there is prepared once (`prepare.py`) and read from its shards.
"""

from __future__ import annotations

from memtok_jax.data import raw
from memtok_jax.data.documents import Corpus, Document, document, split_by_document
from memtok_jax.data.errors import DataError

PART_BYTES = 1 << 40  # one part for each file; nothing is read side by side


def load(source: str, column: str, held_out: float) -> Corpus:
    """The texts of one field, `column`, of all records of a file or folder; whole documents are held out.

    Raises DataError if there is none. Records that cannot be used are left out; the notes count them by their problem.
    """
    opened = raw.open_source(source, column, "", PART_BYTES)
    documents, left_out = [], {}
    for part in opened.parts:
        for one in opened.read(part):
            if one.problem:
                left_out.setdefault(one.problem, []).append(one.name)
            else:
                documents.append(document(one.name, one.text.encode()))
    notes = tuple(f"{len(names)} record(s) left out, {problem} ({names[0]})" for problem, names in sorted(left_out.items()))
    if not documents:
        raise DataError(f"{source} gives no text in the field {column!r} ({'; '.join(notes) or 'it holds no record'}); is "
                        "data.column right?")
    return Corpus(_split(documents, source, held_out), source, notes=notes)


def _split(documents: list[Document], source: str, held_out: float) -> dict[str, tuple[Document, ...]]:
    splits = split_by_document(documents, held_out)
    for name, part in splits.items():
        if not part and not (name == "train" and held_out == 1):
            raise DataError(f"{source} is too small: nothing is left for the split '{name}' at held_out={held_out}")
    return splits
