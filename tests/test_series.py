"""Time series: splits and cases, baselines against direct computations and published tables, the forecaster and its suite."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from model_cases import LMM, WINDOW, model
from neural_cases import jit

from memtok_jax import config, data, sharding
from memtok_jax.config import UserError
from memtok_jax.data import series, series_baselines
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.series import SeriesConfig
from memtok_jax.evaluation.suites import series as suite
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.models.forecaster import ForecasterConfig, normalised
from memtok_jax.models.protocol import bind
from memtok_jax.training.experiment import EvaluationConfig, Experiment, OptimizerConfig, TrainingConfig, check_vocabulary

REAL = os.environ.get("MEMTOK_DATA_DIR", "")


@pytest.fixture()
def file(tmp_path):
    """A random walk of two channels, hourly, 100 rows."""
    values = np.random.default_rng(0).normal(size=(100, 2)).cumsum(0)
    lines = [f"2020-01-{1 + n // 24:02d} {n % 24:02d}:00:00,{a!r},{b!r}" for n, (a, b) in enumerate(values.tolist())]
    path = tmp_path / "walk.csv"
    path.write_text("date,one,two\n" + "\n".join(lines) + "\n")
    return str(path), values


def test_splits_statistics_and_cases_of_any_table(file):
    path, values = file
    cfg = SeriesConfig(path, look_back=6, horizon=3)
    found = series.table(cfg)
    assert found.ends == (70, 80, 100) and found.day == 24 and found.names == ("one", "two")
    np.testing.assert_allclose(found.values, (values - values[:70].mean(0)) / values[:70].std(0))
    counts = {split: len(series.starts(cfg, found, split)) for split in ("train", "valid", "test")}
    assert counts == {"train": 70 - 6 - 3 + 1, "valid": 10 - 3 + 1, "test": 20 - 3 + 1}
    assert series.starts(cfg, found, "valid")[0] + 6 == 70 and series.starts(cfg, found, "test")[0] + 6 == 80
    first = data.open_eval(cfg, 4)[0]
    np.testing.assert_allclose(first["inputs"][0, 0], found.values[64:70], rtol=1e-6)
    np.testing.assert_allclose(first["targets"][0, 0].reshape(3, 2), found.values[70:73], rtol=1e-6)
    assert data.input_shape(cfg) == ((1, 6, 2), np.float32) and data.vocabulary(cfg) == 6 and data.targets(cfg) == "values"


@pytest.mark.parametrize("rows", [1, 3, 32])
def test_every_case_is_scored_once_for_every_batch(file, rows):
    cfg = SeriesConfig(file[0], 6, 3, eval_split="test")
    batches = list(data.open_eval(cfg, rows))
    numbers = np.concatenate([b["document"] for b in batches])
    assert sorted(numbers[numbers >= 0]) == list(range(18))
    assert all(np.isnan(b["targets"][b["document"] < 0]).all() for b in batches)


def test_training_takes_each_case_once_an_epoch_and_resumes(file):
    cfg = SeriesConfig(file[0], 6, 3)
    count, whole = 62, data.open_train(cfg, 2)
    batches = [next(whole) for _ in range(count)]
    begin = lambda b: b["inputs"][:, 0, 0, 0].tolist()   # noqa: E731
    for epoch in (batches[:31], batches[31:]):
        assert len({x for b in epoch for x in begin(b)}) == count
    assert [begin(b) for b in batches[:31]] != [begin(b) for b in batches[31:]]
    other = data.open_train(cfg, 2)
    other.set_state({**other.get_state(), "step": 40})
    assert begin(next(other)) == begin(batches[40])
    halves = [data.open_train(cfg, 2, index, 2) for index in (0, 1)]
    assert begin(next(halves[0])) + begin(next(halves[1])) == begin(batches[0])
    with pytest.raises(DataError, match="other data"):
        data.open_train(replace(cfg, horizon=4), 2).set_state(whole.get_state())


def test_baselines_equal_what_is_computed_case_by_case(file):
    cfg = SeriesConfig(file[0], look_back=30, horizon=5, eval_split="test")
    found = series.table(cfg)
    (held,) = data.open_eval(cfg, 16)
    train = series.cases(cfg, found, series.starts(cfg, found, "train"))
    pooled = lambda batch: (np.moveaxis(batch["inputs"][:, 0].astype(float), 2, 1).reshape(-1, 30),   # noqa: E731
                            np.moveaxis(batch["targets"].reshape(-1, 5, 2).astype(float), 2, 1).reshape(-1, 5))
    (x, y), (u, v) = pooled(train), pooled(held)
    w = np.linalg.solve((x - x[:, -1:]).T @ (x - x[:, -1:]) + 1e-4 * len(x) * np.eye(30), (x - x[:, -1:]).T @ (y - x[:, -1:]))
    expected = {"repeat": np.repeat(u[:, -1:], 5, 1), "seasonal": u[:, 6:11], "ridge_nlinear": (u - u[:, -1:]) @ w + u[:, -1:]}
    for name, (mse, mae) in series_baselines.errors(cfg).items():
        assert mse == pytest.approx(np.square(expected[name] - v).mean(), rel=1e-4), name
        assert mae == pytest.approx(np.abs(expected[name] - v).mean(), rel=1e-4)
    assert data.baselines(cfg, 1, 0)["repeat"] == series_baselines.errors(cfg)["repeat"][0]


def test_mistakes_are_one_line(file, tmp_path, monkeypatch):
    monkeypatch.delenv("MEMTOK_DATA_DIR", raising=False)
    with pytest.raises(DataNotFoundError, match="real data not found: ett"):
        series.table(SeriesConfig())
    with pytest.raises(DataNotFoundError, match="unknown series 'ETTh3'"):
        series.table(SeriesConfig("ETTh3"))
    with pytest.raises(DataError, match="too few in its part 'valid' for look_back=6 and horizon=20"):
        series.table(SeriesConfig(file[0], 6, 20))
    for text, message in (("date,a\n2020-01-01,x\n", "no table of numbers"), ("date,a\n2020-01-01,nan\n", "not finite"),
                          ("date,a,b\n2020-01-01,1\n", "names of channels")):
        bad = tmp_path / f"bad{len(text)}{message[:2]}.csv"
        bad.write_text(text)
        with pytest.raises(DataError, match=message):
            series.table(SeriesConfig(str(bad)))
    with pytest.raises(UserError, match="data.eval_split is 'tset'"):
        SeriesConfig(file[0], eval_split="tset")
    exp = experiment(file[0])
    with pytest.raises(UserError, match="the data asks for 8 numbers .* the model gives 6"):
        check_vocabulary(replace(exp, data=replace(exp.data, horizon=4)), bind(exp.model))
    with pytest.raises(UserError, match="does not divide into patches of 5"):
        ForecasterConfig(model(WINDOW, segment=0), look_back=8, patch=5)


# ---------------------------------------------------------------------------------------------------------- the forecaster

def forecaster(form: str = "independent", mixer=WINDOW, **options) -> ForecasterConfig:
    return ForecasterConfig(model(mixer, segment=0), **(dict(look_back=8, horizon=3, channels=2, patch=2, form=form) | options))


@functools.cache
def made(cfg: ForecasterConfig):
    """(params, forecast of a batch) of a model."""
    one = bind(cfg)
    params = one.init(jax.random.key(0))
    return params, jit(lambda p, x: one.apply(p, one.init_state(p, len(x)), x)[0])


def test_channels_speak_to_each_other_only_in_the_mixed_form():
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 2)).astype(np.float32)
    changed = x.copy()
    changed[..., 1] = np.random.default_rng(1).normal(size=(3, 1, 8))
    for form, same in (("independent", True), ("mixed", False)):
        params, run = made(forecaster(form))
        y, z = (np.asarray(run(params, jnp.asarray(a))).reshape(3, 3, 2) for a in (x, changed))
        assert y.dtype == np.float32 and (np.abs(y - z)[..., 0].max() < 1e-6) == same and np.abs(y - z)[..., 1].max() > 1e-3


def test_a_forecast_moves_and_stretches_with_its_look_back():
    """With normalisation by the look-back: forecast(a x + b) = a forecast(x) + b."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 8, 2)), jnp.float32)
    params, run = made(forecaster())
    np.testing.assert_allclose(run(params, 3 * x + 5), 3 * run(params, x) + 5, atol=1e-3)
    rows = jnp.moveaxis(x[:, 0], 2, 1)
    for how in ("none", "last", "instance"):
        series_, shift, scale = normalised(rows, how)
        np.testing.assert_allclose(series_ * scale + shift, rows, atol=1e-6)
    assert abs(float(normalised(rows, "instance")[0].mean())) < 1e-6 and (normalised(rows, "last")[0][..., -1] == 0).all()


