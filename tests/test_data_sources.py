"""Where text comes from: the standard library, files and folders, local data sets, TFDS."""

from __future__ import annotations

import codecs
import dataclasses
import gzip
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from memtok_jax import config, data
from memtok_jax.data import corpus, files, prepared, stdlib
from memtok_jax.data import text as text_source
from memtok_jax.data.documents import total
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.task import TaskConfig
from memtok_jax.data.tasks.copy import CopyConfig
from memtok_jax.data.tasks.recall import RecallConfig
from memtok_jax.data.text import TextConfig

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _forget_loaded_text():
    yield
    corpus._load.cache_clear()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small folder that looks like a standard library."""
    folder = tmp_path_factory.mktemp("library")
    rng = np.random.default_rng(0)
    for i in range(40):
        path = folder / ("email" if i % 3 else ".") / f"module{i}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"# module {i} é\n" + "x = 1\n" * int(rng.integers(1, 60)))
    for skipped in ("test/test_x.py", "site-packages/other.py", "encodings/cp1.py", "config-3.11-x/a.py",
                    "_sysconfigdata_linux.py", "data.bin"):
        path = folder / skipped
        path.parent.mkdir(exist_ok=True)
        path.write_text("left out\n")
    (folder / "latin.py").write_bytes("# é\n".encode("latin-1"))
    (folder / "empty.py").write_bytes(b"")
    return folder


@pytest.fixture
def small_library(library, monkeypatch):
    monkeypatch.setattr(stdlib, "library_folder", lambda: library)
    monkeypatch.setattr(stdlib, "_topics", lambda: [("pydoc_data/if", b"The if statement\n")])
    return library


def contents(splits) -> dict:
    return {split: [(d.name, d.data.tobytes()) for d in documents] for split, documents in splits.items()}


# ------------------------------------------------------------------------------------------------ standard library

def test_stdlib_files_are_chosen_and_split_by_file(small_library):
    splits = stdlib.collect(stdlib._files(small_library), 0.1)
    names = [d.name for documents in splits.values() for d in documents]
    assert len(names) == len(set(names)) == 41 and "pydoc_data/if" in names
    left_out = ("test", "site-packages", "encodings", "config-", "latin", "empty")
    assert not any(skip in n for n in names for skip in left_out)
    assert all((small_library / n).read_bytes() == text for split in contents(splits).values() for n, text in split
               if n != "pydoc_data/if")
    assert 0 < total(splits["valid"]) <= 0.1 * (total(splits["train"]) + total(splits["valid"]))


def test_prepared_data_set_equals_the_files(small_library, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    built, again = (stdlib.load(str(tmp_path), 0.1) for _ in range(2))
    assert built.origin.startswith(str(tmp_path)) and built.origin == again.origin
    direct = stdlib.collect(stdlib._files(small_library), 0.1)
    assert contents(built.splits) == contents(again.splits) == contents(direct)
    assert list(Path(tmp_path).glob("building-*")) == []
    other = stdlib.load(str(tmp_path), 0.2)
    assert other.origin != built.origin


@pytest.mark.parametrize("blocked", [("tensorflow_datasets", "grain"), ("tensorflow_datasets",), ("grain",),
                                     ("array_record",)])
def test_same_batches_without_the_optional_packages(small_library, tmp_path, monkeypatch, blocked):
    cfg = TextConfig(sequence=8, cache_dir=str(tmp_path), held_out=0.1)
    expected = [next(data.open_train(cfg, 2)), *data.open_eval(cfg, 2)]
    corpus._load.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] in blocked:
            monkeypatch.delitem(sys.modules, name)
    for name in blocked:
        monkeypatch.setitem(sys.modules, name, None)
    found = [next(data.open_train(cfg, 2)), *data.open_eval(cfg, 2)]
    for a, b in zip(expected, found, strict=True):
        assert a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def test_damaged_data_set_is_built_again(small_library, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    first = stdlib.load(str(tmp_path), 0.1)
    for record in Path(first.origin).rglob("*train.array_record*"):
        record.write_bytes(b"broken")
    second = stdlib.load(str(tmp_path), 0.1)
    assert second.origin == first.origin and contents(second.splits) == contents(first.splits)
    for child in Path(first.origin).iterdir():
        shutil.rmtree(child) if child.is_dir() else child.unlink()
    assert contents(stdlib.load(str(tmp_path), 0.1).splits) == contents(first.splits)


def test_unwritable_cache_falls_back_to_the_files(small_library, tmp_path):
    blocker = tmp_path / "a_file"
    blocker.write_text("")
    found = stdlib.load(str(blocker / "below"), 0.1)
    assert found.origin == str(small_library)
    assert contents(found.splits) == contents(stdlib.collect(stdlib._files(small_library), 0.1))


def test_any_failure_of_the_builder_falls_back_to_the_files(small_library, tmp_path, monkeypatch):
    def fail(folder, splits):
        raise RuntimeError("no builder today")

    monkeypatch.setattr(stdlib, "build", fail)
    assert stdlib.load(str(tmp_path), 0.1).origin == str(small_library)


def test_python_without_sources_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(stdlib, "library_folder", lambda: tmp_path)
    monkeypatch.setattr(stdlib, "_topics", lambda: [])
    with pytest.raises(DataNotFoundError, match="no Python sources found"):
        stdlib.load(str(tmp_path / "cache"), 0.1)


def test_stale_builds_are_removed_and_live_ones_are_kept(small_library, tmp_path):
    pytest.importorskip("tensorflow_datasets")
    old, new = tmp_path / "building-old", tmp_path / "building-new"
    old.mkdir(), new.mkdir()
    long_ago = time.time() - 2 * stdlib.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    stdlib.load(str(tmp_path), 0.1)
    assert not old.exists() and new.exists()


def test_a_killed_build_does_no_harm(library, tmp_path):
    """A process is killed just before its records get their final name; the next one builds and reads them."""
    pytest.importorskip("tensorflow_datasets")
    program = textwrap.dedent(f"""
        import os, sys
        from pathlib import Path
        from memtok_jax.data import stdlib
        stdlib.library_folder = lambda: Path({str(library)!r})
        stdlib._topics = lambda: []
        if sys.argv[1] == "kill":
            os.rename = lambda *names: os.kill(os.getpid(), {int(signal.SIGKILL)})
        print(stdlib.load({str(tmp_path)!r}, 0.1).origin)
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = [subprocess.run([sys.executable, "-c", program, how], env=environment, capture_output=True, text=True,
                          timeout=120) for how in ("kill", "finish")]
    assert run[0].returncode == -signal.SIGKILL and list(tmp_path.glob("building-*"))
    assert run[1].returncode == 0, run[1].stderr
    assert run[1].stdout.strip().startswith(str(tmp_path))


