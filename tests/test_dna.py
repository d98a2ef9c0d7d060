"""DNA: the forms of the files, rows, baselines against direct computations and a published table, and the suite."""

from __future__ import annotations

import gzip
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from memtok_jax import config, data
from memtok_jax.config import UserError
from memtok_jax.data import dna, dna_baselines
from memtok_jax.data.dna import DnaConfig
from memtok_jax.data.errors import DataError, DataNotFoundError
from memtok_jax.data.tasks.scoring import IGNORED
from memtok_jax.evaluation.suites import dna as suite
from memtok_jax.evaluation.suites import suite_named
from memtok_jax.training.experiment import EvaluationConfig

REAL = os.environ.get("MEMTOK_DATA_DIR", "")


def drawn(count: int, length: int, seed: int) -> list[tuple[str, int]]:
    """Sequences whose class tells whether they hold more A than T at the front."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(count):
        text = "".join(rng.choice(list("ACGT"), length))
        out.append((text, int(text[:8].count("A") > text[:8].count("T"))))
    return out


@pytest.fixture()
def table(tmp_path, monkeypatch):
    """GUE's form, packed; short words, so that the ridge is small."""
    monkeypatch.setattr(dna_baselines, "FEATURES", ((2, False), (2, True)))
    for n, (name, count) in enumerate((("train", 300), ("dev", 60), ("test", 50))):
        text = "sequence,label\n" + "".join(f"{s},{label}\n" for s, label in drawn(count, 20, n))
        path = tmp_path / f"{name}.csv.gz"
        path.write_bytes(gzip.compress(text.encode()))
    return DnaConfig(str(tmp_path), 24, eval_split="test")


def test_rows_hold_the_bases_in_front_of_the_sign(table):
    found, classes = dna.parts(table)
    assert classes == ("0", "1") and [len(found[s].labels) for s in ("train", "valid", "test")] == [300, 60, 50]
    text, label = drawn(50, 20, 2)[3]
    batch = data.open_eval(table, 8)[0]
    assert data.decode(table, batch["inputs"][3]) == "..." + text + "?" and batch["targets"][3, -1] == label
    assert (batch["targets"][:, :-1] == IGNORED).all() and data.vocabulary(table) == 7
    assert dna.encode("acgtNx-").tolist() == [0, 1, 2, 3, 4, 4, 4]
    numbers = np.concatenate([b["document"] for b in data.open_eval(table, 8)])
    assert sorted(numbers[numbers >= 0]) == list(range(50)) and len(data.open_eval(table, 8)) == 7


def test_the_other_strand_is_read_backwards():
    row = np.array([dna.PAD, *dna.encode("AACGTN"), dna.ASK], np.int32)
    other = dna.other_strand(row)
    assert other.tolist() == [dna.PAD, *dna.encode("NACGTT").tolist(), dna.ASK] and (dna.other_strand(other) == row).all()


def test_training_takes_each_sequence_once_an_epoch_and_resumes(table):
    whole = data.open_train(table, 30)
    batches = [next(whole) for _ in range(20)]
    rows = [row.tobytes() for b in batches[:10] for row in b["inputs"]]
    assert len(set(rows)) == len({text for text, _ in drawn(300, 20, 0)}) and sorted(rows) == sorted(
        row.tobytes() for b in batches[10:] for row in b["inputs"])
    other = data.open_train(table, 30)
    other.set_state({**other.get_state(), "step": 13})
    np.testing.assert_array_equal(next(other)["inputs"], batches[13]["inputs"])
    both = next(data.open_train(replace(table, reverse=True), 30))["inputs"]
    same = (both == batches[0]["inputs"]).all(1)
    assert 5 < same.sum() < 25
    for row, given in zip(both[~same], batches[0]["inputs"][~same], strict=True):
        np.testing.assert_array_equal(dna.other_strand(row), given)


