"""What the commands share: overrides out of argv, errors as one line, and the calls behind the flags."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags, logging

from memtok_jax import config
from memtok_jax.config import StoppedError, UserError

FAULT = "this is a fault of memtok_jax, not of your command: please report it, with the command and the lines above"


def run(app: Any, argv: list[str], main: Callable[[list[str], tuple[str, ...]], int], debug: Any) -> None:
    """Parse the flags, call `main`, and leave with its status.

    debug: the flag that asks for tracebacks. A mistake of the user and a run that cannot go on end in one line on stderr and
    status 2. Any other error is ours: it keeps its traceback, and the status is 1.
    """
    try:
        argv, overrides = config.split_overrides(argv)
    except UserError as error:
        sys.exit(_fail(error))

    # Libraries below report through absl's log; a run prints its own lines.
    logging.set_verbosity(logging.WARNING)

    def guarded(rest: list[str]) -> int:
        try:
            return main(rest, overrides)
        except (UserError, StoppedError) as error:
            if debug.value:
                raise
            return _fail(error)
        except KeyboardInterrupt:
            if debug.value:
                raise
            print("stopped by SIGINT before anything was done", file=sys.stderr)
            return 130
        except Exception:
            traceback.print_exc()
            print(FAULT, file=sys.stderr)
            return 1

    app.run(guarded, argv=argv, flags_parser=parse_flags)


def parse_flags(argv: list[str]) -> list[str]:
    """absl's flags out of argv; returns the rest. A mistake ends the process as any other does."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        near = config.nearest(error.flagname, flags.FLAGS)
        sys.exit(_fail(f"unknown flag --{error.flagname}{near}; --help lists all, and --config.GROUP.FIELD=VALUE changes a config"))
    except flags.Error as error:
        sys.exit(_fail(error))


def _fail(error: Exception | str) -> int:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    print(f"error: {lines[0]}", file=sys.stderr)
    return 2


def folder(value: str, default: Path | None = None) -> Path:
    """The path behind `--workdir`; `default` stands for a flag that was not given. Raises UserError for what cannot be a path."""
    if value is None and default is not None:
        return default
    if not value:
        raise UserError("--workdir is empty; give a folder, as in --workdir=runs/first")
    if "\0" in value:
        raise UserError(f"--workdir={value!r} holds a NUL character, which no path can")
    return Path(value)


def experiment(name: str, overrides: tuple[str, ...], source: str | None, data_dir: str | None, start: str | None = None) -> Any:
    """The experiment behind `--config`, `--config.x=y`, `--data`, `--data_dir` and `--start_from`."""
    from memtok_jax.training.experiment import shorter_warmup

    begin = () if start is None else (f"training.start_from={start}",)
    changes = (*data_overrides(source, data_dir), *begin, *overrides)
    base = config.load(name)
    if more := shorter_warmup(base, changes):
        print(f"note: the run is shorter than its warm-up; {more[0].replace('=', ' is ')} (set it to choose another)")
    return on_base(config.override(base, (*changes, *more)))


def on_base(chosen: Any) -> Any:
    """The experiment with the sizes of the model that it gives a memory, and the tokenizer of a pretrained one."""
    from dataclasses import replace

    from memtok_jax.training import retrofit

    if not (chosen.training.retrofit and chosen.training.start_from):
        return chosen
    folder = Path(chosen.training.start_from)
    base = retrofit.base_config(folder, chosen.model)
    wanted = retrofit.in_layers(chosen.model, chosen.training.retrofit_layers, base.layers)
    out = replace(chosen, model=retrofit.around(wanted, base))
    tokenizer = next((str(folder / name) for name in ("tokenizer.json", "tokenizer.model") if (folder / name).is_file()), "")
    for path, group in (("data", out.data), ("data.task", getattr(out.data, "task", None))):
        if tokenizer and getattr(group, "tokenizer", "none there") == "":
            out = config.override(out, (f"{path}.tokenizer={tokenizer}",))
    return out


