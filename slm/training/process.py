"""What a training changes in its process: settings of torch, other processes and their ends, Lightning's logging."""

import contextlib
import logging
import os
import re
import subprocess
import time
import warnings
from collections.abc import Iterator

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import WandbLogger

from slm import system
from slm.errors import ResourceError, SaveFailed

SECONDS_TO_END = 5.0  # that the other processes have once one has failed


@contextlib.contextmanager
def torch_settings_kept() -> Iterator[None]:
    """Restores the process-wide settings of torch that a Trainer changes, for the next job of a sweep or notebook."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, precision = torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    cudnn_attention = torch.backends.cuda.cudnn_sdp_enabled()
    dtype, threads, state = torch.get_default_dtype(), torch.get_num_threads(), torch.get_rng_state()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        torch.backends.cuda.enable_cudnn_sdp(cudnn_attention)
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(dtype)
        torch.set_num_threads(threads)
        torch.set_rng_state(state)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def lost_process(error: Exception, trainer: L.Trainer) -> ResourceError | None:
    """An error of torch.distributed, which another process has caused, as one line, or the failure of all processes to
    write a checkpoint, if that came before; None for any other error."""
    text = " ".join(str(error).split())
    reason = re.sub(r"^\[/\S+\] ", "", text).partition(". ")[0][:200]  # without torch's file and advice
    if "gloo/transport" not in text and not any(base.__name__ == "DistError" for base in type(error).__mro__):
        return None
    if isinstance(failure := trainer.strategy.checkpoint_io.failure(), SaveFailed):
        return failure
    ends, deadline = [], time.monotonic() + SECONDS_TO_END
    started = getattr(trainer.strategy.launcher, "procs", [])
    while started and not ends and time.monotonic() < deadline:
        ends = [(rank, process.poll()) for rank, process in enumerate(started, 1) if process.poll()]
        time.sleep(0.05)
    which = "; ".join(f"process {rank} {system.how_it_ended(code)}" for rank, code in ends)
    return ResourceError(
        f"another process of this run has ended or cannot be reached ({which or reason}); if it printed an error, "
        "that is the cause; the same command goes on from the newest checkpoint"
    )


def teardown(trainer: L.Trainer, failed: bool = False):
    """Releases process-global state, so that the next job of a sweep starts clean. Once a training has failed, its
    other processes on this machine end within SECONDS_TO_END."""
    started = getattr(trainer.strategy.launcher, "procs", [])
    others = list(started)
    started.clear()  # Lightning's list: it kills this process, too, when one of them has failed
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(Exception):  # the service may have failed
                logger.experiment.finish()
            if os.environ.get("WANDB_MODE") == "dryrun":  # set by Lightning for this run
                del os.environ["WANDB_MODE"]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)
    deadline = time.monotonic() + SECONDS_TO_END
    for process in others if failed else ():
        try:
            process.wait(max(deadline - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()  # it waits for this one in a collective of a GPU, which does not notice


def quiet_lightning():
    """Silences Lightning's banners and tips, whose facts a run prints itself. Its callbacks still print."""
    talkative = "utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector"
    for name in (*(f"lightning.pytorch.{name}" for name in talkative), "lightning.fabric.utilities.distributed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists",
        "Precision .* is not supported by the model summary",
        "GPU available but not used",
        "MPS available but not used",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
        "`broadcast_buffers` is deprecated",  # its successor is new in torch 2.13
        r"torch\.distributed\.nn\.functional\.all_gather is deprecated",  # Lightning's
    ):
        warnings.filterwarnings("ignore", message=message)
