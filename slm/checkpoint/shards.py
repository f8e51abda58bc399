"""Sharded checkpoints, before torch reads them: a folder with training.ckpt, where an empty tensor stands for each one
that is divided among processes, and with a .safetensors file of each process, which holds its rows of these.

torch.distributed.checkpoint writes and reads the rows; the files hold no pickle. What they claim is compared with what
they hold before memory is allocated.
"""

import json
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from slm.classes import optional
from slm.errors import UserError, is_out_of_memory
from slm.security import is_bounded

FIELD = "shards"  # of training.ckpt: place of a divided tensor -> [its name in the files, its shape]
Part = tuple[list[int], list[int]]  # the first element of some rows, and their shape


def mapped(tree: Any, change: Callable[[str, Any], Any], place: str = "") -> Any:
    """Nested values with each leaf as `change` returns it, given its dotted place, such as optimizer_states.0.state."""
    if isinstance(tree, dict):
        places = {key: f"{place}.{key}" if place else str(key) for key in tree}
        return type(tree)({key: mapped(item, change, places[key]) for key, item in tree.items()})
    if isinstance(tree, list | tuple):
        return type(tree)(mapped(item, change, f"{place}.{number}") for number, item in enumerate(tree))
    return change(place, tree)


def outline(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """The content of training.ckpt with a tensor without memory (meta) in the place of each divided one.

    Raises UserError if the other files do not hold exactly the rows of these.
    """
    safetensors = require_safetensors()
    try:
        if not is_bounded(content):
            raise ValueError
        return _outline(content, _parts(folder, safetensors.safe_open))
    except Exception as error:  # of safetensors, json, torch, or of values of the wrong type
        if is_out_of_memory(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise UserError(f"{folder} is damaged: its files do not fit each other; take another checkpoint") from None


def filled(folder: Path, content: dict[str, Any]) -> dict[str, Any]:
    """An outline with the numbers: whole for a tensor without memory, this process's part for a DTensor that was put
    into its place. Two places with one tensor, such as tied weights, share it."""
    import torch.distributed.checkpoint as dcp  # with DTensor it takes seconds, which other commands do not need
    from torch.distributed.checkpoint.api import CheckpointException

    shards, tensors = content[FIELD], {}

    def with_memory(place: str, leaf: Any) -> Any:
        if place not in shards:
            return leaf
        return tensors.setdefault(shards[place][0], torch.empty_like(leaf, device="cpu") if leaf.is_meta else leaf)

    found = mapped({key: value for key, value in content.items() if key != FIELD}, with_memory)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is")  # each process reads for itself
        try:
            dcp.load(tensors, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
        except CheckpointException as error:  # no Exception
            raise next(iter(error.failures.values()))[0] from None
    return found


def require_safetensors() -> Any:
    """The package. Raises UserError if it is missing."""
    return optional("safetensors", "sharded", "a sharded checkpoint")


def _outline(content: dict[str, Any], parts: dict[str, tuple[torch.dtype, list[Part]]]) -> dict[str, Any]:
    """Raises ValueError, or another error of a value of the wrong type."""
    shards, places = content[FIELD], set()

    def without_memory(place: str, leaf: Any) -> Any:
        if place not in shards:
            return leaf
        name, shape = shards[place]
        dtype, rows = parts[name]
        if leaf.dtype != dtype or not _are_all(shape, rows):
            raise ValueError
        places.add(place)
        return torch.empty(shape, dtype=dtype, device="meta")

    found = mapped({key: value for key, value in content.items() if key != FIELD}, without_memory)
    uses = Counter(name for name, _ in shards.values())
    if places != shards.keys() or uses.keys() != parts.keys() or max(uses.values()) > 2:
        raise ValueError
    return {**found, FIELD: shards}


def _parts(folder: Path, safe_open: Callable) -> dict[str, tuple[torch.dtype, list[Part]]]:
    """Type and parts of each tensor, by the headers of the files, of which safetensors checks the sizes."""
    found: dict[str, tuple[torch.dtype, list[Part]]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            starts = json.loads(file.metadata()["DCP_SHARDING_INFO"])
            for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                rows = file.get_slice(name)
                dtype, parts = found.setdefault(name, (rows[:0].dtype, []))
                if rows[:0].dtype != dtype:
                    raise ValueError
                parts.append((starts[name]["saved_offsets"], rows.get_shape()))
    return found


def _are_all(shape: list[int], parts: list[Part]) -> bool:
    """True if the parts are the rows of a tensor of that shape, each row once."""
    rows = 0
    for start, sizes in sorted(parts):
        if start != [rows, *[0] * (len(shape) - 1)] or sizes[1:] != shape[1:] or not all(type(n) is int for n in start):
            return False
        rows += sizes[0]
    return [rows] == shape[:1]
