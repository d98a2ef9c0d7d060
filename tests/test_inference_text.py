"""Text comes out whole however its bytes are cut, and never with a part of a stop string."""

from __future__ import annotations

import random

import pytest

from memtok_jax.config import UserError
from memtok_jax.inference.text import TextRow

TEXT = "Grüße — «ab» aaab, 🙂 end\n\nUser: Привет"


def pushed(content: bytes, stops, cuts):
    """(text, bytes used up to a stop or None) of the content pushed in pieces, and whether it was shown in time."""
    row, shown, first = TextRow(stops), [], 0
    for cut in [*cuts, len(content)]:
        text, used = row.push(content[first:cut])
        shown.append(text)
        if used is not None:
            return "".join(shown), first + used
        first = cut
    return "".join(shown) + row.finish(), None


STOPS = [(), ("\n\nUser:",), ("aab",), ("ab»", "«ab» a"), ("🙂", "—"), ("nothing",), ("Привет!",)]


@pytest.mark.parametrize("stops", STOPS, ids=str)
def test_any_cut_gives_what_one_search_gives(stops):
    content, chance = TEXT.encode(), random.Random(0)
    ends = [(TEXT.encode().find(s.encode()) + len(s.encode()), TEXT.find(s)) for s in stops if s in TEXT]
    used, end = min(ends, default=(None, len(TEXT)))
    for _ in range(30):
        cuts = sorted(chance.sample(range(1, len(content)), chance.randint(0, len(content) - 1)))
        assert pushed(content, stops, cuts) == (TEXT[:end], used)


def test_what_may_become_a_stop_string_waits_and_nothing_else_does():
    row = TextRow(("STOP",))
    assert row.push(b"one ST") == ("one ", None)
    assert row.push(b"ST") == ("ST", None)
    assert row.push(b"OR") == ("STOR", None)
    assert row.push(b"Y STO") == ("Y ", None)
    assert row.push(b"P and more") == ("", 1)
    assert row.stopped and row.finish() == ""


def test_half_a_character_waits():
    row = TextRow()
    assert row.push("é".encode()[:1]) == ("", None) and row.push("é".encode()[1:]) == ("é", None)
    assert row.push(b"\xf0\x9f") == ("", None) and row.finish() == "\N{REPLACEMENT CHARACTER}"


def test_tokens_without_a_byte_show_as_a_sign():
    assert TextRow().push([65, 300, 66]) == ("A\N{REPLACEMENT CHARACTER}B", None)


@pytest.mark.parametrize("stops", [("a", ""), "word"], ids=str)
def test_stop_strings_are_a_list_of_texts(stops):
    with pytest.raises(UserError, match="must be a list of texts"):
        TextRow(stops)