def test_this_machine_has_text_enough(tmp_path):
    """The real standard library: millions of bytes, quickly, and held-out files that are not trained on."""
    cfg = TextConfig(cache_dir=str(tmp_path))
    begin = time.perf_counter()
    loaded = corpus.load(cfg)
    assert time.perf_counter() - begin < 60
    assert total(loaded.splits["train"]) > 3_000_000
    assert not {d.name for d in loaded.splits["train"]} & {d.name for d in loaded.splits["valid"]}
    assert len(text_source.eval_text(cfg)) == cfg.eval_bytes
    assert data.vocabulary(cfg) == 256 and "\n" not in data.describe(cfg)


# ------------------------------------------------------------------------------------------------ files and folders

def test_text_file_plain_and_packed(tmp_path):
    text = bytes(range(1, 256)) * 4
    (tmp_path / "a.txt").write_bytes(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text))
    for name in ("a.txt", "b.txt.gz"):
        cfg = TextConfig(source=str(tmp_path / name), held_out=0.1)
        assert text_source.train_text(cfg) + text_source.eval_text(cfg) == text
        assert len(text_source.eval_text(cfg)) == 102
        assert text_source.eval_text(TextConfig(source=cfg.source, held_out=0.1, eval_bytes=10)) == text[918:928]
        assert text_source.train_text(TextConfig(source=cfg.source, held_out=0.1, max_bytes=50)) == text[:50]


