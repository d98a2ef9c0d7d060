"""stream.py as a user meets it: a text read and continued, kept and gone on with, and every mistake in one line."""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import toy_run
from absl import flags

from memtok_jax import config
from memtok_jax.config import UserError
from memtok_jax.data.errors import DataError
from memtok_jax.data.reading import Pieces
from memtok_jax.evaluation import saved_model, saved_stream, streaming
from memtok_jax.evaluation.streaming import StreamConfig, stream_text
from memtok_jax.inference.filters import Sampling
from memtok_jax.inference.session import new_stream
from memtok_jax.inference.streams import Streams
from memtok_jax.models.protocol import bind
from memtok_jax.training import cli
from memtok_jax.training.progress import ReadingProgress
from memtok_jax.training.run import train

ROOT = Path(__file__).resolve().parent.parent
HOT = Sampling(1.0, top_k=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run of the toy model on text."""
    folder, chance = tmp_path_factory.mktemp("stream"), random.Random(0)
    (folder / "words.txt").write_text(" ".join(chance.choice(["one", "two", "three", "four"]) for _ in range(2500)))
    assert train(toy_run.experiment(str(folder / "words.txt"), "training.eval_every=0"), folder / "run") == 0
    return folder / "run"


OPEN = Streams.open


@functools.cache
def compiled(model, rows, blocks):
    return OPEN(model, model.init(jax.random.key(0)), rows, blocks=blocks)


@pytest.fixture(autouse=True)
def _compile_once(monkeypatch):
    """The programs of a command are those of the one before, where it has as many rows."""
    def open_(model, params, rows, seed, blocks, stop, as_bytes):
        assert stop == ()  # no byte ends what a row says
        return Streams(compiled(model, rows, blocks).session, params, new_stream(model, params, rows, jax.random.key(seed)))

    monkeypatch.setattr(streaming.Streams, "open", staticmethod(open_))


def command(workdir, write=None, **options):
    """(status, standard output, lines for the eye) of a command in this process."""
    out, lines = [], []
    cfg = StreamConfig(**{"sampling": HOT, **options})
    status = stream_text(workdir, (), cfg, write or out.append, lines.append)
    return status, "".join(out), lines


@pytest.fixture
def book(tmp_path) -> str:
    """A text of more than one piece."""
    chance = random.Random(1)
    (tmp_path / "book.txt").write_text(" ".join(chance.choice(["two", "three", "five"]) for _ in range(2000)))
    return str(tmp_path / "book.txt")


# -------------------------------------------------------------------------------------------------------------- reading

def bits_of(workdir, text: bytes) -> float:
    """Bits per byte in one call of the model, by the definition."""
    model, params, *_ = streaming._load_model(workdir, (), StreamConfig(file=("x",)), lambda line: None)
    ids = np.frombuffer(text, np.uint8).astype(np.int32)
    logits = np.asarray(model.apply(params, model.init_state(params, 1), ids[None, :-1])[0][0], np.float64)
    logits -= logits.max(-1, keepdims=True)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    return float(-np.log2(p[np.arange(len(ids) - 1), ids[1:]]).mean())


def test_perplexity_is_that_of_the_definition(run, book, tmp_path):
    """A long text and a short one side by side, packed and in UTF-16, in pieces and at once."""
    long, short = Path(book).read_bytes(), "héllo — wörld"
    (tmp_path / "long.gz").write_bytes(gzip.compress(long))
    (tmp_path / "short.txt").write_text(short, encoding="utf-16")
    files = (str(tmp_path / "long.gz"), str(tmp_path / "short.txt"))
    status, out, lines = command(run, file=files, perplexity=True)
    found = [json.loads(line) for line in out.splitlines()]
    assert status == 0 and [one["file"] for one in found] == list(files)
    for one, text in zip(found, (long, short.encode()), strict=True):
        assert one["bytes"] == len(text) and one["bits_per_byte"] == pytest.approx(bits_of(run, text), rel=1e-5)
        assert one["perplexity"] == pytest.approx(2 ** one["bits_per_byte"])
    assert any("parameters after 12 steps" in line for line in lines) and "compiling" in lines
    assert lines[-1].startswith("done   read") and "bits per byte" in lines[-1] and "carry" in lines[-1]


def test_pieces_are_the_text(tmp_path):
    text = "Grüße\n" * 50
    plain, big_endian = text.encode(), b"\xfe\xff" + text.encode("utf-16-be")
    for name, content in (("plain", plain), ("mark", b"\xef\xbb\xbf" + plain), ("a.gz", gzip.compress(plain)),
                          ("le", text.encode("utf-16")), ("be", big_endian), ("wide", text.encode("utf-32"))):
        (tmp_path / name).write_bytes(content)
        one, parts = Pieces(str(tmp_path / name)), []
        while piece := one.read(7):
            parts.append(piece)
            assert len(piece) == 7 or not one.read(1)
        assert b"".join(parts) == text.encode() and one.taken == len(text.encode())
        assert one.total in (None, len(text.encode()))
        again = Pieces(str(tmp_path / name))
        again.skip(21, (lambda p: (p.read(21), p.checksum)[1])(Pieces(str(tmp_path / name))))
        assert again.read(5) == text.encode()[21:26]
        with pytest.raises(DataError, match="are not those that the saved stream has read"):
            Pieces(str(tmp_path / name)).skip(21, 5)


def test_a_book_is_never_whole_in_memory(tmp_path):
    """A file of a gigabyte (with holes, so that it takes no room) is opened and read at its front in no time."""
    with (tmp_path / "endless").open("wb") as file:
        file.truncate(2**30)
    begun, one = time.monotonic(), Pieces(str(tmp_path / "endless"))
    assert one.total == 2**30 and len(one.read(4097)) == 4097 and time.monotonic() - begun < 1


def test_progress_is_one_line_on_a_terminal_and_few_elsewhere():
    class Screen(list):
        def write(self, text):
            self.append(text)

        def flush(self):
            pass

        def isatty(self):
            return True

    screen = Screen()
    bar = ReadingProgress(1000, 0, screen)
    bar.show(500, 2.5)
    bar.done()
    assert screen[0].startswith("\r\x1b[K[############............] read 500 bytes  2.500 bits per byte") and "left" in screen[0]
    unknown = Screen()
    ReadingProgress(None, 0, unknown).show(500, 2.5)
    assert unknown[0].startswith("\r\x1b[Kread 500 bytes") and "left" not in unknown[0]


# -------------------------------------------------------------------------------------------------------------- writing

def test_several_texts_are_written_one_after_the_other(run, book, tmp_path):
    """What a row writes is what it writes alone; two streams of one text go apart."""
    (tmp_path / "b.txt").write_text("four one four one")
    files, greedy = (book, str(tmp_path / "b.txt")), Sampling(0.0, repetition_penalty=1.3)
    alone = [command(run, file=(name,), tokens=40, sampling=greedy)[1] for name in files]
    status, out, _ = command(run, file=files, tokens=40, sampling=greedy)
    assert status == 0 and out == "".join(f"==> {name} <==\n{text}\n" for name, text in zip(files, alone, strict=True))
    _, out, _ = command(run, file=files[1:], streams=2, tokens=40)
    first, second = out.split("==> ")[1:]
    assert f"{files[1]}, stream 1 <==" in second and first.partition("\n")[2] != second.partition("\n")[2]


def test_stop_ends_in_front_of_the_text(run, book):
    _, free, _ = command(run, file=(book,), tokens=60)
    stop = free[20:23]
    _, out, lines = command(run, file=(book,), tokens=60, stop=("never said", stop))
    assert out == free[:free.find(stop)]
    assert f"wrote {free.find(stop) + 3} bytes, " in lines[-1]


def test_a_loaded_stream_goes_on_as_one_text(run, book, tmp_path):
    text = Path(book).read_text()
    for name, part in (("a", text[:5000]), ("b", text[5000:])):
        (tmp_path / name).write_text(part)
    kept = str(tmp_path / "kept")
    assert command(run, file=(str(tmp_path / "a"),), perplexity=True, save=kept)[0] == 0
    _, out, _ = command(run, file=(str(tmp_path / "b"),), load=kept, tokens=50)
    assert out == command(run, file=(book,), tokens=50)[1]
    one, two = (json.loads(command(run, file=(str(tmp_path / name),), load=load, perplexity=True)[1])
                for name, load in (("a", ""), ("b", kept)))
    assert two["bytes"] == len(text) - 5000, "figures are those of the new text"
    nats = one["bits_per_byte"] * 4999 + two["bits_per_byte"] * two["bytes"]
    assert nats / (len(text) - 1) == pytest.approx(bits_of(run, text.encode()), rel=1e-5)
    _, more, _ = command(run, load=kept, tokens=5)
    assert len(more) > 0


def stopping(at, how):
    """A `write` that gives a signal, or fails, after `at` calls; and what it got."""
    got = []

    def write(text):
        got.append(text)
        if len(got) == at:
            how()
    return write, got


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_in_one_line_and_the_same_command_goes_on(run, book, tmp_path, number):
    options = dict(file=(book,), tokens=300, save=str(tmp_path / "kept"))
    write, _ = stopping(4, lambda: os.kill(os.getpid(), number))
    status, _, lines = command(run, write, **options)
    assert status == 128 + number
    assert lines[-1].startswith(f"stopped by {number.name} after") and lines[-1].endswith("the same command goes on")
    status, out, lines = command(run, **options)
    assert status == 0 and any("going on from" in line for line in lines)
    assert out == command(run, **options | {"save": ""})[1]
    assert command(run, **options)[1] == out, "a finished command says the same again"


def test_a_signal_before_anything_is_read(run, book):
    lines = []

    def say(line):
        lines.append(line)
        if line == "compiling":
            os.kill(os.getpid(), signal.SIGINT)

    assert stream_text(run, (), StreamConfig(file=(book,)), lines.append, say) == 130
    assert lines[-1] == "stopped by SIGINT after nothing was read"


def test_a_closed_pipe_ends_quietly_and_saves(run, book, tmp_path):
    def closed():
        raise BrokenPipeError

    write, _ = stopping(3, closed)
    status, _, lines = command(run, write, file=(book,), tokens=300, save=str(tmp_path / "kept"))
    assert status == 0 and not any("pipe" in line for line in lines)
    assert 0 < saved_stream.notes(tmp_path / "kept")["said"][0] < 300


def test_output_that_nobody_reads():
    """The writing end of a pipe whose reader has gone: no message, neither now nor when the interpreter ends."""
    script = ("from memtok_jax.training import cli\ntry:\n while True: cli.write_text('x' * 10000)\n"
              "except BrokenPipeError: cli.write_text('y' * 100000)")
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT)
    child.stdout.read(10)
    child.stdout.close()
    assert child.stderr.read() == b"" and child.wait(60) == 0


def process(run, *args: str, **more) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
    # A saved config may name classes of the package only, or of a module that is there already.
    script = "import runpy, sys, toy_model; sys.argv[0] = 'stream.py'; runpy.run_path('stream.py', run_name='__main__')"
    return subprocess.Popen([sys.executable, "-c", script, f"--workdir={run}", "--temperature=1", "--top_k=20", *args],
                            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)


@pytest.mark.multiprocess
def test_a_killed_command_goes_on_with_the_same_tokens(run, book, tmp_path):
    """kill -9 in the middle of writing, then the same command: its output is that of a command that nobody killed."""
    kept, args = tmp_path / "kept", (f"--file={book}", "--tokens=4000", f"--save={tmp_path / 'kept'}", "--save_every=0",
                                     "--repetition_window=0")
    child = process(run, *args)
    try:
        for _ in range(2400):
            if (kept / saved_stream.SNAPSHOT).exists() and saved_stream.notes(kept)["said"][0] > 0:
                break
            assert child.poll() is None, child.stderr.read()
            time.sleep(0.05)
        child.kill()
        child.communicate(timeout=60)
        assert 0 < saved_stream.notes(kept)["said"][0] < 4000, "it must be killed before its end"
        child = process(run, *args)
        out, err = child.communicate(timeout=280)
    finally:
        child.kill()
    assert child.returncode == 0 and b"going on from" in err and b"Traceback" not in err
    assert out.decode() == command(run, file=(book,), tokens=4000)[1]


@pytest.mark.multiprocess
def test_standard_input_is_a_text(run, book):
    child = process(run, "--file=-", "--tokens=40", stdin=subprocess.PIPE)
    out, err = child.communicate(Path(book).read_bytes(), timeout=280)
    assert child.returncode == 0 and out.decode() == command(run, file=(book,), tokens=40)[1]
    lines = err.decode().splitlines()
    assert [line.split()[0] for line in lines] == ["model", "carry", "compiling", "compiled", "done"], lines


# --------------------------------------------------------------------------------------------------------------- errors

def main_of(args: list[str], monkeypatch) -> int:
    """The exit status of stream.py's main with these flags, in this process."""
    spec = importlib.util.spec_from_file_location("stream_command", ROOT / "stream.py")
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    with monkeypatch.context() as m:
        for name in [name for name in dir(flags) if name.startswith("DEFINE_")]:
            m.setattr(flags, name, functools.partial(getattr(flags, name), flag_values=values))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

    class App:
        @staticmethod
        def run(main, argv, flags_parser):
            sys.exit(main(flags_parser(argv)))

    with pytest.raises(SystemExit) as leaving:
        cli.run(App, ["stream.py", *args], module.main, module.DEBUG)
    return leaving.value.code


@pytest.mark.parametrize("args, message", [
    (["--workdir=nowhere", "--file=BOOK"], "nowhere is not a run directory"),
    (["--file=BOOK"], "error: which run? give --workdir=FOLDER"),
    (["--workdir=RUN"], "what is to be read? give --file=BOOK"),
    (["--workdir=RUN", "BOOK"], "is not a flag; flags start with --, as in --file="),
    (["--workdir=RUN", "--file=no/such.txt"], "there is no file no/such.txt"),
    (["--workdir=RUN", "--file="], "--file='' is no path"),
    (["--workdir=RUN", "--file=FOLDER"], "is a folder; give a text file"),
    (["--workdir=RUN", "--file=EMPTY"], "is empty: there is no byte to go on from"),
    (["--workdir=RUN", "--file=BOOK", "--tokens=0"], "--tokens=0 must be at least 1"),
    (["--workdir=RUN", "--file=BOOK", "--tokens=many"], "flag --tokens=many"),
    (["--workdir=RUN", "--file=BOOK", "--temperature=nan"], "temperature nan must be finite and at least 0"),
    (["--workdir=RUN", "--file=BOOK", "--temperature=-1"], "temperature -1.0 must be"),
    (["--workdir=RUN", "--file=BOOK", "--top_p=0"], "top_p 0.0 must be finite and above 0"),
    (["--workdir=RUN", "--file=BOOK", "--top_k=-1"], "top_k -1 must be finite and at least 0"),
    (["--workdir=RUN", "--file=BOOK", "--min_p=2"], "min_p 2.0 must be finite and from 0 to 1"),
    (["--workdir=RUN", "--file=BOOK", "--stop="], "--stop is empty"),
    (["--workdir=RUN", "--file=BOOK", "--seed=-1"], "--seed=-1 must be from 0"),
    (["--workdir=RUN", "--file=BOOK", "--streams=-1"], "--streams=-1 must be at least 0"),
    (["--workdir=RUN", "--file=BOOK", "--file=EMPTY", "--streams=3"], "--streams=3 does not fit 2 files"),
    (["--workdir=RUN", "--file=-", "--file=-"], "--file=- is given more than once"),
    (["--workdir=RUN", "--file=BOOK", "--save_every=nan"], "--save_every=nan must be at least 0 seconds"),
    (["--workdir=RUN", "--file=BOOK", "--load=FOLDER"], "there is no stream at"),
    (["--workdir=RUN", "--file=BOOK", "--load=FOLDER", "--save=FOLDER"], "name the same folder"),
    (["--workdir=RUN", "--file=BOOK", "--save=BOOK"], "cannot be used: File exists"),
    (["--workdir=RUN", "--file=BOOK", "--config.model.width=9"], "config.model.width is 8 in"),
    (["--workdir=RUN", "--file=BOOK", "--config.model.widht=9"], "did you mean 'width'"),
    (["--workdir=RUN", "--file=BOOK", "--temprature=1"], "unknown flag --temprature; did you mean 'temperature'?"),
    (["--workdir=TASK", "--file=BOOK"], "stream.py is for models of text"),
])
def test_mistakes_end_in_one_line(run, book, tmp_path, capsys, monkeypatch, args, message):
    (tmp_path / "empty").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "config.json").write_text(config.to_json(toy_run.experiment("task:recall", "data.task.pairs=2")))
    names = {"RUN": run, "BOOK": book, "EMPTY": tmp_path / "empty", "FOLDER": tmp_path / "folder", "TASK": tmp_path / "task"}
    for name, path in names.items():
        args = [arg.replace(name, str(path)) for arg in args]
    status, err = main_of(args, monkeypatch), capsys.readouterr().err
    errors = [line for line in err.splitlines() if not line.startswith("model ")]
    assert status == 2 and len(errors) == 1 and errors[0].startswith("error: ") and message in errors[0], err


