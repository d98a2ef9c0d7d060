"""A saved stream goes on bit for bit in another process; anything else than the same model is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import inference_toys as toys
import jax
import ml_dtypes
import numpy as np
import pytest
from inference_models import MODELS, ROWS, fresh, load, session, tokens

from memtok_jax.config import UserError
from memtok_jax.inference import snapshot
from memtok_jax.models.protocol import Model, bind
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
model, params = load(name)
run = session(name)
for cut in {cuts}:
    stream = snapshot.restore(f"{{folder}}/{{cut}}.stream", model)
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
    model, params = load(name)
    run, ids = session(name), tokens(name)
    expected = {}
    for cut in CUTS:
        stream = run.feed(params, fresh(name), ids[:, :cut])
        snapshot.save(tmp_path / f"{cut}.stream", stream, model)
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
    model, params = load(name)
    run, path = session(name), tmp_path / "a.stream"
    stream = run.feed(params, fresh(name), tokens(name)[:, :7])
    for _ in range(2):
        snapshot.save(path, stream, model)
        assert_equal(snapshot.restore(path, model), stream)
        stream = run.feed(params, stream, tokens(name)[:, :5])
    assert [p.name for p in tmp_path.iterdir()] == ["a.stream"]


def test_one_row_travels_into_another_batch(name, tmp_path):
    model, params = load(name)
    run, path = session(name), tmp_path / "row.stream"
    stream = run.feed(params, fresh(name), tokens(name), [30, 12, 5])
    snapshot.save(path, run.take(stream, 1), model)
    row = snapshot.restore(path, model)
    moved = run.insert(run.feed(params, fresh(name, seed=9), tokens(name)[:, :3]), 2, row)
    assert_equal(run.take(moved, 2), run.take(stream, 1))
    said, _, _ = run.decode(params, stream, [4, 4, 4], 1.0)
    moved_said, _, _ = run.decode(params, moved, [4, 4, 4], 1.0)
    np.testing.assert_array_equal(said[1], moved_said[2])


def test_restored_stream_can_be_donated(name, tmp_path):
    model, params = load(name)
    snapshot.save(tmp_path / "a", fresh(name), model)
    restored = snapshot.restore(tmp_path / "a", model)
    session(name).feed(params, restored, tokens(name))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(restored) if leaf.size)


# --------------------------------------------------------------------------------------------------------------- errors

def saved(tmp_path):
    model, _ = load("toy")
    snapshot.save(tmp_path / "a", fresh("toy"), model)
    return tmp_path / "a", model


def test_another_config_is_refused_by_name(tmp_path):
    path, model = saved(tmp_path)
    with pytest.raises(UserError, match="saved by a model with unit=3, this one has unit=4"):
        snapshot.restore(path, dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, unit=4)))


def test_the_part_of_the_config_is_named(tmp_path):
    model, _ = load("titans")
    snapshot.save(tmp_path / "a", fresh("titans"), model)
    mac, mag, lmm = model.cfg.pattern
    other = bind(dataclasses.replace(model.cfg, pattern=(mac, dataclasses.replace(mag, window=6), lmm)))
    with pytest.raises(UserError, match=r"pattern\.1\.window=5, this one has pattern\.1\.window=6"):
        snapshot.restore(tmp_path / "a", other)


def test_a_stream_of_another_model_is_not_saved(tmp_path):
    with pytest.raises(UserError, match="stream.* must"):
        snapshot.save(tmp_path / "a", fresh("toy"), load("rmt")[0])
    assert not list(tmp_path.iterdir())


def with_state(spec):
    """A model with the toy's config and another carry: a tree of StateSpec by batch size."""
    return Model(toys.Functions(state_specs=lambda cfg, batch: spec(batch)), toys.LanguageModelConfig())


def test_a_model_with_other_arrays_is_refused(tmp_path):
    path, _ = saved(tmp_path)
    other = with_state(lambda batch: {"memory": StateSpec((batch, 2), ("batch", None))})
    with pytest.raises(UserError, match="this model needs"):
        snapshot.restore(path, other)