def test_folder_skips_binary_hidden_and_empty_files(tmp_path):
    for name, text in (("x/one.txt", b"one " * 30), ("two.md", b"two " * 30), ("bin.txt", b"a\0b"), ("empty.txt", b""),
                       (".git/config", b"hidden"), ("three", b"three" * 3)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    splits = files.load_path(tmp_path, 0.1).splits
    names = {d.name for documents in splits.values() for d in documents}
    assert names == {"x/one.txt", "two.md", "three"}
    assert [d.name for d in splits["valid"]] == ["three"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(tmp_path, encoding):
    written = "Grüße, 世界\n" * 40
    mark = codecs.BOM_UTF16_BE if encoding == "utf-16-be" else b""
    (tmp_path / "a.txt").write_bytes(mark + written.encode(encoding))
    for source in (tmp_path, tmp_path / "a.txt"):
        cfg = TextConfig(source=str(source))
        assert text_source.train_text(cfg) + text_source.eval_text(cfg) == written.encode()


def test_files_that_may_surprise_are_named_in_the_description(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n' * 30)
    (tmp_path / "b.txt").write_text("two " * 30)
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe\0")      # a mark of UTF-16, but half a symbol
    (tmp_path / "d.bin").write_bytes(b"\0\1")
    said = data.describe(TextConfig(source=str(tmp_path)))
    assert "a.jsonl: read as they stand, braces and field names included" in said and "\n" not in said
    assert "c.bin and 1 more: left out, as they hold zero bytes" in said
    single = data.describe(TextConfig(source=str(tmp_path / "d.bin"), held_out=0.5))
    assert "d.bin: read byte by byte, though it holds zero bytes" in single
    assert "; " not in data.describe(TextConfig(source=str(tmp_path / "b.txt"))).split("from ")[1]


def test_eval_bytes_bound_what_is_scored(tmp_path):
    """Of many documents too, whose separators are scored."""
    for n in range(20):
        (tmp_path / f"{n}.txt").write_text(f"{n:02d}" * 50)
    for most in (0, 7, 100, 250):
        cfg = TextConfig(source=str(tmp_path), held_out=0.3, eval_bytes=most, sequence=8)
        scored = sum(int(b["length"].sum()) for b in data.open_eval(cfg, 2))
        assert scored == len(text_source.eval_text(cfg)) == (most or 6 * 101 - 1)


# --------------------------------------------------------------------------------------------- the choice of a source

def test_a_name_chooses_the_kind_of_data():
    words = TextConfig(sequence=24, seed=3, visit=2)
    assert data.named(words, "some/file.txt") == dataclasses.replace(words, source="some/file.txt")
    task = data.named(words, "task:recall")
    assert task == TaskConfig(RecallConfig(), sequence=24, seed=3) and task.source == "task:recall"
    fewer = dataclasses.replace(task, eval_samples=5)
    assert data.named(fewer, "task:copy") == dataclasses.replace(fewer, task=CopyConfig())
    assert data.named(task, "text:some/file.txt") == TextConfig(source="some/file.txt", sequence=24, seed=3)
    images = data.named(words, "images:composites")
    assert (data.suite(images), data.targets(images), data.unit(images)) == ("images", "classes", "images")
    assert data.named(images, "a/folder") == dataclasses.replace(images, source="a/folder")
    with pytest.raises(DataError, match="unknown task 'recal', known: .*; did you mean 'recall'"):
        data.named(words, "task:recal")
    with pytest.raises(DataError, match=f"and this config trains on a task; for a text give --data=text:{__file__}"):
        data.named(task, __file__)


def test_a_group_takes_a_name_and_then_changes_of_its_fields():
    """On the command line: --data=task:recall --config.data.task.pairs=2, in any order."""
    base = config.load("titans_mac")
    for changes in (("data=task:recall", "data.task.pairs=2"), ("data.task.pairs=2", "data=task:recall")):
        assert config.override(base, changes).data == TaskConfig(RecallConfig(pairs=2), sequence=base.data.sequence)
    saved = config.from_json(config.to_json(config.override(base, ("data=task:recall",))))
    assert saved.data == TaskConfig(RecallConfig(), sequence=base.data.sequence)
    with pytest.raises(config.UserError, match="unknown field config.data.task.pears; did you mean 'pairs'"):
        config.override(base, ("data=task:recall", "data.task.pears=2"))
    with pytest.raises(config.UserError, match="unknown field config.data.task; config.data has source"):
        config.override(base, ("data.task.pairs=2",))


@pytest.mark.parametrize("content, message", [({}, "no text files in the folder"), ({"a": b"\0"}, "1 files there"),
                                              ({"a": b"x"}, "too small: nothing is left")])
def test_useless_folders_are_clear_errors(tmp_path, content, message):
    for name, text in content.items():
        (tmp_path / name).write_bytes(text)
    with pytest.raises(DataError, match=message):
        data.open_train(TextConfig(source=str(tmp_path)), 1)


def test_useless_files_are_clear_errors(tmp_path):
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "broken.txt.gz").write_bytes(b"no gzip")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(bytes(1000))[:-9])
    for name, message in (("empty.txt", "is empty"), ("broken.txt.gz", "cannot read"), ("cut.txt.gz", "cannot read")):
        with pytest.raises(DataError, match=message) as error:
            data.open_train(TextConfig(source=str(tmp_path / name)), 1)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("source, message", [
    ("gutenburg_books", "did you mean 'gutenberg_books'"),
    ("no/such/file.txt", "unknown data source 'no/such/file.txt': no such file or folder"),
    ("stdlb", "did you mean 'stdlib'"),
])
def test_unknown_sources(source, message):
    with pytest.raises(DataError, match=message):
        data.describe(TextConfig(source=source))


# -------------------------------------------------------------------------------------------------- local data sets

def write_real(root: Path, packed: bool) -> None:
    """Files in the form of the local data sets."""
    for name, text in {"wikitext2/train.txt": b" \n = A = \n", "wikitext2/valid.txt": b" \n = B = \n two words \n",
                       "wikitext2/test.txt": b" \n", "tinyshakespeare/input.txt": bytes(range(1, 101)),
                       "gutenberg_books/train/2.txt": b"train two", "gutenberg_books/train/10.txt": b"train ten",
                       "gutenberg_books/valid/7.txt": b"a longer valid book", "gutenberg_books/valid/30.txt": b"thirty",
                       "gutenberg_books/test/5.txt": b"test"}.items():
        path = root / (name + ".gz" if packed else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text) if packed else text)


