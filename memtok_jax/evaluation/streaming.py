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
import numpy as np

from memtok_jax import data, sharding
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.data.reading import STANDARD_INPUT
from memtok_jax.data.token_reading import ByteText, TokenText
from memtok_jax.evaluation import pretrained_folder, saved_model, saved_stream
from memtok_jax.evaluation.report import changed
from memtok_jax.evaluation.saved_stream import SNAPSHOT, SavedStream
from memtok_jax.evaluation.units import Units, units_of
from memtok_jax.inference import host
from memtok_jax.inference.blocks import blocks_for
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.stream import NO_TOKEN, stream_bytes
from memtok_jax.inference.streams import Quality, Streams
from memtok_jax.inference.text import TextRow
from memtok_jax.models.protocol import Model, bind
from memtok_jax.training.progress import ReadingProgress, duration
from memtok_jax.training.run_folder import read_config

PIECE = 4096   # tokens that a row reads at a time, rounded to whole blocks


@dataclass(frozen=True)
class StreamConfig:
    """What a command asks for; the fields are the flags of `stream.py`.

    file: texts to read, one for each row.
    streams: number of rows that read the same text; 0: one row for each file.
    tokens: how many each row writes; bytes, unless the run has a tokenizer.
    sampling: how they are chosen.
    stop: strings that end a row.
    seed: of the random bits.
    save: folder to save to; "": none.
    save_every: seconds between two snapshots; 0: after each piece.
    load: folder of a stream to go on from; "": none.
    perplexity: only read and report.
    checkpoint: "latest", or "best" of a run that keeps one.
    model: folder of a pretrained model; "": the model of a run directory.
    context, sinks: of a pretrained model, see `convert.decoders.load`.

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
    checkpoint: str = "latest"
    model: str = ""
    context: int = 0
    sinks: int = 0

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
        if (self.context or self.sinks) and not self.model:
            raise UserError("--context and --sinks belong to --model; of a run, change --config.model.pattern.0.window and .sinks")
        if self.context < 0 or self.sinks < 0:
            raise UserError(f"--context={self.context} and --sinks={self.sinks} must be at least 0")
        if self.model and self.checkpoint != "latest":
            raise UserError(f"--checkpoint={self.checkpoint} belongs to --workdir; a pretrained model has only one")
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
        pretrained = {"model": self.model, "context": self.context, "sinks": self.sinks} if self.model else {}
        return own | pretrained | self.sampling._asdict()


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

    said: for each row, the tokens that it has said, as they are kept in files.
    write: takes text for standard output. say: takes a line for standard error.
    """

    def __init__(self, cfg: StreamConfig, streams: Streams, texts: list[ByteText | TokenText], units: Units, noted: dict[str, Any],
                 saved: SavedStream | None, interrupts: Interrupts, write: Callable[[str], None], say: Callable[[str], None]):
        self.cfg, self.streams, self.texts, self.units, self.saved = cfg, streams, texts, units, saved
        self._noted, self._interrupts, self._write, self._say = noted, interrupts, write, say
        self.said = [bytearray(text) for text in saved.said()] if saved and saved.notes else [bytearray() for _ in streams.last]
        self._saved_at, self._seconds = time.monotonic(), [0.0, 0.0]
        self._bytes, self._tokens = [0, 0], [0, 0]  # of this command alone: read, said

    @property
    def labels(self) -> list[str]:
        """A name for each row."""
        if len(self.cfg.file) > 1 or len(self.said) == 1:
            return list(self.cfg.file) or [self.cfg.load]
        return [f"{(*self.cfg.file, self.cfg.load)[0]}, stream {row}" for row in range(len(self.said))]

    def save(self, now: bool = False) -> None:
        """Write a snapshot if `save_every` seconds have passed, or if `now`."""
        if self.saved and (now or time.monotonic() - self._saved_at >= self.cfg.save_every):
            inputs = [[text.source.taken, text.source.checksum, text.state()] for text in self.texts]
            self.saved.save(self.streams, self.said, {**self._noted, "inputs": inputs})
            self._saved_at = time.monotonic()

    def read(self, pieces: list[np.ndarray], piece: int, before: int, show: ReadingProgress) -> None:
        """Read the texts to their ends. pieces: the first piece of each. piece: tokens of the later ones. before: bytes that an
        earlier command has read."""
        begun, rows = time.monotonic(), len(self.said)
        while any(map(len, pieces)):
            with self._interrupts.held():
                self.streams.feed((pieces * rows)[:rows])
                bits = self.streams.read.nats.sum() / math.log(2) / max(sum(self._scored()), 1)   # waits for the device
                self._tokens[0] += sum(map(len, pieces))
                self._bytes[0] = sum(text.bytes for text in self.texts) - before
                show.show(sum(text.bytes for text in self.texts), float(bits))
                self.save()
            pieces = [text.read(piece) for text in self.texts]
        self._seconds[0] = time.monotonic() - begun
        show.done()

    def generate(self) -> None:
        """Let all rows write. A single row is shown piece by piece; several rows are shown one after the other at the end."""
        begun, alone = time.monotonic(), len(self.said) == 1
        before = [self.units.ids(text) for text in self.said]
        shown = [TextRow(self.cfg.stop, self.units.as_bytes).push(ids)[0] for ids in before]
        if alone:
            self._write(shown[0])
        pieces = self.streams.pieces(self.cfg.tokens - max(map(len, before)), self.cfg.sampling, self.cfg.stop, before)
        try:
            while True:
                with self._interrupts.held():
                    if (piece := next(pieces, None)) is None:
                        break
                    for said, ids in zip(self.said, piece.ids, strict=True):
                        said.extend(self.units.kept(ids[ids != NO_TOKEN]))
                    new = piece.ids[piece.ids != NO_TOKEN]
                    self._tokens[1], self._bytes[1] = self._tokens[1] + len(new), self._bytes[1] + self.units.size(new)
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
                numbers = self._measured(float(read.nats[row]), int(read.tokens[row]), self._scored()[row])
                self._write(json.dumps({"file": label, "bytes": text.bytes, **numbers}) + "\n")
        sizes = sum(self._scored()), sum(self.units.size(self.units.ids(text)) for text in self.said)
        parts = [self._told(verb, quality, size, n) for n, (verb, quality, size) in
                 enumerate(zip(("read", "wrote"), (read, said), sizes, strict=True)) if quality.tokens.any()]
        self._say("done   " + "; ".join([*parts, f"carry {self.streams.bytes:,} bytes"]))

    def _scored(self) -> list[int]:
        """Bytes of the tokens that each row was fed and that have been predicted: of a text in bytes, all but its first."""
        if self.units.word == "bytes":
            return self.streams.read.tokens.tolist()
        return [text.scored for text in (self.texts * len(self.said))[:len(self.said)]]

    def _measured(self, nats: float, tokens: int, size: int) -> dict[str, float]:
        """Bits and perplexity. nats, tokens, size: their sum, and what was predicted, in tokens and bytes."""
        per_byte, per_token = (nats / count / math.log(2) if count else math.nan for count in (size, tokens))
        if self.units.word == "bytes":
            return {"bits_per_byte": per_byte, "perplexity": 2 ** per_byte}
        return {"tokens": tokens, "bits_per_byte": per_byte, "perplexity_per_byte": 2 ** per_byte, "bits_per_token": per_token,
                "perplexity_per_token": 2 ** per_token}

    def _told(self, verb: str, quality: Quality, size: int, n: int) -> str:
        """Bits and perplexity over all rows. size: bytes that were predicted. n: 0 of what was read, 1 of what was said."""
        found = self._measured(float(quality.nats.sum()), int(quality.tokens.sum()), size)
        amount, seconds = self._bytes[n], self._seconds[n]
        speed = f"{amount:,} bytes, {amount / seconds:,.0f} a second, " if amount and seconds else "nothing more, "
        if self.units.word == "bytes":
            return f"{verb} {speed}at {found['bits_per_byte']:.3f} bits per byte (perplexity {found['perplexity']:.2f})"
        return (f"{verb} {self._tokens[n]:,} tokens, {speed}at {found['bits_per_byte']:.3f} bits per byte (perplexity "
                f"{found['perplexity_per_token']:.2f} per token, {found['perplexity_per_byte']:.2f} per byte)")


