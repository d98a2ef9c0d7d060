"""The bytes that a token stands for inside a text, so that text can be put together whatever token a character is cut at.

They come from the decoder that the tokenizer file names: the alphabet of byte-level tokenizers (GPT-2 and most since), or pieces
with a sign for the space and pieces for single bytes (SentencePiece, Llama 2, Gemma). Special tokens stand for their own names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
UNKNOWN = "\N{REPLACEMENT CHARACTER}".encode()
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def of_huggingface(file: Any) -> Callable[[int], bytes]:
    """token -> bytes, of a `tokenizers.Tokenizer`."""
    added = {number: one.content.encode() for number, one in file.get_added_tokens_decoder().items()}
    kinds = set(_kinds(json.loads(file.to_str())["decoder"]))
    if "ByteLevel" in kinds:
        alphabet = byte_alphabet()
        # A piece of other signs, such as a name that the file does not mark as special, stands for its own text.
        read = lambda piece: b"".join(bytes((alphabet[sign],)) if sign in alphabet else sign.encode() for sign in piece)
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        read = _of_piece
    else:
        read = None

    def as_bytes(token: int) -> bytes:
        if token in added:
            return added[token]
        piece = file.id_to_token(token)
        if piece is None:
            return UNKNOWN
        return read(piece) if read else file.decode([token]).encode()

    return as_bytes


def _kinds(decoder: dict[str, Any] | None) -> Iterator[str]:
    """The words for a decoder and for those inside it."""
    if decoder:
        yield decoder["type"]
        for one in decoder.get("decoders", ()):
            yield from _kinds(one)


def of_sentencepiece(file: Any) -> Callable[[int], bytes]:
    """token -> bytes, of a `SentencePieceProcessor`. Marks of beginning and end stand for nothing."""
    def as_bytes(token: int) -> bytes:
        if token >= file.vocab_size() or file.is_unknown(token):
            return UNKNOWN
        return b"" if file.is_control(token) else _of_piece(file.id_to_piece(token))

    return as_bytes


def _of_piece(piece: str) -> bytes:
    if found := _BYTE.fullmatch(piece):
        return bytes((int(found[1], 16),))
    return piece.replace(SPACE, " ").encode()


def byte_alphabet() -> dict[str, int]:
    """Sign -> byte. Bytes that print in Latin-1 are their own signs; the others have those from 256 on, in order."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
