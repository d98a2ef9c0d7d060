"""The grammar: everything that the automaton lets through is a decision, in tokens and in text."""

from __future__ import annotations

import numpy as np
import pytest

from memtok_jax.config import UserError
from memtok_jax.virtual_context import codec, decoding, grammar
from memtok_jax.virtual_context.automaton import SHORTEST, Automaton
from memtok_jax.virtual_context.grammar import Call, GrammarError

CALLS = (Call("send", ("Größe <call>&lt;</call> \N{OWL}",)), Call("recall_search", ("x y",), "words", 12, True),
         Call("archival_search", ("a",), "date"), Call("working_replace", ("human", "a", "")), Call("yield", heartbeat=True),
         Call("archival_insert", ("1\n2",)), Call("working_append", ("human", "</str>")))


def decoded(rng, left: int) -> bytes:
    """A decision of random tokens under the automaton."""
    automaton, said = Automaton(left), bytearray()
    while not automaton.done:
        logits = rng.normal(size=256).astype(np.float32)
        said.append(decoding.sample(logits, automaton.allowed(), 5.0, rng))
        automaton.push(said[-1])
    return bytes(said)


@pytest.mark.parametrize("number", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_whatever_is_decoded_is_a_decision(number):
    rng, ops = np.random.default_rng(number), set()
    for left in rng.integers(SHORTEST, 60, number):
        said = decoded(rng, int(left))
        calls = grammar.parse(said)
        assert len(said) <= left and grammar.read_text(grammar.write_text(calls)) == calls == grammar.parse(grammar.tokens(calls))
        ops |= {call.op for call in calls}
    assert ops == set(grammar.OPS)


def test_the_automaton_lets_every_decision_through():
    """Complete: it takes the spelling of any calls, in exactly as many tokens as they need."""
    said = grammar.tokens(CALLS)
    automaton = Automaton(len(said), len(CALLS))
    for token in said:
        automaton.push(token)
    assert automaton.done and not automaton.allowed().any()
    tight = Automaton(len(said) - 1, len(CALLS))
    with pytest.raises(ValueError, match="may not follow"):
        for token in said:
            tight.push(token)
    with pytest.raises(ValueError, match="needs 4 tokens"):
        Automaton(3)


def test_both_spellings_are_the_same_calls():
    assert grammar.parse(grammar.tokens(CALLS)) == CALLS == grammar.read_text(grammar.write_text(CALLS))
    assert grammar.write_text(CALLS[1:2]) == "<call>recall_search words<str>x y</str> 12<hb/></call>"
    assert grammar.read_text("  <call> yield </call>\n\n<call>send<str> a </str><hb/></call> ") == (
        Call("yield"), Call("send", (" a ",), heartbeat=True))


def test_every_wrong_token_is_found():
    """Each single token changed to another, or left out: it is refused, or means other calls."""
    said = grammar.tokens(CALLS[:4])
    for place in range(len(said)):
        for token in (0, ord("s"), codec.CALL, codec.CALL_END, codec.STR, codec.STR_END, codec.HEARTBEAT, codec.END, None):
            changed = said[:place] + (b"" if token is None else bytes((token,))) + said[place + 1:]
            try:
                assert changed == said or grammar.parse(changed) != CALLS[:4]
            except GrammarError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("text, error", [
    ("", "token 0"), ("hello", "'hello' stands outside of a call"), ("<call>yield", "token 0"),
    ("<call>send</call>", "takes 1 strings"), ("<result>x</result>", "<result> is no tag"),
    ("<call>sned<str>a</str></call>", "no function and no mode is called 'sned'; did you mean 'send'"),
    ("<call>recall_search<str>a</str></call>", "needs a mode"),
    ("<call>recall_search text<str>a</str> 0</call>", "does not continue"),
    ("<call>recall_search text<str>a</str> 100</call>", "does not continue"),
    ("<call>send<str>a<b>c</str></call>", "<b> is no tag of a call"), ("<call>send<str></str></call>", "text of send is empty"),
    ("<call>send<str>a\ud800</str></call>", "half of a surrogate pair"), ("<call><call>yield</call></call>", "names no function")])
def test_mistakes_in_text_are_told(text, error):
    with pytest.raises(UserError, match=error):
        grammar.read_text(text)


def test_no_text_holds_a_control_token():
    every = "".join(chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000)
    assert not codec.CONTROLS & set(codec.encode(every)) and len(codec.CONTROLS) == 13
    assert len({codec.SYSTEM, codec.USER, codec.ASSISTANT, codec.RESULT, codec.END, codec.CALL, codec.CALL_END, codec.STR,
                codec.STR_END, codec.HEARTBEAT, codec.WORKING} & codec.CONTROLS) == 11
    for text in ("&amp;", "<a>&", "&&lt;", "plain"):
        assert codec.unescape(codec.escape(text)) == text


def test_sampling_takes_allowed_tokens_by_their_probability():
    rng, logits = np.random.default_rng(0), np.full(256, 9.0, np.float32)
    logits[:4] = np.log([1, 2, 3, 4])
    allowed = np.arange(256) < 4
    drawn = np.bincount([decoding.sample(logits, allowed, 1.0, rng) for _ in range(4000)], minlength=4)
    np.testing.assert_allclose(drawn / 4000, [0.1, 0.2, 0.3, 0.4], atol=0.03)
    assert decoding.sample(logits, allowed, 0.0, rng) == 3
