"""Run folders: where a run keeps what, who it is, and how to find one again."""

import hashlib
import json
import platform
import re
import secrets
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slm import durable
from slm.errors import UserError

STEP_FILE = re.compile(r"step-(\d+)\.ckpt")
PATHS = ("run_dir", "runs_dir", "cache_dir", "resume", "data.path", "data.corpus.path", "data.corpus.cache")
FREE = (  # what may change when a run is resumed: how long, how it is watched, on what it runs
    *PATHS,
    *("name", "tags", "budget", "log_every_n_steps", "optimized_metric", "callbacks", "logger", "hooks", "trainer"),
    *("data.workers", "data.streaming", "data.corpus.streaming", "model.gradient_checkpointing"),
)
PACKAGES = ("torch", "lightning", "hydra-core", "omegaconf", "numpy", "sentencepiece", "torchmetrics")


def file_name(text: str) -> str:
    """The text with only what is harmless in a file name, at most 100 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:100]


def new_folder(root: Path, name: str, moment: str) -> Path:
    return root / f"{moment}_{file_name(name)}-{secrets.token_hex(2)}"


def read_card(folder: Path) -> dict[str, Any] | None:
    """run.json, or None where no run has been."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise UserError(f"run_dir={folder} is a file; give a folder") from None
    except ValueError:
        raise UserError(f"{folder / 'run.json'} is damaged; give another run_dir") from None


def write_card(folder: Path, card: dict[str, Any]):
    durable.write_text(folder / "run.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")


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
    """What differs between two configurations in a way that a resumed run must not: `key: old -> new`."""
    before, after = flatten(old, without=FREE), flatten(new, without=FREE)
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


def find_checkpoint(ckpt: str, runs_dir: Path) -> Path:
    """The file that `ckpt=` means: a .ckpt, a run folder (its best, else its newest), or latest, last or best of the
    newest run. Raises UserError with what is there instead."""
    if "://" in ckpt:
        raise UserError(f"ckpt={ckpt} is a URL; download the file first, and only from people you trust")
    if ckpt in ("latest", "last", "best"):
        found = sorted(runs_dir.glob("*/checkpoints/last.json"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UserError(f"ckpt={ckpt}: no run in {runs_dir} has a checkpoint yet; train one with python train.py")
        return _of_run(found[-1].parent.parent, ("last",) if ckpt == "last" else ("best", "last"))
    path = durable.typed(ckpt)
    if path.is_dir():
        return _of_run(path, ("best", "last"))
    if not path.exists():
        raise UserError(f"ckpt={ckpt} does not exist; it takes a .ckpt file, a run folder, latest, last or best")
    return path


def find_start(resume: str, runs_dir: Path) -> Path:
    """The checkpoint that training goes on from: a .ckpt, or the newest intact one of a run folder or of `latest`."""
    path = find_checkpoint(resume, runs_dir)
    if resume == "latest" or durable.typed(resume).is_dir():
        return newest_intact(path.parent.parent) or path
    return path


def newest_intact(folder: Path) -> Path | None:
    """The newest step checkpoint whose digest matches; says which ones it passed over."""
    for path in checkpoints(folder):
        if durable.intact(path):
            return path
        print(f"warning: {path} is damaged or has no matching .sha256; trying the one before it")
    return None


def _of_run(folder: Path, pointers: tuple[str, ...]) -> Path:
    for pointer in pointers:
        path = folder / "checkpoints" / f"{pointer}.json"
        if path.exists():
            file = folder / "checkpoints" / json.loads(path.read_text(encoding="utf-8"))["file"]
            if file.exists():
                return file
    raise UserError(f"{folder} holds no checkpoint; a run folder has them in checkpoints/")


def _git(*arguments: str) -> str | None:
    """What git says of the source tree, None outside of one."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