def test_a_saved_stream_belongs_to_one_command_and_one_model(run, book, tmp_path):
    kept, options = str(tmp_path / "kept"), dict(file=(book,), tokens=5)
    command(run, save=kept, **options)
    with pytest.raises(UserError, match="holds a stream with --seed=0, now it is 1; give a new --save, or --load="):
        command(run, save=kept, seed=1, **options)
    text = Path(book).read_bytes()
    Path(book).write_bytes(b"X" + text[1:])
    with pytest.raises(UserError, match="bytes of .*book.txt are not those that the saved stream has read"):
        command(run, save=kept, **options)
    Path(book).write_bytes(text)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    longer = config.override(streaming.read_config(other), ("optimizer.steps=14", "training.eval_every=0"))
    assert train(longer, other) == 0
    for folder in ("save", "load"):
        with pytest.raises(UserError, match="was made by another model, or by this one after 12 steps"):
            command(other, **{folder: kept}, **options)
    with pytest.raises(UserError, match="holds 1 rows; these streams have 2"):
        command(run, load=kept, **options | {"file": (book, book)})
    (tmp_path / "kept" / "said_0").write_bytes(b"else")
    with pytest.raises(UserError, match="is damaged"):
        command(run, save=kept, **options)
    (tmp_path / "kept" / saved_stream.SNAPSHOT).write_bytes(b"else")
    with pytest.raises(UserError, match="is not a saved stream, or it is damaged"):
        command(run, save=kept, **options)


def test_two_commands_do_not_save_to_one_folder(run, book, tmp_path):
    with saved_stream.SavedStream(tmp_path / "kept"), pytest.raises(UserError, match="another command saves to"):
        command(run, file=(book,), save=str(tmp_path / "kept"))


def test_every_kind_of_model_has_a_name():
    names = {name: saved_model.named(bind(config.load(name).model)) for name in ("titans_mac", "rmt", "transformer_xl")}
    assert names == {"titans_mac": "Mac NeuralMemory Window", "rmt": "Rmt Segment", "transformer_xl": "Cached Xl"}
