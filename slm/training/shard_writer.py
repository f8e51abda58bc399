"""Sharded checkpoints, written by all processes of a training together: each writes its rows of every divided tensor.

The folder is renamed once all files are in it and flushed, so that it is absent or whole whatever is killed when. The
processes agree by messages in a group of their own, since they write while training goes on.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from slm import checkpoint
from slm.checkpoint import shards
from slm.errors import SaveFailed, UserError, explain, file_operation
from slm.files import atomic, run_folder


def divide(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, DTensor]]:
    """The content of training.ckpt, and a copy in memory of the CPU of this process's part of each tensor whose rows
    are divided, by name."""
    places: dict[str, list] = {}
    names: dict[tuple, str] = {}
    parts: dict[str, DTensor] = {}

    def without_rows(place: str, value: Any) -> Any:
        if not isinstance(value, DTensor):
            return value
        local = value.to_local()
        memory = local.untyped_storage()._cdata, local.storage_offset(), value.shape, value.dtype  # also of no rows
        name = names.pop(memory) if memory in names else names.setdefault(memory, place)  # two share, as in `copied`
        places[place] = [name, [*value.shape]]
        if name not in parts:
            parts[name] = value.detach().to("cpu", copy=True)
        return torch.empty(0, dtype=value.dtype)

    plain = shards.mapped(content, without_rows)
    return {**plain, shards.FIELD: places}, parts


def write(plain: dict[str, Any], parts: dict[str, DTensor], path: Path, group: ProcessGroup, begin: Callable[[], Any]):
    """Writes a sharded checkpoint from what `divide` has returned. The first process calls `begin` before.

    Raises SaveFailed, in every process, for a failure of the machine in any of them.
    """
    rank, partial = dist.get_rank(group), path.with_name(f"{path.name}.0.partial")

    def open_folder():
        begin()
        shutil.rmtree(partial, ignore_errors=True)
        with file_operation("write", path, instead_of=partial):
            partial.mkdir()
            checkpoint.save(plain, partial / run_folder.PLAIN_PART, digest=False)

    try:
        agreed(group, open_folder if rank == 0 else lambda: None)
        agreed(group, lambda: require_shared([partial]))
        agreed(group, lambda: save_rows(parts, partial, path, group))
        digests = agreed(group, lambda: own_digests(partial, rank))
        every = {name: digest for own in digests for name, digest in own.items()}
        agreed(group, (lambda: publish(partial, path, every)) if rank == 0 else lambda: None)
    finally:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


def agreed(group: ProcessGroup, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns in each process of the group, once all have done it. If one has failed, all raise SaveFailed,
    or that one its own error if that is a bug."""
    result, failure, bug = None, "", None
    try:
        result = work()
    except Exception as error:
        explanation = explain(error)
        failure, bug = str(explanation or f"{type(error).__name__}: {error}"), None if explanation else error
    every: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(every, (result, failure), group)
    if bug:
        raise bug
    for process, (_, failure) in enumerate(every):
        if failure:
            raise SaveFailed(f"process {process}: {failure}")
    return [result for result, _ in every]


def save_rows(parts: dict[str, DTensor], partial: Path, path: Path, group: ProcessGroup):
    """A collective. Raises the error of this process; that of another one is left to it."""
    writer = dcp.HuggingFaceStorageWriter(str(partial), save_distributed=True)
    with file_operation("write", path, instead_of=partial):
        try:
            dcp.save(parts, storage_writer=writer, process_group=group)
        except CheckpointException as error:  # in every process
            if own := error.failures.get(dist.get_rank(group)):
                raise own[0] from None


def own_digests(partial: Path, rank: int) -> dict[str, str]:
    """The sha256 of each file that this process has written, by name. Flushes them: torch does so too early."""
    files = [partial / run_folder.PLAIN_PART] if rank == 0 else []
    files += partial.glob(f"shard-{rank + 1:05}-*")
    for file in files:
        atomic.flush(file)
    return {file.name: atomic.sha256(file) for file in files}


def require_shared(paths: list[Path]):
    """Raises UserError if something that another process has made is not there."""
    if missing := next((path for path in paths if not path.exists()), None):
        raise UserError(f"{missing} is not seen by all processes; run_dir must be on a disk that all nodes share")


def publish(partial: Path, path: Path, digests: dict[str, str]):
    """Renames the folder once all files are in it, behind its sidecar. An older one is removed before."""
    require_shared([partial / name for name in digests])
    atomic.flush(partial)
    run_folder.remove_checkpoint(path)
    lines = (f"{digest}  {path.name}/{name}\n" for name, digest in sorted(digests.items()))
    atomic.write_text(atomic.digest_path(path), "".join(lines))
    with file_operation("write", path, instead_of=partial):
        partial.rename(path)
    atomic.flush(path.parent)
