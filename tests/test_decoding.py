"""What every model writes by itself is what it predicts when it reads that."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from contract import B, T, model_case, whole
from model_cases import MODELS, V
from neural_cases import QUICK, jit, random_params

from memtok_jax.inference import session
from memtok_jax.inference.sample import generate
from memtok_jax.models.protocol import bind

PROMPT = 3
# A neural memory takes long to compile; sessions are tested with one in test_inference_session.py.
SLOW = {"lmm", "mac", "mac_questions", "mag", "mal", "xl_below_mag", "rmt_around_mag"}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODELS])
def test_decoding_says_what_teacher_forcing_predicts(name, monkeypatch):
    """Three segments, token by token with layers apart, at temperature 0; a prompt that ends inside a segment."""
    monkeypatch.setattr(session, "options", lambda platform: QUICK)
    model = bind(MODELS[name])
    params = random_params(model.specs(), 0, np.float32)
    prompt = np.random.default_rng(3).integers(V, size=(B, PROMPT))
    said = generate(model, params, prompt, T - PROMPT, jax.random.key(0), 0.0)
    stream = np.concatenate([prompt, said], axis=1)
    logits, _ = jit(model_case(model).apply)(params, model.init_state(params, B), stream, whole())
    np.testing.assert_array_equal(np.argmax(logits, -1)[:, PROMPT - 1:-1], said)
