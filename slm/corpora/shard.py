"""The rows of one file as documents: parquet, JSON Lines, CSV, text, plain or compressed, as `datasets` reads them."""

import atexit
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from glob import escape
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any

from slm.corpora.local import COMPRESSED, FORMATS
from slm.corpora.template import Template
from slm.errors import UserError

BATCH_ROWS = 1000
READERS = ("parquet", "json", "csv", "text")  # of datasets


@cache
def quiet(datasets: ModuleType):
    """No log lines beside the errors of this program, and no requests that only count downloads."""
    # for pyarrow's threads: an exit while they read aborts the process (apache/arrow#34314)
    atexit.register(time.sleep, 0.1)
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise even a local read contacts a server, for up to 3 s
    datasets.logging.set_verbosity(50)
    datasets.disable_progress_bars()


def texts(file: str, template: Template, reader: str | None, options: Mapping[str, Any]) -> Iterator[str | None]:
    """The text of each row; None for a row without one. `reader`: for a file whose name tells nothing.

    Raises: UserError: for a file that cannot be read, and for the mistakes that `Template` names.
    """
    import datasets

    quiet(datasets)
    suffix = next((s for s in reversed(PurePosixPath(file).suffixes) if s.lower() not in COMPRESSED), "").lower()
    chosen = FORMATS.get(suffix, reader or "text")
    settings = {**({"sep": "\t"} if suffix == ".tsv" else {}), **(options if chosen == reader else {})}
    if chosen == "parquet":  # the default size of a batch, that of the first row group, fails if that is empty
        settings |= {"columns": list(template.columns), "batch_size": BATCH_ROWS}
    number = 0
    try:
        # streaming: also a local file is read in place, without an Arrow copy in the cache
        choice = {"data_files": {"all": escape(file)}, "split": "all", "streaming": True}
        rows = datasets.load_dataset(chosen, **choice, **settings).with_format("arrow")
        for batch in rows.iter(batch_size=BATCH_ROWS):  # 3 times faster than rows as Python objects
            column = template.column if batch.column_names.count(template.column) == 1 else None
            if column and str(batch.schema.field(column).type) in ("string", "large_string"):
                yield from batch[column].to_pylist()
            else:
                for index, row in enumerate(batch.to_pylist(), start=number + 1):
                    yield template.text(row, f"{file} row {index}")
            number += len(batch)
    except UserError:
        raise
    except Exception as error:  # of datasets, fsspec, pyarrow or an HTTP library: no common base class
        if chosen == "parquet":
            refuse_missing(file, template)
        raise UserError(f"reading {file} failed, try again or copy it again: {explained(error)}") from error


def refuse_missing(file: str, template: Template):
    """Raises: UserError: if a parquet file can be read, but does not have each column once."""
    import fsspec
    import pyarrow.parquet

    try:
        with fsspec.open(file) as content:
            names = pyarrow.parquet.read_schema(content).names
    except Exception:  # of fsspec, pyarrow or an HTTP library: the first error explains more
        return
    template.check(names, file)


def grouped(rows: Iterable[str | None], boundary: re.Pattern, limit: int) -> Iterator[str]:
    """Rows as the lines of longer documents, without white space around them; blank ones are left out.

    A document ends where `boundary` matches within a row, which is left out of it, and after `limit` rows.
    """
    document: list[str] = []

    def complete() -> Iterator[str]:
        if text := "\n".join(document).strip():
            yield text
        document.clear()

    for row in rows:
        first, *others = boundary.split((row or "").removesuffix("\n"))
        document.append(first)
        for begin in others:
            yield from complete()
            document.append(begin)
        if len(document) >= limit:
            yield from complete()
    yield from complete()


def explained(error: Exception) -> str:
    """An error of a library in one line, and what to do about a refusal of the Hub."""
    text = " ".join(str(error).split("\n\n")[0].split("Example of usage")[0].split())
    if "gated" in text.lower() or type(error).__name__ == "GatedRepoError":
        return "it is gated: accept its terms on its page at the Hub, and log in with `hf auth login`"
    return f"{type(error).__name__}: {text}"[:300]
