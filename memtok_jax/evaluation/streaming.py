"""Read texts with a trained model and continue them: everything that `stream.py` does after reading its flags.

Each row reads its own text in pieces; then all rows write. Memory does not grow with the length of a text. A command that saves can
be ended at any moment, and the same command continues it: the output is that of an uninterrupted one, bit for bit, because pieces
and calls are cut at the same places.
"""

from __future__ import annotations

import contextlib
import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from memtok_jax import data, sharding
from memtok_jax import params as P
from memtok_jax.config import UserError, to_dict
from memtok_jax.data.reading import STANDARD_INPUT, Pieces
from memtok_jax.evaluation import saved_stream
from memtok_jax.evaluation.report import abstract_params, changed
from memtok_jax.evaluation.saved_stream import SNAPSHOT, SavedStream
from memtok_jax.inference import host
from memtok_jax.inference.blocks import blocks_for
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.stream import NO_TOKEN, stream_bytes
from memtok_jax.inference.streams import Quality, Streams
from memtok_jax.inference.text import TextRow
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.checkpoint import Checkpoints, read_config
from memtok_jax.training.progress import ReadingProgress, duration

PIECE = 4096   # bytes that a row reads at a time, rounded to whole blocks


@dataclass(frozen=True)
class StreamConfig:
    """What a command asks for; the fields are the flags of `stream.py`.

    file: texts to read, one for each row.
    streams: number of rows that read the same text; 0: one row for each file.
    tokens: bytes that each row writes.
    sampling: how they are chosen.
    stop: strings that end a row.
    seed: of the random bits.
    save: folder to save to; "": none.
    save_every: seconds between two snapshots; 0: after each piece.
    load: folder of a stream to go on from; "": none.
    perplexity: only read and report.

    Raises UserError if two fields contradict each other or a value is out of range.
    """

    file: tuple[str, ...] = ()
    streams: int = 0
    tokens: int = 400
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    seed: int = 0
    save: str = ""
    save_every: float = 30.0
    load: str = ""
    perplexity: bool = False

    def __post_init__(self):
        if not self.file and (self.perplexity or not self.load):
            raise UserError("what is to be read? give --file=BOOK, or --file=- for standard input")
        if self.file.count(STANDARD_INPUT) > 1:
            raise UserError("--file=- is given more than once; standard input can be read by one row only")
        if self.tokens < 1 and not self.perplexity:
            raise UserError(f"--tokens={self.tokens} must be at least 1; --perplexity reads without writing")
        if self.streams < 0:
            raise UserError(f"--streams={self.streams} must be at least 0")
        if self.streams and len(self.file) > 1 and self.streams != len(self.file):
            raise UserError(f"--streams={self.streams} does not fit {len(self.file)} files, each a row of its own; leave it "
                            "out")
        if "" in self.stop:
            raise UserError("--stop is empty; leave it out, or give some text")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed={self.seed} must be from 0 to {2**32 - 1}")
        if not self.save_every >= 0:
            raise UserError(f"--save_every={self.save_every} must be at least 0 seconds")
        if self.save and self.load and Path(self.save).resolve() == Path(self.load).resolve():
            raise UserError(f"--load and --save name the same folder {self.save}; save to another, so that the loaded one stays")
        host.sampling(self.sampling, 1)

    def arguments(self) -> dict[str, Any]:
        """The fields that the output depends on, as plain values."""
        own = {"file": list(self.file), "streams": self.streams, "tokens": self.tokens, "stop": list(self.stop), "seed": self.seed,
               "load": self.load, "perplexity": self.perplexity}
        return own | self.sampling._asdict()


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end. number: of the signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interrupts:
    """Turns SIGINT and SIGTERM into `Interrupted`. The first one inside `held` is raised at its end, a second one at once."""

    def __enter__(self) -> Interrupts:
        self._held, self._noted = False, 0
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: Any) -> None:
        if not self._held or self._noted:
            raise Interrupted(number)
        self._noted = number

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Delay a signal until the end of the block, so that the block is done as a whole."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._noted:
            number, self._noted = self._noted, 0
            raise Interrupted(number)


