"""Local files: those that a path, folder or pattern names, and their formats by their suffixes."""

from collections.abc import Collection, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from slm.corpora.decoded import readable
from slm.errors import UserError
from slm.files import atomic

WILDCARDS = set("*?[")
FORMATS = {  # suffix -> format
    **dict.fromkeys((".txt", ".md"), "text"),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), "json"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")  # suffixes after that of the format
NOT_READ = {  # suffix of a file that would be read with its markup -> what to do
    **dict.fromkeys((".html", ".htm", ".ipynb"), "save it as plain text in UTF-8"),
    **dict.fromkeys(
        (".arrow", ".feather"),
        "convert it with datasets.load_dataset('arrow', data_files='PATH')['train'].to_parquet('texts.parquet')",
    ),
}


def suffix_of(path: Path) -> str:
    """The suffix of a file in small letters, without that of a compression."""
    name = path.name.lower()
    for suffix in COMPRESSED:
        name = name.removesuffix(suffix)
    return Path(name).suffix


def format_of(path: Path, given: str | None) -> str:
    """The format of a file by its suffix, plain text for an unknown one; `given` is that of the corpus, if it has one.

    Raises: UserError: for a suffix of another format than the given one, or of one that is not read.
    """
    suffix, plain = suffix_of(path), "; or rename it to .txt to train on it as it is" if given != "json" else ""
    found = FORMATS.get(suffix, "text")
    if given and found not in ("text", given):
        expected = {"text": "plain text", "json": "JSON Lines"}[given]
        raise UserError(f"{path} is a {suffix} file, not {expected}: give data=files data.path={path}{plain}")
    if found == "parquet" and path.suffix.lower() != suffix:
        raise UserError(f"{path} is compressed twice: unpack it first")
    if remedy := NOT_READ.get(suffix):
        raise UserError(f"{path} is a {suffix} file, not plain text: {remedy.replace('PATH', str(path))}{plain}")
    return given or found


def named(path: str | None, suffixes: Collection[str]) -> list[Path]:
    """The files at a path: the file, those with one of the suffixes below a folder, or that match a pattern; sorted.

    Hidden files and folders are left out unless the path names them; links are followed.
    Raises: UserError: if there is none, or if a folder or link below the path cannot be read.
    """
    if not path:
        raise UserError("data.path is missing: give data.path=<file, folder or glob>")
    place = atomic.expanded(path)
    with readable(place):
        if place.is_dir():
            files = [file for file in matching(place, ("**", "*")) if file.name.lower().endswith(tuple(suffixes))]
            plain = (f"*{suffix}" for suffix in suffixes if not suffix.endswith(COMPRESSED))
            problem = f"no {', '.join(plain)} file in the folder, compressed or not; '{place / '*'}' names any file"
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
                places += [(entry, [part, *rest]) for entry in sorted(folders, key=in_order) if is_folder(entry)]
            continue
        if WILDCARDS & set(part):
            names = (entry for entry in place.iterdir() if part[0] == "." or not entry.name.startswith("."))
            children = sorted((entry for entry in names if fnmatchcase(entry.name, part)), key=in_order)
        else:
            children = [child for child in (place / part,) if child.exists() or child.is_symlink()]
        if rest:
            places += [(child, rest) for child in children if is_folder(child)]
        else:
            found.update(child for child in children if not is_folder(child))
    return sorted(found, key=in_order)


def in_order(path: Path) -> tuple[str, ...]:
    """The key by which paths are sorted: that of `Path` itself, which compares ten times more slowly."""
    return path.parts


def is_folder(path: Path) -> bool:
    """True for a folder, or a link to one. Raises: UserError: for a link to nothing, which may stand for either."""
    if path.is_dir():
        return True
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist: mend it, or leave it out")
    return False