@pytest.mark.parametrize("packed", [False, True])
def test_local_data_sets(tmp_path, monkeypatch, packed):
    write_real(tmp_path, packed)
    monkeypatch.setenv("MEMTOK_DATA_DIR", str(tmp_path))
    wiki = TextConfig(source="wikitext2")
    assert text_source.eval_text(wiki) == b" \n = B = \n two words \n" and text_source.reference_words(wiki) == 5 + 3
    assert text_source.eval_text(TextConfig(source="wikitext2", eval_split="test")) == b" \n"
    shakespeare = TextConfig(source="tinyshakespeare")
    assert text_source.train_text(shakespeare) == bytes(range(1, 91))
    assert text_source.eval_text(shakespeare) == bytes(range(91, 101))
    books = TextConfig(source="gutenberg_books", sequence=4)
    assert text_source.train_text(books) == b"train ten\0train two" and text_source.eval_text(books) == b"thirtya longer valid book"
    batches = data.open_eval(books, 1)
    assert sum(int(b["start"].sum()) for b in batches) == 2  # each book from a fresh state
    assert [int(b["document"][0]) for b in batches] == [1] * 5 + [0] * 2
    with pytest.raises(DataError, match="no held-out split 'tset', only valid, test; did you mean 'test'"):
        data.open_eval(TextConfig(source="wikitext2", eval_split="tset"), 1)


def test_absent_data_names_folder_variable_flag_and_address(tmp_path, monkeypatch):
    monkeypatch.delenv("MEMTOK_DATA_DIR", raising=False)
    for data_dir, folder in (("", "wikitext2"), (str(tmp_path), str(tmp_path / "wikitext2"))):
        with pytest.raises(DataNotFoundError) as error:
            data.describe(TextConfig(source="wikitext2", data_dir=data_dir))
        assert str(error.value).startswith(
            f"real data not found: {folder}; set MEMTOK_DATA_DIR or pass --data_dir; public address: https://")
    (tmp_path / "gutenberg_books" / "train").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match="gutenberg_books/train"):
        data.describe(TextConfig(source="gutenberg_books", data_dir=str(tmp_path)))


