"""Whole runs of the toy model: the same result through kills and signals, other meshes, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy_run import experiment

from memtok_jax import config, data
from memtok_jax.config import StoppedError, UserError
from memtok_jax.evaluation.report import evaluate_run
from memtok_jax.models.protocol import bind
from memtok_jax.training import distributed, machine, metrics, step
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.checksums import array_checksum
from memtok_jax.training.progress import Progress, duration
from memtok_jax.training.run import make_mesh, train
from memtok_jax.training.run_folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Path of a text with something to learn in it."""
    path, rng = tmp_path_factory.mktemp("data") / "words.txt", random.Random(0)
    path.write_text(" ".join(rng.choice(["one", "two", "three", "four"]) for _ in range(2500)))
    return str(path)


def abstract(exp) -> step.TrainState:
    return step.abstract_state(step.update_of(exp, bind(exp.model)), make_mesh(exp))


def saved(workdir: Path, exp) -> step.TrainState:
    """The newest state of a run, on the host."""
    with Checkpoints(workdir, 2) as checkpoints:
        return jax.device_get(checkpoints.restore(abstract(exp))[0])


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def toy_process(workdir: Path, source: str, *overrides: str) -> subprocess.Popen:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "toy_run.py"), str(workdir), source, *overrides]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_step(process: subprocess.Popen, workdir: Path, least: int) -> None:
    """Return as soon as the metrics reach a step."""
    for _ in range(2400):
        if any(r["step"] >= least for r in metrics.read(workdir)):
            return
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
    raise AssertionError(f"no step {least} after four minutes")


@pytest.mark.multiprocess
def test_killed_and_restarted_equals_uninterrupted(text, tmp_path):
    """SIGTERM, then kill -9, then to the end: params, moments, carry and data order bit for bit as in one go."""
    overrides = ("optimizer.steps=1200", "training.log_every=5", "training.checkpoint_every=100",
                 "training.eval_every=0")
    children = []
    try:
        children.append(toy_process(tmp_path / "cut", text, *overrides))
        wait_for_step(children[-1], tmp_path / "cut", 50)
        children[-1].send_signal(signal.SIGTERM)
        out, _ = children[-1].communicate(timeout=240)
        assert children[-1].returncode == 143 and "stopped by SIGTERM after step" in out, out
        reached = max(r["step"] for r in metrics.read(tmp_path / "cut"))
        children.append(toy_process(tmp_path / "cut", text, *overrides))
        wait_for_step(children[-1], tmp_path / "cut", reached + 150)
        children[-1].kill()
        children[-1].wait(timeout=60)
        assert "trained" not in children[-1].stdout.read(), "the run must be killed before its end"
        children.append(toy_process(tmp_path / "cut", text, *overrides))
        out, _ = children[-1].communicate(timeout=240)
        assert children[-1].returncode == 0 and "continuing after step" in out, out
    finally:
        for child in children:
            child.kill()
    exp = experiment(text, *overrides)
    assert train(exp, tmp_path / "whole") == 0
    equal(saved(tmp_path / "cut", exp), saved(tmp_path / "whole", exp))
    losses = [metrics.column(metrics.read(tmp_path / name), "train/loss") for name in ("cut", "whole")]
    assert losses[0] == losses[1] and losses[0][0] == list(range(5, 1201, 5))


def test_a_run_learns_and_reports(text, tmp_path, capsys):
    exp = experiment(text, "optimizer.steps=60", "training.eval_every=20", "optimizer.learning_rate=0.05",
                     "training.sample_tokens=5")
    assert train(exp, tmp_path / "run") == 0
    out = capsys.readouterr().out
    for expected in ("first step after", "held out: 400 targets, bits per byte", "xz-9e", "sample of generated text",
                     "written to"):
        assert expected in out, out
    records = metrics.read(tmp_path / "run")
    steps, bits = metrics.column(records, "eval/bits_per_byte")
    assert steps == [20, 40, 60] and bits[-1] < bits[0] < 8
    assert {"train/loss", "train/tokens_per_second", "train/learning_rate", "train/gradient_norm"} <= set(records[0])
    assert (tmp_path / "run" / "loss_curve.png").stat().st_size > 1000
    assert config.from_json((tmp_path / "run" / "config.json").read_text()) == exp
    before = len(records)
    assert train(exp, tmp_path / "run") == 0, "a complete run reports again and changes nothing"
    assert len(metrics.read(tmp_path / "run")) == before


def test_a_task_reports_accuracy(tmp_path, capsys):
    exp = experiment("task:recall", "data.task.pairs=2", "data.sequence=16", "optimizer.steps=2")
    assert train(exp, tmp_path / "run") == 0
    assert "accuracy" in capsys.readouterr().out
    assert metrics.column(metrics.read(tmp_path / "run"), "eval/accuracy")[0] == [2]


