"""Pretrained decoders in and out of run directories: python -m memtok_jax.convert FOLDER --workdir=runs/llama

    python -m memtok_jax.convert FOLDER --workdir=RUN     a pretrained model (config.json, safetensors) becomes a run, for eval.py
    python -m memtok_jax.convert RUN --export=FOLDER      a run of such a model, of a plain one trained here, or of a
                                                          retrofit becomes a folder that transformers loads

stream.py --model=FOLDER and train.py --config=retrofit --start_from=FOLDER read a pretrained model without this step.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from memtok_jax import config
from memtok_jax import params as P
from memtok_jax.config import UserError
from memtok_jax.convert import decoders, tensor_files
from memtok_jax.convert.decoders.folder import is_pretrained
from memtok_jax.data.text import TextConfig
from memtok_jax.evaluation import saved_model
from memtok_jax.evaluation.pretrained_folder import TOKENIZERS
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.protocol import bind
from memtok_jax.sharding import make_mesh
from memtok_jax.training import average, cli, retrofit
from memtok_jax.training.checkpoint import Checkpoints
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.run_folder import RunFolder, read_config
from memtok_jax.training.step import TrainState

CONFIG = "pretrained.json"  # the fields of their config.json, kept in the run directory
MEMORY, OURS = "memory.safetensors", "memory.json"  # what a run that gave a model a memory has beside the model


def flags_of_command() -> None:
    """Define the flags; only for the command."""
    flags.DEFINE_string("workdir", "", "Run directory to make of a pretrained model.")
    flags.DEFINE_string("export", "", "Folder to write a pretrained model to.")
    flags.DEFINE_integer("context", 0, "Tokens that a layer without a window sees; 0: 2048, or what its config says.")
    flags.DEFINE_integer("sinks", 0, "First tokens that every token sees (StreamingLLM).")
    flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """One conversion; returns the exit status."""
    given = flags.FLAGS
    if overrides or len(argv) != 2 or bool(given.workdir) == bool(given.export):
        raise UserError("give one folder, and either --workdir=RUN or --export=FOLDER; see --help")
    say = lambda line: print(line, flush=True)
    if given.workdir:
        to_run(Path(argv[1]), Path(given.workdir), given.context, given.sinks, say)
    else:
        to_folder(Path(argv[1]), Path(given.export), say)
    return 0


def to_run(source: Path, workdir: Path, context: int, sinks: int, say: Callable[[str], None]) -> None:
    """Make a run directory of a pretrained model. Its tokenizer, if there is one, is copied into it.

    Raises UserError if the model cannot be read, or if the run directory has a checkpoint already.
    """
    loaded = decoders.load(source, context=context, sinks=sinks)
    name = next((name for name in TOKENIZERS if (source / name).is_file()), "")
    experiment = Experiment(
        loaded.cfg, TextConfig(sequence=loaded.cfg.call_tokens * max(1, 512 // loaded.cfg.call_tokens),
                               tokenizer=str(workdir / name) if name else ""),
        OptimizerConfig(learning_rate=1e-5, steps=1, warmup_steps=0), TrainingConfig(batch=1), EvaluationConfig(batch=1))
    with Checkpoints(workdir, keep=1) as checkpoints:
        if checkpoints.latest() is not None:
            raise UserError(f"{workdir} holds a run already; give another --workdir")
        with RunFolder(workdir, experiment):
            for file in (source / name for name in decoders.TOKENIZER_FILES):
                if file.is_file():
                    shutil.copy(file, workdir)
            tensor_files.write_json(workdir / CONFIG, loaded.theirs)
            state = TrainState(jnp.int32(0), jnp.int32(0), loaded.params, (), (), average.OFF)
            checkpoints.save(state, {"step": 0, "tokens": 0, "config": config.to_dict(experiment), "data": {}, "accuracy": 0.0})
    say(f"wrote {workdir}: {loaded.theirs['model_type']}, {P.count(bind(loaded.cfg).specs()):,} parameters")


class Origin(NamedTuple):
    """Where a run's model comes from. cfg: of the plain model in it. theirs: its config.json, {} for one that was trained here.
    folder: with the tokenizer files."""

    cfg: LanguageModelConfig
    theirs: dict[str, Any]
    folder: Path


def origin(workdir: Path, experiment: Experiment) -> Origin:
    """The plain model in a run: what a retrofit was made of, what was pretrained, or the run's own model."""
    cfg, base = experiment.model, Path(experiment.training.start_from)
    while experiment.training.retrofit and experiment.training.start_from and retrofit.has_memory(base, cfg):
        experiment = read_config(base)  # an earlier stage
        base = Path(experiment.training.start_from)
    if experiment.training.retrofit and experiment.training.start_from:
        inside, where = retrofit.base_config(base, cfg), base
    else:
        inside, where = cfg, workdir
    if is_pretrained(where):
        return Origin(inside, tensor_files.read_json(where / "config.json"), where)
    if (where / CONFIG).is_file():
        return Origin(inside, tensor_files.read_json(where / CONFIG), where)
    if not isinstance(inside, LanguageModelConfig):
        raise UserError(f"{where} holds a {type(inside).__name__}, which is no plain language model, and was not made of one by "
                        "training.retrofit: nothing of it can be written as a pretrained model")
    return Origin(inside, {}, Path(getattr(experiment.data, "tokenizer", "")).parent)


def to_folder(workdir: Path, target: Path, say: Callable[[str], None]) -> None:
    """Write the newest parameters of a run as a pretrained model; their average, if the run keeps one.

    The memory of a retrofit is written beside it. Raises UserError if the model is not one that such a folder can hold.
    """
    experiment = read_config(workdir)
    model, found = bind(experiment.model), origin(workdir, experiment)
    if not found.theirs:
        decoders.check_ours(found.cfg)
    params, memory = saved_model.load(workdir, experiment, model, make_mesh(1, 1, 1)).params, {}
    if experiment.training.retrofit and experiment.training.start_from:
        params, memory = retrofit.taken_apart(params, model.cfg, found.cfg)
    if found.theirs:
        decoders.save(target, params, found.cfg, found.theirs, like=found.folder)
    else:
        theirs = decoders.save_ours(target, params, found.cfg, like=found.folder)
    say(f"wrote {target}: {(found.theirs or theirs)['model_type']}, for transformers and for --model={target}")
    if found.cfg.segment:
        say(f"its segments are not in it: it computes the same for texts of up to {found.cfg.segment} tokens")
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(memory) if x.size}
    if arrays:
        tensor_files.write_safetensors(target / MEMORY, arrays)
        tensor_files.write_json(target / OURS, config.to_dict(model.cfg))
        say(f"the memory is beside it in {MEMORY}, the whole model's config in {OURS}; transformers reads neither")


if __name__ == "__main__":
    flags_of_command()
    cli.run(app, sys.argv, main, flags.FLAGS["debug"])
