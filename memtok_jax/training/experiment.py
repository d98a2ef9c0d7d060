"""One experiment: model, data, optimizer, training and evaluation, checked together before anything runs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from memtok_jax import data
from memtok_jax.config import UserError, check_numbers, choose, override
from memtok_jax.evaluation.options import DynamicConfig, NeedleStreamConfig, PositionsConfig
from memtok_jax.evaluation.sets import NamedSet, parse, refuse_other_tokens
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.models.protocol import Model
from memtok_jax.training import backpropagation, losses, writers

RULES, REMAT, SCHEDULES = ("adamw", "lamb"), ("nothing", "call"), ("cosine", "constant", "wsd")
# The curriculum itself sets the first two; with another cut, a stage would train on what a later one holds out.
FIXED_IN_STAGES = ("training.curriculum", "training.start_from", "data.held_out")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or LAMB, with a linear warm-up of the learning rate and a schedule behind it.

    learning_rate: the peak.
    steps: length of the run in updates.
    warmup_steps: updates until the peak.
    schedule: behind the warm-up, "cosine" falls to the final fraction at the end, "constant" stays at the peak, "wsd" (warm-up,
        stable, decay) stays and falls in a straight line at the end. A run that is made longer later goes on under "constant" and
        "wsd" as if it had been so long from the start (`longer.py`); under "cosine" it does not, and says so.
    decay_steps: updates of the fall of "wsd".
    final_fraction: learning rate at the end of a fall, as a fraction of the peak.
    beta1, beta2, epsilon: of Adam.
    weight_decay: decoupled, only on parameters whose spec says `decayed`.
    clip_norm: bound of the global norm of the gradient. Parameters that only a memory's own loss teaches are clipped apart.
    max_skipped: an update whose loss or gradient is not finite is left out; after this many in a row the run stops.
    rates: factors of the learning rate for parameters whose path holds a text, as "TEXT=FACTOR"; the last text that fits counts.
        "=0" in front leaves all others as they are: a parameter whose factor is 0 does not change by a bit.
    rule: "adamw", or "lamb" (arXiv 1904.00962), which scales the step of each matrix to the length of the matrix.
    ema: d of the average of the parameters over the updates, which then is what evaluations and streams use, see `average.py`; it
        takes the memory of one more copy of the parameters. 0: none, and nothing is kept for it.
    """

    learning_rate: float
    steps: int
    warmup_steps: int
    final_fraction: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    max_skipped: int = 3
    rule: str = "adamw"
    schedule: str = "cosine"
    decay_steps: int = 0
    ema: float = 0.0
    rates: tuple[str, ...] = ()

    def __post_init__(self):
        _ = self.factors
        check_numbers("optimizer", self, at_least=dict(learning_rate=0, steps=1, warmup_steps=0, beta1=0, beta2=0, weight_decay=0,
                                                       max_skipped=0, decay_steps=0, ema=0),
                      above=dict(epsilon=0, clip_norm=0), below=dict(learning_rate=100, beta1=1, beta2=1, ema=1),
                      between=dict(final_fraction=(0, 1)))
        choose("optimizer.rule", self.rule, RULES)
        choose("optimizer.schedule", self.schedule, SCHEDULES)
        if (self.schedule == "wsd") != (self.decay_steps > 0):
            raise UserError(f"optimizer.schedule is {self.schedule!r} and optimizer.decay_steps is {self.decay_steps}; 'wsd' needs "
                            "at least 1, the others 0")
        if self.warmup_steps > self.steps:
            raise UserError(f"optimizer.warmup_steps is {self.warmup_steps}, more than optimizer.steps {self.steps}")
        if self.warmup_steps + self.decay_steps > self.steps:
            raise UserError(f"optimizer.warmup_steps {self.warmup_steps} and optimizer.decay_steps {self.decay_steps} are more "
                            f"than optimizer.steps {self.steps}")


    @property
    def factors(self) -> tuple[tuple[str, float], ...]:
        """(text, factor) of `rates`. Raises UserError for another form."""
        out = []
        for item in self.rates:
            text, found, factor = str(item).rpartition("=")
            try:
                out.append((text, float(factor)))
            except ValueError:
                found = ""
            if not found or not 0 <= out[-1][1] < 1e6:
                raise UserError(f"optimizer.rates has {item!r}; it must be TEXT=FACTOR with a factor of at least 0, as in gate=20")
        return tuple(out)


