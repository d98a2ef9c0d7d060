"""Preparing a corpus: exact counts, every kind of source, the same bytes after a kill, one line for each mistake."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizer_toys

from memtok_jax.config import UserError
from memtok_jax.data import prepared_corpus as disk
from memtok_jax.data import raw, tokenizers
from memtok_jax.data.errors import DataError
from memtok_jax.data.prepare import PrepareConfig, prepare
from memtok_jax.data.shard_writer import is_held_out

ROOT = Path(__file__).resolve().parent.parent
array_record = pytest.importorskip("array_record", reason="needs array_record (pip install 'memtok_jax[corpora]')")
pytest.importorskip("grain", reason="needs grain (pip install 'memtok_jax[corpora]')")

TEXTS = tuple(f"text {i}: the memory of 世界 " + "word " * (i % 40) for i in range(120))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    return tokenizer_toys.bpe(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")


def lines_of(texts) -> bytes:
    return b"".join(json.dumps({"id": i, "text": text}).encode() + b"\n" for i, text in enumerate(texts))


def config(source: Path, tokenizer: str, output: Path, **changes) -> PrepareConfig:
    return PrepareConfig(str(source), tokenizer, str(output), **{"held_out": 0.2, "processes": 1, "part_bytes": 2000, **changes})


def run(source: Path, tokenizer: str, output: Path, **changes) -> tuple[dict, list[str]]:
    """The manifest, and what was said."""
    said: list[str] = []
    return prepare(config(source, tokenizer, output, **changes), said.append), said


def contents(folder: Path) -> dict[str, bytes]:
    """All files but those that name times."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (".lock", disk.PLAN)}


def texts_in(folder: Path, tokenizer: str) -> list[str]:
    """All documents of a prepared corpus, decoded."""
    manifest, one = disk.read_manifest(folder), tokenizers.load(tokenizer)
    train, valid = (disk.Records(folder, manifest, split) for split in disk.SPLITS)
    kind = disk.token_type(one.vocabulary)
    return [one.decode(np.frombuffer(train[i], kind)) for i in range(len(train))] + [valid[i].decode() for i in range(len(valid))]


def message_of(call, kind=DataError) -> str:
    with pytest.raises(kind) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


# ------------------------------------------------------------------------------------------------------ exact counts

def test_counts_are_those_of_a_direct_count(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    manifest, _ = run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    one, shards = tokenizers.load(tokenizer), sum(len(held["shards"]) for held in manifest["splits"].values())
    for split, wanted in (("train", False), ("valid", True)):
        texts = [t for t in TEXTS if is_held_out(t.encode(), 0.2) == wanted]
        found = manifest["splits"][split]
        assert found["documents"] == len(texts) > 10
        assert found["tokens"] == sum(len(one.encode(t)) for t in texts) and found["bytes"] == sum(len(t.encode()) for t in texts)
        assert [found[n] for n in ("documents", "tokens", "bytes")] == [
            sum(shard[n] for shard in found["shards"]) for n in ("documents", "tokens", "bytes")]
        for shard in found["shards"]:
            assert shard["sha256"] == disk.sha256(tmp_path / "out" / shard["file"])
    assert manifest["left_out"] == {} and shards > 10 and manifest["tokenizer"]["sha256"] == one.fingerprint
    lengths = disk.read_lengths(tmp_path / "out", manifest)
    assert lengths.tolist() == [len(one.encode(t)) for t in TEXTS if not is_held_out(t.encode(), 0.2)]
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS)


@pytest.mark.parametrize("part_bytes", [1, 97, 1000, 10**6])
def test_lines_belong_to_one_part_wherever_parts_are_cut(tmp_path, part_bytes):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS[:30]).rstrip(b"\n"))
    source = raw.open_source(str(tmp_path / "a.jsonl"), "text", "", part_bytes)
    assert [one.text for part in source.parts for one in source.read(part)] == list(TEXTS[:30])
    assert sum(part.size for part in source.parts) == (tmp_path / "a.jsonl").stat().st_size


def test_lines_longer_than_a_piece_of_the_file(tmp_path):
    texts = ["a" * 3_000_000, "b", "c" * 2_500_000]
    (tmp_path / "a.jsonl").write_bytes(lines_of(texts))
    source = raw.open_source(str(tmp_path / "a.jsonl"), "text", "", 1_000_000)
    assert [one.text for part in source.parts for one in source.read(part)] == texts


def test_held_out_documents_are_chosen_by_their_text():
    shares = [sum(is_held_out(t.encode(), share) for t in TEXTS) / len(TEXTS) for share in (0.0, 0.1, 0.5, 0.9)]
    assert shares[0] == 0 and all(abs(s - w) < 0.12 for s, w in zip(shares, (0, 0.1, 0.5, 0.9), strict=True))
    assert all(is_held_out(t.encode(), 0.6) for t in TEXTS if is_held_out(t.encode(), 0.3))


