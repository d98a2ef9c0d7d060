"""Does this vision transformer have artifacts, where, and what do registers do about them?

    python -m memtok_jax.analysis.registers --checkpoint=runs/vit_registers --output=analysis
    python -m memtok_jax.analysis.registers --checkpoint=dinov2_vits14_reg4_pretrain.pth --images=PHOTOS --output=analysis

The checkpoint is a run directory of train.py or a file that `memtok_jax.convert` knows. Written to --output: measures.json and
figures (norms by layer, measures by layer, maps of norms and attention, boxes). --repair=test_time measures a second time with
test-time registers (arXiv 2506.08010) and prints both results. --repair=all compares every option in one table, comparison.md (see
`comparison.py`); --beside adds models trained with another attention or other registers:

    python -m memtok_jax.analysis.registers --checkpoint=runs/plain --repair=all --beside=runs/gate,runs/off_by_one
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags

from memtok_jax import sharding
from memtok_jax.analysis import comparison, figures, measures, native, register_figures, subject
from memtok_jax.analysis.collect import Collected, collect
from memtok_jax.analysis.comparison import PLAIN, Arm
from memtok_jax.config import UserError
from memtok_jax.evaluation import saved_model
from memtok_jax.models.protocol import bind
from memtok_jax.models.vision.classifier import ClassifierConfig
from memtok_jax.training import cli
from memtok_jax.training.run_folder import CONFIG_FILE, read_config

CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Run directory of train.py, or a checkpoint (DINOv2, DINOv3, timm).")
IMAGES = flags.DEFINE_string("images", "", "Folder of images (sub-folders are classes; boxes.json beside them gives boxes), or "
                             "composites, fashion_mnist, tfds:NAME. Default: the images held out from the run.")
OUTPUT = flags.DEFINE_string("output", "analysis", "Folder for measures.json and the figures.")
COUNT = flags.DEFINE_integer("count", 500, "At most this many images.")
SIZE = flags.DEFINE_string("size", "", "ROWSxCOLUMNS of pixels, whole patches. Default: the size of training.")
REPAIR = flags.DEFINE_enum("repair", "none", ["none", "test_time", "replace", "all"], "Measure again with test-time registers, "
                           "with registers replaced (zero, mean, noise, shuffle), or with all of these, and compare.")
BESIDE = flags.DEFINE_list("beside", [], "More checkpoints, separated by commas, measured on the same images and compared.")
CUTOFF = flags.DEFINE_float("cutoff", 0.0, "With --repair: norm above which a patch of the last layer is an outlier; 0: automatic.")
TOP_K = flags.DEFINE_integer("top_k", 50, "With --repair: at most this many register neurons.")
FEATURES = flags.DEFINE_enum("features", "k", ["k", "v"], "What LOST reads of the last layer: keys (DINOv2) or values (DeiT III).")
NATIVE = flags.DEFINE_integer("native", 0, "Run LOST also on whole images of their own shape, scaled down to at most this many "
                              "pixels a side; 0: only on images of one size.")
PATCH = flags.DEFINE_string("patch", "", "ROW,COLUMN of a patch, from 0, whose attention is drawn. Default: the one in the middle.")
BIAS = flags.DEFINE_float("bias", 0.0, "Added to LOST's Gram matrix.")
HEADS = flags.DEFINE_integer("heads", 0, "For checkpoint files: number of attention heads, if no file gives it.")
GRID = flags.DEFINE_string("grid", "", "For checkpoint files: ROWSxCOLUMNS of patches in training, if no file gives it.")
MEAN = flags.DEFINE_list("mean", [], "For checkpoint files: mean of each channel of the training images, for pixels in 0 .. 1.")
STD = flags.DEFINE_list("std", [], "For checkpoint files: standard deviation of each channel, in the same unit.")
DATA_DIR = flags.DEFINE_string("data_dir", "", "Folder of the local data sets. Default: environment variable MEMTOK_DATA_DIR.")
DEBUG = flags.DEFINE_bool("debug", False, "Show the full traceback of an error.")

RESULT_FILE, COMPARISON_FILE = "measures.json", "comparison.md"


class Options(NamedTuple):
    """The flags that decide what is computed."""

    repair: str = "none"
    cutoff: float = 0.0
    top_k: int = 50
    features: str = "k"
    bias: float = 0.0
    native: int = 0
    patch: tuple[int, int] | None = None


def main(argv: list[str], overrides: tuple[str, ...]) -> int:
    """Measure one checkpoint; returns the exit status. Raises UserError for a wrong flag, checkpoint or image folder."""
    if len(argv) > 1 or overrides:
        raise UserError(f"{(*argv[1:], *overrides)[0]!r} is not a flag of this command; see --help")
    if not CHECKPOINT.value:
        raise UserError("which model? give --checkpoint=RUN_DIRECTORY_OR_FILE")
    for flag, least in ((COUNT, 1), (TOP_K, 1), (NATIVE, 0)):
        if flag.value < least:
            raise UserError(f"--{flag.name}={flag.value} must be at least {least}")
    told = parse_told(HEADS.value, GRID.value, MEAN.value, STD.value)
    model = load(CHECKPOINT.value, told)
    beside = [load(name, told) for name in BESIDE.value]
    shown = subject.pictures(model, IMAGES.value, parse_size(SIZE.value), COUNT.value, DATA_DIR.value)
    options = Options(REPAIR.value, CUTOFF.value, TOP_K.value, FEATURES.value, BIAS.value, NATIVE.value,
                      parse_patch(PATCH.value))
    analyse(model, shown, options, Path(OUTPUT.value), print, beside)
    return 0


def load(checkpoint: str, told: subject.Told = subject.Told()) -> subject.Model:  # noqa: B008
    """A model from a run directory of train.py, or from a checkpoint that `memtok_jax.convert` knows.

    told: what the flags say of a checkpoint file; a run directory needs nothing more. Raises UserError for anything else.
    """
    path = Path(checkpoint).expanduser()
    if not path.exists():
        raise UserError(f"--checkpoint={checkpoint}: no such file or folder")
    # A model folder of transformers holds a config.json too, so its weights tell it from a run directory.
    if not (path / CONFIG_FILE).exists() or any(path.glob("*.safetensors")):
        return subject.from_file(path, told)
    experiment = read_config(path)
    if not isinstance(experiment.model, ClassifierConfig):
        raise UserError(f"{path} holds a {type(experiment.model).__name__}; only vision transformers have registers to analyse")
    model = experiment.model
    found = saved_model.load(path, experiment, bind(model), sharding.make_mesh(1, 1, 1))
    return subject.Model(found.params["vit"], model.vit, experiment.data, model.mean, model.std, f"{path.name}, step {found.step}",
                         found.params["head"], model)


def parse_size(text: str) -> tuple[int, int]:
    """(rows, columns) of "224x336" or "224"; (0, 0) of "". Raises UserError for anything else."""
    if not text:
        return 0, 0
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found:
        raise UserError(f"--size={text} must be ROWSxCOLUMNS, as in 224x336")
    return int(found[1]), int(found[2] or found[1])


def parse_told(heads: int, grid: str, mean: Sequence[str], std: Sequence[str]) -> subject.Told:
    """What the flags say of checkpoint files. Raises UserError for a text of another form."""
    found = re.fullmatch(r"\(?(\d+) *[x,] *(\d+)\)?", grid)
    if grid and not found or heads < 0:
        raise UserError(f"--heads={heads} --grid={grid}: give a number of heads and ROWSxCOLUMNS of patches, as in 16x16")
    options = ({"heads": heads} if heads else {}) | ({"grid": (int(found[1]), int(found[2]))} if found else {})
    try:
        return subject.Told(options, tuple(map(float, mean)) or None, tuple(map(float, std)) or None)
    except ValueError:
        raise UserError(f"--mean={','.join(mean)} --std={','.join(std)} must be numbers, one for each channel") from None


def parse_patch(text: str) -> tuple[int, int] | None:
    """(row, column) of "3,5"; None of "". Raises UserError for anything else."""
    if text and not re.fullmatch(r"\d+,\d+", text):
        raise UserError(f"--patch={text} must be ROW,COLUMN, as in 3,5")
    return tuple(map(int, text.split(","))) if text else None


def analyse(model: subject.Model, shown: subject.Shown, options: Options, output: Path, say: Callable[[str], None],
            beside: Sequence[subject.Model] = ()) -> dict[str, Any]:
    """Collect, measure, print, draw and write; returns what is written."""
    for other in beside:
        subject.check_size(other, shown.pixels.shape[1:3], shown.pixels.shape[3])
    output.mkdir(parents=True, exist_ok=True)
    introduce(model, shown, say)
    first = Arm(PLAIN, model)
    collected = {PLAIN: look(first, shown, options)}
    results = {PLAIN: measure(first, shown, collected[PLAIN], options)}
    arms, missing = comparison.arms(model, lambda: subject.batches(model, shown), results[PLAIN]["layers"], options.repair,
                                    options.cutoff, options.top_k, beside)
    for arm in arms:
        if arm.note:
            say(f"repair  {arm.note}")
        seen = look(arm, shown, options)
        results[arm.name] = measure(arm, shown, seen, options)
        collected |= {arm.name: seen} if arm.drawn else {}
    rows = {name: comparison.row(result) for name, result in results.items()}
    compared = comparison.table(rows, missing) if arms or missing else []
    for line in [*table({name: results[name] for name in collected}), "", *compared]:
        say(line)
    record = {"checkpoint": model.name, "images": shown.origin, "count": len(shown.pixels), "size": list(shown.pixels.shape[1:3]),
              **options._asdict(), "comparison": rows, "not_measured": missing, "results": results}
    written = write(record, compared, output)
    models = {PLAIN: model, **{arm.name: arm.model for arm in arms}}
    drawn = draw(models, shown, collected, record, output) if figures.available() else ["no figure: matplotlib is not installed"]
    say(f"written to {output}: {', '.join([*written, *drawn])}")
    return record


def introduce(model: subject.Model, shown: subject.Shown, say: Callable[[str], None]) -> None:
    """Say which model is measured, on which images."""
    count, rows, columns, _ = shown.pixels.shape
    say(f"model   {model.name}: {model.cfg.layers} layers of width {model.cfg.width}, {comparison.described(model)}, patches of "
        f"{model.cfg.patch} x {model.cfg.patch}")
    say(f"images  {count} of {rows} x {columns} pixels, {len(shown.classes)} classes, from {shown.origin}")


def look(arm: Arm, shown: subject.Shown, options: Options) -> Collected:
    """Run one arm over the images."""
    return collect(arm.model.params, subject.batches(arm.model, shown), arm.model.cfg, arm.edits, options.features, options.bias,
                   options.patch)


def measure(arm: Arm, shown: subject.Shown, c: Collected, options: Options) -> dict[str, Any]:
    """All numbers of one arm: by layer, and of the last layer."""
    found, model, classes = measures.outliers(c), arm.model, len(shown.classes)
    numbers = {"layers": measures.by_layer(c), "special": found.name, "places": measures.places(c, found),
               "local": measures.local_probes(c, found, subject.patch_pixels(model, shown)),
               "global": measures.global_probes(c, found, shown.labels, classes),
               "head": measures.head(c, {"vit": model.params, "head": model.head}, model.classifier, shown.labels, classes),
               "boxes": measures.boxes(c, shown.boxes, model.cfg.patch, shown.pixels.shape[1:3])}
    if options.native:
        numbers["boxes"] |= native.boxes(model, shown.pictures, options.native, arm.edits, options.features, options.bias)
    return numbers | ({"neurons": arm.neurons} if arm.neurons else {})


def write(record: dict[str, Any], compared: list[str], output: Path) -> list[str]:
    """Write the numbers and, if there is one, the comparison; returns the names of the files."""
    (output / RESULT_FILE).write_text(json.dumps(record, indent=1) + "\n")
    if not compared:
        return [RESULT_FILE]
    head = f"# {record['checkpoint']}\n\n{record['count']} images from {record['images']}.\n\n"
    (output / COMPARISON_FILE).write_text(head + "\n".join(compared) + "\n")
    return [RESULT_FILE, COMPARISON_FILE]


# ------------------------------------------------------------------------------------------------------------ reports

COLUMNS = (
    ("layer", "layer", "{:d}"), ("median_norm", "median", "{:.4g}"), ("max_over_median", "max/med", "{:.2f}"),
    ("cutoff", "cut-off", "{:.4g}"), ("outlier_share", "outliers", "{:.2%}"), ("share_above_3_medians", ">3 med", "{:.2%}"),
    ("share_above_5_medians", ">5 med", "{:.2%}"), ("share_above_median_plus_6_mad", ">6 MAD", "{:.2%}"),
    ("share_above_150", ">150", "{:.2%}"), ("kurtosis", "kurtosis", "{:.2f}"), ("sink_rate_0.3", "sink .3", "{:.1%}"),
    ("sink_rate_10_over_T", "sink 10/T", "{:.1%}"), ("most_attended_over_uniform", "top/unif", "{:.2f}"),
    ("mass_on_registers", "on regs", "{:.1%}"))


def table(results: dict[str, dict[str, Any]]) -> list[str]:
    """Lines: a table by layer for each model, then the numbers of the last layer side by side."""
    lines = []
    for name, result in results.items():
        lines += ["", f"{name}; attention on registers if uniform {result['layers'][-1]['uniform_mass_on_registers']:.1%}",
                  cutoff_line(result["layers"][-1]), " ".join(f"{head:>9}" for _, head, _ in COLUMNS)]
        lines += [" ".join(f"{_cell(row, key, form):>9}" for key, _, form in COLUMNS) for row in result["layers"]]
    flat = {name: _scalars(result) for name, result in results.items()}
    keys = list(dict.fromkeys(key for numbers in flat.values() for key in numbers))
    lines += ["", f"{'last layer, after the final norm':<46}" + "".join(f"{name:>22}" for name in results)]
    lines += [f"{key.replace('_', ' '):<46}" + "".join(f"{_number(flat[name].get(key)):>22}" for name in results) for key in keys]
    return lines


def cutoff_line(row: dict[str, Any]) -> str:
    """In words, which patches of the last layer count as outliers."""
    if row["cutoff"] is None:
        return ("outliers of the last layer: none. The norms of its patches form one group; outliers would be a second group of "
                "much larger norms")
    return (f"outliers of the last layer: patches with a norm above {row['cutoff']:.4g}. The norms of its patches form two groups; "
            "the cut-off lies between them")


def _cell(row: dict[str, Any], key: str, form: str) -> str:
    return form.format(row[key]) if row.get(key) is not None else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _scalars(result: dict[str, Any]) -> dict[str, float]:
    mass = {f"mass on {name}": share for name, share in result["layers"][-1]["mass"].items()}
    groups = (mass, result["places"], result["local"], result["global"], result["head"], result["boxes"])
    return {key: value for group in groups for key, value in group.items() if isinstance(value, float)}


def draw(models: dict[str, subject.Model], shown: subject.Shown, collected: dict[str, Collected], record: dict[str, Any],
         output: Path) -> list[str]:
    """Draw all figures; returns the names of the files. models: name of an arm -> its model, first the unchanged one."""
    names, results = [], record["results"]

    def path(kind: str, name: str = "") -> Path:
        names.append(re.sub(r"[^\w.-]+", "_", f"{kind}{'_' if name else ''}{name}") + ".png")
        return output / names[-1]

    register_figures.layer_curves(path("layers"), {name: r["layers"] for name, r in results.items()}, models[PLAIN].name)
    for name, c in collected.items():
        which, model = "" if name == PLAIN else name, models[name]
        title = f"{model.name}, {name}"
        register_figures.norm_histograms(path("norms", which), c, results[name]["layers"], title)
        register_figures.token_maps(path("maps", which), c, shown.pixels, title, record["patch"])
        register_figures.boxes(path("boxes", which), c, shown.pixels, shown.boxes, model.cfg.patch, title)
        register_figures.positions(path("positions", which), results[name]["places"], results[name]["special"])
    return names


if __name__ == "__main__":
    cli.run(app, sys.argv, main, DEBUG)
