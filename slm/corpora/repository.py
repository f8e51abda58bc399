"""A dataset repository of the Hugging Face Hub, or a folder with a copy of one: its commit, its files and their splits.

One request to the Hub, with a time limit, resolves a revision to a commit. All later reads use that commit, which is
stored, as are the names of its files, so that data prepared from it is found again without a network.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from functools import cache, cached_property
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any

from slm.corpora import digest_of
from slm.corpora.decoded import readable
from slm.corpora.download import fetch
from slm.corpora.shard import READERS, explained, quiet
from slm.errors import UserError, notice
from slm.files import atomic

PROBE_SECONDS = 3.0
NO_HUB = "connect to the Hub, or give data.path=<folder with a copy>"
REFUSED = ("HTTP 401", "HTTP 403", "HTTP 404")


@dataclass(frozen=True)
class Layout:
    """The files of each split by name, and the settings by which `datasets` reads them."""

    splits: dict[str, list[str]]
    reader: str | None = None  # for names that tell nothing
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, list[int]] = field(default_factory=dict)  # rows and bytes of a split, where its README states them


class Repository:
    """`path`: a folder in the repository's layout, read in place; None: `repository` on the Hub at `revision`.

    `name` is a configuration; with `files`, a pattern of names for each split, neither it nor the README is read.
    The folder `cache` stores the commit and the layout.
    """

    def __init__(
        self,
        *,
        path: str | None,
        repository: str,
        revision: str,
        name: str | None,
        files: Mapping[str, str] | None,
        cache: str,
    ):
        self.path = path and atomic.expanded(path)
        self.repository, self.revision, self.cache = repository, revision, Path(cache)
        self.name, self.patterns = name, dict(files or {})

    @property
    def key(self) -> str:
        return f"{self.repository}@{self.revision}"

    @cached_property
    def commit(self) -> tuple[str, bool]:
        """The commit of all reads, and whether the Hub is reachable."""
        if not self.repository:
            raise UserError("data.repository is missing: give data.repository=<owner/name of a dataset at the Hub>")
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
            answer: str | OSError = OSError("HF_HUB_OFFLINE is set")
        else:
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
            answer = _ask_hub(f"{endpoint}/api/datasets/{self.repository}/revision/{self.revision}")

        file = self.cache / "hub_commits.json"
        known = atomic.read_object(file) or {}
        if isinstance(answer, str):
            if known.get(self.key) != answer:
                _store(file, {**known, self.key: answer})
            return answer, True

        reason = f"no {self.key} from the Hugging Face Hub ({answer})"
        try:
            commit = known.get(self.key) or self.snapshot(self.revision, ["*"], download=False).name
        except UserError as error:
            refused = str(answer).startswith(REFUSED)
            fix = "check data.repository and data.revision; if it is private or gated, log in with `hf auth login`"
            raise UserError(f"{reason}: {fix}" if refused else f"{reason}, and {error}") from None
        notice(f"{reason}: using the stored commit {commit[:12]}")
        return commit, False

    def is_local(self) -> bool:
        """False if reading it would download it: no commit is known yet."""
        return self.path is not None or self.key in (atomic.read_object(self.cache / "hub_commits.json") or {})

    @cached_property
    def layout(self) -> Layout:
        """The files of the splits, looked up once for a commit.

        Raises: UserError: for a repository without readable files, for a wrong configuration, with those that exist.
        """
        if self.path is not None:
            return self._look_up(self.path)
        commit, online = self.commit
        name = digest_of([self.repository, commit, self.name, self.patterns])[:16]
        file = self.cache / "hub_layouts" / f"{name}.json"
        known = atomic.read_object(file) or {}
        if known.keys() == vars(Layout({})).keys():
            return Layout(**known)
        layout = self._look_up(None if online else self.snapshot(commit, ["*"], download=False))
        _store(file, vars(layout))
        return layout

    def known_layout(self) -> Layout | None:
        """The layout if it needs no request: of a folder, or of a commit seen before."""
        return self.__dict__.get("layout")

    def files(self, split: str, *, streaming: bool) -> list[str]:
        """Paths or addresses of a split's files, in the order of their names.

        Raises: UserError: for an unknown split, with those that exist; for an incomplete folder; without a network.
        """
        names = self.layout.splits.get(split)
        if not names:
            known, drawn = ", ".join(self.layout.splits), "data.validation_split=null for a share of train"
            raise UserError(f"{self} has no split {split!r}: its splits are {known}; give data.split=..., or {drawn}")
        if any(PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts for name in names):
            raise UserError(f"{self} names files outside of it: {names[0]}")
        announced = re.search(r"-of-(\d+)\.", names[0])
        if announced and int(announced[1]) != len(names):
            total = int(announced[1])
            raise UserError(f"{self}: {names[0]} is one of {total} files, but {len(names)} exist: copy or remove them")
        if self.path is not None:
            return [str(self.path.absolute() / name) for name in names]
        commit, online = self.commit
        if online and streaming:
            return [f"hf://datasets/{self.repository}@{commit}/{name}" for name in names]
        return self._copies(commit, names, download=online)

    def _copies(self, commit: str, names: list[str], *, download: bool) -> list[str]:
        """Paths in the Hugging Face cache, after a download if one is missing."""
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(self.repository, name, None, commit, "dataset") for name in names]
        paths = [path for path in found if isinstance(path, str)]
        if len(paths) == len(names):
            return paths
        if not download:
            raise UserError(
                f"{len(names) - len(paths)} of {len(names)} files of {self} are not in the local cache: {NO_HUB}"
            )
        folder = self.snapshot(commit, [escape(name) for name in names], download=True)
        return [str(folder / name) for name in names]

    def snapshot(self, revision: str, patterns: Sequence[str], *, download: bool) -> Path:
        """The folder of a revision's files in the Hugging Face cache. Its name is the commit."""
        from huggingface_hub import snapshot_download

        choice = {"repo_type": "dataset", "revision": revision, "allow_patterns": list(patterns)}
        try:
            return Path(snapshot_download(self.repository, local_files_only=not download, **choice))
        except Exception as error:  # of the Hub, its HTTP library or the disk: no common base class
            failure = f"the download failed ({explained(error)})" if download else "no copy is in the local cache"
            raise UserError(f"{failure}: {NO_HUB}") from error

    def __str__(self) -> str:
        name = f" (data.name={self.name})" if self.name else ""
        return f"{self.path or self.key}{name}"

    def _look_up(self, folder: Path | None) -> Layout:
        try:
            if self.patterns:
                return self._matching(folder)
            return self._by_readme(folder)
        except UserError:
            raise
        except Exception as error:  # of datasets, the Hub or an HTTP library: no common base class
            remedy = "; give data.name=..." if "onfig" in str(error) else ""
            raise UserError(f"{self} cannot be read: {explained(error)}{remedy}") from error

    def _matching(self, folder: Path | None) -> Layout:
        """The files that match the patterns."""
        if folder is None:
            from huggingface_hub import HfApi

            names = HfApi().list_repo_files(self.repository, revision=self.commit[0], repo_type="dataset")
        else:
            with readable(folder):
                names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        found = {
            split: sorted(name for name in names if fnmatchcase(name, pattern))
            for split, pattern in self.patterns.items()
        }
        if missing := [split for split, files in found.items() if not files]:
            expected = " and ".join(self.patterns.values())
            raise UserError(f"no {missing[0]} files in {folder or self.key}: it must hold {expected}")
        return Layout(found)

    def _by_readme(self, folder: Path | None) -> Layout:
        """The files that the repository's README names, or else those whose names `datasets` takes for splits."""
        import datasets

        quiet(datasets)
        source, revision = (self.repository, self.commit[0]) if folder is None else (str(folder), None)
        builder = datasets.load_dataset_builder(source, self.name, revision=revision)
        prefix = f"hf://datasets/{source}@{revision}/" if folder is None else f"{folder.resolve()}/"
        splits = {
            str(split): sorted(file.removeprefix(prefix) for file in files)
            for split, files in (builder.config.data_files or {}).items()
        }
        if builder.name not in READERS:
            saved = f"; write parquet: datasets.load_from_disk('{source}').to_parquet('texts.parquet')"
            remedy = saved if builder.name == "arrow" else ""
            raise UserError(f"{self} holds {builder.name} data: only {', '.join(READERS)} are read{remedy}")
        given = {name: getattr(builder.config, name) for name in (item.name for item in fields(builder.config))}
        default = type(builder.config)()
        plain = {name: value for name, value in given.items() if isinstance(value, str | int)}
        options = {key: value for key, value in plain.items() if key != "name" and value != getattr(default, key)}
        stated = builder.info.splits or {}
        sizes = {str(split): [info.num_examples, info.num_bytes] for split, info in stated.items()}
        return Layout(splits, builder.name, options, sizes)


@cache
def _ask_hub(url: str) -> str | OSError:
    """The commit of a revision, or the reason for no answer. Cached: a process without network waits only once."""
    from huggingface_hub.utils import build_hf_headers

    try:
        commit = json.loads(fetch(url, seconds=PROBE_SECONDS, headers=build_hf_headers()))["sha"]
        return commit if re.fullmatch("[0-9a-f]{40}", commit) else OSError(f"{commit!r} is not a commit")
    except OSError as error:
        return error
    except (ValueError, KeyError, TypeError):
        return OSError(f"{url} does not answer like a Hub")


def _store(file: Path, content: Mapping[str, Any]):
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(file, json.dumps(content, indent=2).encode())