def test_the_fingerprint_of_a_source_is_that_of_its_texts(tokenizer, tmp_path):
    prints = []
    for name, texts in (("a", TEXTS), ("b", TEXTS), ("c", (TEXTS[0] + ".", *TEXTS[1:])), ("d", TEXTS[::-1])):
        (tmp_path / f"{name}.jsonl").write_bytes(lines_of(texts))
        prints.append(run(tmp_path / f"{name}.jsonl", tokenizer, tmp_path / name)[0]["source"]["texts_sha256"])
    assert prints[0] == prints[1] and len(set(prints)) == 3


# ---------------------------------------------------------------------------------------------------- kinds of source

def write_text(folder: Path) -> None:
    for i, text in enumerate(TEXTS[:40]):
        packed = i % 2
        (folder / f"{i:03d}.txt{'.gz' * packed}").write_bytes(gzip.compress(text.encode()) if packed else text.encode())


def write_lines(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(lines_of(TEXTS[:20]))
    (folder / "b.json.gz").write_bytes(gzip.compress(lines_of(TEXTS[20:30])) + gzip.compress(lines_of(TEXTS[30:40])))


def write_zst(folder: Path) -> None:
    zstandard = pytest.importorskip("zstandard", reason="needs zstandard (pip install 'memtok_jax[corpora]')")
    (folder / "a.jsonl.zst").write_bytes(zstandard.compress(lines_of(TEXTS[:15])) + zstandard.compress(lines_of(TEXTS[15:40])))


def write_parquet(folder: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (pip install 'memtok_jax[corpora]')")
    from pyarrow import parquet

    for name, texts in (("a", TEXTS[:25]), ("b", TEXTS[25:40])):
        table = pyarrow.table({"score": list(range(len(texts))), "text": list(texts)})
        parquet.write_table(table, folder / f"{name}.parquet", row_group_size=4)


def write_arrow(folder: Path) -> None:
    """As `save_to_disk` of Hugging Face datasets: streams, in the order of state.json."""
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (pip install 'memtok_jax[corpora]')")
    for name, texts in (("data-1.arrow", TEXTS[:25]), ("data-0.arrow", TEXTS[25:40])):
        table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
        with pyarrow.OSFile(str(folder / name), "wb") as file, pyarrow.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=7)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-1.arrow"}, {"filename": "data-0.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


WRITERS = {"plain": write_text, "lines": write_lines, "zst": write_zst, "parquet": write_parquet, "arrow": write_arrow}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_source_gives_its_documents_in_order(tokenizer, tmp_path, kind):
    (tmp_path / "in").mkdir()
    WRITERS[kind](tmp_path / "in")
    source = raw.open_source(str(tmp_path / "in"), "text", "", 300)
    assert len(source.parts) > (0 if kind == "zst" else 1)
    assert [one.text for part in source.parts for one in source.read(part)] == list(TEXTS[:40])
    manifest, said = run(tmp_path / "in", tokenizer, tmp_path / "out")
    assert sum(held["documents"] for held in manifest["splits"].values()) == 40 and manifest["left_out"] == {}
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS[:40])


def test_a_folder_that_datasets_has_saved(tokenizer, tmp_path):
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict({"text": list(TEXTS[:40])}).save_to_disk(str(tmp_path / "one"))
    assert sum(held["documents"] for held in run(tmp_path / "one", tokenizer, tmp_path / "out")[0]["splits"].values()) == 40
    both = datasets.DatasetDict({s: datasets.Dataset.from_dict({"text": list(TEXTS[:4])}) for s in ("train", "test")})
    both.save_to_disk(str(tmp_path / "both"))
    said = message_of(lambda: run(tmp_path / "both", tokenizer, tmp_path / "no"))
    assert "holds the splits train, test; name one of them" in said


def test_tfds(tokenizer, tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets (pip install 'memtok_jax[tfds]')")
    tfds.disable_progress_bar()

    class MemtokPreparedText(tfds.core.GeneratorBasedBuilder):
        """Texts for this test."""

        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
                                         disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"text": text}) for i, text in enumerate(TEXTS[:40]))

    try:
        MemtokPreparedText(data_dir=str(tmp_path / "data"), file_format="array_record").download_and_prepare()
        said = []
        cfg = PrepareConfig("tfds:memtok_prepared_text", tokenizer, str(tmp_path / "out"), processes=1, part_bytes=2000,
                            data_dir=str(tmp_path / "data"), held_out=0.2)
        manifest = prepare(cfg, said.append)
    finally:
        tfds.core.registered._DATASET_REGISTRY.pop("memtok_prepared_text", None)
    assert sorted(texts_in(tmp_path / "out", tokenizer)) == sorted(TEXTS[:40]) and manifest["left_out"] == {}


