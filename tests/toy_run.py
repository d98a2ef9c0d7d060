"""Train the toy model in a process of its own: python toy_run.py WORKDIR TEXT [distributed=CHOICE] [FIELD=VALUE ...]"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import toy_model

from memtok_jax import config, data
from memtok_jax.data.text import TextConfig
from memtok_jax.training import cli
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig


def _data(source: str):
    chosen = data.named(TextConfig(sequence=16, eval_bytes=400), source)
    return dataclasses.replace(chosen, eval_samples=6) if source.startswith("task:") else chosen


def experiment(source: str, *overrides: str) -> Experiment:
    """A run of a second or two over a text file or a task."""
    base = Experiment(
        toy_model.ToyConfig(), _data(source),
        OptimizerConfig(learning_rate=0.02, steps=12, warmup_steps=2),
        TrainingConfig(batch=4, call_tokens=8, log_every=2, eval_every=4, checkpoint_every=4, sample_tokens=0, data=1),
        EvaluationConfig(batch=2, batches=2))
    return config.override(base, overrides)


if __name__ == "__main__":
    class App:
        """As absl's app, without flags."""

        @staticmethod
        def run(main, argv, flags_parser):
            sys.exit(main(argv))

    class Debug:
        value = False

    def main(argv, _):
        """Train."""
        fields = [a for a in argv[2:] if not a.startswith("distributed=")]
        choice = [a.removeprefix("distributed=") for a in argv if a.startswith("distributed=")]
        return cli.train(experiment(*fields), Path(argv[1]), (choice or ["off"])[0])

    cli.run(App, sys.argv, main, Debug)