def test_missing_foreign_and_newer_files_are_refused(tmp_path, monkeypatch):
    path, model = saved(tmp_path)
    with pytest.raises(UserError, match="there is no stream at"):
        snapshot.restore(tmp_path / "b", model)
    np.savez(tmp_path / "foreign.npz", a=np.zeros(3))
    for content in (b"", b"some text", (tmp_path / "foreign.npz").read_bytes()):
        (tmp_path / "foreign").write_bytes(content)
        with pytest.raises(UserError, match="not a saved stream"):
            snapshot.restore(tmp_path / "foreign", model)
    monkeypatch.setattr(snapshot, "FORMAT", 3)
    with pytest.raises(UserError, match="has stream format 2, this version reads format 3"):
        snapshot.restore(path, model)


def test_damage_anywhere_is_refused_or_harmless(tmp_path):
    """A cut file, and a flipped byte at places all over the file: never another stream, never another exception."""
    path, model = saved(tmp_path)
    content, stream, refused = path.read_bytes(), snapshot.restore(path, model), 0
    places = range(0, len(content), 7)
    damaged = [content[:n] for n in (len(content) // 3, len(content) - 30, len(content) - 1)]
    damaged += [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1:] for i in places]
    for text in damaged:
        path.write_bytes(text)
        try:
            assert_equal(snapshot.restore(path, model), stream)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > 0.7 * len(damaged), "what is left are dates and other fields that nobody reads"


def rewritten(path, change):
    """The file again with its header and arrays (bytes by number) after `change(header, arrays)`."""
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json"))
        arrays = {name: archive.read(name) for name in archive.namelist() if name != "header.json"}
    change(header, arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, content in arrays.items():
            archive.writestr(name, content)


CHANGES = {
    "a member is missing": lambda header, arrays: arrays.pop("0"),
    "two members are swapped": lambda header, arrays: arrays.update({"0": arrays["1"], "1": arrays["0"]}),
    "an array is short": lambda header, arrays: arrays.update({"0": arrays["0"][:-4]}),
    "another dtype": lambda header, arrays: header["arrays"][".t"].__setitem__(0, "float32"),
    "no dtype": lambda header, arrays: header["arrays"][".t"].__setitem__(0, "nothing"),
    "another shape": lambda header, arrays: header["arrays"][".t"].__setitem__(1, [1, ROWS]),
    "a huge shape": lambda header, arrays: header["arrays"][".t"].__setitem__(1, [2**40]),
    "another batch": lambda header, arrays: header.update(batch=ROWS + 1),
    "no batch": lambda header, arrays: header.pop("batch"),
    "no config": lambda header, arrays: header.update(config=None),
    "no arrays": lambda header, arrays: header.update(arrays={}),
    "no format": lambda header, arrays: header.pop("format"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_with_something_else_inside_is_refused(change, tmp_path):
    path, model = saved(tmp_path)
    rewritten(path, CHANGES[change])
    with pytest.raises(UserError, match="it is damaged|this model needs"):
        snapshot.restore(path, model)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path, model = saved(tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="cannot write the stream to .*No space left on device"):
        snapshot.save(path, session("toy").feed(load("toy")[1], fresh("toy"), tokens("toy")), model)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a"]
    with pytest.raises(UserError, match="cannot write the stream to"):
        snapshot.save(tmp_path / "none" / "a", fresh("toy"), model)


def test_bfloat16_survives(tmp_path):
    model = with_state(lambda batch: StateSpec((2, batch), (None, "batch"), ml_dtypes.bfloat16))
    state = jax.random.normal(jax.random.key(0), (2, ROWS)).astype("bfloat16")
    stream = fresh("toy")._replace(state=state)
    snapshot.save(tmp_path / "a", stream, model)
    restored = snapshot.restore(tmp_path / "a", model)
    assert restored.state.dtype == state.dtype
    assert_equal(restored, stream)
