"""The composition root of a training: from a resolved configuration to a finished run folder."""

import importlib.util
import logging
import netrc
import os
import time
import warnings
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from slm import checkpoint, events, runs
from slm.build import build, check, locate
from slm.corpora import Corpus
from slm.data.store import TokenStore, fingerprint, prepare, prepare_tokenizer
from slm.errors import Stopped, UserError
from slm.estimate import device_peak, parameters, training_flops_per_token
from slm.model import GPT, GPTConfig
from slm.plan import Plan, build_schedule, make_plan
from slm.report.curves import loss_curve
from slm.tokenizers import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the data turned out to be."""

    corpus: Corpus
    tokenizer: Tokenizer
    tokenizer_folder: Path
    store: TokenStore
    model: GPTConfig
    steps: int


def train(config: dict[str, Any], *, run_dir: Path, overrides: list[str]) -> float | None:
    """Trains, or goes on training, in run_dir. Returns the objective: the best value of a val/ metric."""
    plan = make_plan(config)
    card = runs.read_card(run_dir)
    if card:
        refuse_changes(card, config, run_dir)
        if card["status"] == "done" and card["budget"] == config["budget"]:
            print(f"{run_dir} is done: {config['optimized_metric']} {card['objective']}")
            return card["objective"]
    start = start_checkpoint(config, run_dir)
    for group in ("callbacks", "hooks", "logger"):
        for name, node in config[group].items():
            check(locate(node["_target_"], f"{group}.{name}"), node, f"{group}.{name}")
    prepared = prepare_data(plan)
    card = open_run(plan, prepared, run_dir, overrides, card, start)
    describe(plan, prepared, run_dir, start)

    trainer, module, data = assemble(plan, prepared, run_dir, card)
    status = "failed"
    try:
        stopped = fit(trainer, module, data, start)
        status = "stopped" if stopped else "done"
    finally:
        objective = best(run_dir, config["optimized_metric"])
        if trainer.is_global_zero:
            runs.write_card(run_dir, {**card, "status": status, "objective": objective})
            loss_curve(run_dir)
        leave(trainer)
    conclude(run_dir, config["optimized_metric"], objective, stopped)
    return objective


def refuse_changes(card: dict[str, Any], config: dict[str, Any], run_dir: Path):
    if config["resume"] == "never":
        raise UserError(f"{run_dir} holds a run already; use resume=auto to go on with it, or another run_dir")
    if changed := runs.changes(card["config"], config):
        raise UserError(
            f"{run_dir} was trained with another configuration ({'; '.join(changed)}); "
            "give the same one, or another run_dir"
        )


def start_checkpoint(config: dict[str, Any], run_dir: Path) -> Path | None:
    """The checkpoint to go on from: this run's newest intact one, else the one that resume= names."""
    newest = runs.newest_intact(run_dir)
    if newest is None and config["resume"] not in ("auto", "never"):
        newest = runs.find_checkpoint(config["resume"], Path(config["runs_dir"]))
        other = checkpoint.read(newest)["slm"]["config"]
        if changed := runs.changes(other, config):
            raise UserError(
                f"{newest} was trained with another configuration ({'; '.join(changed)}); give the same one"
            )
    if newest is None and checkpoint.in_folder(run_dir / "checkpoints"):
        raise UserError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; move the folder away to start anew")
    return newest