class Command:
    """A command that is running. noted: what a snapshot notes of it. saved: None without --save.

    write: takes text for standard output. say: takes a line for standard error.
    """

    def __init__(self, cfg: StreamConfig, streams: Streams, texts: list[Pieces], noted: dict[str, Any], saved: SavedStream | None,
                 interrupts: Interrupts, write: Callable[[str], None], say: Callable[[str], None]):
        self.cfg, self.streams, self.texts, self.saved = cfg, streams, texts, saved
        self._noted, self._interrupts, self._write, self._say = noted, interrupts, write, say
        self.said = [bytearray(text) for text in saved.said()] if saved and saved.notes else [bytearray() for _ in streams.last]
        self._saved_at, self._bytes, self._seconds = time.monotonic(), [0, 0], [0.0, 0.0]

    @property
    def labels(self) -> list[str]:
        """A name for each row."""
        if len(self.cfg.file) > 1 or len(self.said) == 1:
            return list(self.cfg.file) or [self.cfg.load]
        return [f"{(*self.cfg.file, self.cfg.load)[0]}, stream {row}" for row in range(len(self.said))]

    def save(self, now: bool = False) -> None:
        """Write a snapshot if `save_every` seconds have passed, or if `now`."""
        if self.saved and (now or time.monotonic() - self._saved_at >= self.cfg.save_every):
            inputs = [[text.taken, text.checksum] for text in self.texts]
            self.saved.save(self.streams, self.said, {**self._noted, "inputs": inputs})
            self._saved_at = time.monotonic()

    def read(self, pieces: list[bytes], piece: int, show: ReadingProgress) -> None:
        """Read the texts to their ends. pieces: the first piece of each. piece: bytes of the later ones."""
        begun, rows = time.monotonic(), len(self.said)
        while any(pieces):
            with self._interrupts.held():
                self.streams.feed((pieces * rows)[:rows])
                bits = _bits(self.streams.read)   # waits for the device
                self._bytes[0] += sum(map(len, pieces))
                show.show(sum(text.taken for text in self.texts), bits)
                self.save()
            pieces = [text.read(piece) for text in self.texts]
        self._seconds[0] = time.monotonic() - begun
        show.done()

    def generate(self) -> None:
        """Let all rows write. A single row is shown piece by piece; several rows are shown one after the other at the end."""
        begun, alone = time.monotonic(), len(self.said) == 1
        shown = [TextRow(self.cfg.stop).push(text)[0] for text in self.said]
        if alone:
            self._write(shown[0])
        left = self.cfg.tokens - max(map(len, self.said))
        pieces = self.streams.pieces(left, self.cfg.sampling, self.cfg.stop, self.said)
        try:
            while True:
                with self._interrupts.held():
                    if (piece := next(pieces, None)) is None:
                        break
                    for said, ids in zip(self.said, piece.ids, strict=True):
                        said.extend(bytes(_as_byte(i) for i in ids[ids != NO_TOKEN]))
                    self._bytes[1] += int((piece.ids != NO_TOKEN).sum())
                    shown = [old + new for old, new in zip(shown, piece.text, strict=True)] if not alone else shown
                    self.save()
                if alone:
                    self._write(piece.text[0])
        finally:
            self._seconds[1] = time.monotonic() - begun
            if not alone:
                for label, text in zip(self.labels, shown, strict=True):
                    self._write(f"==> {label} <==\n{text}\n")

    def report(self) -> None:
        """Write one JSON object for each row with --perplexity, and always say a last line with the totals."""
        read, said = self.streams.read, self.streams.said
        if self.cfg.perplexity:
            for row, (label, text) in enumerate(zip(self.labels, self.texts * len(self.said), strict=False)):
                numbers = {"bits_per_byte": float(read.bits[row]), "perplexity": float(read.perplexity[row])}
                self._write(json.dumps({"file": label, "bytes": text.taken, **numbers}) + "\n")
        parts = [_told(verb, quality, amount, seconds) for verb, quality, amount, seconds in
                 zip(("read", "wrote"), (read, said), self._bytes, self._seconds, strict=True) if quality.tokens.any()]
        self._say("done   " + "; ".join([*parts, f"carry {self.streams.bytes:,} bytes"]))


def _as_byte(token: int) -> int:
    """The byte that is kept of a token; 0xFF, which no UTF-8 text contains, for a token that stands for no byte."""
    return token if token < 256 else 0xFF


def _bits(quality: Quality) -> float:
    """Mean bits per token over all rows; NaN without tokens."""
    return float(quality.nats.sum()) / max(int(quality.tokens.sum()), 1) / math.log(2) if quality.tokens.any() else math.nan


def _told(verb: str, quality: Quality, amount: int, seconds: float) -> str:
    """Bits and perplexity over all rows. amount: bytes that this command read or wrote. seconds: the time it took."""
    bits = _bits(quality)
    speed = f"{amount:,} bytes, {amount / seconds:,.0f} a second, " if amount and seconds else "nothing more, "
    return f"{verb} {speed}at {bits:.3f} bits per byte (perplexity {2 ** bits:.2f})"


# ---------------------------------------------------------------------------------------------------------------- the command

def stream_text(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig, write: Callable[[str], None],
                say: Callable[[str], None]) -> int:
    """Read and write with the newest checkpoint of a run; returns the exit status.

    overrides: changes of the run's config; of the model, only fields that an evaluation may change. write: takes text for standard
    output, and raises BrokenPipeError when nobody reads it any more. say: takes a line for standard error.
    Raises UserError for a mistake of the user.
    """
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        saved = stack.enter_context(SavedStream(Path(cfg.save))) if cfg.save else None
        command: list[Command] = []
        try:
            _run(workdir, overrides, cfg, saved, interrupts, command, write, say)
            return 0
        except (Interrupted, BrokenPipeError) as end:
            for one in command:
                one.save(now=True)
            if isinstance(end, BrokenPipeError):
                return 0
            where = f"; saved to {cfg.save}, the same command goes on" if cfg.save and command else ""
            say(f"stopped by {end} after {_progress(command)}{where}")
            return 128 + end.number


