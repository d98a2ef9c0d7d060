"""Long-horizon forecasts of ETT with any memory of the package.

Papers: Titans (table 3: LMM .420, .336, .358, .261 on ETTh1, h2, m1, m2, mean of four horizons), https://arxiv.org/abs/2501.00663
        Informer (the data), https://arxiv.org/abs/2012.07436; PatchTST, https://arxiv.org/abs/2211.14730
Data: four CSV files in the folder ett of MEMTOK_DATA_DIR or --data_dir; any other table as --data=series:FILE.csv
Command: python train.py --config=ett:h1_96                (SET_HORIZON: h1, h2, m1, m2 and 96, 192, 336, 720; LMM)
         python train.py --config=ett:h1_96_window         (mag, mal, window, mamba; "mixed": LMM over all channels)
         --config.data.horizon=720 --config.model.horizon=720 for another horizon of these
    then python eval.py --workdir=runs/ett-h1_96 --config.data.eval_split=test for errors on every test case, and a figure
Hardware, time: 2 CPU cores, minutes each for the hourly sets (not measured yet)
Expected: not measured yet; a linear map in closed form, printed beside, has .438, .373, .411, .286 (mean of horizons)

Look-back 96. Channels are rows of their own and share the model ("mixed": a token holds all channels); each case is normalised by
its look-back. The published training stops early by the validation error; here the learning rate falls to zero over a fixed number
of updates, and train.py prints the validation error on the way. How Titans' forecaster was built is not published.
Neighbours: titans_lmm.
"""

from __future__ import annotations

from memtok_jax.data.series import SeriesConfig
from memtok_jax.models.forecaster import ForecasterConfig
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig
from memtok_jax.training.memories import small_model

SETS, HORIZONS, KINDS = ("h1", "h2", "m1", "m2"), (96, 192, 336, 720), ("mag", "mal", "window", "mamba", "mixed")
BASE = tuple(f"{name}_{horizon}" for name in SETS for horizon in HORIZONS)
PRESETS = (*BASE, *(f"{name}_96_{kind}" for name in SETS for kind in KINDS))


def config(preset: str) -> Experiment:
    """The experiment of one preset."""
    name, horizon, kind = (*preset.split("_"), "")[:3]
    inside = small_model("lmm" if kind in ("", "mixed") else kind, 1, tokens=12, width=64, layers=2)
    steps = 2000 if name[0] == "h" else 4000
    return Experiment(
        model=ForecasterConfig(inside, horizon=int(horizon), form="mixed" if kind == "mixed" else "independent"),
        data=SeriesConfig(f"ETT{name}", horizon=int(horizon)),
        optimizer=OptimizerConfig(learning_rate=5e-4, steps=steps, warmup_steps=100, final_fraction=0.0, weight_decay=0.05),
        training=TrainingConfig(batch=32, loss="squared", log_every=20, eval_every=250, checkpoint_every=250),
        evaluation=EvaluationConfig(batch=64, batches=20),
    )
