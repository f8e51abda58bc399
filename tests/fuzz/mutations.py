"""Mutations of files and values: they know zip archives, protocol buffers and nested values, so that most of them get
past a first check."""

import copy
import io
import random
import string
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

HUGE = 10**30
TEXTS = ("", "x", "\x1b[31mred", "../../a", "ä" * 1000, "a" * 10**5, "\ud800", "1e999", "null", "${oc.env:SECRET}")
NUMBERS = (0, 1, -1, 2, 0.5, 255, 2**15, 2**31, 2**32, 2**63 - 1, 2**63, HUGE, 1e308, float("nan"), float("inf"))
TENSORS = (
    lambda: torch.zeros(0), lambda: torch.zeros(3), lambda: torch.zeros(1).expand(10**5, 10**5),
    lambda: torch.full((2, 2), float("nan")), lambda: torch.zeros(2, dtype=torch.complex64),
    lambda: torch.zeros(2, 3).T, lambda: torch.zeros(2, 2).to_sparse(), lambda: torch.zeros(2, device="meta"),
    lambda: torch.zeros(4, dtype=torch.int64), lambda: torch.zeros(3, dtype=torch.float64),
)  # fmt: skip


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


def value(rng: random.Random, *, plain: bool = False) -> Any:
    """An odd value; `plain`: of JSON's types."""
    kinds = [
        lambda: rng.choice(TEXTS), lambda: rng.choice(NUMBERS), lambda: rng.choice(NUMBERS),
        lambda: rng.choice((None, True, False)), lambda: rng.choice(([], {}, [[]], {"a": 1}, ["a", None])),
        lambda: nested(rng.choice((3, 100, 300))), lambda: [0] * rng.choice((10, 2000)),
        lambda: {"_target_": "os.system", "command": "touch executed"},
    ]  # fmt: skip
    if not plain:
        kinds += [lambda: rng.choice(TENSORS)(), lambda: rng.randbytes(20), lambda: (1, "a"), lambda: bytearray(3)]
    return rng.choice(kinds)()


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value in nested mappings and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def at(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def changed(tree: Any, rng: random.Random, *, plain: bool = False) -> Any:
    """A copy of nested values with one to three of them replaced, removed, renamed, repeated or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        depths: dict[int, list[tuple]] = {}
        for path in places(tree):
            depths.setdefault(len(path), []).append(path)
        if not depths:
            return value(rng, plain=plain)
        path = rng.choice(depths[rng.choice(list(depths))])  # shallow places are as likely as the many deep ones
        parent, key = at(tree, path[:-1]), path[-1]
        match rng.choice("vvvvrnxd"):
            case "v":
                parent[key] = value(rng, plain=plain)
            case "r":
                del parent[key]
            case "n" if isinstance(parent, dict):
                parent[rng.choice((*TEXTS, 7))] = parent.pop(key)
            case "x":
                other = rng.choice(list(places(tree)))
                if other[: len(path)] != path and path[: len(other)] != other:
                    parent[key] = copy.deepcopy(at(tree, other))
            case _ if isinstance(parent, list):
                parent += [copy.deepcopy(parent[key])] * rng.choice((1, 3, 100))
    return tree


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Bytes with bits flipped, cut, a piece moved, repeated or overwritten."""
    if not content:
        return rng.randbytes(5)
    data, start = bytearray(content), rng.randrange(len(content))
    length = rng.choice((1, 2, 8, 64, 500))
    match rng.choice("fffctmro"):
        case "f":
            for _ in range(rng.choice((1, 1, 2, 8))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case "c":
            del data[start:]
        case "t":
            del data[start : start + length]
        case "m":
            piece = data[start : start + length]
            target = rng.randrange(len(data))
            data[target : target + len(piece)] = piece
        case "r":
            data[start:start] = data[start : start + length] * rng.choice((1, 10))
        case _:
            filling = (b"\x00", b"\xff", b"\x7f", rng.randbytes(1), b"[", b'"', b"\n", b"9")
            data[start : start + length] = rng.choice(filling) * length
    return bytes(data)


def rezipped(content: bytes, rng: random.Random) -> bytes:
    """A zip archive with an entry damaged, removed, repeated, renamed or compressed, and fresh checksums."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    parts = source.infolist()
    victim = rng.choice([parts[0], parts[0], rng.choice(parts)])  # the pickle comes first
    with zipfile.ZipFile(target, "w") as archive:
        for part in parts:
            data, name = source.read(part), part.filename
            if part is victim:
                match rng.choice("ddddrnc2"):
                    case "d":
                        data = damaged(data, rng)
                    case "r":
                        continue
                    case "n":
                        name = name.upper() if rng.random() < 0.5 else damaged(name.encode(), rng).decode("latin1")
                    case "c":
                        archive.writestr(name, data, zipfile.ZIP_DEFLATED)
                        continue
                    case "2":
                        archive.writestr(name.upper(), damaged(data, rng))
            archive.writestr(name, data)
    return target.getvalue()


def fields(message: bytes) -> list[bytes]:
    """The fields of a protocol buffer, each with its tag."""
    found, start = [], 0
    while start < len(message):
        tag, end = varint(message, start)
        match tag & 7:
            case 0:
                _, end = varint(message, end)
            case 1:
                end += 8
            case 2:
                length, end = varint(message, end)
                end += length
            case _:
                end += 4
        found.append(message[start:end])
        start = end
    return found


def varint(message: bytes, start: int) -> tuple[int, int]:
    """The number at `start` and the position after it."""
    number = shift = 0
    while True:
        byte = message[start]
        start += 1
        number |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return number, start


def encoded(number: int) -> bytes:
    content = bytearray()
    while number > 127:
        content.append(number & 127 | 128)
        number >>= 7
    return bytes([*content, number])


def changed_message(message: bytes, rng: random.Random) -> bytes:
    """A protocol buffer with fields removed, repeated, exchanged, or changed within a correct length."""
    parts = fields(message)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if not parts:
            break
        place = rng.choice(
            (rng.randrange(len(parts)), len(parts) - 1, len(parts) - 2, rng.randrange(min(300, len(parts))))
        )
        match rng.choice("iiirdx"):
            case "i" if parts[place][0] & 7 == 2:
                tag = parts[place][:1]
                _, begin = varint(parts[place], 1)
                inside = parts[place][begin:]
                inside = (
                    changed_message(inside, rng)
                    if inside and rng.random() < 0.3 and _is_message(inside)
                    else damaged(inside, rng)
                )
                parts[place] = tag + encoded(len(inside)) + inside
            case "r":
                del parts[place]
            case "d":
                parts[place:place] = [parts[place]] * rng.choice((1, 3))
            case _:
                other = rng.randrange(len(parts))
                parts[place], parts[other] = parts[other], parts[place]
    return b"".join(parts)


def _is_message(content: bytes) -> bool:
    try:
        return b"".join(fields(content)) == content
    except IndexError:
        return False


def word(rng: random.Random, known: list[str]) -> str:
    """An argument: a known one changed in key, operator or value, or characters of the overrides' grammar."""
    key, _, content = rng.choice(known).partition("=")
    match rng.choice("vvvvkog"):
        case "v":
            odd = value(rng, plain=True)
            content = str(odd)[:500] if rng.random() < 0.8 else damaged(content.encode(), rng).decode("latin1")
        case "k":
            key = damaged(key.encode(), rng).decode("latin1")
        case "o":
            key = rng.choice(("+", "++", "~", "-", "--", "@", "")) + key
        case _:
            return "".join(rng.choices(string.printable + "ä=,[]{}${}'\"\\", k=rng.choice((1, 5, 30))))
    return f"{key}={content}"