def prepare_data(plan: Plan) -> Prepared:
    """Corpus, tokenizer and token store, from the cache where they are there."""
    config = plan.config
    corpus = build(config["data"]["corpus"], "data")
    kind = ", ".join(str(value) for key, value in config["tokenizer"].items() if key not in ("_target_", "seed"))
    name = config["tokenizer"]["_target_"].split(".")[-3]

    def make(documents) -> Tokenizer:
        print(f"building the tokenizer: {name} ({kind})" if kind else f"building the tokenizer: {name}")
        begin = time.perf_counter()
        made = build(config["tokenizer"], "tokenizer", documents=documents)
        print(f"tokenizer: {made.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return made

    tokenizer, folder = prepare_tokenizer(config["tokenizer"], make, corpus, plan.cache)
    store = prepare(corpus, tokenizer, fingerprint(folder), plan.cache)
    steps = plan.budget.total_steps(plan.tokens_per_step, store.tokens("train"))
    build_schedule(config["schedule"], steps)
    model = replace(plan.model, vocab_size=tokenizer.vocab_size)
    return Prepared(corpus=corpus, tokenizer=tokenizer, tokenizer_folder=folder, store=store, model=model, steps=steps)


def open_run(
    plan: Plan, prepared: Prepared, run_dir: Path, overrides: list[str], card: dict | None, start: Path | None
) -> dict[str, Any]:
    """Makes the run folder, or takes it up again, and returns its card: who the run is, and how it stands."""
    identity = {
        **runs.identity(plan.config),
        "corpus": prepared.store.manifest["corpus"],
        "tokenizer": prepared.store.manifest["tokenizer"],
    }
    if card:
        for key in ("corpus", "tokenizer"):
            if card[key] != identity[key]:
                raise UserError(
                    f"the {key} of {run_dir} is not the one given now; give the same data, or another run_dir"
                )
    step = checkpoint.read(start)["global_step"] if start else -1
    run_dir.mkdir(parents=True, exist_ok=True)
    for file in ("metrics.jsonl", "samples.jsonl"):
        events.cut(run_dir / file, step)
    card = {
        "run_id": card["run_id"] if card else f"{run_dir.name}-{time.time_ns():x}"[-64:],
        "name": run_dir.name,
        "created": card["created"] if card else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **identity,
        "device": plan.hardware.name,
        "precision": plan.hardware.precision,
        "parameters": parameters(prepared.model).total,
        "steps": prepared.steps,
        "budget": plan.config["budget"],
        "lives": card["lives"] + 1 if card else 1,
        "status": "running",
        "objective": None,
        "config": plan.config,
    }
    if is_first_process():
        (run_dir / "tokenizer").mkdir(exist_ok=True)
        prepared.tokenizer.save(run_dir / "tokenizer")
        (run_dir / "config.yaml").write_text(yaml.safe_dump(plan.config, sort_keys=False, allow_unicode=True))
        (run_dir / "overrides.yaml").write_text(yaml.safe_dump(overrides, allow_unicode=True))
        runs.write_card(run_dir, card)
    return card


def describe(plan: Plan, prepared: Prepared, run_dir: Path, start: Path | None):
    """What is about to happen, in five lines."""
    model, counts = prepared.model, parameters(prepared.model)
    train_tokens, tokens = prepared.store.tokens("train"), prepared.steps * plan.tokens_per_step
    print(
        f"run:    {run_dir}" + (f", from {start.name}" if start else ""),
        f"data:   {train_tokens:,} train tokens, {prepared.store.tokens('validation'):,} validation tokens",
        f"model:  {counts.total:,} parameters ({counts.non_embedding:,} without embeddings), "
        f"{model.depth} x {model.width}, context {model.context}, vocabulary {model.vocab_size:,}",
        f"budget: {prepared.steps:,} steps of {plan.data.batch_windows} windows = {tokens:,} tokens, "
        f"{tokens / train_tokens:.2f} epochs; microbatch {plan.microbatch} x {plan.hardware.devices} device(s) "
        f"x accumulation {plan.accumulation}",
        f"device: {plan.hardware.name}, {plan.hardware.precision}",
        sep="\n",
        flush=True,
    )


def assemble(plan: Plan, prepared: Prepared, run_dir: Path, card: dict[str, Any]):
    """The Lightning trainer, module and data of a run."""
    import lightning.pytorch as L

    from slm.training.callbacks import Randomness
    from slm.training.checkpoints import DurableCheckpointIO, StopRequests
    from slm.training.data import WindowsData
    from slm.training.logger import MetricsFile
    from slm.training.module import Pretraining

    quiet_lightning()
    config, hardware, tokenizer = plan.config, plan.hardware, prepared.tokenizer
    torch.manual_seed(config["seed"])
    module = Pretraining(
        GPT(prepared.model),
        optimizer=partial(build_optimizer, config["optimizer"]),
        schedule=build_schedule(config["schedule"], prepared.steps),
        token_lengths=torch.tensor([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)]),
        clip=plan.trainer.clip,
    )
    on_gpu = hardware.accelerator == "gpu"
    workers = plan.data.workers if plan.data.workers is not None else 2 if on_gpu else 0
    data = WindowsData(
        prepared.store,
        context=prepared.model.context,
        microbatch=plan.microbatch,
        devices=hardware.devices,
        validation_windows=plan.data.validation_windows,
        workers=workers,
        pin_memory=on_gpu,
        seed=config["seed"],
    )
    stop = StopRequests(plan.budget.max_seconds())
    facts = {
        "folder": run_dir,
        "path": run_dir / "metrics.jsonl",
        "tokenizer": tokenizer,
        "description": checkpoint.description(prepared.model, run_dir / "tokenizer", config, card["run_id"]),
        "val_every": config["val_every_n_steps"],
        "stop": stop,
        "tokens_per_step": plan.tokens_per_step,
        "flops_per_token": training_flops_per_token(prepared.model),
        "peak_flops": device_peak(hardware.device, hardware.sixteen_bit),
    }
    callbacks = [
        build(node, f"{group}.{name}", **facts)
        for group in ("callbacks", "hooks")
        for name, node in config[group].items()
    ]
    loggers = [MetricsFile(run_dir / "metrics.jsonl"), *build_loggers(config["logger"], run_dir, card)]
    flags = ("deterministic", "benchmark", "detect_anomaly", "profiler")
    trainer = L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices // plan.trainer.num_nodes,
        num_nodes=plan.trainer.num_nodes,
        strategy=plan.trainer.strategy,
        precision=hardware.precision,
        max_steps=prepared.steps,
        max_epochs=-1,
        accumulate_grad_batches=plan.accumulation,
        val_check_interval=config["val_every_n_steps"] * plan.accumulation,  # Lightning counts microbatches
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[Randomness(config["seed"]), stop, *callbacks],
        logger=loggers,
        plugins=[DurableCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        **{flag: value for flag in flags if (value := getattr(plan.trainer, flag)) is not None},
    )
    return trainer, module, data