@pytest.mark.parametrize("mixer", [pytest.param(LMM, id="lmm", marks=pytest.mark.slow), pytest.param(WINDOW, id="window")])
def test_no_row_behind_the_look_back_is_seen_and_cases_do_not_speak(file, mixer):
    """Forecasts of a table whose later rows are noise are the same; so are those of a batch in another order."""
    params, run = made(forecaster(mixer=mixer))
    cfg = SeriesConfig(file[0], 8, 3, eval_split="test")
    batch = data.open_eval(cfg, 4)[0]["inputs"]
    found = series.table(cfg)
    begins = series.starts(cfg, found, "test")[:1]
    noise = found._replace(values=np.where(np.arange(100)[:, None] < begins[0] + 8, found.values, 99.0))
    again = series.cases(cfg, noise, begins)["inputs"]
    np.testing.assert_array_equal(again[0], batch[0])
    np.testing.assert_allclose(run(params, jnp.asarray(batch[::-1].copy()))[::-1], run(params, jnp.asarray(batch)), atol=1e-6)


def experiment(path: str) -> Experiment:
    return Experiment(forecaster(), SeriesConfig(path, 8, 3, eval_split="test"), OptimizerConfig(1e-2, 6, 1),
                      TrainingConfig(batch=8, loss="squared", log_every=2, checkpoint_every=3, data=1), EvaluationConfig(4))


