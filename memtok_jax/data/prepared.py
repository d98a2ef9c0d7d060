"""Data sets that TensorFlow Datasets knows and has prepared on this machine; TensorFlow is not needed."""

from __future__ import annotations

from collections.abc import Callable

from memtok_jax.data.documents import Corpus, split_by_document
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.stdlib import read_split

HELD_OUT_NAMES = {"valid": ("validation", "valid", "dev"), "test": ("test",)}


def load(name: str, data_dir: str, held_out: float) -> Corpus:
    """The text feature of `name` (anything `tfds.builder` takes, say "lm1b" or "tiny_shakespeare:1.0.0").

    data_dir: where it was prepared ("" = the folder TFDS uses itself). The first text feature is read, "text" before
    all others. Where the data set has no held-out split, whole records of "train" are held out.
    Raises DataError where tensorflow_datasets is missing or the name or format does not fit, DataNotFoundError where
    the data set is not prepared.
    """
    builder = open_builder(name, data_dir, text_key)
    key, splits = text_key(builder), {}
    if "train" not in builder.info.splits:
        raise DataError(f"tfds:{name} has no split 'train', only {', '.join(builder.info.splits)}")
    for ours, theirs in {"train": ("train",), **HELD_OUT_NAMES}.items():
        found = [s for s in theirs if s in builder.info.splits]
        if found:
            splits[ours] = read_split(open_split(builder, name, found[0]), builder, found[0], key, "")
    if len(splits) == 1:
        splits = split_by_document(list(splits["train"]), held_out)
    elif "valid" not in splits:
        splits["valid"] = splits["test"]
    return Corpus(splits, str(builder.data_path))


def open_builder(name: str, data_dir: str, check: Callable):
    """The TFDS builder of a prepared data set. check: called with it first, raises DataError where its features do not fit."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(f"tfds:{name} needs the package tensorflow-datasets ({error})") from error
    try:
        builder = tfds.builder(name, data_dir=data_dir or None)
    except Exception as error:  # unknown names, versions and settings each raise a class of their own
        raise DataError(f"tensorflow_datasets cannot open '{name}': {_first_line(error)}") from error
    check(builder)
    if not builder.is_prepared():
        where = f", data_dir={data_dir!r}" if data_dir else ""
        raise DataNotFoundError(
            f"tfds:{name} is not prepared in {builder.data_path}; run: python -c \"import tensorflow_datasets as tfds; "
            f"tfds.builder({name!r}{where}, file_format='array_record').download_and_prepare()\"")
    return builder


def text_key(builder) -> tuple[str, ...]:
    """Keys down to the text that is read. Raises DataError where no feature is text."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    names = [k for k in features if isinstance(features[k], tfds.features.Text)]
    if not names:
        raise DataError(f"data set '{builder.info.name}' has no text feature, only {', '.join(features)}")
    return ("text",) if "text" in names else (names[0],)


def open_split(builder, name: str, split: str):
    """The records of a split by number. Raises DataError where their format needs TensorFlow."""
    try:
        return builder.as_data_source(split=split)
    except (NotImplementedError, ImportError) as error:
        raise DataError(f"tfds:{name} was prepared in a format that needs TensorFlow; prepare it again with "
                        f"file_format='array_record' ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