@dataclass(frozen=True)
class TrainingConfig:
    """How the batch is cut, how often things happen, and over how many devices it runs.

    batch: B, rows of one update, over all devices and microbatches.
    microbatches: the rows are taken in this many parts, one after the other, and their gradients added.
    call_tokens: tokens per call of the model; 0: the whole sequence.
    gradient: how far it flows back through the calls of a sequence: "full", "every:k", "last:k" or "rolling:k", see
        `backpropagation.py`.
    remat: "call" keeps only the carries between calls and computes each call again in the backward pass, "nothing" stores all.
    seed: of the initial parameters.
    start_from: a run directory whose newest parameters take their place; optimizer, carry and data begin anew. "": none.
    retrofit: the model of `start_from`, a run or a folder of a pretrained model, gets the memory of this one's layers, see
        `retrofit.py`; without, both must have the same parameters.
    retrofit_layers: which layers get it, "all", "upper" (the upper half), "every:N", or numbers as in "8,12,-1".
    curriculum: what differs in each of the stages before this one, as on the command line, with spaces between fields
        ("data.sequence=24 model.segment=8"). Each stage is a run that begins with the parameters of the one before.
    stop_at: a task is finished as soon as its held-out accuracy reaches this; 0: after all steps.
    loss: "softmax" (cross-entropy), "binary" (of classes, each for itself) or "squared" (of numbers), see `losses.py`.
    log_every, eval_every, checkpoint_every: in updates; 0: only at the end.
    keep: number of checkpoints that stay.
    keep_best: a number of the evaluations, such as "eval/loss"; the checkpoint with the best one stays too, in the folder `best`.
        "": none.
    writers: where numbers go beside `metrics.jsonl`: "tensorboard" (needs tensorboardX), "wandb".
    sample_tokens: length of the text printed at the end; 0: none.
    data, fsdp, tensor: axes of the mesh. data -1 takes the devices that the others leave; in one process only as many as the rows
        of a batch divide over.
    """

    batch: int
    microbatches: int = 1
    call_tokens: int = 0
    gradient: str = "full"
    remat: str = "nothing"
    seed: int = 0
    start_from: str = ""
    retrofit: bool = False
    retrofit_layers: str = "all"
    curriculum: tuple[str, ...] = ()
    stop_at: float = 0.0
    loss: str = "softmax"
    log_every: int = 10
    eval_every: int = 0
    checkpoint_every: int = 0
    keep: int = 2
    keep_best: str = ""
    writers: tuple[str, ...] = ()
    sample_tokens: int = 256
    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self):
        check_numbers("training", self, at_least=dict(batch=1, microbatches=1, call_tokens=0, seed=0, log_every=1, eval_every=0,
                                                      checkpoint_every=0, keep=1, sample_tokens=0, data=-1, fsdp=1, tensor=1),
                      between=dict(stop_at=(0, 1)))
        if self.batch % self.microbatches:
            raise UserError(f"training.batch {self.batch} does not divide into {self.microbatches} microbatches")
        backpropagation.parse(self.gradient)
        choose("training.remat", self.remat, REMAT)
        choose("training.loss", self.loss, losses.LOSSES)
        writers.check(self.writers)
        if self.retrofit_layers != "all" and not self.retrofit:
            raise UserError(f"training.retrofit_layers is {self.retrofit_layers!r}, but training.retrofit is false: no layer gets "
                            "a memory")
        if self.stop_at and not self.eval_every:
            raise UserError(f"training.stop_at is {self.stop_at}, but training.eval_every is 0: nothing is measured on the way")
        if self.keep_best and not self.eval_every:
            raise UserError(f"training.keep_best is {self.keep_best!r}, but training.eval_every is 0: nothing is measured")


