"""The Lightning Trainer, module, data, callbacks and loggers of a run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import profilers
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.plugins import DoublePrecision, MixedPrecision
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from slm import ranks
from slm.checkpoint import describe
from slm.errors import UserError
from slm.hardware import compile_settings, compiler_works
from slm.loss import RowLoss, loss_of_rows
from slm.model import GPT
from slm.own_model import OwnConfig, OwnModel, build
from slm.run.config import EARLY_FACTS, LATE_FACTS, RunConfig
from slm.run.prepare import Job, optimizer_of
from slm.run.rate import time_limit
from slm.training.callbacks.checkpoints import Checkpoints
from slm.training.callbacks.dynamics import Dynamics
from slm.training.callbacks.gradients import Gradients
from slm.training.callbacks.guard import Guard
from slm.training.callbacks.seeding import Seeding
from slm.training.callbacks.signals import StopSignals
from slm.training.callbacks.window_log import WindowLog
from slm.training.checkpoint_io import DurableCheckpointIO
from slm.training.datamodule import WindowsData
from slm.training.loggers import MetricsFile, WandB, adapt, why_offline
from slm.training.module import Pretraining
from slm.training.process import quiet_lightning
from slm.training.sharded import ShardedStrategy
from slm.transfer import start_from

REFUSED_CALLBACKS = {  # Lightning's, which do something else here than in a training with epochs
    lightning_callbacks.StochasticWeightAveraging: (
        "averages at the ends of epochs, and a run has one endless epoch; use callbacks=ema, or "
        "lightning.pytorch.callbacks.EMAWeightAveraging"
    ),
    lightning_callbacks.GradientAccumulationScheduler: "would change the batch; use data.batch_windows",
    lightning_callbacks.BatchSizeFinder: "would change the batch; use trainer.auto_microbatch=true",
    lightning_callbacks.LearningRateFinder: "would change the learning rate; sweep it with -m optimizer.lr=...",
}
UNNAMED = {  # precisions that Lightning refuses by name for FSDP2; torch has had a scaler for it since
    "16-mixed": partial(MixedPrecision, "16-mixed"),
    "64-true": lambda device: DoublePrecision(),
}
COARSE = "bf16-true", "16-true"  # precisions with 16-bit weights
PROFILERS = {
    "simple": profilers.SimpleProfiler,
    "advanced": profilers.AdvancedProfiler,
    "pytorch": profilers.PyTorchProfiler,
}


@dataclass(frozen=True)
class Assembled:
    trainer: L.Trainer
    module: Pretraining
    data: WindowsData


def build_callbacks(config: RunConfig, facts: dict[str, Any], built: dict[str, Any]) -> dict[str, Any]:
    """The callbacks by name, each built once, as soon as the facts that its constructor names are known.

    The first call, before the data is prepared, builds those that name no late fact, so their mistakes are found
    early; the second call builds the others. Raises UserError.
    """
    late = [fact for fact in LATE_FACTS if fact not in facts]
    for name, node in config.callbacks.items():
        if name not in built and not any(node.names(fact) for fact in late):
            callback = built[name] = node.build(**facts)
            for kind, reason in REFUSED_CALLBACKS.items():
                if isinstance(callback, kind):
                    raise UserError(f"{node.where}: {kind.__name__} {reason}")
            if isinstance(callback, Dynamics | Gradients) and config.trainer.strategy == "fsdp":
                raise UserError(f"{node.where} needs whole weights, and trainer.strategy=fsdp divides them; give ddp")
            if isinstance(callback, Checkpoints) and callback.sharded and config.trainer.strategy != "fsdp":
                raise UserError(
                    f"{node.where}.sharded=true needs trainer.strategy=fsdp; leave it out for one device or ddp"
                )
            if isinstance(callback, lightning_callbacks.WeightAveraging) and config.trainer.precision in COARSE:
                raise UserError(
                    f"{node.where}: in 16 bits (trainer.precision={config.trainer.precision}) averages stand still; "
                    "use bf16-mixed or 16-mixed"
                )
            if not isinstance(callback, L.Callback):
                raise UserError(f"{node.where}._target_ must be a Lightning Callback, not {type(callback).__name__}")
    return {name: built[name] for name in config.callbacks if name in built}


def assemble(job: Job, run_info: dict[str, Any], early: dict[str, Any]) -> Assembled:
    """Trainer, module and data. `early` holds the callbacks built before the data was prepared.

    Sets `compiled` of run_info, and `init` if the weights come from a source. Raises UserError.
    """
    quiet_lightning()
    config, run_dir = job.config, job.run_dir
    torch.manual_seed(config.seed)
    model = build(job.model)
    if job.source:
        run_info["init"] = start_from(job.source, model, job.tokenizer)
    functions = compiled_functions(model, job)
    run_info["compiled"] = bool(functions)
    module = Pretraining(
        model,
        optimizer=optimizer_of(config, job.hardware),
        schedule=lambda step: config.schedule(step, job.steps),
        **functions,
        description=describe(job.model, job.tokenizer, config.plain, run_info),
    )
    data = build_data(job)
    late_facts = job.tokenizer, data, job.store, job.model, job.steps
    facts = {**early_facts(config, run_dir), **dict(zip(LATE_FACTS, late_facts, strict=True))}
    callbacks = [Seeding(config.seed), StopSignals(*time_limit(job))]
    callbacks += build_callbacks(config, facts, early).values()
    if config.log_windows:
        callbacks.append(WindowLog(run_dir))
    # averaged weights before their use in samples, changed gradients before they are observed; the guard last
    first = (lightning_callbacks.WeightAveraging, Gradients)
    callbacks.sort(key=lambda c: isinstance(c, Guard) - isinstance(c, first))
    loggers = [MetricsFile(run_dir / "metrics.jsonl"), *build_loggers(config, run_dir, run_info)]
    trainer = build_trainer(job, callbacks, loggers)
    for logger in loggers:
        adapt(logger, trainer)
    return Assembled(trainer, module, data)


def early_facts(config: RunConfig, run_dir: Path) -> dict[str, Any]:
    """What a callback's constructor may name, besides its settings, before the data is prepared."""
    return dict(zip(EARLY_FACTS, (run_dir, config, config.data.corpus, config.data.layout), strict=True))


