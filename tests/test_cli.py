"""The two commands as a user meets them: a tiny run of the real model, and every mistake in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_run

from memtok_jax import config
from memtok_jax.training import cli, metrics

ROOT = Path(__file__).resolve().parent.parent
TINY = tuple(f"--config.{change}" for change in (
    "model.width=16", "model.layers=1", "model.head_dim=8", "model.pattern.0.window=16", "data.sequence=32",
    "data.eval_bytes=300", "training.batch=2", "training.data=1", "evaluation.batch=2", "optimizer.steps=4",
    "optimizer.warmup_steps=1", "training.log_every=1", "training.sample_tokens=8"))


def command(*args: str, **environment: str) -> subprocess.CompletedProcess:
    cache = {name: str(value) for name, value in os.environ.items() if name != "MEMTOK_DATA_DIR"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, timeout=280, cwd=ROOT,
                          env={**cache, "JAX_PLATFORMS": "cpu", **environment})


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory) -> tuple[Path, str]:
    """A finished tiny run on a small text: (workdir, what train.py printed)."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "words.txt").write_text("memory is what remains when the rest is gone. " * 200)
    done = command("train.py", "--config=transformer", f"--data={folder / 'words.txt'}", f"--workdir={folder / 'run'}",
                   *TINY)
    assert done.returncode == 0, done.stderr
    return folder / "run", done.stdout


def test_train_prints_its_report(tiny_run):
    workdir, out = tiny_run
    for expected in ("compiling the training step", "first step after", "scoring all held-out data",
                     "bits per byte", "xz-9e", "order-3 counts", "sample of generated text",
                     f"written to {workdir}"):
        assert expected in out, out
    assert metrics.column(metrics.read(workdir), "train/loss")[0] == [1, 2, 3, 4]
    saved = config.from_json((workdir / "config.json").read_text())
    assert saved.model.width == 16 and saved.data.source.endswith("words.txt")


def test_eval_ends_with_one_json_object(tiny_run):
    done = command("eval.py", f"--workdir={tiny_run[0]}")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["step"] == 4 and result["eval/bytes"] == 300 and 0 < result["eval/bits_per_byte"] < 10
    assert result["eval/word_perplexity"] > 1 and result["baseline/xz-9e"] > 0
    assert sum(count for *_, count in result["positions"]) == 300
    assert json.loads((tiny_run[0] / "eval.json").read_text()) == result
    assert (tiny_run[0] / "loss_by_position.png").exists()


@pytest.mark.parametrize("args, message", [
    (["--config=titans_mc"], "no config called 'titans_mc'; did you mean 'titans_mac'"),
    (["--config=titans_mac:340"], "has no preset '340'; did you mean '340m'"),
    (["--config.model.widht=3"], "unknown field config.model.widht; did you mean 'width'"),
    (["--config.model.width=wide"], "config.model.width must be int, got 'wide'"),
    (["--config.model.width"], "--config.model.width needs a value"),
    (["--config.model.head_dim=48", "--config.model.width=128"], "width=128 is not a multiple of head_dim=48"),
    (["--config.training.call_tokens=100"], "does not divide into calls of 100 tokens"),
    (["--config.model.pattern.0.memory.chunk=48", "--config.model.segment=64"], "segment=64 and memory.chunk=48"),
    (["--config.training.microbatches=3", "--config.training.batch=8"],
     "training.batch 8 does not divide into 3 microbatches"),
    (["--config.training.tensor=3"], "8 devices do not divide into fsdp 1 x tensor 3"),
    (["--data=no/such/file.txt"], "no/such/file.txt"),
    (["--data=task:recal"], "unknown task 'recal'"),
    (["--compile_only=tpu"], "--compile_only=tpu must be KIND:SIZE"),
    (["--compile_only=gpu:8"], "'gpu' is no machine to compile for; give v5e:16x16 (a TPU) or cpu:8"),
    (["--compile_only=cpu:0"], "a whole number from 1 to 4096, got '0'"),
    (["--compile_only=cpu:-1"], "a whole number from 1 to 4096, got '-1'"),
    (["--workdir="], "--workdir is empty"),
    (["--workdir=a\0b"], "--workdir='a\\x00b' holds a NUL character"),
    (["--workdir=a.file"], "--workdir=a.file: a.file is a file; give a directory"),
    (["--workdir=a.file/run"], "a.file is a file; give a directory"),
    (["--config.optimizer.steps=30", "--config.optimizer.warmup_steps=40"], "optimizer.warmup_steps is 40, more than"),
    (["--config.training.seed=99999999999999999999"], "training.seed is 99999999999999999999; it must be between"),
    (["--config.optimizer.learning_rate=nan"], "optimizer.learning_rate is nan; it must be finite"),
    (["titans_mac"], "'titans_mac' is not a flag"),
])
def test_mistakes_end_in_one_line(args, message, capsys, tmp_path, monkeypatch):
    """In this process, as the commands do after absl has read the flags."""
    (tmp_path / "a.file").write_text("")
    status = run_main(args, tmp_path, monkeypatch)
    err = capsys.readouterr().err
    assert status == 2 and message in err and err.count("\n") == 1 and err.startswith("error: "), err
    assert not (tmp_path / "run" / "checkpoints").exists()


