"""What a training changes in its process: settings of torch, process groups, the logging of Lightning."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import WandbLogger


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


def teardown(trainer: L.Trainer):
    """Releases process-global state, so that the next job of a sweep starts clean."""
    launcher = trainer.strategy.launcher
    if hasattr(launcher, "procs"):  # Lightning's list: it kills this process, too, when one of them has failed
        launcher.procs.clear()
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
        "It is recommended to use .*sync_dist=True",  # the values are equal on all devices
        "`broadcast_buffers` is deprecated",  # its successor is new in torch 2.13
        r"torch\.distributed\.nn\.functional\.all_gather is deprecated",  # Lightning's
    ):
        warnings.filterwarnings("ignore", message=message)