def build_optimizer(node: dict[str, Any], model: GPT) -> torch.optim.Optimizer:
    return build(node, "optimizer", model=model)


def build_loggers(nodes: dict[str, Any], run_dir: Path, card: dict[str, Any]) -> list:
    facts = {"save_dir": str(run_dir), "name": card["name"], "id": card["run_id"], "path": run_dir / "metrics.jsonl"}
    loggers = []
    for name, node in nodes.items():
        if "offline" in node and node["offline"] is None:
            node = {**node, "offline": not has_wandb_key()}
            if node["offline"]:
                print("wandb: no key, so the run is kept offline; `wandb sync` sends it later")
        try:
            logger = build(node, f"logger.{name}", **facts)
        except ModuleNotFoundError:
            raise UserError(f'logger={name} needs a package that is not here; pip install -e ".[{name}]"') from None
        logger.log_hyperparams(runs.flatten(card["config"]))
        loggers.append(logger)
    return loggers


def has_wandb_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def fit(trainer, module, data, start: Path | None) -> Stopped | None:
    """Trains to the end or to a requested stop, which is returned."""
    try:
        trainer.fit(module, data, ckpt_path=str(start) if start else None, weights_only=True)
    except Stopped as stopped:
        return stopped
    return None


def best(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric, the last value of any other, from metrics.jsonl."""
    values = [event[metric] for event in events.lines(run_dir / "metrics.jsonl") if event.get(metric) is not None]
    return None if not values else min(values) if metric.startswith("val/") else values[-1]


def leave(trainer):
    """Ends what would otherwise go over into the next job of a sweep."""
    if importlib.util.find_spec("wandb") and any(type(logger).__name__ == "WandbLogger" for logger in trainer.loggers):
        trainer.loggers[-1].experiment.finish()


def conclude(run_dir: Path, metric: str, objective: float | None, stopped: Stopped | None):
    if stopped:
        print(f"{stopped.reason}; the same command with run_dir={run_dir} goes on from here")
        if stopped.exit_code:
            raise stopped
    elif is_first_process():
        print(f"done:   {metric} {objective:.4f}" if objective is not None else "done")
        print(f"        {run_dir / 'loss.png'}")
        print(f'        python generate.py ckpt={run_dir} prompt="Once upon a time"')


def is_first_process() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0" and os.environ.get("RANK", "0") == "0"


def quiet_lightning():
    """Its banners and tips say what the lines of `describe` say better; the rest is its own business with torch."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists",
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    ):
        warnings.filterwarnings("ignore", message=message)