def run_main(args: list[str], tmp_path: Path, monkeypatch) -> int:
    """train.py's main with these flags; absl itself is tested by `test_help_and_unknown_flags`."""
    import importlib.util

    from absl import flags

    spec = importlib.util.spec_from_file_location("train_command", ROOT / "train.py")
    values = flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", values)
    with monkeypatch.context() as m:
        for name in ("DEFINE_string", "DEFINE_bool"):
            original = getattr(flags, name)
            m.setattr(flags, name, lambda *a, _f=original, **k: _f(*a, flag_values=values, **k))
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

    class App:
        @staticmethod
        def run(main, argv, flags_parser):
            sys.exit(main(values(argv)))

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        cli.run(App, ["train.py", "--workdir=run", *args], module.main, module.DEBUG)
    return leaving.value.code


def test_an_error_of_ours_keeps_its_traceback(tmp_path, monkeypatch, capsys):
    """A ValueError from inside is not made out to be a mistake of the command."""
    def broken(*_):
        raise ValueError("shapes (3,) and (4,)")

    monkeypatch.setattr(cli, "train", broken)
    assert run_main([], tmp_path, monkeypatch) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err and "in broken" in err and err.endswith("please report it, with the command and the lines above\n")


def test_a_short_run_shortens_its_warm_up(capsys):
    exp = cli.experiment("titans_mac", ("optimizer.steps=30",), None, None)
    assert exp.optimizer.steps == 30 and 0 <= exp.optimizer.warmup_steps < 30
    assert "note: the run is shorter than its warm-up; optimizer.warmup_steps is 0" in capsys.readouterr().out
    long = cli.experiment("titans_mac", ("optimizer.steps=300",), None, None)
    assert long.optimizer.warmup_steps == 100 and capsys.readouterr().out == ""


def test_eval_without_a_run(tmp_path):
    done = command("eval.py", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "is not a run directory" in done.stderr and "Traceback" not in done.stderr


def test_help_and_unknown_flags():
    done = command("train.py", "--help")
    assert "--config" in done.stdout and "titans_mac:340m" in done.stdout and "--compile_only" in done.stdout
    done = command("train.py", "--wrkdir=x")
    assert done.returncode == 2 and done.stderr.startswith("error: unknown flag --wrkdir; did you mean 'workdir'?")
    assert done.stderr.count("\n") == 1


def test_compile_only_on_fake_devices(capsys):
    """Eight CPU devices stand for a slice: the mesh shards, the state is donated, memory is reported."""
    exp = toy_run.experiment("task:recall", "training.batch=8", "evaluation.batch=8", "training.data=2",
                             "training.fsdp=2", "training.tensor=2")
    assert cli.compile_only(exp, "cpu:8") == 0
    out = capsys.readouterr().out
    assert "8 devices, mesh data 2 x fsdp 2 x tensor 2" in out and "memory per device" in out
    assert "all-reduce" in out


@pytest.mark.tpu_backend
@pytest.mark.slow
@pytest.mark.parametrize("size", ["340m", "760m"])
def test_paper_sizes_compile_for_256_chips(size):
    # libtpu ends the process at a flag of another compiler.
    done = command("train.py", f"--config=titans_mac:{size}", "--compile_only=v5e:16x16", XLA_FLAGS="")
    assert done.returncode == 0, done.stderr
    gigabytes = float(done.stdout.split("memory per device: ")[1].split(" GB")[0])
    assert "256 devices" in done.stdout and gigabytes < 16, done.stdout
