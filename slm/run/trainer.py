"""The Lightning trainer, module and data of a run, from its plan and its prepared data."""

import contextlib
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slm import checkpoint
from slm.errors import UserError
from slm.estimate import device_peak, training_flops_per_token
from slm.model import GPT
from slm.run.config import Plan, build_schedule
from slm.run.instantiate import build, check, is_node, locate
from slm.run.prepare import Prepared


def check_watchers(config: dict[str, Any], run_dir: Path):
    """Finds mistakes in callbacks, hooks and loggers before the data is prepared, by making them once for nothing."""
    if not config["callbacks"].get("checkpoints"):
        raise UserError("callbacks.checkpoints cannot be left out: it also ends runs; raise its every_n_steps")
    names = "corpus", "tokenizer", "data", "description", "val_every", "stop", "tokens_per_step", "flops_per_token"
    facts = dict.fromkeys(names)
    if not config["callbacks"].get("guard") and (config["on_nonfinite"], config["on_spike"]) != ("stop", "warn"):
        raise UserError(
            "on_nonfinite and on_spike are callbacks.guard's, which is left out; leave one of them as it is"
        )
    trusted = config["trusted_targets"]
    build_fault(config)
    for where, node in nodes_of(config, "callbacks"):
        build(node, where, trusted=trusted, folder=run_dir, layout=config["data"]["layout"], peak_flops=None, **facts)
    for where, node in nodes_of(config, "hooks", "logger"):
        given = {key: value for key, value in node.items() if value is not None}
        check(locate(node["_target_"], where, trusted), given, where)


def nodes_of(config: dict[str, Any], *groups: str) -> list[tuple[str, dict[str, Any]]]:
    """Place and content of each node in the groups; null leaves one out."""
    for group in groups:
        if not isinstance(config.get(group), dict):
            raise UserError(f"{group} must hold nodes by their names, not be {config.get(group)!r}; {{}} is none")
    nodes = [(f"{group}.{name}", node) for group in groups for name, node in config[group].items() if node is not None]
    for where, node in nodes:
        if not is_node(node):
            raise UserError(f"{where} must have a _target_, the class that it makes")
    return nodes


def assemble(plan: Plan, prepared: Prepared, run_dir: Path, card: dict[str, Any]):
    """The Lightning trainer, module and data of a run."""
    from slm.training.callbacks.fault import WindowLog
    from slm.training.callbacks.metrics import Seeding
    from slm.training.callbacks.signals import StopRequests
    from slm.training.loggers import MetricsFile
    from slm.training.module import Pretraining

    quiet_lightning()
    config, hardware, tokenizer = plan.config, plan.hardware, prepared.tokenizer
    trusted = config["trusted_targets"]
    torch.manual_seed(config["seed"])
    model = GPT(prepared.model)
    module = Pretraining(
        model,
        features=features_of(model, plan),
        optimizer=partial(build_optimizer, config["optimizer"], trusted),
        schedule=build_schedule(config["schedule"], prepared.steps, trusted),
        targets_per_window=prepared.targets_per_window,
        token_lengths=torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]),
        clip=plan.trainer.clip,
    )
    data = build_data(plan, prepared, card)
    stop = StopRequests(plan.budget.max_seconds())
    described = checkpoint.description(prepared.model, prepared.tokenizer_folder, config, card)
    facts = {
        "folder": run_dir,
        "corpus": prepared.corpus,
        "tokenizer": tokenizer,
        "layout": plan.data.layout,
        "data": data,
        "description": described,
        "val_every": config["val_every_n_steps"],
        "stop": stop,
        "tokens_per_step": prepared.tokens(plan.data.batch_windows),
        "flops_per_token": training_flops_per_token(prepared.model),
        "peak_flops": device_peak(hardware.device, hardware.sixteen_bit),
    }
    watchers = [build(node, where, trusted=trusted, **facts) for where, node in nodes_of(config, "callbacks", "hooks")]
    if config["debug"]["log_windows"]:
        watchers.append(WindowLog(run_dir / "windows.jsonl", data))
    watchers += build_fault(config)
    loggers = [MetricsFile(run_dir / "metrics.jsonl"), *build_loggers(config, run_dir, card)]
    trainer = make_trainer(plan, prepared.steps, [Seeding(config["seed"]), stop, *watchers], loggers, run_dir)
    return trainer, module, data