def test_flag_wins_over_environment(tmp_path, monkeypatch):
    write_real(tmp_path / "flag", False)
    monkeypatch.setenv("MEMTOK_DATA_DIR", str(tmp_path / "nowhere"))
    cfg = TextConfig(source="wikitext2", eval_split="test", data_dir=str(tmp_path / "flag"))
    assert text_source.eval_text(cfg) == b" \n"


def real_folder_or_skip(source: str) -> None:
    try:
        files.real_folder(source, "")
    except DataNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.realdata
@pytest.mark.parametrize("source, split, size, words", [
    ("wikitext2", "valid", 1_121_681, 217_646), ("wikitext2", "test", 1_256_449, 245_569),
    ("gutenberg_books", "valid", 1_428_983, 258_007), ("gutenberg_books", "test", 3_273_249, 593_749),
    ("gutenberg_books", "pg19_test", 1_218_436, 206_990), ("tinyshakespeare", "valid", 111_540, None),
])
def test_real_held_out_text_has_the_published_size(source, split, size, words):
    real_folder_or_skip(source)
    cfg = TextConfig(source=source, eval_split=split, eval_bytes=0, sequence=4096)
    assert len(text_source.eval_text(cfg)) == size
    assert sum(int(b["length"].sum()) for b in data.open_eval(cfg, 3)) == size
    if words is not None:
        assert text_source.reference_words(cfg) == words


# ------------------------------------------------------------------------------------------------------------- TFDS

@pytest.fixture
def tiny_builder(tmp_path):
    """A registered TFDS data set with two text features, prepared below tmp_path."""
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds.disable_progress_bar()

    class MemtokTinyText(tfds.core.GeneratorBasedBuilder):
        """Texts for this test."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            text, label = tfds.features.Text(), tfds.features.Scalar(np.int32)
            features = tfds.features.FeaturesDict({"label": label, "title": text, "text": text})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples("train", 9), "validation": self._generate_examples("held", 2)}

        def _generate_examples(self, name, count):
            for i in range(count):
                yield i, {"label": i, "title": f"t{i}", "text": f"{name} {i} é"}

    yield MemtokTinyText
    tfds.core.registered._DATASET_REGISTRY.pop("memtok_tiny_text", None)


def test_tfds_text_feature(tiny_builder, tmp_path):
    cfg = TextConfig(source="tfds:memtok_tiny_text", data_dir=str(tmp_path), sequence=4)
    with pytest.raises(DataNotFoundError, match="is not prepared in .*; run: python -c .*array_record"):
        data.describe(cfg)
    tiny_builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    assert text_source.train_text(cfg) == b"\0".join(f"train {i} é".encode() for i in range(9))
    assert text_source.eval_text(cfg) == b"\0".join(f"held {i} é".encode() for i in range(2))
    assert "\n" not in data.describe(cfg) and next(data.open_train(cfg, 2))["inputs"].shape == (2, 4)


def test_tfds_errors(monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    with pytest.raises(DataError, match="cannot open 'no_such_data_set'"):
        data.describe(TextConfig(source="tfds:no_such_data_set"))
    with pytest.raises(DataError, match="'mnist' has no text feature, only image, label"):
        data.describe(TextConfig(source="tfds:mnist"))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="needs the package tensorflow-datasets"):
        prepared.load("lm1b", "", 0.1)


def test_data_imports_nothing_heavy():
    """The package opens tasks and files with tensorflow, tfds, grain and jax out of reach."""
    program = textwrap.dedent("""
        import sys
        for name in ("tensorflow", "tensorflow_datasets", "grain", "array_record", "jax", "flax", "matplotlib", "tokenizers",
                     "sentencepiece", "pyarrow", "zstandard"):
            sys.modules[name] = None
        from memtok_jax import data
        from memtok_jax.data.task import TaskConfig
        from memtok_jax.data.tasks.recall import RecallConfig
        from memtok_jax.data.text import TextConfig
        next(data.open_train(TaskConfig(RecallConfig(), sequence=32), 2))
        next(data.open_train(TextConfig(source=data.__file__, sequence=32), 2))
    """)
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