@pytest.mark.parametrize("fasta", [False, True])
def test_classes_as_folders_or_fasta_files(tmp_path, fasta):
    """Without a part for validation each tenth training sequence is taken; lengths may differ."""
    for split, count in (("train", 40), ("test", 10)):
        for name, base in (("no", "A"), ("yes", "C")):
            texts = [base * (3 + n % 4) for n in range(count // 2)]
            if fasta:
                (tmp_path / split).mkdir(exist_ok=True)
                (tmp_path / split / f"{name}.fa").write_text("".join(f">s{n} x\n{t[:2]}\n{t[2:]}\n" for n, t in enumerate(texts)))
                continue
            (tmp_path / split / name).mkdir(parents=True)
            for n, text in enumerate(texts):
                (tmp_path / split / name / f"{n:03d}.txt").write_text(text)
    cfg = DnaConfig(str(tmp_path), 8)
    found, classes = dna.parts(cfg)
    assert classes == ("no", "yes") and [len(found[s].labels) for s in ("train", "valid", "test")] == [36, 4, 10]
    for part in found.values():
        assert all((bases == label).all() for bases, label in zip(part.bases, part.labels, strict=True))
        assert {len(b) for b in part.bases} <= {3, 4, 5, 6}
    assert {places for _, places in dna_baselines.candidates(found)} == {False}


def test_features_and_ridge_equal_what_is_computed_by_hand(table):
    f = dna_baselines.features((dna.encode("ACGTAC"), dna.encode("AANCCC")), 2, True)
    counts = f[:, :16]
    assert counts.sum(1).tolist() == [5, 3] and counts[0, 0 * 4 + 1] == 2 and counts[1, 5] == 2 and counts[1, 0] == 1
    assert f.shape == (2, 16 + 24 + 1) and (f[:, -1] == 1).all() and f[0, 16:20].tolist() == [1, 0, 0, 0] and f[1, 24:28].sum() == 0
    found, _ = dna.parts(table)
    train, valid, test = (found[s] for s in ("train", "valid", "test"))
    x, v, u = (dna_baselines.features(p.bases, 2, True).astype(float) for p in (train, valid, test))
    best = None
    for strength in dna_baselines.STRENGTHS:
        w = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (2.0 * train.labels - 1))
        found_here = (dna_baselines.matthews((v @ w > 0).astype(int), valid.labels), (u @ w > 0).astype(int))
        best = max(best, found_here, key=lambda one: one[0]) if best else found_here
    correlation, said = dna_baselines.fitted(train, valid, test, 2, True, 2)
    assert correlation == pytest.approx(best[0]) and (said == best[1]).mean() > 0.97
    free = data.baselines(table, 1, 0)
    assert set(free) == {"majority", "ridge"} and free["ridge"] > free["majority"]


def test_matthews_correlation():
    labels = np.array([1, 1, 1, 0, 0, 0, 0, 1])
    said = np.array([1, 1, 0, 0, 0, 1, 0, 1])
    tp, tn, fp, fn = 3, 3, 1, 1
    under = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    assert dna_baselines.matthews(said, labels) == pytest.approx((tp * tn - fp * fn) / under ** 0.5)
    assert dna_baselines.matthews(labels, labels) == 1 and dna_baselines.matthews(1 - labels, labels) == -1
    assert dna_baselines.matthews(np.ones(8), labels) == 0 == dna_baselines.matthews(said, np.ones(8))
    three = np.random.default_rng(0).integers(3, size=4000)
    assert abs(dna_baselines.matthews(np.random.default_rng(1).integers(3, size=4000), three)) < 0.05
    assert dna_baselines.matthews(three, three) == pytest.approx(1)


def test_the_suite_scores_every_sequence(table, monkeypatch, tmp_path):
    def oracle(params, inputs, back, block, *, model):
        right = [int((row[3:11] == 0).sum() > (row[3:11] == 3).sum()) for row in inputs]
        return np.repeat(np.array(right)[:, None], inputs.shape[1], 1)

    monkeypatch.setattr(suite.greedy, "answer", oracle)
    experiment = SimpleNamespace(data=table, call_tokens=24, evaluation=EvaluationConfig(16))
    found = dict(suite_named("dna").run(experiment, None, {}, None, tmp_path, lambda line: None))
    assert found["eval/accuracy"] == 1 == found["eval/matthews"] and found["eval/sequences"] == 50
    assert found["baseline/majority_matthews"] == 0 and found["baseline/ridge"] == data.baselines(table, 1, 0)["ridge"]
    with pytest.raises(UserError, match="suite 'dna' judges classes of DNA"):
        dict(suite_named("dna").run(config.load("recall"), None, {}, None, tmp_path, print))


def test_mistakes_are_one_line(table, tmp_path, monkeypatch):
    monkeypatch.delenv("MEMTOK_DATA_DIR", raising=False)
    with pytest.raises(DataNotFoundError, match="real data not found: dna_gue/prom/prom_core_tata"):
        dna.parts(DnaConfig())
    with pytest.raises(DataError, match="sequences of up to 20 bases; data.sequence is 20 and must be 21 or more"):
        dna.parts(replace(table, sequence=20))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="holds no DNA data set"):
        dna.parts(DnaConfig(str(empty)))
    (empty / "train.csv").write_text("seq,label\nA,1\n")
    with pytest.raises(DataError, match="must name the columns sequence and label"):
        dna.parts(DnaConfig(str(empty)))
    with pytest.raises(UserError, match="data.eval_split is 'dev'"):
        DnaConfig(eval_split="dev")


@pytest.mark.realdata
@pytest.mark.skipif(not os.path.isdir(os.path.join(REAL, "dna_gue")), reason="real data not found: dna_gue; set MEMTOK_DATA_DIR")
@pytest.mark.parametrize("task, sizes, positives, ridge", [("prom/prom_core_tata", (4904, 613, 613), (2449, 307, 309), 80.33),
                                                           ("mouse/0", (6478, 810, 810), (3249, 395, 405), 48.17)])
def test_published_files_have_the_stated_baselines(task, sizes, positives, ridge):
    cfg = DnaConfig(f"dna_gue/{task}", 128, eval_split="test")
    found, _ = dna.parts(cfg)
    assert tuple(len(found[s].labels) for s in ("train", "valid", "test")) == sizes
    assert tuple(int(found[s].labels.sum()) for s in ("train", "valid", "test")) == positives
    assert 100 * dna_baselines.scores(cfg)["ridge"][1] == pytest.approx(ridge, abs=0.3)