def _progress(command: list[Command]) -> str:
    if not command:
        return "nothing was read"
    return f"{int(command[0].streams.tokens.sum()):,} bytes, {sum(map(len, command[0].said)):,} of them written"


def _run(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig, saved: SavedStream | None, interrupts: Interrupts,
         command: list[Command], write: Callable[[str], None], say: Callable[[str], None]) -> None:
    """The command from its first check to its last line. command: gets the running command, so that the caller can save it."""
    texts, rows = [Pieces(name) for name in cfg.file], max(cfg.streams, len(cfg.file), 1)
    model, params, noted = _load_model(workdir, overrides, cfg, say)
    going_on = bool(saved and saved.notes)
    if going_on:
        saved_stream.refuse_other(saved.folder, saved.notes, noted["arguments"], noted["parameters"])
    elif cfg.load:
        saved_stream.refuse_other_parameters(Path(cfg.load), saved_stream.notes(Path(cfg.load)), noted["parameters"])
    blocks = blocks_for(model.call_tokens)[-2:]
    piece = max(blocks) * max(1, PIECE // max(blocks))
    for text, (taken, checksum) in zip(texts, saved.notes["inputs"] if going_on else (), strict=False):
        text.skip(taken, checksum)
    # A row keeps its newest byte back. With one byte more in the first piece, all later blocks begin at borders of the model.
    first = [text.read(piece + (not text.taken)) for text in texts]
    for text, begin in zip(texts, first, strict=True):
        if not begin and not text.taken and not cfg.load:
            raise UserError(f"{text.label} is empty: there is no byte to go on from")
    say(f"carry  {stream_bytes(model, rows):,} bytes for {rows} stream{'s' * (rows > 1)}, however much is read")
    say("compiling")
    begun = time.monotonic()
    streams = Streams.open(model, params, rows, seed=cfg.seed, blocks=blocks)
    say(f"compiled in {duration(time.monotonic() - begun)}")
    if going_on:
        streams.load(saved.folder / SNAPSHOT)
        say(f"going on from {saved.folder}, after {int(streams.tokens.sum()):,} bytes")
    elif cfg.load:
        streams.load(Path(cfg.load) / SNAPSHOT)
        streams.wake()
        streams.count_anew()
    command.append(Command(cfg, streams, texts, noted, saved, interrupts, write, say))
    totals = [text.total for text in texts]
    before = sum(text.taken for text in texts) - sum(map(len, first))
    command[0].read(first, piece, ReadingProgress(None if None in totals else sum(totals), before))
    if not cfg.perplexity:
        command[0].generate()
    command[0].save(now=True)
    command[0].report()


def _load_model(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig,
                say: Callable[[str], None]) -> tuple[Model, P.Tree, dict[str, Any]]:
    """Model, parameters on one device, and what a snapshot notes of the command."""
    model, params, meta = load_text_model(workdir, overrides, "stream.py", say)
    noted = {"arguments": cfg.arguments(), "step": meta["step"], "parameters": saved_stream.fingerprint(meta["arrays"]["params"])}
    return model, params, noted


def load_text_model(workdir: Path, overrides: tuple[str, ...], command: str,
                    say: Callable[[str], None]) -> tuple[Model, P.Tree, dict[str, Any]]:
    """(model, parameters on one device, what the newest checkpoint notes) of a run on bytes of text.

    command: the name of the command that needs it, for messages. Raises UserError for a run on anything else.
    """
    experiment = changed(read_config(workdir), overrides, workdir)
    if data.suite(experiment.data) != "text":
        raise UserError(f"{workdir} holds a model of {experiment.data.source} ({data.suite(experiment.data)}); {command} is for "
                        "models of text")
    if tokenizer := data.tokenizer(experiment.data):
        raise UserError(f"{workdir} holds a model of the tokens of {tokenizer.name}; {command} is for models of bytes")
    model, mesh = bind(experiment.model), sharding.make_mesh(1, 1, 1)
    with jax.set_mesh(mesh), Checkpoints(workdir, None) as checkpoints:
        params, meta = checkpoints.restore_params(abstract_params(model, mesh))
    say(f"model  {_named(model)}, {P.count(model.specs()):,} parameters after {meta['step']} steps on {experiment.data.source}, "
        f"from {workdir}")
    return model, jax.device_put(params, jax.devices()[0]), meta


def _named(model: Model) -> str:
    """The kinds of configs in a model, in a few words."""
    kinds: list[str] = []

    def walk(value: Any) -> None:
        for name, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
            if name == "_type":
                kinds.append(part.rpartition(":")[2].removesuffix("Config"))
            walk(part)

    walk(to_dict(model.cfg))
    return " ".join(kind for kind in dict.fromkeys(kinds) if kind not in ("LanguageModel", "Style")) or type(model.cfg).__name__
