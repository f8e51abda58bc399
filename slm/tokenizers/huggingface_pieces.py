"""The bytes of each id of a tokenizer.json, by the steps of its decoder."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from slm.tokenizers.bpe import in_bytes

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
UNKNOWN = "\ufffd".encode()


def byte_pieces(settings: Mapping[str, Any], ids: Mapping[str, int], special: Collection[int]) -> list[bytes]:
    """The UTF-8 bytes of each id, empty for special ones and unused ids; U+FFFD for the id of unknown text."""
    model = settings["model"]
    unknown = ids.get(model.get("unk_token"), model.get("unk_id"))
    convert = _converter(_steps(settings.get("decoder")))
    pieces = [b""] * (max(ids.values()) + 1)
    for token, number in ids.items():
        pieces[number] = UNKNOWN if number == unknown else b"" if number in special else convert(token)
    return pieces


def _steps(decoder: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """The decoder, or those inside it. Raises: ValueError: for more than one level."""
    if decoder is None or decoder["type"] != "Sequence":
        return [decoder] if decoder else []
    if any(step["type"] == "Sequence" for step in decoder["decoders"]):
        raise ValueError("its decoder is a sequence of sequences")
    return decoder["decoders"]


def _converter(steps: Sequence[Mapping[str, Any]]) -> Callable[[str], bytes]:
    """The function from a token to its bytes."""
    kinds = {step["type"]: step for step in steps}
    if "ByteLevel" in kinds:
        return _of_byte_level
    if "WordPiece" in kinds:
        prefix = kinds["WordPiece"]["prefix"]
        return lambda token: (token.removeprefix(prefix) if token.startswith(prefix) else " " + token).encode()
    if "BPEDecoder" in kinds:
        suffix = kinds["BPEDecoder"]["suffix"]
        return lambda token: (token.removesuffix(suffix) + " " if token.endswith(suffix) else token).encode()
    if not steps:  # the library puts a space between tokens
        return lambda token: (" " + token).encode()
    replaced = [(_literal(step["pattern"]), step["content"]) for step in steps if step["type"] == "Replace"]
    replaced += [(step["replacement"], " ") for step in steps if step["type"] == "Metaspace"]

    def convert(token: str) -> bytes:
        if "ByteFallback" in kinds and (byte := BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        for old, new in replaced:
            token = token.replace(old, new)
        return token.encode()

    return convert


def _literal(pattern: Mapping[str, str]) -> str:
    """The text of a pattern. Raises: ValueError: for a regular expression, which the library writes in another way."""
    if "String" not in pattern:
        raise ValueError("its decoder replaces by a regular expression")
    return pattern["String"]


def _of_byte_level(token: str) -> bytes:
    try:
        return in_bytes(token)
    except KeyError:  # an added token, which is written as it is
        return token.encode()
