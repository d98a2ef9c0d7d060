"""The memory learns to remember: key-value recall with one LMM layer, which a frozen memory cannot do.

k1 v1 ... k8 v8, then the same keys in another order; the value must be predicted at each key. Without a memory that is
written at test time nothing of the first half is left in the second but three tokens of convolution.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from memtok_jax import params as P
from memtok_jax.data.tasks import recall
from memtok_jax.memory.neural.config import NeuralMemoryConfig
from memtok_jax.models.language_model import LanguageModelConfig
from memtok_jax.models.mixers.lmm import LmmConfig
from memtok_jax.models.protocol import Model, bind

# Here the program runs for longer than the compiler: the flags of conftest.py would cost minutes.
FAST = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False, "xla_cpu_use_fusion_emitters": True}
TASK = recall.RecallConfig()
TOKENS, BATCH, BLOCK = 32, 32, 50  # BLOCK: optimizer steps in one call

MEMORY = NeuralMemoryConfig(head_dim=32, chunk=16, forget_range=(1e-3, 1e-3))


def model(memory: NeuralMemoryConfig) -> Model:
    return bind(LanguageModelConfig(vocabulary=recall.vocabulary(TASK), width=64, layers=1, pattern=(LmmConfig(memory),),
                                    head_dim=32, hidden=128))


def draw(samples: int, seed: int):
    """(ids, labels), each [samples, T]."""
    drawn = recall.sample(TASK, TOKENS, samples, seed)
    return jnp.asarray(drawn.ids), jnp.asarray(drawn.labels)


def logits_of(params, ids, own):
    return own.apply(params, own.init_state(params, ids.shape[0]), ids, whole=True)[0]


def loss_of(params, ids, labels, own):
    """Mean cross-entropy at the scored positions."""
    scored = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_of(params, ids, own), jnp.where(scored, labels, 0))
    return jnp.where(scored, losses, 0).sum() / scored.sum()


def train(own: Model, steps: int) -> float:
    """Accuracy on 256 held-out samples after this many steps of AdamW."""
    params = own.init(jax.random.key(0))
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, 50, 500, 3e-4)
    adamw = optax.adamw(schedule, weight_decay=0.01, mask=P.decay_mask(own.specs()))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), adamw)

    def step(carry, batch):
        params, moments = carry
        gradient = jax.grad(loss_of)(params, *batch, own)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), moments), None

    block = jax.jit(lambda carry, batches: jax.lax.scan(step, carry, batches)[0], donate_argnums=0, compiler_options=FAST)
    carry = (params, optimizer.init(params))
    for first in range(0, steps, BLOCK):
        ids, labels = draw(BLOCK * BATCH, seed=first)
        carry = block(carry, (ids.reshape(BLOCK, BATCH, TOKENS), labels.reshape(BLOCK, BATCH, TOKENS)))
    ids, labels = draw(256, seed=10**6)
    answers = jax.jit(lambda p, ids: logits_of(p, ids, own).argmax(-1))(carry[0], ids)
    scored = np.asarray(labels) >= 0
    return float((np.asarray(answers) == np.asarray(labels))[scored].mean())


def test_one_layer_of_memory_learns_to_recall():
    accuracy = train(model(MEMORY), 500)
    assert accuracy >= 0.95, accuracy


@pytest.mark.slow
def test_a_frozen_memory_stays_at_chance():
    """The control: the same model and training with the step gate shut (chance is 1/32)."""
    accuracy = train(model(replace(MEMORY, step_bias=-60.0)), 200)
    assert accuracy <= 0.1, accuracy
