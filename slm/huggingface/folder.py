"""A model of transformers in a folder, as a GPT with its tokenizer: config.json, *.safetensors, tokenizer.json.

The files are of others: they are read and never executed, and what they claim is compared with what they hold before
memory is allocated. Weights in bfloat16 or float16 become float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm.classes import optional
from slm.errors import UserError, file_operation, printable
from slm.files import atomic
from slm.huggingface.layouts import config_of
from slm.huggingface.tensors import MODULES, has_effect, to_ours
from slm.model import GPT, GPTConfig
from slm.own_model import check_weights
from slm.security import is_bounded, is_file_name
from slm.tokenizers import Tokenizer
from slm.tokenizers.huggingface import HuggingFaceTokenizer

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MAX_BYTES = 2**24  # of a JSON file
MAX_STEP = 2**63


@dataclass(frozen=True)
class Folder:
    """What a folder holds."""

    model: GPT  # in eval mode, in float32
    tokenizer: Tokenizer
    eos_first: bool  # eos stands before a text, as its bos
    step: int  # of the training that an export comes from; 0 for any other model
    config: dict[str, Any]  # of that training: the markers of its conversations, or nothing


def read(path: Path) -> Folder:
    """Raises: UserError: for a folder that is damaged, or whose model GPT cannot compute; OSError: if a file cannot be
    read.

    Rows of the embedding beyond the ids of the tokenizer, which no text uses, are left out.
    """
    values = _object(path / CONFIG)
    try:
        name, tensors = values.get("model_type"), _tensors(path)
        tensors = _with_prefix(tensors, MODULES.get(name, {}) if isinstance(name, str) else {})
        bias = any(key.endswith(".bias") and has_effect(key, value) for key, value in tensors.items())
        config = config_of(values, bias, _has_equal_gates(tensors))
        if config.depth > len(tensors):
            raise UserError(f"it holds {len(tensors)} tensors, too few for {config.depth} layers")
        weights = to_ours(config, name, tensors)
        tokenizer = HuggingFaceTokenizer.build((), path=str(path))
        config, weights = _cut(config, weights, tokenizer.vocab_size)
    except (UserError, TypeError, OverflowError) as error:
        raise UserError(f"{path} cannot be read as a GPT: {printable(str(error), 300)}") from None
    settings = _object(path / "tokenizer_config.json") if (path / "tokenizer_config.json").is_file() else {}
    eos_first = _token(settings.get("bos_token")) == tokenizer.eos_token
    source = values["slm"] if isinstance(values.get("slm"), dict) else {}
    step = source.get("step")
    step = step if type(step) is int and 0 <= step < MAX_STEP else 0
    training = {"data": {"corpus": source["chat"]}} if isinstance(source.get("chat"), dict) else {}
    check_weights(path, config, weights)
    model = GPT(config)
    model.load_state_dict(weights)
    return Folder(model.eval(), tokenizer, eos_first, step, training)


def _object(path: Path) -> dict[str, Any]:
    """The object of a JSON file. Raises UserError."""
    with file_operation("read", path):
        size = path.stat().st_size
    values = atomic.read_object(path) if size <= MAX_BYTES else None
    if values is None or not is_bounded(values):
        raise UserError(f"{path} is damaged, or too large: it must be a JSON object")
    return values


def _token(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of the files, which the system maps into memory. Raises UserError."""
    safetensors = optional("safetensors.torch", "hf", "a folder of transformers")
    names = [WEIGHTS]
    if (path / INDEX).is_file():
        table = _object(path / INDEX).get("weight_map")
        names = sorted({*map(str, table.values())}) if isinstance(table, dict) else []
    found = {}
    for name in names:
        if not is_file_name(name) or not (path / name).is_file():
            raise UserError(f"it has no {printable(name, 100)}; weights must be in safetensors, which hold no code")
        try:
            found |= safetensors.load_file(path / name)
        except Exception as error:  # the library's own
            if isinstance(error, OSError):
                raise
            raise UserError(f"{name} is damaged: {printable(str(error), 100)}") from None
    if odd := [name for name, value in found.items() if not value.is_floating_point() and has_effect(name, value)]:
        raise UserError(f"{printable(odd[0], 100)} holds no numbers of floating point")
    return found


def _with_prefix(tensors: Mapping[str, Tensor], modules: Mapping[str, Any]) -> dict[str, Tensor]:
    """With "transformer." before the names of a model that was saved without its head."""
    prefix = str(modules.get("tokens", ".")).partition(".")[0] + "."
    bare = modules and f"{modules['tokens']}.weight" not in tensors
    return {prefix + name if bare and not name.startswith(prefix) else name: value for name, value in tensors.items()}


def _has_equal_gates(tensors: Mapping[str, Tensor]) -> bool:
    """True if each MLP multiplies a matrix with itself, as the export of mlp=relu2 does."""
    gates = [name for name in tensors if name.endswith("gate_proj.weight")]
    ups = [tensors.get(name.replace("gate_proj", "up_proj")) for name in gates]
    return bool(gates) and all(up is not None and torch.equal(tensors[name], up) for name, up in zip(gates, ups))


def _cut(config: GPTConfig, weights: dict[str, Tensor], ids: int) -> tuple[GPTConfig, dict[str, Tensor]]:
    """The model of the first `ids` of its vocabulary. Raises: UserError: if it has less."""
    if (rows := len(weights["tokens.weight"])) != config.vocab_size:
        raise UserError(f"its vocab_size is {config.vocab_size:,}, and its embedding has {rows:,} rows")
    if ids > config.vocab_size:
        raise UserError(f"its tokenizer has {ids:,} ids and its model {config.vocab_size:,}")
    if ids < config.vocab_size:
        names = ("tokens.weight", "head.weight")
        weights = {name: value[:ids].clone() if name in names else value for name, value in weights.items()}
        weights |= {"head.weight": weights["tokens.weight"]} if config.tied else {}
        config = replace(config, vocab_size=ids)
    return config, weights
