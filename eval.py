"""Score a trained model on held-out data: python eval.py --workdir=runs/titans_mac

Fields of the run's config can be changed, apart from the model: --config.data.eval_split=test,
--config.evaluation.streams=8. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import sys

from absl import app, flags

from memtok_jax.training import cli, pages

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; its checkpoint is scored. eval.json (eval_NAME.json "
                              "with another --suite) and figures are written there.")
DATA = flags.DEFINE_string("data", None, "What to score instead of the run's data: a text file, a folder of text files, "
                           "the name of a data set, tfds:NAME, shards:FOLDER, task:NAME or images:NAME.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the local data sets. Default: environment variable "
                               "MEMTOK_DATA_DIR.")
SUITE = flags.DEFINE_string("suite", "", "How the model is judged: a file of memtok_jax/evaluation/suites. Default: that of "
                            "the data.")
CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "latest, or best: that with the best value of training.keep_best.")
AGAINST = flags.DEFINE_string("against", None, "Another run to compare with, for --suite=positions or content: a twin without "
                              "memory, or one with full attention.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Score one run; returns the exit status."""
    if len(argv) > 1:
        raise cli.UserError(f"{argv[1]!r} is not a flag; flags start with --, as in --workdir={argv[1]}")
    if WORKDIR.value is None:
        raise cli.UserError("which run? give --workdir=FOLDER, as printed by train.py")
    overrides = (*cli.data_overrides(DATA.value, DATA_DIR.value), *overrides)
    if AGAINST.value is not None:
        overrides = (*overrides, f"evaluation.positions.against={AGAINST.value}")
    return cli.evaluate(cli.folder(WORKDIR.value), overrides, SUITE.value, CHECKPOINT.value)


if __name__ == "__main__":
    pages.begin_again_with_large_pages()
    cli.run(app, sys.argv, main, DEBUG)
