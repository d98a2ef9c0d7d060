"""A saved stream goes on bit for bit in another process; anything else than the same model is refused in one line."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import inference_toys as toys
import jax
import ml_dtypes
import numpy as np
import pytest
from inference_models import MODELS, ROWS, fresh, load, session, tokens

from memtok_jax.inference import snapshot
from memtok_jax.params import StateSpec

CUTS = (0, 1, 4, 7, 13)   # in mid-unit, at a unit's end, after several

CHILD = """
import sys
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
import numpy as np
from inference_models import load, session, tokens
from memtok_jax.inference import snapshot

folder, name = sys.argv[1:]
model, cfg, params = load(name)
run = session(name)
for cut in {cuts}:
    stream = snapshot.restore(f"{{folder}}/{{cut}}.stream", model, cfg)
    logits, stream = run.step(params, stream, tokens(name)[:, cut])
    ids, last, stream = run.decode(params, stream, tokens(name)[:, cut + 1], 1.0)
    stream = run.feed(params, stream, tokens(name)[:, cut:])
    np.savez(f"{{folder}}/{{cut}}.npz", logits, ids, *jax.tree.leaves(stream))
"""


@pytest.fixture(params=MODELS)
def name(request):
    return request.param


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.multiprocess
def test_another_process_goes_on_bit_for_bit(name, tmp_path):
    model, cfg, params = load(name)
    run, ids = session(name), tokens(name)
    expected = {}
    for cut in CUTS:
        stream = run.feed(params, fresh(name), ids[:, :cut])
        snapshot.save(tmp_path / f"{cut}.stream", stream, cfg)
        logits, stream = run.step(params, stream, ids[:, cut])
        said, _, stream = run.decode(params, stream, ids[:, cut + 1], 1.0)
        stream = run.feed(params, stream, ids[:, cut:])
        expected[cut] = [logits, said, *jax.tree.leaves(stream)]
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or ""}
    command = [sys.executable, "-c", CHILD.format(cuts=CUTS), str(tmp_path), name]
    subprocess.run(command, check=True, timeout=300, env=env)
    for cut in CUTS:
        with np.load(tmp_path / f"{cut}.npz") as found:
            for mine, key in zip(expected[cut], found.files, strict=True):
                np.testing.assert_array_equal(mine, found[key], err_msg=f"cut at {cut}, {key}")


def test_save_leaves_the_stream_alone_and_replaces_the_file(name, tmp_path):
    model, cfg, params = load(name)
    run, path = session(name), tmp_path / "a.stream"
    stream = run.feed(params, fresh(name), tokens(name)[:, :7])
    for _ in range(2):
        snapshot.save(path, stream, cfg)
        assert_equal(snapshot.restore(path, model, cfg), stream)
        stream = run.feed(params, stream, tokens(name)[:, :5])
    assert [p.name for p in tmp_path.iterdir()] == ["a.stream"]


def test_one_row_travels_into_another_batch(name, tmp_path):
    model, cfg, params = load(name)
    run, path = session(name), tmp_path / "row.stream"
    stream = run.feed(params, fresh(name), tokens(name), [30, 12, 5])
    snapshot.save(path, run.take(stream, 1), cfg)
    row = snapshot.restore(path, model, cfg)
    moved = run.insert(run.feed(params, fresh(name, seed=9), tokens(name)[:, :3]), 2, row)
    assert_equal(run.take(moved, 2), run.take(stream, 1))
    said, _, _ = run.decode(params, stream, [4, 4, 4], 1.0)
    moved_said, _, _ = run.decode(params, moved, [4, 4, 4], 1.0)
    np.testing.assert_array_equal(said[1], moved_said[2])


def test_restored_stream_can_be_donated(name, tmp_path):
    model, cfg, params = load(name)
    snapshot.save(tmp_path / "a", fresh(name), cfg)
    restored = snapshot.restore(tmp_path / "a", model, cfg)
    session(name).feed(params, restored, tokens(name))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored))


# --------------------------------------------------------------------------------------------------------------- errors

@dataclasses.dataclass(frozen=True)
class Outer:
    inner: toys.LanguageModelConfig = toys.LanguageModelConfig()


def saved(tmp_path):
    model, cfg, _ = load("toy")
    snapshot.save(tmp_path / "a", fresh("toy"), cfg)
    return tmp_path / "a", model, cfg


def test_another_config_is_refused_by_name(tmp_path):
    path, model, cfg = saved(tmp_path)
    with pytest.raises(ValueError, match="saved by a model with unit=3, this one has unit=4"):
        snapshot.restore(path, model, dataclasses.replace(cfg, unit=4))


def test_the_part_of_the_config_is_named(tmp_path):
    outer = Outer()
    snapshot.save(tmp_path / "a", fresh("toy"), outer)
    other = dataclasses.replace(outer, inner=dataclasses.replace(outer.inner, width=5))
    with pytest.raises(ValueError, match=r"inner\.width=4, this one has inner\.width=5"):
        snapshot.restore(tmp_path / "a", load("toy")[0], other)


def test_a_model_with_other_arrays_is_refused(tmp_path):
    path, model, cfg = saved(tmp_path)

    class Other:
        state_specs = staticmethod(lambda cfg, batch: {"memory": StateSpec((batch, 2), ("batch", None))})

    with pytest.raises(ValueError, match="this model needs"):
        snapshot.restore(path, Other, cfg)


def test_missing_damaged_foreign_and_newer_files_are_refused(tmp_path, monkeypatch):
    path, model, cfg = saved(tmp_path)
    with pytest.raises(ValueError, match="there is no stream at"):
        snapshot.restore(tmp_path / "b", model, cfg)
    content = path.read_bytes()
    for i, damaged in enumerate((content[:-30], content[:700] + b"xxxx" + content[704:], b"", b"some text")):
        (tmp_path / f"damaged{i}").write_bytes(damaged)
        with pytest.raises(ValueError, match="not a saved stream, or it is damaged"):
            snapshot.restore(tmp_path / f"damaged{i}", model, cfg)
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match="not a saved stream"):
        snapshot.restore(tmp_path / "foreign.npz", model, cfg)
    monkeypatch.setattr(snapshot, "FORMAT", 2)
    with pytest.raises(ValueError, match="has stream format 1, this version reads format 2"):
        snapshot.restore(path, model, cfg)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path, model, cfg = saved(tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ValueError, match="cannot write the stream to .*No space left on device"):
        snapshot.save(path, session("toy").feed(load("toy")[2], fresh("toy"), tokens("toy")), cfg)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(ValueError, match="cannot write the stream to"):
        snapshot.save(tmp_path / "none" / "a", fresh("toy"), cfg)


def test_bfloat16_survives(tmp_path):
    class Model:
        state_specs = staticmethod(lambda cfg, batch: StateSpec((2, batch), (None, "batch"), ml_dtypes.bfloat16))

    state = jax.random.normal(jax.random.key(0), (2, ROWS)).astype("bfloat16")
    stream = fresh("toy")._replace(state=state)
    snapshot.save(tmp_path / "a", stream, toys.LanguageModelConfig())
    restored = snapshot.restore(tmp_path / "a", Model, toys.LanguageModelConfig())
    assert restored.state.dtype == state.dtype
    assert_equal(restored, stream)
