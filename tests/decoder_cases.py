"""Folders of tiny pretrained decoders, made of the settings that `peers_export/export_decoders.py` stored."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from neural_cases import jit

from memtok_jax.convert import decoders, tensor_files
from memtok_jax.models import language_model
from memtok_jax.models.call import Call

sys.path.insert(0, str(Path(__file__).with_name("peers_export")))
from decoder_random import weights  # noqa: E402

STORED = Path(__file__).with_name("data") / "decoder_parity.npz"


class Case:
    """One case of a stored file."""

    def __init__(self, path: Path, name: str):
        self.file, self.name = np.load(path), name
        own = json.loads(str(self.file["settings"]))[name]
        self.config, self.shapes, self.offset = own["config"], own["shapes"], own["offset"]
        self.ids = self.file["ids"].astype(np.int32)

    def weights(self, init: str) -> dict[str, np.ndarray]:
        """Their arrays."""
        return weights(self.shapes, init, self.offset, int(self.file["seed"]))

    def folder(self, root: Path, init: str = "redrawn", **config) -> Path:
        """A folder with config.json and weights. config: other fields of config.json."""
        folder = root / f"{self.name}-{init}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | config))
        tensor_files.write_safetensors(folder / "model.safetensors", self.weights(init), {"format": "pt"})
        return folder

    def logits(self, init: str, kind: str = "logits") -> np.ndarray:
        """Theirs."""
        return self.file[f"{self.name}/{init}/{kind}"]


def names_of(path: Path) -> list[str]:
    """Names of the cases in a file."""
    return list(json.loads(str(np.load(path)["settings"])))


def run(cfg):
    """Compiled: (params, carry, ids, length) -> (logits, carry)."""
    return jit(lambda params, state, ids, length: language_model.run(params, state, ids, cfg, Call(length=length))[:2])


def whole(params, cfg, ids: np.ndarray) -> np.ndarray:
    """Logits of one call."""
    state = language_model.init_state(params, cfg, len(ids))
    return np.asarray(run(cfg)(params, state, ids, np.full(len(ids), ids.shape[1], np.int32))[0])


def in_float64(params):
    return jax.tree.map(lambda x: x.astype(np.float64), params)


def distance(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Largest difference over the standard deviation of theirs."""
    return float(np.abs(ours - theirs).max() / theirs.std())


def load(folder: Path, **options) -> decoders.Loaded:
    """With a context that holds the text of the cases."""
    return decoders.load(folder, **{"context": 24} | options)
