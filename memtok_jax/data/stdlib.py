"""The default text: the Python standard library's own sources and documentation, found on every machine.

The text is written once as an array_record data set by a TFDS builder and read back from there; where
tensorflow_datasets is missing or the cache cannot be written, the same documents in the same order come straight
from the files. Held out are whole files, chosen by the hash of their names.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from absl import logging

from memtok_jax.data.documents import Corpus, Document, document, split_by_document, total
from memtok_jax.data.errors import DataError, DataNotFoundError

FORMAT = 1  # raise when the choice of files or the record layout changes: caches are then built anew
SUFFIXES = (".py", ".txt")
# Left out: tests (missing on many systems), other people's packages, and code written by generators or for one build.
SKIPPED_FOLDERS = frozenset({
    "__pycache__", "dist-packages", "encodings", "ensurepip", "idle_test", "lib-dynload", "pydoc_data",
    "site-packages", "test", "tests"})
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
STALE_SECONDS = 3600


def load(cache_dir: str, held_out: float) -> Corpus:
    """The corpus, from the prepared data set where possible.

    cache_dir: "" for the user's cache folder. Raises DataNotFoundError where Python came without its sources.
    """
    files = _files(library_folder())
    try:
        splits, origin = _prepared(_cache_folder(cache_dir), files, held_out)
    except DataNotFoundError:
        raise
    except Exception as error:  # the prepared data set is a convenience: no trouble with it may stop a run
        log = logging.info if isinstance(error, ImportError) else logging.warning
        log("reading the standard library from its files; no prepared data set: %s", error)
        splits, origin = collect(files, held_out), str(library_folder())
    return Corpus(splits, origin)


def library_folder() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def collect(files: list[tuple[str, Path]], held_out: float) -> dict[str, tuple[Document, ...]]:
    """Read the files and the documentation texts and split them. Files that are not UTF-8 text are left out."""
    texts = [(name, path.read_bytes()) for name, path in files] + _topics()
    documents = [document(name, text) for name, text in texts if text and _is_text(text)]
    if not documents:
        raise DataNotFoundError(
            f"no Python sources found in {library_folder()}; name another text with --data=PATH")
    return split_by_document(documents, held_out)


def _is_text(text: bytes) -> bool:
    try:
        return "\0" not in text.decode()
    except UnicodeDecodeError:
        return False


def _files(folder: Path) -> list[tuple[str, Path]]:
    """(name, path) of the files of the corpus, sorted by name; names use "/" on every system."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if f not in SKIPPED_FOLDERS and not f.startswith(SKIPPED_PREFIXES)]
        found += [Path(here, n) for n in names if n.endswith(SUFFIXES) and not n.startswith(SKIPPED_PREFIXES)]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def _topics() -> list[tuple[str, bytes]]:
    """The language reference that `help()` shows, one text for each topic; empty where Python came without it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [(f"pydoc_data/{name}", topics[name].encode()) for name in sorted(topics)]


# ------------------------------------------------------------------------------------------ the prepared data set

def _cache_folder(cache_dir: str) -> Path:
    if cache_dir:
        return Path(cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memtok_jax"


def _key(files: list[tuple[str, Path]], held_out: float) -> str:
    """Changes with the Python version, the settings, and the list of files and their sizes."""
    settings = (FORMAT, sys.version_info[:3], SUFFIXES, sorted(SKIPPED_FOLDERS), SKIPPED_PREFIXES, held_out)
    sizes = [(name, path.stat().st_size) for name, path in files]
    return hashlib.sha256(repr((settings, sizes)).encode()).hexdigest()[:16]


def _prepared(cache: Path, files: list[tuple[str, Path]], held_out: float):
    """Splits and folder of the prepared data set, built first where it is missing or damaged."""
    import tensorflow_datasets as tfds  # noqa: F401  a missing package must show before anything is built

    folder = cache / f"stdlib-{sys.version_info[0]}.{sys.version_info[1]}-{_key(files, held_out)}"
    if folder.exists():
        try:
            return read(folder), str(folder)
        except Exception as error:  # whatever a half-deleted folder makes the reader raise: the text can be built anew
            logging.warning("the prepared data set %s cannot be read (%s); building it again", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    splits = collect(files, held_out)
    build(folder, splits)
    train, held = splits["train"], splits["valid"]
    logging.info("built %s: %d files of %d bytes to train on, %d files of %d bytes held out, in %.1f s", folder,
                 len(train), total(train), len(held), total(held), time.perf_counter() - start)
    return read(folder), str(folder)


def build(folder: Path, splits: dict[str, tuple[Document, ...]]) -> None:
    """Write the splits as an array_record data set: aside first, then renamed, so that `folder` is whole or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    aside = Path(tempfile.mkdtemp(prefix="building-", dir=folder.parent))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it announces a download of unknown size; there is none
            _builder(aside, splits).download_and_prepare()
        os.rename(aside, folder)
    except OSError:
        if not folder.exists():  # if it does, another process was faster and its data set is the same
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _remove_stale(cache: Path) -> None:
    """Remove what killed builds left behind; a build takes seconds, so anything an hour old is dead."""
    for left in cache.glob("building-*"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


def _builder(folder: Path, splits: dict[str, tuple[Document, ...]]):
    """A TFDS builder of these documents that keeps their order."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    with tfds.core.registered.skip_registration():

        class MemtokStdlib(tfds.core.GeneratorBasedBuilder):
            """Sources and documentation of the Python standard library."""

            VERSION = tfds.core.Version("1.0.0")
            code_path = None  # there is no folder of metadata beside this class; looking for one needs further packages

            def _info(self):
                features = tfds.features.FeaturesDict({"name": tfds.features.Text(), "text": tfds.features.Text()})
                return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

            def _split_generators(self, dl_manager):
                return {name: self._generate_examples(split) for name, split in splits.items()}

            def _generate_examples(self, documents):
                for index, one in enumerate(documents):
                    yield index, {"name": one.name, "text": one.data.tobytes()}

    return MemtokStdlib(data_dir=str(folder), file_format="array_record")


def read(folder: Path) -> dict[str, tuple[Document, ...]]:
    """Documents of a prepared data set. Raises DataError where records are missing."""
    import tensorflow_datasets as tfds

    (prepared,) = folder.glob("memtok_stdlib/*")
    builder = tfds.builder_from_directory(str(prepared))
    return {name: read_split(builder.as_data_source(split=name), builder, name, ("text",), "name") for name in ("train", "valid")}


def read_split(source, builder, split: str, text_path: tuple[str, ...], name_key: str) -> tuple[Document, ...]:
    """All documents of one split of a TFDS builder, in its order.

    source: its records by number. text_path: keys down to the text feature. name_key: key of the documents' names, "" to
    number them.
    Raises DataError where the number of records is not the declared one.
    """
    declared = builder.info.splits[split].num_examples
    if len(source) != declared:
        raise DataError(f"split '{split}' of {builder.data_path} has {len(source)} records, declared are {declared}")
    out = []
    for index, record in enumerate(_records(source)):
        text = record
        for key in text_path:
            text = text[key]
        name = record[name_key].decode() if name_key else f"{split}/{index}"
        out.append(document(name, text if isinstance(text, bytes) else text.encode()))
    return tuple(out)


def _records(source):
    """The records in order, through grain where it is installed."""
    try:
        import grain
    except ImportError:
        return (source[i] for i in range(len(source)))
    return (record for record in grain.MapDataset.source(source))
