"""What to know of one's own files, on stderr: sizes before reading, and afterwards what was skipped or changed."""

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from slm.corpora.decoded import LINE_ENDS, is_utf8
from slm.corpora.local import suffix_of
from slm.errors import notice

END_OF_TEXT = "<|endoftext|>"  # between documents, in many text files
LARGE = 2**30  # bytes
NULL, BLANK, MARKED = "null row", "blank document", "document with a mark"  # in a tally


def before(path: str | None, files: Collection[Path], plain: Collection[Path], separator: str | None):
    """Prints the time to expect, and warns of plain text beside rows and of a large file that is one document."""
    sizes = {file: file.stat().st_size for file in files}
    if (total := sum(sizes.values())) > LARGE:
        notice(f"reading {total / 1e9:.1f} GB once, to check and count the documents")
    if 0 < len(plain) < len(files):
        notice(
            f"warning: data.path={path} holds plain text ({len(plain):,} of {len(files):,} files) and rows, and all "
            "are read; a pattern such as '*.jsonl' chooses"
        )
    largest = max(plain, key=sizes.__getitem__, default=None)
    if separator is None and largest and sizes[largest] > LARGE:
        notice(
            f"warning: {largest} is one document of {sizes[largest] / 1e9:.1f} GB, all in memory; if it holds several, "
            "give data.separator"
        )


def mistaken(files: Collection[Path], encoding: str | None):
    """Warns of files in UTF-8 that are read in another encoding, which garbles them without an error."""
    decoded = [file for file in files if suffix_of(file) != ".parquet"]
    if encoding and (found := [file for file in decoded if is_utf8(file)]):
        notice(
            f"warning: {found[0]} ({len(found):,} of {len(files):,} files) is UTF-8, but is read as {encoding} "
            "(data.encoding), which garbles it: convert all to one encoding"
        )


def after(path: str | None, total: int, tally: Counter[str]):
    """Prints what was skipped or changed in reading the documents."""

    def shown(name: str) -> str:
        return f"{tally[name]:,} {name}{'s' * (tally[name] != 1)}"

    notes = []
    if skipped := [shown(name) for name in (NULL, BLANK) if tally[name]]:
        notes.append(f"skipped {' and '.join(skipped)}")
    if tally[LINE_ENDS]:
        notes.append(f"{shown(LINE_ENDS)} \\r\\n or \\r became \\n")
    if notes:
        notice(f"data.path={path}, {total:,} documents: {'; '.join(notes)}")
    if tally[MARKED]:
        notice(
            f"warning: {END_OF_TEXT} in {tally[MARKED]:,} of {total:,} documents of {path} is read as text; if it "
            f"divides them, give data.separator='{END_OF_TEXT}'"
        )
