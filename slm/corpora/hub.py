"""Any dataset of the Hugging Face Hub, or a folder with a copy of one: splits, texts and limits."""

import hashlib
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import chain

from slm.corpora import Place, Split, digest_of
from slm.corpora.decoded import readable
from slm.corpora.repository import Repository
from slm.corpora.shard import grouped, texts
from slm.corpora.template import Template
from slm.errors import UserError, notice
from slm.files import atomic

NEVER = re.compile("(?!)")


class Hub:
    """A dataset by its repository; the settings are explained in `conf/data/hub.yaml`.

    `streaming` reads the Hub's files over the network and stores nothing; otherwise they are downloaded once into the
    Hugging Face cache.
    """

    def __init__(
        self,
        *,
        repository: str | None,
        revision: str,
        name: str | None,
        files: Mapping[str, str] | None,
        split: str,
        validation_split: str | None,
        validation_share: float,
        split_seed: int,
        column: str | None,
        template: str | None = None,
        separator: str | None = None,
        document_start: str | None = None,
        rows_per_document: int = 1,
        documents: int | None = None,
        bytes: int | None = None,
        path: str | None,
        streaming: bool,
        cache: str,
    ):
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share={validation_share} must be between 0 and 1")
        if rows_per_document < 1:
            raise UserError(f"data.rows_per_document={rows_per_document} must be at least 1")
        for limit, value in {"documents": documents, "bytes": bytes}.items():
            if value is not None and value < 1:
                raise UserError(f"data.{limit}={value} must be at least 1, or null for all")
        self.source = Repository(
            path=path, repository=repository or "", revision=revision, name=name, files=files, cache=cache
        )
        self.repository, self.revision, self.streaming = repository, revision, streaming
        self.split, self.validation_split = split, validation_split
        self.share, self.seed = validation_share, split_seed
        self.template = Template(column, template)
        self.boundary, self.rows = boundary(separator, document_start), rows_per_document
        self.limits = (documents, bytes)
        self.skipped: dict[Split, int] = {}  # rows or documents without text
        self.choices = [column, template, separator, document_start, rows_per_document, split, validation_split]
        self.choices += [validation_share, split_seed, documents, bytes]

    def documents(self, split: Split) -> Iterator[str]:
        """Texts, unchanged; rows without text are skipped and counted.

        Raises: UserError: if there is no network and no copy; for an unknown split, configuration or column; for a file
            that is missing or damaged, or a text that is none.
        """
        return chain.from_iterable(self.parts(split, Place()))

    def parts(self, split: Split, place: Place) -> Iterator[Iterator[str]]:
        """The documents of each file from `place` on, which moves behind a file when its documents have been read."""
        named = self._split_of[split]
        files = self.source.files(named, streaming=self.streaming)
        place.files, begin, skipped, given = len(files), place.file, 0, 0
        place.totals = self._totals() if split == "train" else [None, None]

        def part(file: str) -> Iterator[str]:
            nonlocal skipped, given
            taken = list(place.taken)
            for text in self._texts(file):
                if not text:
                    skipped += 1
                    continue
                side = self._side(text) if self._drawn else split
                if side == "train" and self._is_beyond(taken, text):
                    place.file = len(files)
                    break
                if side == split:
                    given += 1
                    yield text
            else:
                place.file += 1
            place.taken = taken

        while place.file < len(files):
            yield part(files[place.file])
        if begin == given == 0:
            drawn = f"data.validation_share={self.share} of {self.source} is no document: give a larger share"
            raise UserError(drawn if self._drawn else f"split {named} of {self.source} has no documents")
        if skipped and self.skipped.get(split) != skipped:  # said once
            self.skipped[split] = skipped
            notice(f"{self.source}: {skipped:,} rows or documents of {named} without text were skipped")

    def is_local(self) -> bool:
        """False if reading it would download it: no commit is known yet."""
        return self.source.is_local()

    def size(self) -> tuple[int, int] | None:
        """Train documents and about their bytes, as the README states them; None if it is unknown without a request."""
        documents, size = self._totals() if self.source.known_layout() else (None, None)
        return (documents, size) if documents and size else None

    def fingerprint(self) -> str:
        """Digest of the commit (one short request) or of the folder's files (about 1 s per GB), and of the choices.

        Raises: UserError: if there is no network and no known commit, or the folder has no such files.
        """
        return digest_of([*self.content(), self.source.name, self.source.patterns, *self.choices])

    def content(self) -> list:
        """What determines the files of both splits."""
        if self.source.path is None:
            return [self.source.repository, self.source.commit[0]]
        names = dict.fromkeys(self._split_of.values())
        files = [file for split in names for file in self.source.files(split, streaming=False)]
        with readable(self.source.path):
            return [[file.rpartition("/")[2], atomic.sha256(file)] for file in files]

    @cached_property
    def _drawn(self) -> bool:
        """True if validation is drawn from train."""
        if self.validation_split != "auto":
            return self.validation_split is None
        if absent := "validation" not in self.source.layout.splits:
            note = f"data.validation_share={self.share} of its documents are drawn from {self.split}"
            notice(f"{self.source} has no split `validation`: {note}")
        return absent

    @cached_property
    def _split_of(self) -> dict[Split, str]:
        """The dataset's name of each split."""
        if self._drawn:
            return {"train": self.split, "validation": self.split}
        held_out = "validation" if self.validation_split == "auto" else self.validation_split
        return {"train": self.split, "validation": held_out}

    def _totals(self) -> list[int | None]:
        """Documents and bytes of train by its limits, else as the README states them, as far as they are known."""
        rows, size = self.source.layout.sizes.get(self.split, (None, None))
        if self.limits != (None, None):
            return list(self.limits)
        return [None if self.boundary or self.rows > 1 else rows, size]

    def _texts(self, file: str) -> Iterator[str | None]:
        layout = self.source.layout
        rows = texts(file, self.template, layout.reader, layout.options)
        if self.boundary or self.rows > 1:
            limit = self.rows if self.rows > 1 else sys.maxsize
            return grouped(rows, self.boundary or NEVER, limit)
        return rows

    def _side(self, text: str) -> Split:
        """The split of a text, drawn by the text itself: equal documents are on the same side."""
        digest = hashlib.blake2b(text.encode(), digest_size=8, key=str(self.seed).encode()).digest()
        return "validation" if int.from_bytes(digest) / 2**64 < self.share else "train"

    def _is_beyond(self, taken: list[int], text: str) -> bool:
        """True if one of the limits is reached; otherwise adds the document to those of train."""
        after = (taken[0] + 1, taken[1] + len(text.encode()))
        if any(limit is not None and count > limit for count, limit in zip(after, self.limits)):
            return True
        taken[:] = after
        return False


def boundary(separator: str | None, document_start: str | None) -> re.Pattern | None:
    """Where rows that are lines end a document: a text, or before a row that a regular expression matches.

    Raises: UserError: for both, or for an expression that is none.
    """
    if separator and document_start:
        raise UserError("data.separator and data.document_start exclude each other: give one of them")
    if not (separator or document_start):
        return None
    try:
        return re.compile(re.escape(separator) if separator else f"^(?={document_start})")
    except re.error as error:
        raise UserError(f"data.document_start={document_start!r} is not a regular expression: {error}") from None