@pytest.fixture(scope="module")
def short_run(text, tmp_path_factory):
    """A finished run of 12 steps with checkpoints at 8 and 12: (workdir, experiment). Copy it before changing it."""
    exp, workdir = experiment(text), tmp_path_factory.mktemp("short") / "run"
    train(exp, workdir)
    return workdir, exp


def copied(short_run, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(short_run[0], tmp_path / "copy"))


def test_restore_onto_another_mesh_is_exact(short_run, tmp_path):
    workdir, exp = short_run
    other = config.override(exp, ("training.data=2", "training.fsdp=2", "training.tensor=2"))
    equal(saved(workdir, exp), saved(workdir, other))
    with Checkpoints(workdir, 2) as checkpoints:
        state, meta = checkpoints.restore(abstract(other))
    assert state.params["embed"].sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")
    assert meta["step"] == 12 and config.from_dict(meta["config"]) == exp


@pytest.mark.parametrize("change, message", [
    (("model.width=16",), "config.model.width = 8, now it is 16"),
    (("training.batch=8",), "config.training.batch = 4, now it is 8"),
    (("data.seed=3",), "config.data.seed = 0, now it is 3"),
])
def test_continuation_with_another_model_or_data_is_refused(short_run, change, message):
    workdir, exp = short_run
    with pytest.raises(UserError, match=message) as error:
        with RunFolder(workdir, config.override(exp, change)):
            pass
    assert "\n" not in str(error.value)


def test_more_steps_continue_a_run(short_run, tmp_path, capsys):
    workdir = copied(short_run, tmp_path)
    longer = config.override(short_run[1], ("optimizer.steps=14",))
    assert train(longer, workdir) == 0
    assert "continuing after step 12" in capsys.readouterr().out and saved(workdir, longer).step == 14


def test_foreign_and_damaged_directories(short_run, text, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    with pytest.raises(UserError, match="not a run directory: it holds dear.txt but no config.json"):
        train(short_run[1], tmp_path / "letters")
    with pytest.raises(UserError, match="is a file; give a directory"):
        train(short_run[1], tmp_path / "letters" / "dear.txt")
    workdir = copied(short_run, tmp_path)
    (workdir / "config.json").write_text("{half")
    with pytest.raises(UserError, match="config.json is damaged"):
        train(short_run[1], workdir)


def test_a_run_killed_while_its_config_was_written_begins(text, tmp_path):
    """Only the new version of the config is there: the same command begins the run."""
    exp = experiment(text, "optimizer.steps=2")
    with RunFolder(tmp_path / "run", exp):
        (tmp_path / "run" / "config.json").rename(tmp_path / "run" / "config.json.new")
    with RunFolder(tmp_path / "run", exp):
        assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.json", "run.lock"}


def test_corrupt_checkpoint_names_the_older_one(short_run, tmp_path):
    workdir = copied(short_run, tmp_path)
    for file in (workdir / "checkpoints" / "12").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"checkpoints/12 cannot be read .*that folder to go on from step 8") as error:
        saved(workdir, short_run[1])
    assert "\n" not in str(error.value)


def test_a_flipped_bit_is_never_restored_in_silence(short_run, tmp_path):
    """Of the files of arrays and of the meta: refused with the step to go on from, or without any effect."""
    workdir, exp = copied(short_run, tmp_path), short_run[1]
    sound, rng, refused = saved(workdir, exp), np.random.default_rng(0), 0
    files = sorted(f for f in (workdir / "checkpoints" / "12").rglob("*") if f.is_file() and f.stat().st_size > 500)
    for number in range(12):
        file = files[number % len(files)]
        content = file.read_bytes()
        place, bit = rng.integers(len(content)), rng.integers(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1:])
        try:
            equal(saved(workdir, exp), sound)
        except UserError as error:
            refused += 1
            assert "checkpoints/12 cannot be read" in str(error) and "go on from step 8" in str(error) and "\n" not in str(error)
        file.write_bytes(content)
    assert refused >= 4


def test_a_checksum_notices_one_bit_and_two_that_change_places():
    for dtype in ("float32", "bfloat16", "int32", "bool"):
        x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (3, 5)), dtype)
        words = np.asarray(x).view(np.uint8).copy()
        words[1, 2] ^= 1
        other = jnp.asarray(words.view(np.asarray(x).dtype))
        sums = [int(array_checksum(a)) for a in (x, other, x[::-1], x[:, ::-1])]
        assert len(set(sums)) == 4, dtype


