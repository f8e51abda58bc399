"""Checkpoints: a training's state to disk; model, tokenizer and step from disk. `shards`: those that are folders.

A sha256 sidecar lies beside each file, since torch loads a flipped bit without an error. Only plain types and tensors
are written and read (weights_only), so a checkpoint cannot execute code; and what a file claims to hold is compared
with what it holds before memory is allocated for it.
"""

import errno
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from inspect import signature
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from slm import tokenizers
from slm.checkpoint import shards
from slm.errors import UserError, file_operation, is_out_of_memory, one_line, printable
from slm.files import archive, atomic, run_folder
from slm.huggingface import folder as huggingface
from slm.lora import LoRAConfig, merge
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, OwnConfig, OwnModel, build, check_weights, is_dense, without_prefix
from slm.security import is_bounded, is_file_name, leaves
from slm.tokenizers import Tokenizer

FORMAT = 3
MAX_NUMBER = 2**63  # whole numbers in the description of a model are smaller


@dataclass(frozen=True)
class Loaded:
    """The content of a checkpoint that generation and evaluation need."""

    model: GPT | OwnModel  # in eval mode
    tokenizer: Tokenizer
    step: int
    config: dict[str, Any]  # the run's resolved configuration
    corpus: str  # fingerprint of the training data
    run_id: str
    eos_first: bool  # training windows often have eos before the start of a document, so a prompt does, too


def describe(model: AnyConfig, tokenizer: Tokenizer, config: dict | None = None, run: dict | None = None) -> dict:
    """The part of a checkpoint that makes it sufficient on its own; `run` is run.json."""
    run = run or {}
    return {
        "format": FORMAT,
        "model": model.plain() if isinstance(model, OwnConfig) else asdict(model),
        "tokenizer": tokenizer_files(tokenizer),
        "config": config or {},
        "run_id": run.get("run_id", ""),
        "corpus": run.get("corpus", ""),
        "eos_first": run.get("eos_first", True),
    }


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes | str]:
    """The files of a tokenizer, by name. An empty one is "", since b"" would be pickled as a call."""
    return {name: content or "" for name, content in tokenizers.files(tokenizer).items()}


def save(checkpoint: dict[str, Any], path: Path, digest: bool = True):
    """Writes atomically, with sha256 sidecar: at any moment `path` is the old file or the new one. Raises OSError."""
    if run_folder.is_sharded(path):  # of this step, and damaged: a run went on from an earlier one
        run_folder.remove_checkpoint(path)
    with atomic.replacing(path, digest=digest) as file:
        try:
            torch.save(checkpoint, file)
        except RuntimeError as error:  # of torch, which covers the error of the disk
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def read(path: Path, *, outline: bool = False, intact: bool = False) -> dict[str, Any]:
    """The raw checkpoint, on the CPU; with `outline`, tensors that are divided in a sharded one are without memory, for
    `shards.filled`. `intact`: its sha256 was compared before. Raises UserError for a missing, damaged or foreign file.
    """
    sharded = run_folder.is_sharded(path)
    if not sharded and not path.is_file():
        raise UserError(f"{path} is not a file; give a .ckpt file")
    if sharded and not atomic.digest_path(path).exists():
        raise UserError(f"{path} has no {atomic.digest_path(path).name} beside it, which belongs to it; copy it, too")
    if not intact and atomic.digest_path(path).exists() and not atomic.is_intact(path):
        raise UserError(f"{path} is damaged: its sha256 is not the one beside it; take another checkpoint")
    checkpoint = _unpickled(path / run_folder.PLAIN_PART if sharded else path)
    described = checkpoint.get("slm") if isinstance(checkpoint, dict) else None
    if not isinstance(described, dict):
        raise UserError(f"{path} is a checkpoint, but not one of slm")
    version = described.get("format")
    if type(version) is int and version != FORMAT:  # no tensor, which has no truth value
        age, remedy = ("a newer", "update slm") if version > FORMAT else ("an older", "use that one")
        raise UserError(
            f"{path} was written by {age} version: its checkpoint format is {version}, this program reads {FORMAT}; "
            f"{remedy}"
        )
    if sharded:
        checkpoint = shards.outline(path, checkpoint)
    if type(version) is not int or not _is_valid(checkpoint, described):
        raise UserError(f"{path} is damaged: a field is missing or has the wrong type; take another checkpoint")
    return shards.filled(path, checkpoint) if sharded and not outline else checkpoint