# ---------------------------------------------------------------------------------------------------- what is left out

def test_what_cannot_be_used_is_counted_and_named(tokenizer, tmp_path):
    bad = [b"{no json}\n", b'{"text": 7}\n', b'{"other": "x"}\n', b'[1]\n', b'{"text": " "}\n', b"\n", b'{"text": "\xff"}\n',
           b'{"text": "\\ud800"}\n', b'{"text": "a\\u0000b"}\n']
    good = lines_of(TEXTS[:30])
    (tmp_path / "a.jsonl").write_bytes(good + b"".join(bad))
    manifest, said = run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    counts = {problem: found["documents"] for problem, found in manifest["left_out"].items()}
    assert counts == {"damaged": 4, "empty": 2, "not UTF-8": 2, "holds zero bytes": 1}
    assert manifest["left_out"]["damaged"]["first"][0] == f"a.jsonl at byte {len(good)}"
    assert sum(held["documents"] for held in manifest["splits"].values()) == 30
    assert f"left out: 2 empty (a.jsonl at byte {len(good + b''.join(bad[:4]))}, " in "\n".join(said)
    named = [one for path in sorted((tmp_path / "out").glob("part-*.json")) for one in json.loads(path.read_text())["left_out"]]
    assert len(named) == 9


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_packed_file_that_ends_early_is_named_and_its_lines_before_are_kept(tmp_path, ending):
    rng = np.random.default_rng(0)
    texts = ["".join(map(chr, rng.integers(33, 127, 50_000))) for _ in range(60)]
    if ending == ".zst":
        zstandard = pytest.importorskip("zstandard", reason="needs zstandard (pip install 'memtok_jax[corpora]')")
    packed = gzip.compress(lines_of(texts)) if ending == ".gz" else zstandard.compress(lines_of(texts))
    (tmp_path / f"a.jsonl{ending}").write_bytes(packed[:len(packed) // 2])
    source = raw.open_source(str(tmp_path / f"a.jsonl{ending}"), "text", "", 2000)
    *kept, last = source.read(source.parts[0])
    assert [one.text for one in kept] == texts[:len(kept)] and 5 < len(kept) < 40
    assert last.problem == "damaged" and f"a.jsonl{ending} from byte" in last.name


def test_damaged_tables_are_named(tmp_path):
    write_parquet(tmp_path)
    whole = (tmp_path / "a.parquet").read_bytes()
    from pyarrow import parquet

    page = parquet.ParquetFile(tmp_path / "a.parquet").metadata.row_group(0).column(1).dictionary_page_offset
    (tmp_path / "a.parquet").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "c.parquet").write_bytes(whole[:page] + bytes(60) + whole[page + 60:])
    source = raw.open_source(str(tmp_path), "text", "", 10**6)
    found = [one for part in source.parts for one in source.read(part)]
    assert [one.text for one in found if one.name.startswith("c.")][1:] == list(TEXTS[4:25])
    assert [one.text for one in found if one.name.startswith("b.") and not one.problem] == list(TEXTS[25:40])
    for name in ("a.parquet", "c.parquet"):
        assert [one.name for one in found if one.problem == "damaged" and one.name.startswith(f"{name} row group 0")], name


def test_tables_with_absent_and_broken_texts(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow (pip install 'memtok_jax[corpora]')")
    from pyarrow import parquet

    broken = pyarrow.array([b"good", b"\xff", None, b""], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": broken}), tmp_path / "a.parquet")
    source = raw.open_source(str(tmp_path / "a.parquet"), "text", "", 10**6)
    assert [(one.name[-5:], one.problem) for one in source.read(source.parts[0])] == [
        ("row 0", ""), ("row 1", "not UTF-8"), ("row 2", "damaged"), ("row 3", "empty")]


# ---------------------------------------------------------------------------------------------------- kill and resume

def command(source: Path, tokenizer: str, output: Path, processes: int) -> subprocess.Popen:
    """Start the command."""
    return subprocess.Popen([sys.executable, "-m", "memtok_jax.data.prepare", str(source), f"--tokenizer={tokenizer}",
                             f"--output={output}", "--held_out=0.2", "--part_bytes=4000", f"--processes={processes}"],
                            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.multiprocess
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_given_again_the_bytes_are_the_same(tokenizer, tmp_path, processes):
    (tmp_path / "a.jsonl").write_bytes(lines_of([f"{t} {n}" for n in range(8) for t in TEXTS]))
    run(tmp_path / "a.jsonl", tokenizer, tmp_path / "whole", part_bytes=4000)
    wanted, out = contents(tmp_path / "whole"), tmp_path / "out"
    first = command(tmp_path / "a.jsonl", tokenizer, out, processes)
    until = time.monotonic() + 60
    while len(list(out.glob("part-*.json"))) < 3 and time.monotonic() < until:
        time.sleep(0.002)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    begun = {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.json")}
    assert 3 <= len(begun) < len([n for n in wanted if n.startswith("part-")]) and not (out / disk.MANIFEST).exists()
    with pytest.raises(DataError, match="is not prepared to the end"):
        disk.read_manifest(out)
    time.sleep(1.0 if processes > 1 else 0)  # the processes of the pool end with their parent
    begun |= {p.name: p.stat().st_mtime_ns for p in out.glob("part-*.json")}
    (out / f"{disk.HIDDEN}1-train-00000.array_record").write_bytes(b"half")
    second = command(tmp_path / "a.jsonl", tokenizer, out, processes)
    said, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert f"{len(begun)} of them finished before" in said and " left\n" in said
    assert {name: (out / name).stat().st_mtime_ns for name in begun} == begun
    assert contents(out) == wanted


def test_a_finished_corpus_is_kept(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    before = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.array_record")}
    run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    assert {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("*.array_record")} == before


# ------------------------------------------------------------------------------------------------------------ mistakes

def test_what_has_changed_since_the_first_run_is_named(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    write_text(tmp_path / "in")
    out = tmp_path / "out"
    manifest, _ = run(tmp_path / "in", tokenizer, out)
    other = tokenizer_toys.bpe(tmp_path / "tokenizer.json", 300)
    for changes in (dict(held_out=0.3), dict(part_bytes=99), dict(column="body")):
        name = next(iter(changes))
        assert f"begun with another {name}" in message_of(lambda c=changes: run(tmp_path / "in", tokenizer, out, **c), UserError)
    assert "begun with another tokenizer" in message_of(lambda: run(tmp_path / "in", other, out), UserError)
    (tmp_path / "in" / "000.txt").write_text("changed")
    (tmp_path / "in" / "002.txt").unlink()
    (tmp_path / "in" / "new.txt").write_text("new")
    said = message_of(lambda: run(tmp_path / "in", tokenizer, out), UserError)
    assert "1 file(s) are changed (000.txt), 1 file(s) are gone (002.txt), 1 file(s) are new (new.txt)" in said
    assert disk.read_manifest(out) == manifest


def test_a_file_that_changes_while_it_is_read_is_refused(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    source = raw.open_source(str(tmp_path / "a.jsonl"), "text", "", 2000)
    with contextlib.closing(source.read(source.parts[0])) as items:
        next(items)
        (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS) + b" ")
        assert "a.jsonl has changed while" in message_of(lambda: list(items))


def test_sources_that_cannot_be_used(tokenizer, tmp_path):
    said = lambda source, **changes: message_of(lambda: run(source, tokenizer, tmp_path / "out", **changes), UserError)
    assert "no such file or folder" in said(tmp_path / "absent")
    (tmp_path / "mixed").mkdir()
    assert "no files in the folder" in said(tmp_path / "mixed")
    write_lines(tmp_path / "mixed")
    (tmp_path / "mixed" / "README.md").write_text("about")
    assert "files of several kinds: plain (README.md), lines (a.jsonl); choose some" in said(tmp_path / "mixed")
    assert "are called *.txt" in said(tmp_path / "mixed", files="*.txt")
    assert "gives no document to train on (" in said(tmp_path / "mixed", files="*.jsonl", column="body")
    (tmp_path / "table").mkdir()
    write_parquet(tmp_path / "table")
    assert "has no column 'txt'; did you mean 'text'?" in said(tmp_path / "table", column="txt")
    assert "holds int64, not text" in said(tmp_path / "table", column="score")


def test_folders_that_cannot_be_used(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.doc").write_text("x")
    for name, rule in (("full", "holds other files, such as thesis.doc"), ("a.jsonl", "cannot be used")):
        assert rule in message_of(lambda name=name: run(tmp_path / "a.jsonl", tokenizer, tmp_path / name), UserError)
    for field, rule in ((dict(held_out=1.0), "below 1"), (dict(processes=-1), "at least 0"), (dict(part_bytes=0), "at least 1")):
        assert rule in message_of(lambda f=field: config(tmp_path, tokenizer, tmp_path, **f), UserError)
    assert "no tokenizer:" in message_of(lambda: config(tmp_path, "", tmp_path), UserError)


def test_two_commands_cannot_prepare_the_same_folder(tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines_of(TEXTS))
    run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out")
    with (tmp_path / "out" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another command prepares" in message_of(lambda: run(tmp_path / "a.jsonl", tokenizer, tmp_path / "out"), UserError)


def test_the_command_says_mistakes_in_one_line(tokenizer, tmp_path):
    asked = command(tmp_path / "absent", tokenizer, tmp_path / "out", 1)
    _, err = asked.communicate(timeout=60)
    assert asked.returncode == 2 and err.startswith("error: unknown source") and err.count("\n") == 1