def compiled_functions(model: GPT | OwnModel, job: Job) -> dict[str, Callable]:
    """The arguments of Pretraining with which the run is compiled; none if it is not. Of a sharded model each block is
    compiled: between two of them weights are gathered."""
    if not job.compiles:
        return {}
    device = torch.device(job.hardware.device.type, ranks.local_rank() if job.hardware.devices > 1 else 0)
    if not compiler_works(device):
        return {}
    varies = job.config.data.varies_in_length
    row_loss = compiled_loss(varies)
    if not is_sharded(job):
        return {"features": torch.compile(model.features, **compile_settings(varies)), "row_loss": row_loss}
    for block in model.blocks:
        block.compile(**compile_settings(varies))
    # the method is looked up at each call: sharding replaces it
    return {"features": lambda tokens: model.features(tokens), "row_loss": row_loss}


def compiled_loss(varies: bool) -> RowLoss:
    """A compiled slm.loss.loss_of_rows; if the number of rows `varies`, one graph for all numbers."""
    function = torch.compile(loss_of_rows)

    def of_any_rows(rows: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *settings):
        for tensor in (rows, targets):
            torch._dynamo.mark_dynamic(tensor, 0)
        return function(rows, weight, bias, targets, *settings)

    return of_any_rows if varies else function


def build_trainer(job: Job, callbacks: list, loggers: list) -> L.Trainer:
    """Lightning's Trainer with one endless epoch: no epoch boundary, so exact resume needs one position only.

    Raises UserError for what Lightning refuses.
    """
    config, hardware = job.config, job.hardware
    tf32 = hardware.accelerator == "gpu" and config.trainer.tf32
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cuda.enable_cudnn_sdp(not config.data.varies_in_length)  # it plans for each length anew, and slowly
    shown = any(isinstance(callback, lightning_callbacks.ProgressBar) for callback in callbacks)
    passed_on = {"num_sanity_val_steps": 0, "enable_model_summary": False, **config.trainer.lightning}
    if (profiler := passed_on.get("profiler")) in PROFILERS:
        passed_on["profiler"] = PROFILERS[profiler](dirpath=job.run_dir, filename="profile")
    if config.trainer.fast_dev_run:
        passed_on["limit_val_batches"] = int(config.trainer.fast_dev_run)
    precision = []
    if is_sharded(job) and hardware.precision in UNNAMED:
        precision.append(UNNAMED[hardware.precision](hardware.device.type))
    try:
        trainer = L.Trainer(
            accelerator=hardware.accelerator,
            devices=hardware.devices // config.trainer.num_nodes,
            num_nodes=config.trainer.num_nodes,
            strategy=distributed(job) if hardware.devices > 1 else "auto",
            precision=None if precision else hardware.precision,
            max_steps=job.steps,
            max_epochs=-1,
            log_every_n_steps=config.log_every_n_steps,
            accumulate_grad_batches=job.accumulation,
            gradient_clip_val=config.trainer.gradient_clip_val,
            val_check_interval=config.val_every_n_steps * job.accumulation,  # Lightning counts microbatches
            check_val_every_n_epoch=None,
            use_distributed_sampler=False,
            callbacks=callbacks,
            logger=loggers,
            plugins=[DurableCheckpointIO(job.run_dir), *launcher(hardware.devices), *precision],
            default_root_dir=job.run_dir,
            enable_progress_bar=shown,
            **passed_on,
        )
        if hardware.devices > 1:  # than a launcher has processes for
            launched = {"num_devices": trainer.num_devices, "num_nodes": trainer.num_nodes}
            trainer.strategy.cluster_environment.validate_settings(**launched)
        return trainer
    except (ValueError, TypeError, RuntimeError, ModuleNotFoundError, MisconfigurationException) as error:
        raise UserError(f"Lightning refuses the trainer: {error}") from None


