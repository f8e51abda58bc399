"""Run folders: where a run keeps what, who it is, and how to find one again."""

import contextlib
import hashlib
import json
import platform
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm.errors import REFUSALS, ResourceError, UserError
from slm.files import atomic
from slm.security import NAME, bounded, refuse_url

CARD = {  # what a run that goes on needs of run.json
    **dict.fromkeys(("run_id", "created", "status", "corpus", "tokenizer"), str),
    **{"config": dict, "budget": dict, "lives": int},
}
TORN_FILE = re.compile(r".+\.\d+\.partial")  # slm.files.atomic's
STEP_FILE = re.compile(r"step-(\d+)\.ckpt")
PATHS = ("run_dir", "runs_dir", "cache_dir", "resume", "data.path", "data.corpus.path", "data.corpus.cache")
FREE = (  # what may change when a run is resumed: how long, how it is watched, on what it runs
    *PATHS,
    *("name", "tags", "budget", "log_every_n_steps", "optimized_metric", "callbacks", "logger", "hooks", "debug"),
    *("trusted_targets", "allow_changes", "verify_resume", "on_nonfinite", "on_spike", "model.gradient_checkpointing"),
    *("data.workers", "data.timeout", "data.streaming", "data.corpus.streaming"),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "precision", "microbatch")),
    *(
        f"trainer.{key}"
        for key in ("auto_microbatch", "deterministic", "benchmark", "detect_anomaly", "profiler", "compile", "tf32")
    ),
)
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "sentencepiece", "torchmetrics")


def file_name(text: str) -> str:
    """The text with only what is harmless in a file name, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100]


def new_folder(root: Path, name: str, moment: str) -> Path:
    return root / f"{moment}_{file_name(name)}-{secrets.token_hex(2)}"


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder for this process alone; one that was made for that is gone again if no run began in it."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"run_dir={folder} is a file; give a folder") from None
    except OSError as error:
        kind = ResourceError if error.errno in REFUSALS else UserError
        raise kind(f"run folder {folder} cannot be written: {error.strerror}; give another one") from None
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(atomic.locked(lock, wait=False))
        except BlockingIOError:
            holder = ""
            with contextlib.suppress(OSError):
                holder = f" by process {lock.read_text()}"
            raise UserError(f"run folder {folder} is in use{holder}; wait for it, or give another run_dir") from None
        try:
            yield
        finally:
            if made and not (folder / "run.json").exists():
                lock.unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # what is not empty stays
                    for path in made:
                        path.rmdir()


def lock_inode(folder: Path) -> int | None:
    """What tells this folder's lock from that of another folder that has come to stand at its place."""
    try:
        return (folder / ".lock").stat().st_ino
    except OSError:
        return None


def read_run_json(folder: Path) -> dict[str, Any] | None:
    """run.json, or None where no run has been."""
    path = folder / "run.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError):
        card = None
    sound = isinstance(card, dict) and bounded(card)
    sound = sound and all(isinstance(card.get(key), kind) for key, kind in CARD.items())
    sound = sound and all(isinstance(card.get(key, 1), int) for key in ("first_step", "microbatch"))
    rewinds = card.get("rewinds", []) if sound else None
    sound = isinstance(rewinds, list) and all(
        isinstance(rewind, dict) and all(isinstance(rewind.get(key), int) for key in ("step", "to", "skipped"))
        for rewind in rewinds
    )
    if not sound:
        raise UserError(f"{path} is damaged; give another run_dir")
    if not NAME.fullmatch(card["run_id"]):
        raise UserError(f"{path} is damaged: run_id={card['run_id']!r} is no name; give another run_dir")
    return card


def check_is_run_folder(folder: Path):
    """Raises UserError for a folder without run.json that holds something, which is nobody's to write or delete in."""
    others = sorted(path.name for path in folder.glob("[!.]*") if not TORN_FILE.fullmatch(path.name))
    if others and not (folder / "run.json").exists():
        raise UserError(f"run_dir={folder} holds {others[0]} but no run.json, so it is no run's; give a new folder")


def remove_partial_files(folder: Path):
    """Deletes what a killed process left half written or half deleted, where a run writes files and nowhere else."""
    for digest in (folder / "checkpoints").glob("step-*.ckpt.sha256"):
        if not digest.with_suffix("").exists():
            digest.unlink()
    for place in (folder, folder / "checkpoints"):
        for path in place.glob("*.partial"):
            if TORN_FILE.fullmatch(path.name) and path.is_file():
                path.unlink()


