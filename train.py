"""Train a model: python train.py --config=titans_mac

Every field of a config can be changed: --config.model.width=256 --config.optimizer.steps=1000.
The same command again continues an interrupted run.
"""

from __future__ import annotations

import sys

from absl import app, flags

from memtok_jax.training import cli, pages

CONFIG = flags.DEFINE_string("config", "titans_mac", "Experiment: the name of a file in configs/, with a preset after "
                             "a colon if not its first one, as in titans_mac:340m. Change any field of it with "
                             "--config.GROUP.FIELD=VALUE.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run: config, metrics, checkpoints, figures. Default: "
                              "runs/<config>. A run that is already there is continued.")
DATA = flags.DEFINE_string("data", None, "What to train on instead of the config's data: a text file, a folder of text "
                           "files, the name of a data set, tfds:NAME, shards:FOLDER (from memtok_jax.data.prepare), "
                           "task:NAME or images:NAME.")
DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the local data sets. Default: environment variable "
                               "MEMTOK_DATA_DIR.")
START_FROM = flags.DEFINE_string("start_from", None, "A run whose newest parameters are the first ones; with --config=retrofit "
                                 "also a folder of a pretrained model (config.json and safetensors).")
DISTRIBUTED = flags.DEFINE_string("distributed", "auto", "Several processes: auto (join where a cluster is detected), "
                                  "on, off, or ADDRESS:PORT,COUNT,INDEX.")
COMPILE_ONLY = flags.DEFINE_string("compile_only", None, "Compile the training step for a machine that need not be "
                                   "here, print its memory and collectives, and leave: v5e:16x16 (TPU, needs libtpu) "
                                   "or cpu:8.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Run one experiment; returns the exit status."""
    if len(argv) > 1:
        raise cli.UserError(f"{argv[1]!r} is not a flag; flags start with --, as in --config={argv[1]}")
    experiment = cli.experiment(CONFIG.value, overrides, DATA.value, DATA_DIR.value, START_FROM.value)
    if COMPILE_ONLY.value:
        return cli.compile_only(experiment, COMPILE_ONLY.value)
    return cli.train(experiment, cli.folder(WORKDIR.value, cli.default_workdir(CONFIG.value)), DISTRIBUTED.value)


if __name__ == "__main__":
    pages.begin_again_with_large_pages()
    cli.run(app, sys.argv, main, DEBUG)