def test_a_folder_is_for_one_process(short_run, tmp_path):
    workdir, exp = copied(short_run, tmp_path), short_run[1]
    with RunFolder(workdir, exp), pytest.raises(UserError, match="another process trains in this folder"):
        train(exp, workdir)
    assert train(exp, workdir) == 0, "the lock ends with its holder"


def test_an_edited_config_is_the_fault_and_not_the_checkpoint(short_run, tmp_path):
    workdir = copied(short_run, tmp_path)
    file = workdir / "config.json"
    file.write_text(file.read_text().replace('"width": 8', '"width": 16'))
    with pytest.raises(UserError, match=r"config.json says config.model.width = 16, but the checkpoint of step 12 was written "
                                        r"with 8; put that value back") as error:
        evaluate_run(workdir, (), print)
    assert "remove" not in str(error.value)
    wide = config.override(short_run[1], ("model.width=16",))
    with Checkpoints(short_run[0], 2) as checkpoints, pytest.raises(UserError, match=r"of another model: params\['embed'\] is"):
        checkpoints.restore(abstract(wide))


def test_evaluation_of_a_run_without_checkpoints_creates_nothing(short_run, tmp_path):
    with RunFolder(tmp_path / "run", short_run[1]):
        before = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(UserError, match="no complete checkpoint"):
        evaluate_run(tmp_path / "run", (), print)
    assert sorted((tmp_path / "run").rglob("*")) == before


def test_tokens_are_counted_where_lengths_vary(tmp_path):
    """Batches of 8 and of 16 tokens: what is reported is what was read, also after a restart."""
    exp = experiment("task:recall", "data.task.pairs=2", "data.sequence=16", "data.lengths=8,16", "optimizer.steps=6",
                     "training.log_every=1", "training.eval_every=0", "training.checkpoint_every=3")
    source, expected = data.open_train(exp.data, 4), []
    for _ in range(9):
        expected.append(next(source)["inputs"].size)
    assert len(set(expected)) == 2
    for steps in (6, 9):
        assert train(config.override(exp, (f"optimizer.steps={steps}",)), tmp_path / "run") == 0
    seen = metrics.column(metrics.read(tmp_path / "run"), "train/tokens_seen")[1]
    np.testing.assert_array_equal(seen, np.cumsum(expected))


