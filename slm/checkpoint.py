"""Checkpoint files: a training's state to disk; model, tokenizer and step from disk.

A sha256 sidecar lies beside each file, since torch loads a flipped bit without an error. Only plain types and tensors
are written and read (weights_only), so a checkpoint cannot execute code.
"""

import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm import tokenizers
from slm.errors import UserError
from slm.files import atomic
from slm.model import GPT, GPTConfig
from slm.security import NAME, is_bounded
from slm.tokenizers import Tokenizer

FORMAT = 3


@dataclass(frozen=True)
class Loaded:
    """The content of a checkpoint that generation and evaluation need."""

    model: GPT  # in eval mode
    tokenizer: Tokenizer
    step: int
    config: dict[str, Any]  # the run's resolved configuration
    corpus: str  # fingerprint of the training data
    run_id: str


def describe(model: GPTConfig, tokenizer_folder: Path, config: dict | None = None, run: dict | None = None) -> dict:
    """The part of a checkpoint that makes it sufficient on its own; `run` is run.json."""
    run = run or {}
    return {
        "format": FORMAT,
        "model": asdict(model),
        "tokenizer": tokenizer_files(tokenizer_folder),
        "config": config or {},
        "run_id": run.get("run_id", ""),
        "corpus": run.get("corpus", ""),
    }


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The files of a saved tokenizer, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def save(checkpoint: dict[str, Any], path: Path):
    """Writes atomically, with sha256 sidecar: at any moment `path` is the old file or the new one. Raises OSError."""
    with atomic.replacing(path, digest=True) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of torch, which covers the error of the disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read(path: Path) -> dict[str, Any]:
    """The raw checkpoint, on the CPU. Raises UserError for a missing, damaged or foreign file."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; ckpt= takes a .ckpt file, a run folder, latest, last or best")
    if atomic.digest_path(path).exists() and not atomic.is_intact(path):
        raise UserError(f"{path} is damaged: its sha256 is not the one beside it; take another checkpoint")
    checkpoint = _unpickled(path)
    described = checkpoint.get("slm") if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict):
        raise UserError(f"{path} is a checkpoint, but not one of slm")
    version = described.get("format")
    if isinstance(version, int) and version != FORMAT:
        age, remedy = ("a newer", "update slm") if version > FORMAT else ("an older", "use that one")
        raise UserError(
            f"{path} was written by {age} version: its checkpoint format is {version}, this program reads {FORMAT}; "
            f"{remedy}"
        )
    if version != FORMAT or not _is_valid(checkpoint, described):
        raise UserError(f"{path} is damaged: a field is missing or has the wrong type; take another checkpoint")
    return checkpoint


def load(path: Path, device: str | torch.device = "cpu", tokenizer: type[Tokenizer] | None = None) -> Loaded:
    """Rebuilds model and tokenizer from the file alone. Raises UserError for a missing, damaged or foreign file.

    `tokenizer` is the class of a tokenizer from outside slm: nothing that a file names is ever imported.
    """
    checkpoint = read(path)
    described, weights = checkpoint["slm"], checkpoint["state_dict"]
    try:
        config = GPTConfig(**described["model"])
    except (TypeError, UserError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    try:
        check_weights(path, config, weights)
        model = GPT(config)
    except (TypeError, RuntimeError, MemoryError, OverflowError):
        raise UserError(f"{path} is damaged: its model cannot be built; take another checkpoint") from None
    model.load_state_dict(_without_prefix(weights))
    restored = _tokenizer(path, described["tokenizer"], tokenizer.load if tokenizer else tokenizers.load)
    if restored.vocab_size != config.vocab_size:
        raise UserError(
            f"{path} is damaged: its tokenizer has {restored.vocab_size:,} ids and its model {config.vocab_size:,}; "
            "take another checkpoint"
        )
    return Loaded(
        model=model.to(device).eval(),
        tokenizer=restored,
        step=checkpoint["global_step"],
        config=described["config"],
        corpus=described["corpus"],
        run_id=described["run_id"],
    )


def check_weights(path: Path, config: GPTConfig, weights: dict[str, Tensor]):
    """Raises UserError with the first three missing, unknown or wrongly shaped tensors of such a model."""
    if config.depth > len(weights):
        raise UserError(f"{path} holds {len(weights)} tensors, too few for model.depth={config.depth}")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in _without_prefix(weights).items()}
    wrong = [f"{name} {expected[name]} is missing" for name in expected if name not in found]
    wrong += [f"{name} {found[name]} is not the model's" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    wrong += [f"{name} is {found[name]}, not {expected[name]}" for name in both if found[name] != expected[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not hold the weights of its model: {', '.join(wrong[:3])}{more}")


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _unpickled(path: Path) -> Any:
    """Tensors and plain values from torch's zip archive. Compressed entries are refused: they may be zip bombs."""
    try:
        with zipfile.ZipFile(path) as archive:
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except Exception:  # zipfile's errors have no common base class
        plain = False
    if not plain:
        raise UserError(f"{path} is not a checkpoint, or a truncated one; take another file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a file that is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} contains code or is damaged: it holds more than tensors and plain values, so it is not loaded"
        ) from None
    except Exception:  # torch's errors have no common base class either
        raise UserError(f"{path} is damaged; take another checkpoint of the run") from None


def _is_valid(checkpoint: dict[str, Any], described: dict[str, Any]) -> bool:
    """True if every field that is used later has its type, and nested values are of bounded size."""
    weights, files = checkpoint.get("state_dict"), described.get("tokenizer")
    return (
        is_bounded(checkpoint)
        and isinstance(checkpoint.get("global_step"), int)
        and all(isinstance(described.get(key), dict) for key in ("model", "config"))
        and all(isinstance(described.get(key), str) for key in ("run_id", "corpus"))
        and isinstance(weights, dict)
        and all(isinstance(name, str) and _is_dense(tensor) for name, tensor in weights.items())
        and isinstance(files, dict)
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in files)
        and all(isinstance(content, bytes) for content in files.values())
    )


def _is_dense(tensor: Any) -> bool:
    """True for a dense floating-point tensor whose elements are all in memory."""
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.is_floating_point() and tensor.is_contiguous()


def _tokenizer(path: Path, files: dict[str, bytes], load: Callable[[Path], Tokenizer]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            return load(Path(folder))
        except tokenizers.UnknownKind:
            raise UserError(
                f"{path} holds a tokenizer of a class outside slm; give the class: slm.load(..., tokenizer=MyTokenizer)"
            ) from None
        except (tokenizers.Damaged, IsADirectoryError):
            raise UserError(
                f"{path} holds a tokenizer that is damaged or not known to this version; take another checkpoint"
            ) from None