class Outside(UserError):
    """A checkpoint with a tokenizer or a model of a class outside slm, which was not given."""


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    tokenizer: type[Tokenizer] | None = None,
    model: Callable[..., torch.nn.Module] | None = None,
) -> Loaded:
    """Rebuilds model and tokenizer from a .ckpt file alone, from the best of a run folder, or from a folder of
    transformers, whose corpus and run are empty. LoRA is merged.

    `tokenizer` and `model` are the classes of those from outside slm: nothing that a file names is ever imported.
    Raises UserError for a missing, damaged or foreign file, OSError for one that cannot be read.
    """
    path = run_folder.find_checkpoint(str(path), Path("runs"))
    if run_folder.is_of_transformers(path):
        return _of_transformers(path, device)
    checkpoint = read(path)
    described, weights = checkpoint["slm"], checkpoint["state_dict"]
    config = _model_config(path, described["model"], model)
    check_weights(path, config, weights)
    restored = _tokenizer(path, described["tokenizer"], tokenizer.load if tokenizer else tokenizers.load)
    if restored.vocab_size != config.vocab_size:
        raise UserError(
            f"{path} is damaged: its tokenizer has {restored.vocab_size:,} ids and its model {config.vocab_size:,}; "
            "take another checkpoint"
        )
    built = build(config)
    built.load_state_dict(without_prefix(weights))
    return Loaded(
        model=merge(built).to(device).eval(),
        tokenizer=restored,
        step=checkpoint["global_step"],
        config=described["config"],
        corpus=described["corpus"],
        run_id=described["run_id"],
        eos_first=described.get("eos_first", True),
    )


def _of_transformers(path: Path, device: str | torch.device) -> Loaded:
    found = huggingface.read(path)
    return Loaded(found.model.to(device), found.tokenizer, found.step, found.config, "", "", found.eos_first)


def facts(path: Path) -> tuple[str, int, dict[str, Tensor]]:
    """Run, step and weights of a checkpoint that is checked as by `load`, as far as its classes are those of slm."""
    try:
        loaded = load(path)
        return loaded.run_id, loaded.step, loaded.model.state_dict()
    except Outside:
        raw = read(path)
        return raw["slm"]["run_id"], raw["global_step"], without_prefix(raw["state_dict"])


def _model_config(path: Path, values: dict[str, Any], make: Callable | None) -> AnyConfig:
    """The configuration of the model. Raises UserError for an unknown, missing, mistyped or impossible value."""
    if "target" in values:
        return _own_config(path, values, make)
    if make:
        raise UserError(f"{path} holds a GPT of slm, which needs no class of a model")
    values = {**values}
    if isinstance(values.get("lora"), dict):
        values["lora"] = _checked(path, LoRAConfig, values["lora"], "model.lora")
    return _checked(path, GPTConfig, values, "model")