def write_run_json(folder: Path, card: dict[str, Any]):
    atomic.write_text(folder / "run.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


def identity(config: dict[str, Any]) -> dict[str, Any]:
    """Who a run is, apart from its data: its code, configuration and versions."""
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    return {
        "git_commit": commit,
        "git_dirty": hashlib.sha256(diff.encode()).hexdigest() if diff else None,
        "config_hash": config_hash(config),
        "seed": config["seed"],
        "hooks": sorted(config["hooks"]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
    }


def config_hash(config: dict[str, Any]) -> str:
    """Equal for equal configurations, wherever they keep their files."""
    values = flatten(config, without=PATHS)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What differs between two configurations in a way that a resumed run must not: `key: old -> new`.

    The new one may allow more with `allow_changes`.
    """
    free = (*FREE, *new["allow_changes"])
    before, after = flatten(old, without=free), flatten(new, without=free)
    return [
        f"{key}: {before.get(key)} -> {after.get(key)}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def flatten(config: dict[str, Any], without: tuple[str, ...] = (), prefix: str = "") -> dict[str, Any]:
    """Nested keys joined by dots, without the named ones and what lies below them."""
    flat = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if name in without:
            continue
        if isinstance(value, dict):
            flat |= flatten(value, without, f"{name}.")
        else:
            flat[name] = value
    return flat


def checkpoints(folder: Path) -> list[Path]:
    """The step checkpoints of a run folder, newest first; whether they are intact is another question."""
    found = ((STEP_FILE.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("*.ckpt"))
    return [path for _, path in sorted(((int(match[1]), path) for match, path in found if match), reverse=True)]


def step_of(checkpoint: Path) -> int:
    return int(STEP_FILE.fullmatch(checkpoint.name)[1])


def find_checkpoint(ckpt: str, runs_dir: Path) -> Path:
    """The file that `ckpt=` means: a .ckpt, a run folder (its best, else its newest), or latest, last or best of the
    newest run. Raises UserError with what is there instead."""
    refuse_url("ckpt", ckpt)
    if ckpt in ("latest", "last", "best"):
        found = sorted(runs_dir.glob("*/checkpoints/last.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"ckpt={ckpt}: no run in {runs_dir} has a checkpoint yet; train one with python train.py")
        return _of_run(found[-1].parent.parent, ("last",) if ckpt == "last" else ("best", "last"))
    path = atomic.expanded(ckpt)
    if path.is_dir():
        return _of_run(path, ("best", "last"))
    if not path.exists():
        raise UserError(f"ckpt={ckpt} does not exist; it takes a .ckpt file, a run folder, latest, last or best")
    return path


def find_start(resume: str, runs_dir: Path) -> Path:
    """The checkpoint that training goes on from: a .ckpt, or the newest intact one of a run folder or of `latest`."""
    path = find_checkpoint(resume, runs_dir)
    if resume == "latest" or atomic.expanded(resume).is_dir():
        return newest_intact(path.parent.parent) or path
    return path


def newest_intact(folder: Path) -> Path | None:
    """The newest step checkpoint whose digest matches; says which ones it passed over."""
    damaged = []
    for path in checkpoints(folder):
        if atomic.intact(path):
            if damaged:
                names = ", ".join(damaged)
                print(f"warning: damaged, by the sha256: {names}; going on from {path.name}", file=sys.stderr)
            return path
        damaged.append(path.name)
    return None


def pointed(pointer: Path) -> Path:
    """The step checkpoint that last.json or best.json names, beside it and nowhere else."""
    try:
        name = str(json.loads(pointer.read_text(encoding="utf-8"))["file"])
    except (ValueError, KeyError, TypeError, RecursionError):
        name = ""
    if not STEP_FILE.fullmatch(name):
        raise UserError(f"{pointer} is damaged: it must name a file beside it; give ckpt=<that .ckpt file>")
    return pointer.with_name(name)


def _of_run(folder: Path, pointers: tuple[str, ...]) -> Path:
    for pointer in pointers:
        path = folder / "checkpoints" / f"{pointer}.json"
        if path.exists() and (file := pointed(path)).exists():
            return file
    raise UserError(f"{folder} holds no checkpoint; a run folder has them in checkpoints/")


def _git(*arguments: str) -> str | None:
    """What git says of the source tree, None outside of one."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
