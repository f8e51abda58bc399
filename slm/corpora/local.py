"""Local files of text: those that a path, folder or pattern names, opened as UTF-8 after a check of their content."""

import contextlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from io import TextIOWrapper
from pathlib import Path

from slm.errors import DISK_ERRORS, ResourceError, UserError
from slm.files import atomic

WILDCARDS = set("*?[")
UNPACK, CONVERT = "unpack it first", "save it as plain text in UTF-8"
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf", b"Rar!")
SIGNATURES = {  # first bytes of a file that is not plain text -> its content, and what to do
    **dict.fromkeys(COMPRESSED, ("compressed", UNPACK)),
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff"), ("UTF-16", "convert it with iconv -f UTF-16 -t UTF-8")),
    b"PK\x03\x04": ("an archive or office document (zip, docx, odt, xlsx, epub)", f"{UNPACK}, or {CONVERT}"),
    b"\xd0\xcf\x11\xe0": ("an office document (doc, xls)", CONVERT),
    b"{\\rtf": ("an RTF document", CONVERT),
    b"%PDF": ("a PDF document", "extract its text, for example with pdftotext"),
    b"PAR1": ("a parquet file", "convert it to JSON Lines and give data=jsonl"),
}
TABLES = {".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow"}
TO_JSONL = (
    "convert it with datasets.load_dataset('LOADER', data_files='PATH')['train'].to_json('texts.jsonl'), "
    "then data=jsonl data.path=texts.jsonl data.key=<column>"
)
FORMATS = {  # suffix of a file of which `Text` would make one document with markup -> what to do
    **dict.fromkeys((".jsonl", ".ndjson"), "give data=jsonl data.path=PATH"),
    **{suffix: TO_JSONL.replace("LOADER", loader) for suffix, loader in TABLES.items()},
    **dict.fromkeys((".html", ".htm", ".ipynb"), CONVERT),
}


def named(path: str | None, suffix: str) -> list[Path]:
    """The files at a path: the file, the files with the suffix below a folder, or those that match a pattern; sorted.

    Hidden files and folders are left out unless the path names them; links are followed.
    Raises: UserError: if there is none, or if a folder or link below the path cannot be read.
    """
    if not path:
        raise UserError("data.path is missing: give data.path=<file, folder or glob>")
    place = atomic.expanded(path)
    with readable(place):
        if place.is_dir():
            any_case = "*" + "".join(f"[{letter}{letter.upper()}]" for letter in suffix)
            files, problem = matching(place, ("**", any_case)), f"no *{suffix} file in the folder"
        elif place.exists():
            files, problem = [place], "neither a file nor a folder"
        elif WILDCARDS & set(path):
            parts = place.relative_to(place.anchor).parts
            files, problem = matching(Path(place.anchor), parts), "no file matches"
        else:
            siblings = place.parent.iterdir() if place.parent.is_dir() else []
            nearest = get_close_matches(place.name, [file.name for file in siblings if file.exists()], n=1)
            hint = f", did you mean {place.parent / nearest[0]}?" if nearest else ""
            raise UserError(f"data.path={path} does not exist{hint}")
        if odd := [file for file in files if not file.is_file()]:  # a pipe may never end
            raise UserError(f"{odd[0]} is neither a file nor a folder: leave it out")
    if not files:
        raise UserError(f"data.path={path}: {problem}")
    return files


def matching(folder: Path, parts: Sequence[str]) -> list[Path]:
    """The files below a folder that match the parts of a pattern (`**`: folders of any depth), sorted.

    Hidden entries match only a part that begins with a dot. Each folder is read once, so links may form loops.
    Raises: UserError: for a link to nothing that matches; OSError: for a folder that cannot be read.
    """
    found: set[Path] = set()
    seen: set[tuple[int, int, int]] = set()
    places = [(folder, list(parts))]
    for place, (part, *rest) in places:  # grows
        if part == "**":
            stat = place.stat()
            if (key := (stat.st_dev, stat.st_ino, len(rest))) not in seen:
                seen.add(key)
                places.append((place, rest or ["*"]))
                folders = (entry for entry in place.iterdir() if not entry.name.startswith("."))
                places += [(entry, [part, *rest]) for entry in sorted(folders) if is_folder(entry)]
            continue
        if WILDCARDS & set(part):
            names = (entry for entry in place.iterdir() if part[0] == "." or not entry.name.startswith("."))
            children = sorted(entry for entry in names if fnmatchcase(entry.name, part))
        else:
            children = [child for child in (place / part,) if child.exists() or child.is_symlink()]
        if rest:
            places += [(child, rest) for child in children if is_folder(child)]
        else:
            found.update(child for child in children if not is_folder(child))
    return sorted(found)


def is_folder(path: Path) -> bool:
    """True for a folder, or a link to one. Raises: UserError: for a link to nothing, which may stand for either."""
    if path.is_dir():
        return True
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist: mend it, or leave it out")
    return False


def refuse_format(path: Path):
    """Raises: UserError: for a file that is not plain text by its suffix."""
    if remedy := FORMATS.get(path.suffix.lower()):
        raise UserError(
            f"{path} is a {path.suffix.lower()} file, not plain text: {remedy.replace('PATH', str(path))}; "
            "or rename it to .txt to train on it as it is"
        )


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Raises: UserError: with the name of the file, for an OSError in the block."""
    try:
        yield
    except OSError as error:
        kind = ResourceError if error.errno in DISK_ERRORS else UserError
        raise kind(f"{error.filename or path} cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def opened(path: Path) -> Iterator[TextIOWrapper]:
    """The file as UTF-8 text; every line end becomes \\n, and a byte order mark at its start is dropped.

    Raises: UserError: if the file cannot be read, is not plain text by its first bytes, or not UTF-8.
    """
    with readable(path), path.open(encoding="utf-8-sig") as file:  # "sig" drops a leading byte order mark
        head = file.buffer.peek(512)[:512]
        for signature, (content, remedy) in SIGNATURES.items():
            if head.startswith(signature):
                raise UserError(f"{path} is {content}, not plain text: {remedy}")
        if head.count(0) > len(head) / 4:
            raise UserError(f"{path} is not plain text but binary or UTF-16, by its NUL bytes: {CONVERT}")
        try:
            yield file
        except UnicodeDecodeError as error:
            offset = file.buffer.tell() - len(error.object) + error.start
            raise UserError(
                f"{path} is not UTF-8 at byte {offset} ({error.object[error.start]:#04x}): "
                "convert it, for example with iconv -f LATIN1 -t UTF-8, or leave it out"
            ) from None