@pytest.mark.slow
def test_a_run_trains_resumes_and_is_judged(file, tmp_path):
    """The whole way: train.py's loop, a checkpoint, eval.py's report with errors, baselines and a figure."""
    from memtok_jax.evaluation.report import evaluate_run
    from memtok_jax.training.run import train

    run = tmp_path / "run"
    assert train(experiment(file[0]), run) == 0
    found = evaluate_run(run, ("data.eval_split=test",), lambda line: None)
    assert found["eval/cases"] == 18 and 0 < found["eval/mse"] < 100 and found["baseline/repeat"] > 0
    assert (run / "forecasts.png").exists()


def test_the_suite_counts_every_case_and_gives_the_baseline_its_own_error(file, tmp_path, monkeypatch):
    cfg = SeriesConfig(file[0], 8, 3, eval_split="test")
    repeated = lambda params, x, model: np.repeat(np.asarray(x)[:, 0, -1:], 3, axis=1).reshape(len(x), 1, -1)   # noqa: E731
    monkeypatch.setattr(suite, "forecast", repeated)
    exp, lines = experiment(file[0]), []
    for rows in (1, 5, 32):
        monkeypatch.setattr(suite.figures, "available", lambda rows=rows: rows == 5)   # one figure is enough
        chosen = replace(exp, data=cfg, evaluation=EvaluationConfig(rows))
        found = dict(suite_named("series").run(chosen, None, {}, sharding.make_mesh(1, 1, 1), tmp_path, lines.append))
        assert found["eval/mse"] == pytest.approx(found["baseline/repeat"], rel=1e-5) and found["eval/cases"] == 18
        assert found["eval/mae"] == pytest.approx(found["baseline/repeat_mae"], rel=1e-5)
    with pytest.raises(UserError, match="suite 'series' judges forecasts"):
        dict(suite_named("series").run(config.load("recall"), None, {}, None, tmp_path, print))


# ---------------------------------------------------------------------------------------------------------- published tables

# Squared and absolute error on the test split, look-back 96: repeat and seasonal exactly, ridge NLinear.
TABLES = {("ETTh1", 96): ((1.29437, 0.71318), (0.51223, 0.43330), (0.3832, 0.3915)),
          ("ETTh2", 720): ((0.59447, 0.51899), (0.52547, 0.47392), (0.4157, 0.4355)),
          ("ETTm1", 96): ((1.21390, 0.66478), (0.42270, 0.38653), (0.3509, 0.3713)),
          ("ETTm2", 192): ((0.34000, 0.37067), (0.32056, 0.33656), (0.2463, 0.3042))}
CASES = {"ETTh1": 2785, "ETTh2": 2161, "ETTm1": 11425, "ETTm2": 11329}


@pytest.mark.realdata
@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, "ett")), reason="real data not found: ett; set MEMTOK_DATA_DIR")
@pytest.mark.parametrize("name, horizon", TABLES)
def test_baselines_of_ett(name, horizon):
    cfg = SeriesConfig(name, horizon=horizon, eval_split="test")
    found = series_baselines.errors(cfg)
    for (baseline, values), expected, tolerance in zip(found.items(), TABLES[name, horizon], (1e-5, 1e-5, 2e-4), strict=True):
        assert values == pytest.approx(expected, abs=tolerance), baseline
    assert len(series.starts(cfg, series.table(cfg), "test")) == CASES[name]


@pytest.mark.realdata
@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, "ett")), reason="real data not found: ett; set MEMTOK_DATA_DIR")
def test_statistics_of_ett():
    found = series.table(SeriesConfig("ETTh1"))
    np.testing.assert_allclose(found.mean, [7.937742, 2.021039, 5.079771, 0.746186, 2.781762, 0.788453, 17.128262], atol=1e-6)
    np.testing.assert_allclose(found.std, [5.812749, 2.090105, 5.518794, 1.926379, 1.023523, 0.630237, 9.176491], atol=1e-6)
    np.testing.assert_allclose(found.values[0], [-0.36312, -0.00576, -0.63071, -0.14752, 1.38857, 0.87514, 1.46055], atol=1e-5)
