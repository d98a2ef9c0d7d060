"""Text as tokens: a token is a byte, and the control tokens are bytes that no UTF-8 text contains.

UTF-8 never uses the bytes C0, C1 and F5 to FF. Eleven of them are control tokens. Stored text is encoded as UTF-8, so whatever it
says, it cannot hold a control token: text that looks like a call stays text.
"""

from __future__ import annotations

from memtok_jax.config import UserError
from memtok_jax.data import marks

SYSTEM, USER, ASSISTANT, END, WORKING = marks.SYSTEM, marks.USER, marks.ASSISTANT, marks.END, marks.WORKING
CALL, CALL_END, STR, STR_END, RESULT, HEARTBEAT = (marks.CALL, marks.CALL_END, marks.STR, marks.STR_END, marks.RESULT,
                                                   marks.HEARTBEAT)
MARKS = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
CONTROLS = frozenset({*range(0xF5, 0x100), 0xC0, 0xC1})   # two of them are spare


def encode(text: str) -> bytes:
    """UTF-8. Raises UserError for a lone surrogate, which is no character."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"character {error.start} of the text is {text[error.start]!r}, half of a surrogate pair; "
                        "text.encode(errors='replace').decode() replaces it") from None


def decode(tokens: bytes) -> str:
    """The text; a replacement sign for control tokens and for characters that were cut."""
    return tokens.decode(errors="replace")


def wrap(role: str, text: bytes) -> bytes:
    """A message as the model reads it: mark, text, end. A call with its result (role "function") holds its marks already."""
    return text if role == "function" else bytes((MARKS[role],)) + text + bytes((END,))


def working(blocks: dict[str, str]) -> bytes:
    """The blocks of the working context as the model reads them."""
    return b"".join(bytes((WORKING,)) + encode(name) + bytes((STR,)) + encode(text) + bytes((STR_END,))
                    for name, text in blocks.items())


def working_tokens(name: str, limit: int) -> int:
    """Tokens that a block takes at most. limit: tokens of its text."""
    return len(encode(name)) + limit + 3


def escape(text: str) -> str:
    """Text for a prompt that is itself text: no tag of it is a tag any more."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def unescape(text: str) -> str:
    """The inverse of `escape`."""
    return text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
