"""The one way from a checkpoint file to (model, tokenizer, step), and back to disk.

The sha256 of a file lies beside it, since a flipped bit would load without a word. Only plain types and tensors go in,
and nothing else is ever read (weights_only), so a checkpoint cannot execute code.
"""

import pickle
import tempfile
import warnings
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm import tokenizers
from slm.errors import UserError
from slm.files import atomic
from slm.model import GPT, GPTConfig
from slm.security import NAME, bounded
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
    run_id: str


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
    with atomic.replacing(path, digest=True) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's own, over what the disk has said
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read(path: Path) -> dict[str, Any]:
    """The raw checkpoint, on the CPU. Raises UserError for what is missing, damaged or not ours."""
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}; ckpt= takes a .ckpt file, a run folder, latest, last or best")
    if atomic.digest_path(path).exists() and not atomic.intact(path):
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
    if version != FORMAT or not _sound(checkpoint, described):
        raise UserError(f"{path} is damaged: not everything in it is what it must be; take another checkpoint")
    return checkpoint


def load(path: Path, device: str | torch.device = "cpu") -> Loaded:
    """Rebuilds model and tokenizer from the file alone."""
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
        raise UserError(f"{path} is damaged: no model can be made of what it says; take another checkpoint") from None
    model.load_state_dict(_of_model(weights))
    tokenizer = _tokenizer(path, described["tokenizer"])
    if tokenizer.vocab_size != config.vocab_size:
        raise UserError(
            f"{path} is damaged: its tokenizer has {tokenizer.vocab_size:,} ids and its model {config.vocab_size:,}; "
            "take another checkpoint"
        )
    return Loaded(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        step=checkpoint["global_step"],
        config=described["config"],
        corpus=described["corpus"],
        run_id=described["run_id"],
    )


def check_weights(path: Path, config: GPTConfig, weights: dict[str, Tensor]):
    """Raises UserError, with the first three, for tensors that such a model lacks, has not, or has in another shape."""
    if config.depth > len(weights):
        raise UserError(f"{path} holds {len(weights)} tensors, too few for model.depth={config.depth}")
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in _of_model(weights).items()}
    wrong = [f"{name} {expected[name]} is missing" for name in expected if name not in found]
    wrong += [f"{name} {found[name]} is not the model's" for name in found if name not in expected]
    both = [name for name in expected if name in found]
    wrong += [f"{name} is {found[name]}, not {expected[name]}" for name in both if found[name] != expected[name]]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise UserError(f"{path} does not hold the weights of its model: {', '.join(wrong[:3])}{more}")


def _of_model(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _unpickled(path: Path) -> Any:
    """Tensors and plain values from torch's zip archive, which holds them as they are: what is packed may burst."""
    try:
        with zipfile.ZipFile(path) as archive:
            plain = all(part.compress_type == zipfile.ZIP_STORED for part in archive.infolist())
    except Exception:  # of zipfile, for every way in which a file can be wrong: they have no base in common
        plain = False
    if not plain:
        raise UserError(f"{path} is not a checkpoint, or a truncated one; take another file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is wrong with a file that is refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} contains code or is damaged: it holds more than tensors and plain values, so it is not loaded"
        ) from None
    except Exception:  # of torch, likewise
        raise UserError(f"{path} is damaged; take another checkpoint of the run") from None


def _sound(checkpoint: dict[str, Any], described: dict[str, Any]) -> bool:
    """Whether everything that is used later is of its type, and no structure stands for more than it is."""
    weights, files = checkpoint.get("state_dict"), described.get("tokenizer")
    return (
        bounded(checkpoint)
        and isinstance(checkpoint.get("global_step"), int)
        and all(isinstance(described.get(key), dict) for key in ("model", "config"))
        and all(isinstance(described.get(key), str) for key in ("run_id", "corpus"))
        and isinstance(weights, dict)
        and all(isinstance(name, str) and _plain(tensor) for name, tensor in weights.items())
        and isinstance(files, dict)
        and all(isinstance(name, str) and NAME.fullmatch(name) for name in files)
        and all(isinstance(content, bytes) for content in files.values())
    )


def _plain(tensor: Any) -> bool:
    """A dense tensor with all of its elements in memory, so that its shape is no empty claim."""
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return dense and tensor.is_floating_point() and tensor.is_contiguous()


def _tokenizer(path: Path, files: dict[str, bytes]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, content in files.items():
                (Path(folder) / name).write_bytes(content)
            return tokenizers.load(Path(folder))
        except (tokenizers.Damaged, IsADirectoryError):
            raise UserError(
                f"{path} holds a tokenizer that is damaged or not known to this version; take another checkpoint"
            ) from None