def test_full_disk_is_one_line_and_loses_nothing(short_run, tmp_path):
    """A limit on the size of files stands in for a full disk: every larger write fails."""
    workdir, exp = copied(short_run, tmp_path), short_run[1]
    before = saved(workdir, exp)
    longer = config.override(exp, ("optimizer.steps=16", "training.log_every=100"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    jax.config.update("jax_enable_compilation_cache", False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        with pytest.raises(UserError, match="could not be written to .*step 12 is complete and stays") as error:
            train(longer, workdir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update("jax_enable_compilation_cache", True)
    assert "\n" not in str(error.value)
    equal(saved(workdir, exp), before)
    assert train(longer, workdir) == 0


def test_loss_that_is_not_finite_stops_the_run(text, tmp_path):
    exp = experiment(text, "optimizer.steps=40", "training.checkpoint_every=2", "optimizer.learning_rate=90",
                     "optimizer.warmup_steps=0", "optimizer.weight_decay=1e6", "training.keep=20")
    with pytest.raises(StoppedError, match=r"train/loss is (nan|inf) at step \d+, after 4 updates in a row.*good") as e:
        train(exp, tmp_path / "run")
    assert "\n" not in str(e.value)


def test_metrics_forget_what_will_be_done_again(tmp_path):
    writer = metrics.Metrics(tmp_path, 0)
    for n in (1, 2, 3):
        writer.write(n, {"train/loss": float("nan") if n == 1 else float(n)})
    writer.close()
    with (tmp_path / metrics.FILE).open("a") as file:
        file.write('{"step": 4, "train/lo')
    again = metrics.Metrics(tmp_path, 2)
    again.write(3, {"train/loss": 3.5})
    again.close()
    lines = [json.loads(line) for line in (tmp_path / metrics.FILE).read_text().splitlines()]
    assert [r["step"] for r in lines] == [1, 2, 3] and lines[0]["train/loss"] is None
    assert metrics.column(lines, "train/loss") == ([2, 3], [2.0, 3.5])
    assert all(r["time"] > 1e9 for r in lines)


def test_metrics_survive_bytes_that_are_no_text(tmp_path):
    (tmp_path / metrics.FILE).write_bytes(b'{"step": 1, "a": 1.0}\n\xff\xfe\n{"step": 2, "a": 2.0}\n')
    metrics.Metrics(tmp_path, 2).close()
    assert metrics.column(metrics.read(tmp_path), "a") == ([1, 2], [1.0, 2.0])


def test_progress_without_a_terminal_prints_plain_lines(capsys):
    progress = Progress(0, 4, quiet=False)
    progress.first_step_done(100)
    for n in (1, 2, 3, 4):
        progress.show(n, 1.0, 50.0)
    out = capsys.readouterr().out
    assert "\r" not in out and "step 1/4" in out and "step 4/4" in out and "step 2/4" not in out
    assert [duration(s) for s in (5, 65, 3725)] == ["5s", "1m05s", "1h02m"]


@pytest.mark.parametrize("environment, found", [
    ({}, False), ({"SLURM_NTASKS": "1"}, False), ({"SLURM_NTASKS": "4"}, True),
    ({"OMPI_COMM_WORLD_SIZE": "2"}, True), ({"TPU_WORKER_HOSTNAMES": "a,b"}, True)])
def test_clusters_are_detected(environment, found):
    assert distributed.detected(environment) is found


@pytest.mark.parametrize("choice", ["yes", "host,2,0", "host:1,2,2", "host:1,two,0", "host:99999,2,0", ":1,2,0", "host:0,2,0"])
def test_distributed_flag_errors(choice):
    with pytest.raises(UserError, match=f"--distributed={choice}"):
        distributed.join(choice, {})


@pytest.mark.multiprocess
@pytest.mark.parametrize("index, what", [(0, "1 other process"), (1, "process 0 at 127.0.0.1")])
def test_a_process_that_is_alone_says_what_it_waits_for_and_ends(index, what):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    script = f"from memtok_jax.training import distributed as d; d.PATIENCE = 2; d.join('127.0.0.1:{port},2,{index}')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, cwd=ROOT,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"})
    waiting, end = done.stderr.splitlines()
    assert waiting.startswith(f"waiting for {what}") and end.startswith("error: --distributed=") and done.returncode == 2


@pytest.mark.parametrize("changes, message", [
    (("model.width=3200000000",), "needs .* GB for parameters"), (("training.batch=1000000000000",), "needs .* GB for parameters"),
    (("training.seed=99999999999999999999",), "training.seed is .*must be between"), (("optimizer.learning_rate=nan",), "finite"),
    (("optimizer.epsilon=-1",), "optimizer.epsilon is -1.0; it must be above 0"), (("optimizer.clip_norm=nan",), "finite"),
    (("optimizer.weight_decay=inf",), "optimizer.weight_decay is inf; it must be finite")])
def test_nonsense_numbers_are_refused_before_anything_is_allocated(text, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        train(experiment(text, *changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_large_model_on_a_small_machine_is_announced(text, monkeypatch):
    exp = experiment(text)
    update = step.update_of(exp, bind(exp.model))
    assert machine.warnings(update, 64) == []
    monkeypatch.setattr(machine, "memory", lambda: 1.5 * machine.state_bytes(update))
    large, slow = machine.warnings(update, 10**12)
    assert "parameters, gradient, optimizer and carry need" in large and "one step of this model takes a CPU about" in slow


def test_mesh_and_batch_that_do_not_fit(text, tmp_path):
    exp = experiment(text, "training.data=8")
    with pytest.raises(ValueError, match=r"training.batch 4 / microbatches 1 = 4 rows do not divide over 8 parts"):
        train(exp, tmp_path)
    with pytest.raises(ValueError, match="the data has 256 symbols, model.vocabulary is 100"):
        train(dataclasses.replace(exp, model=dataclasses.replace(exp.model, vocabulary=100),
                                  training=dataclasses.replace(exp.training, data=1)), tmp_path)


FITTING = pytest.mark.parametrize("changes, size", [
    (("training.data=-1",), 2), (("training.data=-1", "evaluation.batch=4"), 4),
    (("training.data=-1", "training.batch=6", "evaluation.batch=6"), 6),
    (("training.data=-1", "training.fsdp=2", "evaluation.batch=4"), 2), (("training.data=4",), 4)], ids=str)


@FITTING
def test_cores_and_mesh_agree(text, changes, size, monkeypatch):
    """`use_cores` offers as many devices of a CPU of eight cores as `make_mesh` takes, fsdp included."""
    exp, offered = experiment(text, *changes), {}
    monkeypatch.setattr(distributed.os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.setattr(distributed, "jax", types.SimpleNamespace(
        config=types.SimpleNamespace(jax_num_cpu_devices=-1, update=offered.__setitem__), distributed=jax.distributed))
    distributed.use_cores(exp.training, exp.evaluation.batch, {})
    assert offered == {"jax_num_cpu_devices": make_mesh(exp).size}


@FITTING
def test_data_axis_takes_as_many_devices_as_divide_the_rows(text, changes, size):
    """Eight devices, 4 rows to train on, 2 to evaluate unless said otherwise; a number in the config is taken as it is."""
    assert make_mesh(experiment(text, *changes)).shape["data"] == size
