"""TinyStories (Eldan and Li 2023, arXiv:2305.07759): from the Hugging Face Hub, or a folder in its repository's layout.

One request to the Hub, with a time limit, resolves a revision to a commit. All later reads use that commit, which is
stored, so that data prepared from it is found again without a network.
"""

import glob
import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from functools import cache, cached_property
from pathlib import Path

from slm.corpora import Split
from slm.corpora.decoded import readable
from slm.corpora.download import fetch
from slm.corpora.local import matching
from slm.errors import UserError
from slm.files import atomic

PROBE_SECONDS = 3.0
PUBLISHED = {"roneneldan/TinyStories": (2_119_719, 1_911_420_483)}  # rows and bytes of its train split, by its README
BATCH_STORIES = 1000
TEXT_TYPES = ("string", "large_string", "string_view", "dictionary<values=string", "null")  # of pyarrow
LAYOUT = "data/train-*.parquet and data/validation-*.parquet with a column `text`"


class TinyStories:
    """`path`: a folder with LAYOUT, read in place; None: `repository` on the Hub at `revision`.

    `streaming` reads the Hub's files over the network and stores nothing; otherwise they are downloaded once into
    the Hugging Face cache. The folder `cache` stores the commit.
    """

    def __init__(self, *, path: str | None, streaming: bool, repository: str, revision: str, cache: str):
        self.path, self.streaming, self.cache = path, streaming, cache
        self.repository, self.revision = repository, revision

    def documents(self, split: Split) -> Iterator[str]:
        """Stories, unchanged; empty ones are skipped.

        Raises: UserError: if there is no network and no copy, or a file is missing, damaged or without a text column.
        """
        folder = self.path
        if folder is None:
            commit, online = self._commit
            if online and self.streaming:
                return _stories([f"hf://datasets/{self.repository}@{commit}/data/{split}-*.parquet"], split)
            folder = self._snapshot(commit, download=online)
        return _stories(_local_files(folder, split), split)

    def is_local(self) -> bool:
        """False if reading it would download it: no commit is known yet."""
        key = f"{self.repository}@{self.revision}"
        return self.path is not None or key in (atomic.read_object(Path(self.cache) / "hub_commits.json") or {})

    def size(self) -> tuple[int, int] | None:
        """Train stories and their bytes, as the Hub states them; None for another repository or folder."""
        return PUBLISHED.get(self.repository) if self.path is None else None

    def fingerprint(self) -> str:
        """Digest of the commit (at most one short request) or of the folder's files (about 1 s per GB).

        Raises: UserError: if there is no network and no known commit, or the folder has no such files.
        """
        if self.path is None:
            content = [self.repository, self._commit[0]]
        else:
            shards = [*_shards(self.path, "train"), *_shards(self.path, "validation")]
            with readable(Path(self.path)):
                content = [[shard.name, atomic.sha256(shard)] for shard in shards]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @cached_property
    def _commit(self) -> tuple[str, bool]:
        """The commit of all reads, and whether the Hub is reachable."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            answer: str | OSError = OSError("HF_HUB_OFFLINE is set")
        else:
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
            answer = _ask_hub(f"{endpoint}/api/datasets/{self.repository}/revision/{self.revision}")

        file, key = Path(self.cache) / "hub_commits.json", f"{self.repository}@{self.revision}"
        known = atomic.read_object(file) or {}
        if isinstance(answer, str):
            if known.get(key) != answer:
                file.parent.mkdir(parents=True, exist_ok=True)
                atomic.write(file, json.dumps({**known, key: answer}, indent=2).encode())
            return answer, True

        reason = f"no {key} from the Hugging Face Hub ({answer})"
        try:
            commit = known.get(key) or self._snapshot(self.revision, download=False).name
        except UserError as error:
            raise UserError(f"{reason}, and {error}") from None
        print(f"{reason}: using the stored commit {commit[:12]}", file=sys.stderr)
        return commit, False

    def _snapshot(self, revision: str, *, download: bool) -> Path:
        """The folder of a revision's files in the Hugging Face cache. Its name is the commit."""
        from huggingface_hub import snapshot_download

        try:
            choice = {"repo_type": "dataset", "revision": revision, "allow_patterns": "data/*.parquet"}
            return Path(snapshot_download(self.repository, local_files_only=not download, **choice))
        except Exception as error:  # of the Hub, its HTTP library or the disk: no common base class
            failure = f"the download failed ({_first_line(error)})" if download else "no copy is in the local cache"
            raise UserError(f"{failure}: connect to the Hub, or give data.path=<folder with {LAYOUT}>") from error


@cache
def _ask_hub(url: str) -> str | OSError:
    """The commit of a revision, or the reason for no answer. Cached: a process without network waits only once."""
    try:
        commit = json.loads(fetch(url, seconds=PROBE_SECONDS))["sha"]
        return commit if re.fullmatch("[0-9a-f]{40}", commit) else OSError(f"{commit!r} is not a commit")
    except OSError as error:
        return error
    except (ValueError, KeyError, TypeError):
        return OSError(f"{url} does not answer like a Hub")


def _shards(folder: str | Path, split: Split) -> list[Path]:
    place = atomic.expanded(folder)
    with readable(place):
        shards = [path for path in matching(place, ("data", f"{split}-*.parquet")) if path.is_file()]
    if not shards:
        raise UserError(f"no {split} files in {folder}: the folder must hold {LAYOUT}")
    announced = re.search(r"-of-(\d+)", shards[0].name)
    if announced and int(announced[1]) != len(shards):
        raise UserError(
            f"{shards[0]} is one of {int(announced[1])} files, but {len(shards)} exist: copy or remove the others"
        )
    return shards


def _local_files(folder: str | Path, split: Split) -> list[str]:
    """Escaped paths of the split's files for `datasets`, after a check of their columns."""
    import pyarrow.parquet

    shards = _shards(folder, split)
    for shard in shards:
        try:
            schema = pyarrow.parquet.read_schema(shard)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{shard} is not a parquet file or encrypted, copy it again: {_first_line(error)}"
            ) from error
        if schema.names.count("text") != 1:
            raise UserError(f"{shard} has the columns {schema.names}: the folder must hold {LAYOUT}")
        if not str(kind := schema.field("text").type).startswith(TEXT_TYPES):
            raise UserError(f"{shard} has a column `text` of {kind} instead of text: the folder must hold {LAYOUT}")
    return [glob.escape(str(shard.absolute())) for shard in shards]


def _stories(files: list[str], split: Split) -> Iterator[str]:
    import datasets

    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # otherwise even a local read contacts a server, for up to 3 s
    for file in files:
        try:
            rows = datasets.load_dataset(
                "parquet",
                data_files={split: file},
                split=split,
                streaming=True,  # reads local files in place, without an Arrow copy in the cache
                columns=["text"],
                batch_size=BATCH_STORIES,  # the default, the size of the first row group, fails if that is empty
            )
            for batch in rows.with_format("arrow").iter(batch_size=BATCH_STORIES):  # 3 times faster than Python lists
                yield from filter(None, batch["text"].to_pylist())
        except Exception as error:  # of datasets, fsspec, pyarrow or an HTTP library: no common base class
            raise UserError(f"reading {file} failed, try again or copy it again: {_first_line(error)}") from error
    time.sleep(0.1)  # for pyarrow's threads: an exit while they read aborts the process (apache/arrow#34314)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
