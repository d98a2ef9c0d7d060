"""Calls of functions: a closed grammar, in tokens and in text.

    decision := call+ END
    call     := CALL op mode? string* page? HEARTBEAT? CALL_END
    string   := STR byte{1..} STR_END

An op and a mode are one letter each, a page is one or two digits. As text, for controllers that read and write text, the same
call is `<call>recall_search words<str>my cat</str> 2 <hb/></call>`; `&`, `<` and `>` inside a string are written `&amp;`, `&lt;`,
`&gt;`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from memtok_jax.config import UserError, nearest
from memtok_jax.virtual_context import codec
from memtok_jax.virtual_context.codec import CALL, CALL_END, CONTROLS, END, HEARTBEAT, STR, STR_END

MODES = {"text": "t", "words": "w", "vector": "v", "hybrid": "h", "date": "d"}
MOST_PAGE = 99


class GrammarError(UserError):
    """What a policy said is no decision. Its text is handed back to the policy."""


class Op(NamedTuple):
    """letter: its token. arguments: names of its strings. shortest: least bytes of each. search: has a mode and a page."""

    letter: str
    arguments: tuple[str, ...]
    shortest: tuple[int, ...]
    search: bool = False


OPS = {
    "send": Op("s", ("text",), (1,)),
    "yield": Op("y", (), ()),
    "recall_search": Op("r", ("query",), (1,), True),
    "archival_search": Op("q", ("query",), (1,), True),
    "archival_insert": Op("i", ("text",), (1,)),
    "working_append": Op("a", ("block", "text"), (1, 1)),
    "working_replace": Op("p", ("block", "old", "new"), (1, 1, 0)),
}
BY_LETTER = {op.letter: name for name, op in OPS.items()}
MODE_BY_LETTER = {letter: mode for mode, letter in MODES.items()}


@dataclass(frozen=True)
class Call:
    """One call.

    op: a name of OPS. args: its strings. mode, page: of a search. heartbeat: ask the policy again when the call is done.
    """

    op: str
    args: tuple[str, ...] = ()
    mode: str = ""
    page: int = 1
    heartbeat: bool = False


def check(call: Call) -> Call:
    """The call. Raises GrammarError if it is none of the grammar."""
    if call.op not in OPS:
        raise GrammarError(f"no function is called {call.op!r}{nearest(call.op, OPS)}; there are {', '.join(OPS)}")
    op = OPS[call.op]
    if len(call.args) != len(op.arguments) or not all(isinstance(arg, str) for arg in call.args):
        raise GrammarError(f"{call.op} takes {len(op.arguments)} strings ({', '.join(op.arguments)}), not {len(call.args)}")
    for name, arg, least in zip(op.arguments, call.args, op.shortest, strict=True):
        if len(codec.encode(arg)) < least:
            raise GrammarError(f"{name} of {call.op} is empty")
    if op.search and (call.mode not in MODES or not 1 <= call.page <= MOST_PAGE):
        raise GrammarError(f"{call.op} needs a mode ({', '.join(MODES)}) and a page from 1 to {MOST_PAGE}, not {call.mode!r} and "
                           f"{call.page}")
    if not op.search and (call.mode or call.page != 1):
        raise GrammarError(f"{call.op} has no mode and no page")
    return call


def send(text: str, heartbeat: bool = False) -> Call:
    """A message to the user."""
    return Call("send", (text,), heartbeat=heartbeat)


def search(op: str, mode: str, query: str, page: int = 1, heartbeat: bool = True) -> Call:
    """A search, after which the policy is asked again."""
    return Call(op, (query,), mode, page, heartbeat)


# ------------------------------------------------------------------------------------------------------------ tokens

def call_tokens(call: Call) -> bytes:
    """One call as tokens."""
    op = OPS[check(call).op]
    head = op.letter + (MODES[call.mode] if op.search else "")
    strings = b"".join(bytes((STR,)) + codec.encode(arg) + bytes((STR_END,)) for arg in call.args)
    page = str(call.page) if call.page != 1 else ""
    return (bytes((CALL,)) + head.encode() + strings + page.encode() + bytes((HEARTBEAT,)) * call.heartbeat + bytes((CALL_END,)))


def tokens(calls: Sequence[Call]) -> bytes:
    """A decision as tokens."""
    return b"".join(map(call_tokens, calls)) + bytes((END,))


_CLOSED = re.compile(re.escape(bytes((CALL,))) + rb"(.*?)" + re.escape(bytes((CALL_END,))), re.DOTALL)
_STRING = re.compile(re.escape(bytes((STR,))) + rb"(.*?)" + re.escape(bytes((STR_END,))), re.DOTALL)


def parse(said: bytes) -> tuple[Call, ...]:
    """The calls of a decision. Raises GrammarError with the place of the first token that does not belong there."""
    calls, place = [], 0
    while match := _CLOSED.match(said, place):
        calls.append(_parse_call(match[1], place))
        place = match.end()
    if not calls or said[place:] != bytes((END,)):
        raise GrammarError(f"token {place} does not continue the decision: calls are needed, and an end after the last one")
    return tuple(calls)


def _parse_call(inside: bytes, place: int) -> Call:
    """inside: the tokens between CALL and CALL_END. place: of the call, for the message."""
    name = BY_LETTER.get(inside[:1].decode("latin1"), "")
    if not name:
        raise GrammarError(f"token {place + 1} names no function")
    at, mode, args = 1, "", []
    if OPS[name].search:
        mode, at = MODE_BY_LETTER.get(inside[1:2].decode("latin1"), ""), 2
        if not mode:
            raise GrammarError(f"token {place + 2}: {name} needs a mode, one of {', '.join(MODES)}")
    while match := _STRING.match(inside, at):
        args.append(_string(match[1], place + at))
        at = match.end()
    rest = inside[at:]
    heartbeat, digits = rest.endswith(bytes((HEARTBEAT,))), rest.removesuffix(bytes((HEARTBEAT,)))
    if digits and not re.fullmatch(rb"[1-9][0-9]?", digits):
        raise GrammarError(f"token {place + 1 + at} does not continue the call {name}")
    return check(Call(name, tuple(args), mode, int(digits or b"1"), heartbeat))


def _string(content: bytes, place: int) -> str:
    if CONTROLS & set(content):
        raise GrammarError(f"the string at token {place} holds a control token")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise GrammarError(f"the string at token {place} is no UTF-8 text") from None


# -------------------------------------------------------------------------------------------------------------- text

_TAGS = {"<call>": CALL, "</call>": CALL_END, "<str>": STR, "</str>": STR_END, "<hb/>": HEARTBEAT}


def write_text(calls: Sequence[Call]) -> str:
    """A decision as text, one call a line."""
    return "\n".join(_write(check(call)) for call in calls)


def _write(call: Call) -> str:
    mode = f" {call.mode}" if call.mode else ""
    strings = "".join(f"<str>{codec.escape(arg)}</str>" for arg in call.args)
    page = f" {call.page}" if call.page != 1 else ""
    return f"<call>{call.op}{mode}{strings}{page}{'<hb/>' * call.heartbeat}</call>"


def read_text(text: str) -> tuple[Call, ...]:
    """The calls of a decision in text. Raises GrammarError as `parse` does; between calls only white space may stand."""
    return parse(_as_tokens(text) + bytes((END,)))


def _as_tokens(text: str) -> bytes:
    out, inside, string = bytearray(), False, False
    for piece in re.split(r"(<[^<>]*>)", text):
        if piece in _TAGS:
            inside, string = piece not in ("</call>",) and (inside or piece == "<call>"), piece == "<str>"
            out.append(_TAGS[piece])
        elif piece.startswith("<") and piece.endswith(">"):
            raise GrammarError(f"{piece[:40]} is no tag of a call; there are {' '.join(_TAGS)}, and in a string < is written &lt;")
        elif string:
            out += codec.encode(codec.unescape(piece))
        elif not inside and piece.strip():
            raise GrammarError(f"{piece.strip()[:40]!r} stands outside of a call; say it by <call>send<str>...</str></call>")
        else:
            out += _words(piece)
    return bytes(out)


def _words(piece: str) -> bytes:
    """Names of functions and modes as their letters, a page as its digits."""
    out = b""
    for word in piece.split():
        if word in OPS:
            out += OPS[word].letter.encode()
        elif word in MODES:
            out += MODES[word].encode()
        elif word.isascii() and word.isdecimal():
            out += word.encode()
        else:
            raise GrammarError(f"no function and no mode is called {word[:40]!r}{nearest(word, (*OPS, *MODES))}")
    return out