def features_of(model: GPT, plan: Plan) -> Callable[[Tensor], Tensor]:
    from slm.hardware import compiled

    if not plan.compiled:
        return model.features
    own = int(os.environ.get("LOCAL_RANK", 0)) if plan.hardware.devices > 1 else 0  # of the machine's devices
    device = torch.device(plan.hardware.device.type, own)
    return compiled(model.features, device, lengths_vary=plan.data.layout == "documents")


def make_trainer(plan: Plan, steps: int, callbacks: list, loggers: list, run_dir: Path):
    """Lightning's Trainer with one endless epoch, so that no boundary between epochs can be got wrong."""
    import lightning.pytorch as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.plugins.environments import SLURMEnvironment
    from lightning.pytorch.strategies import DDPStrategy

    from slm.training.callbacks.checkpoints import DurableCheckpointIO

    tf32 = plan.hardware.accelerator == "gpu" and plan.trainer.tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    ddp = plan.trainer.strategy == "ddp"
    flags = ("deterministic", "benchmark", "detect_anomaly", "profiler")
    try:
        return L.Trainer(
            accelerator=plan.hardware.accelerator,
            devices=plan.hardware.devices // plan.trainer.num_nodes,
            num_nodes=plan.trainer.num_nodes,
            strategy=DDPStrategy(broadcast_buffers=False) if ddp else plan.trainer.strategy,  # no buffer ever changes
            precision=plan.hardware.precision,
            max_steps=steps,
            max_epochs=-1,
            accumulate_grad_batches=plan.accumulation,
            val_check_interval=plan.settings.val_every_n_steps * plan.accumulation,  # Lightning counts microbatches
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=loggers,
            plugins=[
                DurableCheckpointIO(run_dir),
                *([SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []),
            ],
            enable_progress_bar=False,
            enable_model_summary=False,
            **{flag: value for flag in flags if (value := getattr(plan.trainer, flag)) is not None},
        )
    except (ValueError, MisconfigurationException) as error:
        raise UserError(f"Lightning refuses the trainer: {error}") from None


def build_data(plan: Plan, prepared: Prepared, card: dict[str, Any]):
    from slm.training.datamodule import WindowsData

    on_gpu = plan.hardware.accelerator == "gpu"
    return WindowsData(
        prepared.store,
        layout=plan.data.layout,
        eos=prepared.tokenizer.eos,
        context=prepared.model.context,
        microbatch=plan.microbatch,
        devices=plan.hardware.devices,
        validation_windows=plan.data.validation_windows,
        workers=plan.data.workers if plan.data.workers is not None else 2 if on_gpu else 0,
        timeout=plan.data.timeout,
        skipped=max((rewind["skipped"] for rewind in card["rewinds"]), default=0),
        pin_memory=on_gpu,
        seed=plan.config["seed"],
    )


def build_fault(config: dict[str, Any]) -> list:
    """What debug.fault asks for, if it does."""
    fault = config["debug"]["fault"]
    if fault["kind"] is None:
        return []
    return [build({"_target_": "slm.training.callbacks.fault.Fault", **fault}, "debug.fault")]


def build_optimizer(node: dict[str, Any], trusted: Sequence[str], model: GPT) -> torch.optim.Optimizer:
    return build(node, "optimizer", trusted=trusted, model=model)


def build_loggers(config: dict[str, Any], run_dir: Path, card: dict[str, Any]) -> list:
    from slm.training.loggers import why_offline

    facts = {"save_dir": str(run_dir), "name": card["name"], "id": card["run_id"], "path": run_dir / "metrics.jsonl"}
    loggers = []
    for where, node in nodes_of(config, "logger"):
        if "offline" in node and node["offline"] is None:
            reason = why_offline()
            node = {**node, "offline": reason is not None}
            if reason:
                print(f"wandb: {reason}, so the run is kept offline; `wandb sync` sends it later")
        try:
            logger = build(node, where, trusted=config["trusted_targets"], **facts)
        except ModuleNotFoundError:
            extra = where.removeprefix("logger.")
            raise UserError(f'{where} needs a package that is not here; pip install -e ".[{extra}]"') from None
        loggers.append(logger)
    return loggers


def leave(trainer):
    """Ends what would otherwise go over into the next job of a sweep."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            with contextlib.suppress(Exception):  # it may have gone down meanwhile
                logger.experiment.finish()
            if os.environ.get("WANDB_MODE") == "dryrun":  # Lightning's word for this run alone
                del os.environ["WANDB_MODE"]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        for name in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            os.environ.pop(name, None)


def quiet_lightning():
    """Its banners and tips say what the lines of `describe` say better; the rest is its own business with torch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