# ---------------------------------------------------------------------------------------------------------------- the command

def stream_text(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig, write: Callable[[str], None],
                say: Callable[[str], None]) -> int:
    """Read and write with a checkpoint of a run, or with a pretrained model; returns the exit status.

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
    one = command[0]
    written = sum(len(one.units.ids(text)) for text in one.said)
    return f"{int(one.streams.tokens.sum()):,} {one.units.word}, {written:,} of them written"


def _run(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig, saved: SavedStream | None, interrupts: Interrupts,
         command: list[Command], write: Callable[[str], None], say: Callable[[str], None]) -> None:
    """The command from its first check to its last line. command: gets the running command, so that the caller can save it."""
    model, params, noted, units = _load_model(workdir, overrides, cfg, say)
    texts, rows = [units.read(name, not cfg.load) for name in cfg.file], max(cfg.streams, len(cfg.file), 1)
    going_on = bool(saved and saved.notes)
    if going_on:
        saved_stream.refuse_other(saved.folder, saved.notes, noted["arguments"], noted["parameters"])
    elif cfg.load:
        saved_stream.refuse_other_parameters(Path(cfg.load), saved_stream.notes(Path(cfg.load)), noted["parameters"])
    blocks = blocks_for(model.call_tokens)[-2:]
    piece = max(blocks) * max(1, PIECE // max(blocks))
    for text, (taken, checksum, state) in zip(texts, saved.notes["inputs"] if going_on else (), strict=False):
        text.source.skip(taken, checksum)
        text.go_on(state)
    before = sum(text.bytes for text in texts)
    # A row keeps its newest token back. With one token more in the first piece, all later blocks begin at borders of the model.
    first = [text.read(piece + (not text.bytes)) for text in texts]
    for text in texts:
        if not text.bytes and not cfg.load:
            raise UserError(f"{text.source.label} is empty: there is no byte to go on from")
    say(f"carry  {stream_bytes(model, rows):,} bytes for {rows} stream{'s' * (rows > 1)}, however much is read")
    say("compiling")
    begun = time.monotonic()
    streams = Streams.open(model, params, rows, seed=cfg.seed, blocks=blocks, stop=units.ends, as_bytes=units.as_bytes)
    say(f"compiled in {duration(time.monotonic() - begun)}")
    if going_on:
        streams.load(saved.folder / SNAPSHOT)
        say(f"going on from {saved.folder}, after {int(streams.tokens.sum()):,} {units.word}")
    elif cfg.load:
        streams.load(Path(cfg.load) / SNAPSHOT)
        streams.wake()
        streams.count_anew()
    command.append(Command(cfg, streams, texts, units, noted, saved, interrupts, write, say))
    totals = [text.source.total for text in texts]
    command[0].read(first, piece, before, ReadingProgress(None if None in totals else sum(totals), before))
    if not cfg.perplexity:
        command[0].generate()
    command[0].save(now=True)
    command[0].report()


def _load_model(workdir: Path, overrides: tuple[str, ...], cfg: StreamConfig,
                say: Callable[[str], None]) -> tuple[Model, P.Tree, dict[str, Any], Units]:
    """Model, parameters on one device, what a snapshot notes of the command, and what the tokens of the model are."""
    model, found, units = (pretrained_folder.load_model(Path(cfg.model), overrides, cfg.context, cfg.sinks, say) if cfg.model
                           else load_text_model(workdir, overrides, "stream.py", say, cfg.checkpoint))
    arguments = cfg.arguments() | ({"tokenizer": units.fingerprint} if units.fingerprint else {})
    noted = {"arguments": arguments, "step": found.step, "parameters": found.fingerprint}
    return model, found.params, noted, units


def load_text_model(workdir: Path, overrides: tuple[str, ...], command: str, say: Callable[[str], None],
                    checkpoint: str = "latest") -> tuple[Model, saved_model.Saved, Units]:
    """A run on text: its model, its parameters on one device, and what its tokens are.

    command: the name of the command that needs it, for messages. Raises UserError for a run on anything else.
    """
    experiment = changed(read_config(workdir), overrides, workdir)
    if data.suite(experiment.data) != "text":
        raise UserError(f"{workdir} holds a model of {experiment.data.source} ({data.suite(experiment.data)}); {command} is for "
                         "models of text")
    model, mesh = bind(experiment.model), sharding.make_mesh(1, 1, 1)
    found = saved_model.load(workdir, experiment, model, mesh, checkpoint)
    say(f"model  {saved_model.named(model)}, {P.count(model.specs()):,} parameters after {found.step} steps on "
        f"{experiment.data.source}, from {found.origin}")
    return model, found._replace(params=jax.device_put(found.params, jax.devices()[0])), units_of(data.tokenizer(experiment.data))