@dataclass(frozen=True)
class EvaluationConfig:
    """How the held-out data is scored.

    batch: rows scored at once while training, and for tasks.
    batches: at most this many batches are scored while training; 0: all. The end of the run always scores all.
    streams: rows in `eval.py`, of texts. With 1 the whole text is one stream with one carry; more is faster, and each stream starts
        without history.
    lengths: for tasks, accuracy is also measured at these multiples of the training length.
    sets: further data that is scored, each with a name for its numbers, as in "test=wikitext2 eval_split=test"; see
        `memtok_jax/evaluation/sets.py`.
    positions, dynamic, needle_stream: options of the suites of these names, see `evaluation/options.py`.
    """

    batch: int = 8
    batches: int = 0
    streams: int = 1
    lengths: tuple[int, ...] = (1, 4, 16)
    sets: tuple[str, ...] = ()
    positions: PositionsConfig = PositionsConfig()
    dynamic: DynamicConfig = DynamicConfig()
    needle_stream: NeedleStreamConfig = NeedleStreamConfig()

    def __post_init__(self):
        check_numbers("evaluation", self, at_least=dict(batch=1, batches=0, streams=1, lengths=1))


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what a run computes.

    model: config of a module in `memtok_jax/models`. data: config of a source in `memtok_jax/data`.
    """

    model: Any
    data: Any = field(metadata={"named": data.named})
    optimizer: OptimizerConfig
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()

    def __post_init__(self):
        named = [(f"sequence of the set {one.name!r}:", (one.data.sequence,)) for one in self.sets]
        for name, lengths in (("sequence", (self.data.sequence,)), ("lengths", self.data.lengths), *named):
            for tokens in lengths:
                if tokens % self.call_tokens:
                    raise UserError(f"data.{name} {tokens} does not divide into calls of {self.call_tokens} tokens")
        piece = self.data.sequence // data.parts(self.data)
        if piece % self.call_tokens:
            raise UserError(f"a new stream may begin every {piece} tokens of a row, which does not divide into calls of "
                            f"{self.call_tokens} tokens; set training.call_tokens={piece} or a divisor of it")
        for number, text in enumerate(self.training.curriculum, 1):
            try:
                stage(self, text)
            except ValueError as error:
                raise UserError(f"training.curriculum, stage {number} ({text!r}): {error}") from None
        if self.training.stop_at and suite_named(data.suite(self.data)).HEADLINE.name != "eval/accuracy":
            raise UserError(f"training.stop_at is {self.training.stop_at}; only tasks and images have an accuracy to reach, "
                            f"not {self.data.source}")
        for cfg in (self.data, *(one.data for one in self.sets)):
            self._check_loss(cfg)
        if self.training.keep_best:
            choose("training.keep_best", self.training.keep_best, self.metrics)

    def _check_loss(self, cfg: Any) -> None:
        loss, kind = self.training.loss, data.targets(cfg)
        if kind not in losses.LOSSES[loss]:
            fitting = ", ".join(name for name, kinds in losses.LOSSES.items() if kind in kinds)
            raise UserError(f"training.loss is {loss!r}, which is for {' and '.join(losses.LOSSES[loss])}; the targets of "
                            f"{cfg.source} are {kind}: choose {fitting}")

    @property
    def sets(self) -> tuple[NamedSet, ...]:
        """The further data of `evaluation.sets`."""
        return parse(self.evaluation.sets, self.data)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of what an evaluation measures: loss and headline of the held-out data and of each set."""
        own = ("eval/loss", suite_named(data.suite(self.data)).HEADLINE.name)
        return (*own, *(name for one in self.sets for name in one.metrics))

    @property
    def call_tokens(self) -> int:
        """Tokens per call of the model."""
        return self.training.call_tokens or self.data.sequence


def check_vocabulary(experiment: Experiment, model: Model) -> None:
    """Raise UserError, naming both numbers, where the model has no output for a target of the data, sets included."""
    _check_outputs("the data", experiment.data, model)
    for one in experiment.sets:
        _check_outputs(f"the set {one.name!r}", one.data, model)
        refuse_other_tokens(one, experiment.data)


def _check_outputs(whose: str, cfg: Any, model: Model) -> None:
    symbols, kinds = data.vocabulary(cfg), model.vocabulary
    if data.targets(cfg) == "values" and symbols != kinds:
        raise UserError(f"{whose} asks for {symbols} numbers (horizon times channels), and the model gives {kinds}; set "
                        "--config.model.horizon and --config.model.channels to those of the data")
    of_classes = data.targets(cfg) in ("classes", "shares")
    if symbols > kinds or (of_classes and symbols != kinds):
        what, name = ("classes", "classes") if of_classes else ("symbols", "vocabulary")
        raise UserError(f"{whose} has {symbols} {what}, model.{name} is {kinds}; set --config.model.{name}={symbols}")


def shorter_warmup(experiment: Experiment, changes: tuple[str, ...]) -> tuple[str, ...]:
    """The override that shortens the warm-up in proportion, if `changes` make the run shorter than it and say nothing of it.

    changes: overrides such as "optimizer.steps=30". Returns one override, or none.
    """
    given = dict(change.partition("=")[::2] for change in changes)
    steps, old = given.get("optimizer.steps", ""), experiment.optimizer
    if "optimizer.warmup_steps" in given or not steps.isdecimal() or not 0 < int(steps) < old.warmup_steps:
        return ()
    return (f"optimizer.warmup_steps={int(steps) * old.warmup_steps // old.steps}",)


def stage(experiment: Experiment, text: str) -> Experiment:
    """The experiment with the fields that `text` gives, and no curriculum. A task's lengths above the new sequence are left out.

    Raises UserError for a field that does not exist or that stages have in common, and for an impossible experiment.
    """
    alone = replace(experiment, training=replace(experiment.training, curriculum=()))
    changes = text.split()
    if any(change.startswith(FIXED_IN_STAGES) for change in changes):
        raise UserError(f"a stage cannot change {' or '.join(FIXED_IN_STAGES)}")
    if text and experiment.data.lengths and (tokens := _new_sequence(changes)):
        fitting = tuple(n for n in experiment.data.lengths if n <= tokens)
        alone = replace(alone, data=replace(alone.data, lengths=fitting))
    return override(alone, (*changes, *shorter_warmup(alone, tuple(changes))))


def _new_sequence(changes: list[str]) -> int:
    """The sequence that a stage sets; 0 where it sets none."""
    found = [change.partition("=")[2] for change in changes if change.startswith("data.sequence=")]
    return int(found[-1]) if found and found[-1].isdigit() else 0
