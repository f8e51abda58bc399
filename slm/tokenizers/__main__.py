"""Compares tokenizers on a text: their pieces, bytes per token, texts that they do not restore, and speed.

python -m slm.tokenizers TEXT TOKENIZER ...   TEXT is a file, or the text itself

A TOKENIZER is a run folder, a saved tokenizer's folder, the tokenizer.json (or its folder) or .model file of another
project, or one of bytes, gpt2, cl100k_base, o200k_base.
"""

import argparse
import re
import sys
import time
from dataclasses import asdict, dataclass
from typing import get_args

from slm import tokenizers
from slm.errors import UserError, file_operation, printable
from slm.files import atomic, json_line
from slm.files.stdio import make_stdio_robust
from slm.tables import columns
from slm.tokenizers import Tokenizer
from slm.tokenizers.bytes import ByteTokenizer
from slm.tokenizers.huggingface import HuggingFaceTokenizer
from slm.tokenizers.sentencepiece_model import SentencePieceModel
from slm.tokenizers.tiktoken import Name, TiktokenTokenizer

PARAGRAPH = re.compile(r"(?<=\n\n)(?=[^\n])")
HEAD = ("tokenizer", "ids", "tokens", "bytes/token", "not restored", "bytes lost", "MB/s")


@dataclass(frozen=True)
class Measured:
    """A tokenizer on paragraphs."""

    tokens: int
    failures: list[str]  # the paragraphs that are not restored exactly
    lost_bytes: int
    seconds: float

    @classmethod
    def of(cls, tokenizer: Tokenizer, paragraphs: list[str]) -> "Measured":
        begin = time.perf_counter()
        arrays = tokenizer.encode_batch(paragraphs)
        seconds = time.perf_counter() - begin
        failures = [text for text, ids in zip(paragraphs, arrays) if tokenizer.decode(ids.tolist()) != text]
        lost = tokenizers.lost_bytes(tokenizers.pieces(tokenizer), paragraphs, arrays)
        return cls(sum(map(len, arrays)), failures, lost, seconds)


@json_line.command
def main() -> None:
    """Exit code: 0, or 2 or 4 for a mistake or a file that cannot be read."""
    parser = json_line.Parser(
        prog="python -m slm.tokenizers",
        description=__doc__.partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("text", help="a file in UTF-8, or the text itself")
    parser.add_argument("tokenizer", nargs="+", help="a run folder, a tokenizer's folder or file, or a name")
    parser.add_argument("--show", type=int, default=200, metavar="N", help="pieces of the first N characters (200)")
    arguments = parser.parse_args()
    chosen = {name: opened(name) for name in dict.fromkeys(arguments.tokenizer)}
    text = text_of(arguments.text)
    if arguments.show > 0:
        for name, tokenizer in chosen.items():
            print(f"{short(name)}:\n  {pieces_of(tokenizer, text[: arguments.show])}\n")
    print(table(chosen, text))


def text_of(argument: str) -> str:
    """The content of a file of that name, or the argument itself. Raises: UserError: unless it is text."""
    path = atomic.expanded(argument)
    try:
        is_file = path.is_file()
    except OSError:  # a text that is too long for a name
        is_file = False
    try:
        with file_operation("read", path):
            text = path.read_text(encoding="utf-8-sig") if is_file else argument
        text.encode()
    except UnicodeError:
        raise UserError(f"{printable(argument, 100)!r} is not text in UTF-8; convert it first") from None
    if not text:
        raise UserError("the text is empty; give at least one character")
    return text


def opened(name: str) -> Tokenizer:
    """The tokenizer that an argument names. Raises: UserError: if it names none."""
    path = atomic.expanded(name)
    folder = path / "tokenizer" if (path / "tokenizer").is_dir() else path
    if (folder / "tokenizer.json").is_file():
        if "model" in tokenizers.read_settings(folder):  # the library's
            return HuggingFaceTokenizer.build((), path=str(folder))
        return tokenizers.load(folder)
    if path.is_file() and path.suffix in (".json", ".model"):
        return HuggingFaceTokenizer.build((), path=name) if path.suffix == ".json" else SentencePieceModel.read(name)
    if name == "bytes":
        return ByteTokenizer()
    if name in get_args(Name):
        return TiktokenTokenizer.build((), encoding=name)
    raise UserError(
        f"{name} holds no tokenizer; give a run folder, a tokenizer's folder, a tokenizer.json, a .model file, or one "
        f"of bytes, {', '.join(get_args(Name))}"
    )


def pieces_of(tokenizer: Tokenizer, text: str) -> str:
    """The pieces between bars; bytes that are no text as \\x escapes."""
    pieces = (
        tokenizer.token_bytes(token).decode("utf-8", errors="backslashreplace") for token in tokenizer.encode(text)
    )
    return printable("|".join(piece.replace("\n", "\\n").replace("\t", "\\t") for piece in pieces))


def table(chosen: dict[str, Tokenizer], text: str) -> str:
    """A row per tokenizer, and the first paragraph that each does not restore."""
    paragraphs, size = PARAGRAPH.split(text), len(text.encode())
    rows, lines, facts = [HEAD], [], []
    for name, tokenizer in chosen.items():
        its = Measured.of(tokenizer, paragraphs)
        counts = asdict(its) | {"failures": len(its.failures)}
        facts.append({"tokenizer": name, "vocab_size": tokenizer.vocab_size, **counts})
        share = f"{len(its.failures)} of {len(paragraphs):,}"
        ratio, speed = f"{size / max(its.tokens, 1):.3f}", f"{size / 1e6 / max(its.seconds, 1e-9):.1f}"
        rows.append((short(name), f"{tokenizer.vocab_size:,}", f"{its.tokens:,}", ratio, share, its.lost_bytes, speed))
        if its.failures:
            restored = tokenizer.decode(tokenizer.encode(its.failures[0]))
            lines.append(f"{short(name)} does not restore {its.failures[0][:60]!r}: {restored[:60]!r}")
    json_line.note(bytes=size, paragraphs=len(paragraphs), tokenizers=facts)
    title = f"{size:,} bytes, {len(paragraphs):,} paragraph{'s' if len(paragraphs) > 1 else ''}"
    return "\n".join([title, columns(rows, right=True), *map(printable, lines)])


def short(name: str) -> str:
    """The end of a long path."""
    return printable(name if len(name) <= 40 else "..." + name[-37:])


if __name__ == "__main__":
    make_stdio_robust()
    sys.exit(main())
