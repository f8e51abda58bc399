"""The one way from a checkpoint file to (model, tokenizer, step), and back to disk.

The sha256 of a file lies beside it, since a flipped bit would load without a word. Only plain types and tensors go in,
and nothing else is ever read (weights_only), so a checkpoint cannot execute code.
"""

import pickle
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from slm import durable, tokenizers
from slm.errors import UserError
from slm.model import GPT, GPTConfig
from slm.tokenizers import Tokenizer

FORMAT = 2


@dataclass(frozen=True)
class Loaded:
    """What a checkpoint is for once training is over."""

    model: GPT  # in eval mode
    tokenizer: Tokenizer
    step: int
    config: dict[str, Any]  # the run's resolved configuration
    corpus: str  # the fingerprint of what it was trained on


def description(model: GPTConfig, tokenizer_folder: Path, config: dict, card: dict[str, Any]) -> dict[str, Any]:
    """What a training adds to its checkpoints to make each sufficient on its own; `card` is its run.json."""
    return {
        "format": FORMAT,
        "model": asdict(model),
        "tokenizer": tokenizer_files(tokenizer_folder),
        "config": config,
        "run_id": card["run_id"],
        "corpus": card["corpus"],
    }


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """A saved tokenizer as a checkpoint carries it."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def save(checkpoint: dict[str, Any], path: Path):
    """Atomic, durable and with its digest: whatever happens, `path` is the old file or the new one."""
    with durable.replacing(path, digest=True) as file:
        torch.save(checkpoint, file)


def read(path: Path) -> dict[str, Any]:
    """The raw checkpoint, on the CPU. Raises UserError for what is missing, damaged or not ours."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; ckpt= takes a .ckpt file, a run folder, latest, last or best")
    if durable.digest_path(path).exists() and not durable.intact(path):
        raise UserError(f"{path} is damaged: its sha256 is not the one beside it; take another checkpoint")
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is not a checkpoint, or a truncated one; take another file")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(f"{path} holds more than tensors and plain values, so it is not loaded") from None
    except (RuntimeError, EOFError, zipfile.BadZipFile, OSError, ValueError, KeyError, IndexError):
        raise UserError(f"{path} is damaged; take another checkpoint of the run") from None
    described = checkpoint.get("slm") if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict):
        raise UserError(f"{path} is a checkpoint, but not one of slm")
    if described["format"] != FORMAT:
        raise UserError(f"{path} has checkpoint format {described['format']}, this program reads {FORMAT}")
    return checkpoint


def load(path: Path, device: str | torch.device = "cpu") -> Loaded:
    """Rebuilds model and tokenizer from the file alone."""
    checkpoint = read(path)
    described = checkpoint["slm"]
    model = GPT(GPTConfig(**described["model"]))
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in checkpoint["state_dict"].items()}, strict=True
    )
    with tempfile.TemporaryDirectory() as folder:
        for name, content in described["tokenizer"].items():
            (Path(folder) / Path(name).name).write_bytes(content)
        tokenizer = tokenizers.load(Path(folder))
    return Loaded(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        step=checkpoint["global_step"],
        config=described["config"],
        corpus=described["corpus"],
    )
