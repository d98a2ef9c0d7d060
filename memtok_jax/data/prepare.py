"""Cut a raw corpus into tokens once: shards that `--data=shards:FOLDER` trains on.

    python -m memtok_jax.data.prepare SOURCE --tokenizer=tokenizer.json --output=FOLDER

SOURCE is a text file, a folder of text files, of .jsonl (plain, .gz, .zst) or of .parquet, a folder of `save_to_disk` of Hugging
Face datasets, or tfds:NAME. If a command is killed, give it again: finished shards are kept. The result is the same, byte for byte,
however often the work was interrupted and for any number of processes. What cannot be used is left out, counted and named, in
manifest.json and on the screen.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from absl import app, flags

from memtok_jax.config import StoppedError, UserError, check_numbers
from memtok_jax.data import prepared_corpus as disk
from memtok_jax.data import raw, shard_writer, tokenizers
from memtok_jax.data.errors import DataError
from memtok_jax.data.raw import Source
from memtok_jax.data.tokenizers import Tokenizer
from memtok_jax.training import cli
from memtok_jax.training.progress import BAR, PLAIN_SECONDS, duration

LOCK = ".lock"
NAMED = 20    # documents that the manifest names for each reason why they were left out
SHOWN = 3     # and the screen
POLL = 0.5    # seconds between two looks at the progress


@dataclass(frozen=True)
class PrepareConfig:
    """What a command asks for; the fields are its flags."""

    source: str
    tokenizer: str
    output: str
    column: str = "text"
    files: str = ""
    held_out: float = 0.05
    processes: int = 0
    part_bytes: int = 32_000_000
    data_dir: str = ""

    def __post_init__(self):
        check_numbers("", self, at_least=dict(processes=0, part_bytes=1, held_out=0), below=dict(held_out=1))
        for name in ("source", "tokenizer", "output"):
            if not getattr(self, name):
                raise UserError(f"no {name}: python -m memtok_jax.data.prepare SOURCE --tokenizer=FILE --output=FOLDER")


def define_flags() -> Any:
    """Define the flags, one for each field of `PrepareConfig` after the first; returns that of tracebacks.

    Called by the command alone, because other commands have flags of the same names.
    """
    flags.DEFINE_string("tokenizer", "", "A tokenizer.json, or a SentencePiece .model.")
    flags.DEFINE_string("output", "", "Folder for the shards; a command that was ended goes on in it.")
    flags.DEFINE_string("column", "text", "Field of a JSON line, or column of a table, that holds the text.")
    flags.DEFINE_string("files", "", "Files of the folder to read, as in '*.parquet'. Default: all.")
    flags.DEFINE_float("held_out", 0.05, "Share of the documents that is held out, chosen by the hash of their text.")
    flags.DEFINE_integer("processes", 0, "Processes that work at once; 0: one for each core.")
    flags.DEFINE_integer("part_bytes", 32_000_000, "Bytes of the source in a shard, about; a packed file is never cut.")
    flags.DEFINE_string("data_dir", "", "Folder of a TFDS data set. Default: the one TFDS uses itself.")
    return flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Prepare one corpus; returns the exit status."""
    if overrides or len(argv) > 2:
        raise UserError(f"{(*argv[2:], *overrides)[0]!r} is one thing too many; see --help")
    given = {field.name: getattr(flags.FLAGS, field.name) for field in fields(PrepareConfig)[1:]}
    cfg = PrepareConfig((*argv[1:], "")[0], **given)
    try:
        prepare(cfg, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        print("\nstopped by SIGINT; finished shards are kept, the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def prepare(cfg: PrepareConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """Prepare a corpus, or go on with it; returns the manifest.

    Raises UserError for a source, tokenizer or folder that cannot be used, and if one of them has changed since the first command.
    """
    folder, tokenizer = Path(cfg.output), tokenizers.load(cfg.tokenizer)
    disk.array_record("array_record")
    source = raw.open_source(cfg.source, cfg.column, cfg.files, cfg.part_bytes, cfg.data_dir)
    with _locked(folder):
        _begin(folder, _plan(cfg, source, tokenizer), Path(cfg.tokenizer).expanduser())
        missing = [n for n in range(len(source.parts)) if not (folder / disk.part_file(n)).is_file()]
        size = sum(file.size for file in source.files)
        say(f"source {cfg.source}: {len(source.files)} files, {size / 1e6:,.1f} MB, {source.kind}, in {len(source.parts)} parts"
            + (f", {len(source.parts) - len(missing)} of them finished before" if len(missing) < len(source.parts) else ""))
        _write(shard_writer.Job(source, cfg.tokenizer, cfg.held_out, cfg.output), missing, cfg.processes or os.cpu_count() or 1)
        manifest = _manifest(folder, cfg, source, tokenizer)
        disk.write_json(folder / disk.MANIFEST, manifest)
    for line in _report(manifest, folder):
        say(line)
    return manifest


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other commands out of the folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / LOCK).open("w")
    except OSError as error:
        raise UserError(f"--output={folder} cannot be used: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another command prepares {folder}") from None
        yield


# ----------------------------------------------------------------------------------------------------------- the plan

def _plan(cfg: PrepareConfig, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """What decides the shards."""
    return {"tokenizer": tokenizer.fingerprint, "column": cfg.column, "held_out": cfg.held_out, "part_bytes": cfg.part_bytes,
            "kind": source.kind, "files": {file.name: [file.size, file.changed] for file in source.files}}


def _begin(folder: Path, plan: dict[str, Any], tokenizer: Path) -> None:
    """Write the plan into a new folder, or compare it with the one that is there. Raises UserError if they differ."""
    path = folder / disk.PLAN
    for one in folder.glob(f"{disk.HIDDEN}*"):  # of a command that was killed
        one.unlink()
    if path.is_file():
        if difference := _difference(json.loads(path.read_text()), plan):
            raise UserError(f"{folder} was begun with {difference}; prepare into another folder")
        return
    if others := [one.name for one in folder.iterdir() if one.name != LOCK]:
        raise UserError(f"{folder} holds other files, such as {others[0]}; prepare into another folder")
    with disk.complete(folder / f"tokenizer{tokenizer.suffix}") as hidden:
        shutil.copyfile(tokenizer, hidden)
    disk.write_json(path, plan)


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How two plans differ, in words; "" if they do not."""
    for name in ("tokenizer", "column", "held_out", "part_bytes", "kind"):
        if old[name] != new[name]:
            return f"another {name}: {old[name]}, not {new[name]}"
    before, now = old["files"], new["files"]
    changes = [("changed", [name for name in before if name in now and before[name] != now[name]]),
               ("gone", [name for name in before if name not in now]), ("new", [name for name in now if name not in before])]
    said = ", ".join(f"{len(names)} file(s) are {what} ({names[0]})" for what, names in changes if names)
    return f"another state of the source: {said}" if said else ""


# ------------------------------------------------------------------------------------------------------------ the work

def _write(job: shard_writer.Job, missing: list[int], processes: int) -> None:
    """Write the missing parts, the largest first."""
    parts = job.source.parts
    order, processes = sorted(missing, key=lambda n: (-parts[n].size, n)), min(processes, len(missing))
    bar = _Bar(sum(parts[n].size for n in missing), len(missing))
    if processes <= 1:
        for number in order:
            shard_writer.write_part(job, number, bar.advance)
            bar.finished(parts[number].size)
    else:
        _write_in_pool(job, order, processes, bar)
    bar.close()


def _write_in_pool(job: shard_writer.Job, order: list[int], processes: int, bar: _Bar) -> None:
    """Raises StoppedError if a process is ended from outside, as for want of memory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has one core
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = futures.ProcessPoolExecutor(processes, context, shard_writer.begin, (job, counter))
    try:
        running = {pool.submit(shard_writer.write_in_pool, number) for number in order}
        while running:
            done, running = futures.wait(running, POLL, futures.FIRST_COMPLETED)
            bar.at(counter.value)
            for one in done:
                bar.finished(job.source.parts[one.result()].size)
    except BrokenProcessPool:
        raise StoppedError("a process was ended from outside, perhaps for want of memory; finished shards are kept, the same "
                           "command goes on, with fewer processes if you add --processes=NUMBER") from None
    finally:
        counter.value = shard_writer.STOP  # heard by processes that are still at work after an error or Ctrl-C
        pool.shutdown(cancel_futures=True)


class _Bar:
    """Text written so far, its speed, and the time left.

    size: bytes of the source that are to be read, in this many parts. The time left is known when a part is finished.
    """

    def __init__(self, size: int, parts: int):
        self._size, self._parts, self._begun, self._printed = size, parts, time.monotonic(), time.monotonic()
        self._read, self._text_then, self._text, self._done = 0, 0, 0, 0
        self._terminal = sys.stdout.isatty()

    def advance(self, text: int) -> None:
        """Count `text` more bytes of text."""
        self.at(self._text + text)

    def finished(self, size: int) -> None:
        """A part of the source of this size is done."""
        self._read, self._done, self._text_then = self._read + size, self._done + 1, self._text

    def at(self, text: int) -> None:
        """Show the state, if it is time. text: bytes so far."""
        self._text, now = text, time.monotonic()
        if now - self._printed >= (POLL if self._terminal else PLAIN_SECONDS):
            self._printed = now
            self._show(now - self._begun)

    def _show(self, seconds: float) -> None:
        share = self._read / self._size if self._size else 1.0
        # Text per byte of the source as in the finished parts.
        share = min(share * self._text / self._text_then, 1.0) if self._text_then else share
        left = f"{duration(seconds * (1 - share) / share)} left" if share else "time left not known yet"
        said = f"part {self._done}/{self._parts}  {self._text / 1e6:,.1f} MB of text  {self._text / seconds / 1e6:.2f} MB/s  {left}"
        if self._terminal:
            full = int(BAR * share)
            print(f"\r\x1b[K[{'#' * full}{'.' * (BAR - full)}] {said}", end="", flush=True)
        else:
            print(said, flush=True)

    def close(self) -> None:
        """Show the end, and close the line."""
        if self._parts:
            self._show(max(time.monotonic() - self._begun, 1e-9))
            print(end="\n" if self._terminal else "", flush=True)


# -------------------------------------------------------------------------------------------------------- the manifest

def _manifest(folder: Path, cfg: PrepareConfig, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """What all parts hold together. Raises DataError if nothing is left to train on."""
    parts = [json.loads((folder / disk.part_file(n)).read_text()) for n in range(len(source.parts))]
    left_out: dict[str, list[str]] = {}
    for problem, name in (one for part in parts for one in part["left_out"]):
        left_out.setdefault(problem, []).append(name)
    splits = {split: _split([part["shards"][split] for part in parts if split in part["shards"]]) for split in disk.SPLITS}
    if not splits["train"]["documents"]:
        what = "; ".join(f"{len(names)} {problem}, such as {names[0]}" for problem, names in left_out.items())
        raise DataError(f"{cfg.source} gives no document to train on ({what or 'it holds none'}); is --column={cfg.column} right?")
    texts = hashlib.sha256("".join(part["texts"] for part in parts).encode()).hexdigest()
    files = [(file.name, file.size) for file in source.files]
    return {
        "format": disk.FORMAT,
        "tokenizer": {"file": f"tokenizer{Path(cfg.tokenizer).suffix}", "sha256": tokenizer.fingerprint,
                      "vocabulary": tokenizer.vocabulary, "first": tokenizer.first, "last": tokenizer.last},
        "record": str(disk.token_type(tokenizer.vocabulary)),
        "source": {"name": cfg.source, "kind": source.kind, "files": len(files), "bytes": sum(size for _, size in files),
                   "texts_sha256": texts},
        "held_out": cfg.held_out,
        "left_out": {problem: {"documents": len(names), "first": names[:NAMED]} for problem, names in sorted(left_out.items())},
        "splits": splits,
    }


def _split(shards: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")} | {"shards": shards}


def _report(manifest: dict[str, Any], folder: Path) -> Iterator[str]:
    """What was made, and what was left out."""
    for split, held in manifest["splits"].items():
        rate = f", {held['bytes'] / held['tokens']:.2f} bytes each" if held["tokens"] else ""
        yield (f"{split:<6} {held['documents']:,} documents, {held['tokens']:,} tokens{rate}, {held['bytes']:,} bytes of text, "
               f"{len(held['shards'])} shards")
    for problem, found in manifest["left_out"].items():
        names = ", ".join(found["first"][:SHOWN]) + (", ..." if found["documents"] > SHOWN else "")
        yield f"left out: {found['documents']:,} {problem} ({names})"
    if not manifest["splits"]["valid"]["documents"]:
        yield "note   no document is held out, so nothing can be scored; prepare again with a larger --held_out"
    yield f"written to {folder}; train with --data=shards:{folder} --config.model.vocabulary={manifest['tokenizer']['vocabulary']}"


if __name__ == "__main__":
    cli.run(app, sys.argv, main, define_flags())