def is_sharded(job: Job) -> bool:
    return job.config.trainer.strategy == "fsdp" and job.hardware.devices > 1


def distributed(job: Job) -> Strategy:
    """The buffers of GPT never change; those of another model become those of the first process in each step, and some
    of its parameters may have no gradient. Gradients are kept where they are sent from, without a copy."""
    if is_sharded(job):
        return ShardedStrategy()
    own = isinstance(job.model, OwnConfig)
    return DDPStrategy(broadcast_buffers=own, find_unused_parameters=own, gradient_as_bucket_view=True)


def launcher(devices: int) -> list[ClusterEnvironment]:
    """The launcher of a run's processes, where Lightning is not to look for it itself: one device needs none, whatever
    SLURM or torchrun have left in the environment."""
    if devices == 1:
        rank_zero_only.rank = 0
        return [LightningEnvironment()]
    if ranks.by_torchrun() or not SLURMEnvironment.detect():
        return []
    if not ranks.by_srun():  # nothing but this process: a batch script without srun
        return [LightningEnvironment()]
    return [SLURMEnvironment(auto_requeue=False)]  # StopSignals does that


def build_data(job: Job) -> WindowsData:
    """The data module. Raises UserError if there are fewer validation windows than devices."""
    config, on_gpu, devices = job.config, job.hardware.accelerator == "gpu", job.hardware.devices
    data = WindowsData(
        job.splits.over(job.steps * config.data.batch_windows),
        tokenizer=job.tokenizer,
        corpus=config.data.corpus,
        microbatch=job.microbatch,
        validation_windows=config.data.validation_windows,
        validated_train_windows=config.data.validated_train_windows,
        workers=config.data.workers if config.data.workers is not None else 2 if on_gpu else 0,
        timeout=config.data.timeout,
        pin_memory=on_gpu,
        seed=config.seed,
    )
    fewest = min(map(len, data.validations.values()))
    if min(fewest, config.data.validation_windows or devices) < devices:
        raise UserError(
            f"data.validation_windows={config.data.validation_windows} (of {fewest}) must be at least "
            f"the {devices} devices"
        )
    if (count := config.data.validated_train_windows) and len(data.validated_train) < devices:
        raise UserError(f"data.validated_train_windows={count} must be at least the {devices} devices")
    return data


def build_loggers(config: RunConfig, run_dir: Path, run_info: dict[str, Any]) -> list:
    """The configured loggers. W&B runs offline if it cannot be reached. Raises UserError for a missing package."""
    facts = {"save_dir": str(run_dir), "name": run_info["name"], "id": run_info["run_id"]}
    facts |= {"path": run_dir / "metrics.jsonl"}
    loggers = []
    for node in config.logger.values():
        is_wandb = node.target in (WandB, WandbLogger)
        if is_wandb:  # tags as they were written: without values of the environment
            group = {"group": run_dir.parent.name} if (run_dir.parent / "sweep.json").exists() else {}
            node = replace(node, settings={"tags": config.plain["tags"], **group, **node.settings})
        if is_wandb and node.names("offline"):
            reason = why_offline()
            facts["offline"] = reason is not None
            if reason:
                print(f"wandb: {reason}, so the run is kept offline; `wandb sync` sends it later")
        try:
            loggers.append(node.build(**facts))
        except ImportError as error:
            raise UserError(f"{node.where} needs a package: {error}") from None
        if not isinstance(loggers[-1], Logger):
            raise UserError(f"{node.where}._target_ must be a Lightning Logger, not {type(loggers[-1]).__name__}")
    return loggers