def data_overrides(source: str | None, data_dir: str | None) -> tuple[str, ...]:
    """`--data` and `--data_dir` as overrides of the config."""
    pairs = (("data", source), ("data.data_dir", data_dir))
    return tuple(f"{path}={value}" for path, value in pairs if value is not None)


def default_workdir(name: str) -> Path:
    """runs/<config>, with a dash for the colon of a preset."""
    return Path("runs") / name.replace(":", "-")


def train(experiment: Any, workdir: Path, distributed: str) -> int:
    """Join the other processes, if any, and train."""
    from memtok_jax.compiler import keep_programs
    from memtok_jax.training.curriculum import train_stages
    from memtok_jax.training.distributed import join, use_cores
    from memtok_jax.training.run import train

    keep_programs(Path(workdir).parent)
    join(distributed)
    use_cores(experiment.training, experiment.evaluation.batch)
    return train_stages(train, experiment, Path(workdir))


def compile_only(experiment: Any, target: str) -> int:
    """Compile the training step for `target` and print what it needs."""
    from memtok_jax.training.compile_only import compile_for

    print(f"compiling the training step for {target}", flush=True)
    for line in compile_for(experiment, target):
        print(line)
    return 0


def evaluate(workdir: Path, overrides: tuple[str, ...], suite: str, checkpoint: str) -> int:
    """Score a checkpoint of a run, "latest" or "best"; the last line on stdout is one JSON object."""
    from memtok_jax.compiler import keep_programs
    from memtok_jax.evaluation.report import evaluate_run

    keep_programs(Path(workdir).parent)
    print(json.dumps(evaluate_run(Path(workdir), overrides, print, suite, checkpoint)))
    return 0


def stream(workdir: Path, overrides: tuple[str, ...], options: dict[str, Any]) -> int:
    """Read texts and write on. options: fields of `StreamConfig`, and of `Sampling`. Text goes to stdout, all else to stderr."""
    from memtok_jax.compiler import keep_programs
    from memtok_jax.evaluation.streaming import StreamConfig, stream_text
    from memtok_jax.inference.filters import Sampling

    keep_programs(workdir.parent)
    sampling, column = Sampling(**{name: options.pop(name) for name in Sampling._fields}), ["\n"]

    def write(text: str) -> None:
        column[0] = text[-1:] or column[0]
        write_text(text)

    def say(line: str) -> None:
        # On a terminal the text may have ended in the middle of a line.
        begin = "\n" if sys.stdout.isatty() and column[0] != "\n" else ""
        column[0] = "\n"
        print(begin + line, file=sys.stderr, flush=True)

    return stream_text(workdir, overrides, StreamConfig(sampling=sampling, **options), write, say)


def chat(options: dict[str, Any], overrides: tuple[str, ...]) -> int:
    """Talk on the terminal. options: fields of `ChatConfig`. What is said goes to stdout, all else to stderr."""
    from memtok_jax.compiler import keep_programs
    from memtok_jax.evaluation.chatting import ChatConfig, chat

    cfg = ChatConfig(**options)
    if cfg.workdir:
        keep_programs(Path(cfg.workdir).parent)
    return chat(cfg, overrides, _typed(), write_text, lambda line: print(line, file=sys.stderr, flush=True))


def _typed() -> Iterator[str]:
    """Lines of standard input; on a terminal with a prompt. Bytes that are no text become signs."""
    sys.stdin.reconfigure(errors="replace")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        yield from sys.stdin
        return
    try:
        while True:
            yield input("> ")
    except EOFError:
        print()


def write_text(text: str) -> None:
    """Write to standard output in UTF-8, at once. On a terminal, control characters other than tab and line end are shown as signs.

    When nobody reads it any more, later output goes nowhere, and BrokenPipeError is raised.
    """
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\t\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise
