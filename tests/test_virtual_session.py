"""A real model behind a conversation: the summary is its own memory, and evicted text reaches the logits through it alone."""

from __future__ import annotations

import functools
from dataclasses import replace

import inference_models as models
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import virtual_toys as toys

from memtok_jax.config import UserError
from memtok_jax.inference.compiles import compile_count
from memtok_jax.models.call import Call
from memtok_jax.models.mixers.mac import MacConfig
from memtok_jax.models.mixers.segment import SegmentConfig
from memtok_jax.models.protocol import bind
from memtok_jax.models.rmt import RmtConfig
from memtok_jax.models.style import GPT2_RELATIVE
from memtok_jax.virtual_context import decoding, learned, main_context, policies
from memtok_jax.virtual_context.config import ContextConfig
from memtok_jax.virtual_context.conversation import Conversation
from memtok_jax.virtual_context.model_embedder import ModelEmbedder
from memtok_jax.virtual_context.session_device import SessionDevice

SEGMENT = 16
CFG = replace(toys.SMALL, budget=300, blocks=(), max_new=16, page_tokens=32, system="")
MODELS = {"rmt": bind(RmtConfig(models.model_of(SegmentConfig(), style=GPT2_RELATIVE, vocabulary=256, segment=SEGMENT), tokens=2)),
          "titans": bind(models.model_of(MacConfig(memory=models.NEURAL), vocabulary=256, segment=SEGMENT, layers=1, prefix=2))}


@functools.cache
def compiled(name: str) -> SessionDevice:
    """One compiled device for each model; it holds nothing of a conversation."""
    return SessionDevice(MODELS[name], MODELS[name].init(jax.random.key(0)), blocks=(SEGMENT,))


def device(name: str, latent: bool = True) -> SessionDevice:
    """A device, with the programs of the latent one."""
    copy, found = object.__new__(SessionDevice), compiled(name)
    other = {} if latent else {"_latent": False, "summary_tokens": 0, "fingerprint": found.fingerprint | {"latent": False}}
    vars(copy).update(vars(found) | other)
    return copy


def talk(path, device_, texts, policy=None, cfg=CFG):
    """A conversation after some messages, and each flush: (summary before, tokens, summary after)."""
    flushed = []
    spy = object.__new__(SessionDevice)
    vars(spy).update(vars(device_))

    def summarise(summary, tokens):
        before = jax.device_get(summary)
        after = device_.summarise(summary, tokens)
        flushed.append((before, tokens, jax.device_get(after)))
        return after

    spy.summarise = summarise
    conversation = Conversation(path, cfg=cfg, device=spy, policy=policy, synchronous="NORMAL", save_every=0)
    for number, text in enumerate(texts):
        conversation.say(text, t_us=toys.START + number)
    return conversation, flushed


def leaves(tree):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("name", ["rmt", pytest.param("titans", marks=pytest.mark.slow)])
def test_the_summary_is_the_memory_of_the_model_after_the_same_segments(name, tmp_path):
    """By the model itself: every segment of what was evicted is one call of it, and the last one of each flush is closed early.

    RMT is followed over all flushes. Rounding grows in a neural memory of width 8, so each of its flushes is taken alone.
    """
    conversation, flushed = talk(tmp_path / "a.db", device(name), [toys.says(n) for n in range(8)])
    model, params = MODELS[name], device(name).params
    run = jax.jit(lambda state, ids, length: model.run(params, state, ids, Call(length=length, closes=jnp.ones(1, bool)))[1])
    state = first_state = model.init_state(params, 1)
    for before, tokens, after in flushed:
        state = state if name == "rmt" else before.state
        for first in range(0, len(tokens), SEGMENT):
            piece = tokens[first:first + SEGMENT]
            ids = np.zeros((1, SEGMENT), np.int32)
            ids[0, :len(piece)] = list(piece)
            state = run(state, ids, jnp.array([len(piece)]))
        memory = lambda tree: tree.memory if name == "rmt" else tree  # noqa: E731
        for a, b in zip(leaves(memory(state)), leaves(memory(after.state)), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=(1e-6 if name == "rmt" else 2e-3) * max(1, np.abs(b).max()))
    assert len(flushed) == conversation.state.flushes > 2
    assert any(len(tokens) % SEGMENT for _, tokens, _ in flushed), "some segment must have been closed early"
    moved = [np.abs(a - b).max(initial=0) for a, b in zip(leaves(memory(first_state)), leaves(memory(state)), strict=True)]
    assert max(moved) > 0.1
    assert int(conversation.main.summary.t[0]) == conversation.state.evicted == sum(len(tokens) for _, tokens, _ in flushed)
    conversation.close()


@pytest.mark.parametrize("name", ["rmt", pytest.param("titans", marks=pytest.mark.slow)])
def test_evicted_text_reaches_the_logits_through_the_summary_alone(name, tmp_path):
    """Two conversations that differ in a message that was evicted, of equal length."""
    texts = {other: [f"the first is {other}" * 4, "x" * 70, "y" * 70, "z" * 70] for other in ("cat", "dog")}
    found, tokens = {}, {}
    for latent in (True, False):
        for other, said in texts.items():
            conversation, flushed = talk(tmp_path / f"{other}{latent}.db", device(name, latent), said)
            assert other.encode() in b"".join(read for _, read, _ in flushed) and conversation.state.fifo
            found[latent, other] = conversation.main
            tokens[latent] = main_context.tokens(conversation.state, CFG, conversation._tokens_of)
            conversation.close()
    cat, dog = (device(name).logits(found[False, other].context) for other in texts)
    np.testing.assert_array_equal(cat, dog)
    cat, dog = (device(name).logits(device(name).context(found[True, other].summary, b"?")) for other in texts)
    assert np.abs(cat - dog).max() > 1e-5, "the latent summary carries it"
    # The context is a function of the summary and of the tokens that are left, nothing else: the cat's with the dog's summary.
    again = device(name).context(found[True, "dog"].summary, tokens[True])
    np.testing.assert_array_equal(device(name).logits(again), device(name).logits(found[True, "dog"].context))


def test_going_on_gives_the_same_logits_bit_for_bit(tmp_path):
    """From a snapshot, and from the events alone; and nothing compiles while one talks."""
    one, texts = device("rmt"), [toys.says(n) for n in range(6)]
    before = compile_count()
    reply = policies.HeuristicPolicy(lambda view: policies.write_reply(view, 1.0))
    conversation, _ = talk(tmp_path / "a.db", one, texts[:3], reply)
    conversation.save()
    for number, text in enumerate(texts[3:]):
        conversation.say(text, t_us=toys.START + number)
    wanted = one.logits(conversation.main.context)
    assert compile_count() == before, "everything is compiled when the device is opened"
    conversation.close()
    for drop in (False, True):
        if drop:
            next((tmp_path / "a.db.snapshots").glob("1-*/manifest.json")).unlink()
        with Conversation(tmp_path / "a.db", device=one, policy=reply) as again:
            np.testing.assert_array_equal(one.logits(again.main.context), wanted)
            assert again.store.count(again.conv, "messages") == conversation.state.fifo[-1].row


def test_another_model_is_refused_or_reads_again(tmp_path):
    conversation, _ = talk(tmp_path / "a.db", device("rmt"), [toys.says(n) for n in range(4)])
    state = conversation.state
    conversation.close()
    with pytest.raises(UserError, match="read by another model .latent differs.*rebuild"):
        Conversation(tmp_path / "a.db", device=device("rmt", False))
    with Conversation(tmp_path / "a.db", device=device("rmt", False), rebuild=True) as again:
        assert again.state == state and int(again.main.summary.t[0]) == 0


def test_a_model_decides_in_well_formed_calls(tmp_path):
    """Random parameters under the automaton: whatever comes is a decision, and is carried out."""
    policy = learned.LearnedPolicy(temperature=1.0, calls=3)
    conversation, _ = talk(tmp_path / "a.db", device("rmt"), [toys.says(n) for n in range(4)], policy,
                           replace(CFG, max_chain=3))
    kinds = [kind for _, kind, _ in conversation.store.events(conversation.conv)]
    assert kinds.count("decide") >= 4 and "error" not in kinds
    conversation.close()


def test_a_reply_leaves_the_context_alone():
    one = device("rmt")
    context = one.context(one.begin(), b"hello")
    before = one.logits(context)
    text = decoding.write(one, context, np.random.default_rng(0), 12, 1.0)
    assert 1 <= len(text.encode()) <= 12
    np.testing.assert_array_equal(one.logits(context), before)
    assert text == decoding.write(one, context, np.random.default_rng(0), 12, 1.0)


def test_models_that_cannot_are_refused():
    model = models.MODELS["rmt"]
    with pytest.raises(UserError, match="11 tokens; a conversation needs a model of 256"):
        SessionDevice(model, models.load("rmt")[1])
    with pytest.raises(UserError, match="context.budget=100 is too small: .*set it to"):
        ContextConfig(budget=100) and Conversation(":memory:", cfg=ContextConfig(budget=100))


@pytest.mark.slow
def test_an_embedder_is_the_mean_of_hidden_states():
    """Against the sum over the states of the model without padding; an untrained one needs a flag."""
    model, params = MODELS["rmt"], device("rmt").params
    with pytest.raises(UserError, match="untrained model mean nothing"):
        ModelEmbedder(model, params, steps=0)
    with pytest.raises(UserError, match="vocabulary of 256"):
        ModelEmbedder(*models.load("rmt"), steps=1)
    one = ModelEmbedder(model, params, steps=0, tokens=20, untrained=True)
    text = "Größe und so"
    ids = jnp.array([list(text.encode())])
    h = np.asarray(model.functions.hidden(params, model.init_state(params, 1), ids, model.cfg)[0], np.float64)[0].mean(0)
    found = one.embed([text, "", text])
    np.testing.assert_allclose(found[0], h / np.linalg.norm(h), atol=1e-5)
    assert one.dim == 8 and not found[1].any() and np.array_equal(found[0], found[2])