def _checked(path: Path, kind: type, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            shown = one_line(repr(value), 100)
            raise UserError(f"{path} is damaged: {where}.{name}={shown} has the wrong type or is too large")
    try:
        return kind(**values)
    except (TypeError, UserError) as error:
        raise UserError(f"{path} is damaged: {printable(str(error))[:200]}") from None


def _own_config(path: Path, values: dict[str, Any], make: Callable | None) -> OwnConfig:
    name = printable(str(values["target"]))[:100]
    if make is None:
        raise Outside(
            f"{path} holds a model of a class outside slm, {name}; give the class: model_class=... "
            "(slm.lens and slm.evaluate: --model-class ...), in Python slm.load(..., model=MyModel)"
        )
    counts = [values.get(key) for key in ("vocab_size", "context")]
    try:
        if not all(type(count) is int and 0 < count < MAX_NUMBER for count in counts):
            raise TypeError("a size has the wrong type")
        signature(make).bind_partial(**values["settings"])
        return OwnConfig(make=make, **values)
    except TypeError as error:
        raise UserError(f"{path} does not hold the settings of this class but those of {name}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """True if a value has the type of an annotation: a class, a list, or a choice of them. Numbers are bounded."""
    if get_origin(hint) is list:
        return type(value) is list and all(_fits(item, *get_args(hint)) for item in value)
    if get_args(hint):
        return any(_fits(value, choice) for choice in get_args(hint))
    if type(value) is int:
        return hint in (int, float) and value < MAX_NUMBER
    return type(value) is hint


def _unpickled(path: Path) -> Any:
    """Tensors and plain values from torch's zip archive."""
    try:
        with file_operation("read", path), warnings.catch_warnings():
            if not archive.is_plain(path):
                raise pickle.UnpicklingError
            if not atomic.digest_path(path).exists() and not archive.is_complete(path):
                raise ValueError("checksum")
            warnings.simplefilter("ignore")  # about a file that is refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, NotImplementedError):  # an unknown kind of zip
        raise UserError(f"{path} is not a checkpoint, or a truncated one; take another file") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} contains code or is damaged: it holds more than tensors and plain values, so it is not loaded"
        ) from None
    except Exception as error:  # torch's errors have no common base class
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno != errno.EINVAL):  # a wrong seek
            raise
        raise UserError(f"{path} is damaged; take another checkpoint of the run") from None


def _is_valid(checkpoint: dict[str, Any], described: dict[str, Any]) -> bool:
    """True if every field that is used later has its type, nested values are of bounded size, and no tensors share
    their elements, but for an embedding and a head of GPT: together they are as large as the file. A model of one's own
    may use its weights several times, and have buffers of whole numbers."""
    weights, files, step = checkpoint.get("state_dict"), described.get("tokenizer"), checkpoint.get("global_step")
    own = isinstance(described.get("model"), dict) and "target" in described["model"]
    return (
        is_bounded(checkpoint)
        and type(step) is int
        and 0 <= step < MAX_NUMBER
        and all(isinstance(described.get(key), dict) for key in ("model", "config"))
        and all(isinstance(name, str) for name in described["model"])
        and all(isinstance(described.get(key), str) for key in ("run_id", "corpus"))
        and isinstance(described.get("eos_first", True), bool)
        and isinstance(weights, dict)
        and all(isinstance(name, str) and is_dense(tensor) for name, tensor in weights.items())
        and (own or all(tensor.is_floating_point() for tensor in weights.values()))
        and (own or _is_as_large_as_its_elements([v for _, v in leaves(checkpoint) if isinstance(v, Tensor)]))
        and all(_are_counts(checkpoint.get(key, {})) for key in ("loops", "WindowsData"))
        and isinstance(files, dict)
        and all(isinstance(name, str) and is_file_name(name) for name in files)
        and len({name.casefold() for name in files}) == len(files)
        and all(isinstance(content, bytes) or content == "" for content in files.values())
    )


def _are_counts(tree: Any) -> bool:
    """True if the state of Lightning's loops, or of the data, holds nothing but numbers from 0 and switches."""
    if isinstance(tree, dict):
        return all(map(_are_counts, tree.values()))
    return type(tree) in (int, bool) and 0 <= tree < MAX_NUMBER


def _is_as_large_as_its_elements(tensors: list[Tensor]) -> bool:
    """True if the tensors have at most twice as many elements as their memory holds. Those without memory
    (meta) are in the shards, and not counted."""
    tensors = [tensor for tensor in tensors if not tensor.is_meta]
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // tensor.itemsize for tensor in tensors
    }
    return sum(tensor.numel() for tensor in tensors) <= 2 * sum(held.values())


def _tokenizer(path: Path, files: dict[str, bytes | str], load: Callable[[Path], Tokenizer]) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content or b"")
        try:
            return load(Path(folder))
        except tokenizers.UnknownKind:
            raise Outside(
                f"{path} holds a tokenizer of a class outside slm; give the class: tokenizer_class=... "
                "(slm.lens and slm.evaluate: --tokenizer-class ...), in Python slm.load(..., tokenizer=MyTokenizer)"
            ) from None
        except tokenizers.Damaged:
            raise UserError(
                f"{path} holds a tokenizer that is damaged or not known to this version; take another checkpoint"
            ) from None
