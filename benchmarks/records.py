"""Results that outlive their run directories: what each run of a table has found, with a digest of what was run.

The records stand in the table's own file, OUTPUT.json, one to a line under "runs". A record is worth nothing if the experiment
has changed since, so each keeps a digest of all that its result depends on: every field of the experiment, the overrides and the
suite of the evaluation, and the experiment of the run that it was compared with. The folder of the data sets is left out: it is
another on every machine.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple


class Key(NamedTuple):
    """Which run of a table, and how it was judged; the suite "" is that of its data, by which rates are chosen."""

    page: str
    budget: str
    model: str
    rate: float
    seed: int
    suite: str


class Record(NamedTuple):
    """What a run has found, and the digest of its experiment."""

    digest: str
    found: dict[str, Any]


Records = dict[Key, Record]


def digest(experiment: Any, overrides: Iterable[str], suite: str, compared_with: Iterable[Any] = ()) -> str:
    """Sixteen hexadecimal digits that differ when anything differs on which a result depends.

    compared_with: experiments of the runs that the evaluation reads beside this one.
    """
    from memtok_jax.config import to_dict

    whole = [to_dict(experiment), list(overrides), suite, [to_dict(other) for other in compared_with]]
    return hashlib.sha256(json.dumps(_without_folders(whole), sort_keys=True).encode()).hexdigest()[:16]


def _without_folders(value: Any) -> Any:
    """Plain values without the fields that name a folder of data sets."""
    if isinstance(value, dict):
        return {name: _without_folders(part) for name, part in value.items() if name != "data_dir"}
    return [_without_folders(part) for part in value] if isinstance(value, list) else value


def read(files: Iterable[Path]) -> Records:
    """The records of these files, those of earlier files first. Leaves with one line for a file that holds none."""
    records: Records = {}
    for file in files:
        try:
            lines = json.loads(file.read_text())["runs"]
            found = {Key(*(line[name] for name in Key._fields)): Record(line["digest"], line["found"]) for line in lines}
        except OSError as error:
            raise SystemExit(f"error: cannot read {file} ({error.strerror})") from None
        except (ValueError, KeyError, TypeError):
            raise SystemExit(f"error: {file} holds no runs of this table; give another --output") from None
        records = found | records
    return records


def write(file: Path, head: dict[str, Any], records: Records) -> None:
    """Write `head` and the records, one to a line and in order. A kill leaves the file as it was or as it shall be."""
    lines = [json.dumps(key._asdict() | record._asdict()) for key, record in sorted(records.items(), key=lambda item: item[0])]
    text = json.dumps(head | {"runs": []}, indent=1).removesuffix("[]\n}") + "[\n  " + ",\n  ".join(lines) + "\n ]\n}\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(file.name + ".part")
    beside.write_text(text)
    os.replace(beside, file)


def current(records: Records, wanted: dict[Key, str], again: bool) -> dict[Key, dict[str, Any]]:
    """What is known of the wanted runs (key -> digest).

    A record of another experiment makes the command leave with one line; with `again` it counts for nothing.
    """
    known = {key: records[key] for key in wanted if key in records}
    for key, record in known.items():
        if record.digest != wanted[key] and not again:
            raise SystemExit(f"error: the record of {key.model}, page {key.page}, rate {key.rate:g}, seed {key.seed} is of another "
                             "experiment than now; give another --output, or --again to train such rows once more")
    return {key: record.found for key, record in known.items() if record.digest == wanted[key]}
