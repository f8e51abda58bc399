"""Lightning's CheckpointIO over slm.checkpoint: durable files, written by a thread while training goes on."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from slm import checkpoint
from slm.checkpoint import shards
from slm.errors import UserError
from slm.files import archive, atomic, run_folder
from slm.optim.shares import is_divided
from slm.security import MAX_DEPTH, MAX_NODES, is_bounded, leaves

SECONDS_TO_FAIL = 5.0  # of a write, once another process has ended


class DurableCheckpointIO(CheckpointIO):
    """Copies a checkpoint and writes the copy in a thread, after flushing the logs of the run folder to disk.

    An error of the thread is raised by the next call of any method.
    """

    def __init__(self, folder: Path):
        self.folder, self.thread = folder, ThreadPoolExecutor(1, "checkpoints")
        self.pending: Future | None = None
        self.group: dist.ProcessGroup | None = None  # of the processes that write a sharded checkpoint together

    def save_checkpoint(self, content: dict[str, Any], path, storage_options=None):
        """Raises UserError, before anything is written, for a state that could not be read back."""
        self.wait()
        refuse_unreadable(content)
        self.pending = self.thread.submit(self._write, copied(content), Path(path))

    def save_sharded(self, content: dict[str, Any], path: Path):
        """As save_checkpoint, by all processes together: each writes its part. A collective."""
        from slm.training import shard_writer  # imports torch.distributed.checkpoint, which takes a while

        self.wait()
        self.group = self.group or dist.new_group(backend="gloo")
        plain, parts = shard_writer.divide(content)
        refuse_unreadable(plain)
        begin = partial(self._begin, path)
        self.pending = self.thread.submit(shard_writer.write, copied(plain), parts, path, self.group, begin)

    def then(self, call: Callable[[], Any]):
        """Calls a function in the thread once the pending write has succeeded."""
        if written := self.pending:
            self.pending = self.thread.submit(lambda: (written.result(), call()))

    def wait(self):
        """Waits for the pending write. Raises its error."""
        if self.pending:
            pending, self.pending = self.pending, None
            pending.result()

    def check(self, strategy: Strategy):
        """Raises the error of a write that has failed by now; does not wait. With a sharded checkpoint all processes
        raise it in the same step, since one that went on would wait for the others."""
        failed = self.pending is not None and self.pending.done() and self.pending.exception() is not None
        if self.group:
            failed = strategy.reduce_boolean_decision(failed, all=False)
        if failed:
            self.wait()

    def failure(self) -> BaseException | None:
        """The error of the pending write, for which it waits some seconds."""
        try:
            return self.pending.exception(SECONDS_TO_FAIL) if self.pending else None
        except TimeoutError:
            return None

    def load_checkpoint(self, path, map_location=None, weights_only=None) -> dict[str, Any]:
        return checkpoint.read(Path(path), intact=True)  # slm.run.resume has read it

    def remove_checkpoint(self, path):
        self.wait()
        run_folder.remove_checkpoint(Path(path))

    def teardown(self):
        self.thread.shutdown()

    def _write(self, content: dict[str, Any], path: Path):
        self._begin(path)
        checkpoint.save(content, path)

    def _begin(self, path: Path):
        for log in atomic.entries(self.folder):
            if log.suffix == ".jsonl":
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    atomic.flush(log)
        atomic.flush(self.folder)
        path.parent.mkdir(parents=self.folder not in path.parents, exist_ok=True)  # never a removed run folder


def copied(value: Any) -> Any:
    """Nested values with tensors copied to the CPU; two tensors that share memory, such as tied weights, still do.

    A third one gets a copy of its own: more sharing is not read back.
    """
    known: dict[tuple, Tensor] = {}

    def copy(place: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        memory = leaf.data_ptr(), leaf.dtype, leaf.shape, leaf.stride()
        if memory in known:
            return known.pop(memory)
        return known.setdefault(memory, leaf.detach().to("cpu", copy=True))

    return shards.mapped(value, copy)


def refuse_unreadable(content: dict[str, Any]):
    """Raises UserError, with the callback or part, for a state that slm.checkpoint would not read back."""
    if _is_readable(content):
        return
    parts = {key: part for key, part in content.items() if key != "callbacks"}
    for name, part in {**parts, **content.get("callbacks", {})}.items():
        if not is_bounded(part):
            raise UserError(
                f"the state of {name} holds more than {MAX_NODES:,} values, or more than {MAX_DEPTH} levels; "
                "keep a long list as one tensor"
            )
        if odd := next(((place, node) for place, node in _nodes(part) if not _is_readable(node)), None):
            place, kind = odd[0], type(odd[1])
            what = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
            if isinstance(odd[1], Tensor):
                what = f"{what} ({odd[1].dtype}, {odd[1].layout}, {odd[1].device})"
            raise UserError(
                f"the state of {name} holds {'empty bytes' if kind is bytes else f'a {what}'} at {place}, which "
                "could not be read back from a checkpoint; keep numbers, text, lists, dictionaries and dense tensors"
            )
    raise UserError("the state of this training holds too many values for a checkpoint; keep long lists as tensors")


def _nodes(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every node of nested mappings and lists, each after its children."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        yield from _nodes(value, f"{place}.{key}" if place else str(key))
    yield place or "its top", tree


def _is_readable(state: Any) -> bool:
    """True if the values, without the numbers in tensors, come back from a file as slm.checkpoint opens it."""
    if not is_bounded(state):
        return False
    tensors = sum(isinstance(leaf, Tensor) for _, leaf in leaves(state))
    file = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(_without_numbers(state), file)
            if not archive.is_plain(file, archive.MAX_OPCODES - archive.TENSOR_OPCODES * tensors):
                return False
            file.seek(0)
            torch.load(file, weights_only=True)
    except Exception:  # of pickle, of torch, or of the object itself
        return False
    return True


def _without_numbers(state: Any) -> Any:
    """Nested values with the same empty tensor for all of a type. Raises TypeError for one that is not dense.

    A tensor that is divided among processes (DTensor) is gathered, or written part by part.
    """
    empty: dict[torch.dtype, Tensor] = {}

    def without(place: str, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        plain = (type(leaf) in (Tensor, torch.nn.Parameter) or is_divided(leaf)) and leaf.layout == torch.strided
        if not plain or leaf.is_nested or leaf.is_meta:
            raise TypeError
        return empty.setdefault(leaf.dtype, torch.empty(0, dtype=leaf.dtype))

    return shards.mapped(state, without)
