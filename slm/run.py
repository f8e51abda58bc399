"""The composition root of a training: from a resolved configuration to a finished run folder."""

import os
import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from slm import checkpoint, events, runs
from slm.assemble import Prepared, assemble, check_watchers, leave
from slm.build import build
from slm.data.store import fingerprint, prepare, prepare_tokenizer
from slm.errors import ResourceError, Stopped, UserError
from slm.estimate import parameters
from slm.plan import Plan, make_plan
from slm.report.curves import loss_curve
from slm.tokenizers import Tokenizer

TRAINING_STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "WindowsData")  # beside the weights


def train(config: dict[str, Any], *, run_dir: Path, overrides: list[str]) -> float | None:
    """Trains, or goes on training, in run_dir. Returns the objective: the best value of a val/ metric."""
    first = is_first_process()  # asked now: the end of a distributed run clears what tells it
    plan = make_plan(config)
    card = runs.read_card(run_dir)
    if card and (first or config["resume"] != "never"):  # the first has written the card of the others
        refuse_changes(card, config, run_dir)
        if card["status"] == "done" and card["budget"] == config["budget"]:
            print(f"{run_dir} is done: {config['optimized_metric']} {card['objective']}")
            return card["objective"]
    elif first:
        runs.refuse_foreign(run_dir)
    start = start_checkpoint(config, run_dir)
    check_watchers(config, run_dir)
    prepared = prepare_data(plan)
    step = check_start(start, prepared, run_dir)
    card = make_card(plan, prepared, run_dir, card)
    trainer, module, data = assemble(plan, prepared, run_dir, card)
    if first:
        open_run(card, prepared, run_dir, overrides, step)
        describe(plan, prepared, run_dir, start)

    status = "failed"
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(runs.flatten(config))
        stopped = fit(trainer, module, data, start)
        status = "stopped" if stopped else "done"
    finally:
        objective = best(run_dir, config["optimized_metric"])
        if first:
            runs.write_card(run_dir, {**card, "status": status, "objective": objective})
            loss_curve(run_dir)
        leave(trainer)
    if first:  # another process must not end in an error, or Lightning kills the first one
        conclude(run_dir, config, objective, stopped)
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
        newest = runs.find_start(config["resume"], Path(config["runs_dir"]))
        other = checkpoint.read(newest)["slm"]["config"]
        if changed := runs.changes(other, config):
            raise UserError(
                f"{newest} was trained with another configuration ({'; '.join(changed)}); give the same one"
            )
    if newest is None and runs.checkpoints(run_dir):
        raise UserError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; move the folder away to start anew")
    return newest


def check_start(start: Path | None, prepared: Prepared, run_dir: Path) -> int:
    """The step that training goes on from, -1 for a new run, if the checkpoint fits the data.

    The same configuration on another corpus makes other ids, which the checkpoint's weights would not know.
    """
    if start is None:
        return -1
    content = checkpoint.read(start)
    step = content["global_step"]
    checkpoint.check_weights(start, prepared.model, content["state_dict"])
    if missing := [key for key in TRAINING_STATE if key not in content]:
        raise UserError(f"{start} holds no {missing[0]}, so training cannot go on from it; take a whole checkpoint")
    if content["slm"]["tokenizer"] != checkpoint.tokenizer_files(prepared.tokenizer_folder):
        raise UserError(f"{start} was trained with another tokenizer; give the same data")
    if start.parent.parent != run_dir and step >= prepared.steps:
        raise UserError(f"{start} is at step {step} of {prepared.steps} already; give more steps")
    return step


def prepare_data(plan: Plan) -> Prepared:
    """Corpus, tokenizer and token store, from the cache where they are there."""
    config = plan.config
    corpus = build(config["data"]["corpus"], "data", trusted=config["trusted_targets"])
    kind = ", ".join(str(value) for key, value in config["tokenizer"].items() if key not in ("_target_", "seed"))
    name = config["tokenizer"]["_target_"].removesuffix(".build").split(".")[-2]

    def make(documents) -> Tokenizer:
        print(f"building the tokenizer: {name} ({kind})" if kind else f"building the tokenizer: {name}")
        begin = time.perf_counter()
        made = build(config["tokenizer"], "tokenizer", trusted=config["trusted_targets"], documents=documents)
        print(f"tokenizer: {made.vocab_size:,} ids after {time.perf_counter() - begin:.1f} s")
        return made

    tokenizer, folder = prepare_tokenizer(config["tokenizer"], make, corpus, plan.cache)
    store = prepare(corpus, tokenizer, fingerprint(folder), plan.cache)
    train = store.manifest["splits"]["train"]
    windows, targets_per_window = plan.windows(train["tokens"], train["documents"])
    steps = plan.budget.total_steps(plan.data.batch_windows, windows, targets_per_window)
    model = replace(plan.model, vocab_size=tokenizer.vocab_size)
    return Prepared(
        corpus=corpus,
        tokenizer=tokenizer,
        tokenizer_folder=folder,
        store=store,
        model=model,
        targets_per_window=targets_per_window,
        steps=steps,
    )


def make_card(plan: Plan, prepared: Prepared, run_dir: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """run.json: who the run is and how it stands; `before` is the card of its earlier life."""
    manifest = prepared.store.manifest
    for key in ("corpus", "tokenizer"):
        if before and before[key] != manifest[key]:
            raise UserError(f"the {key} of {run_dir} is another one; give the same data, or another run_dir")
    return {
        "run_id": before["run_id"] if before else f"{runs.file_name(run_dir.name)[-40:]}-{time.time_ns():x}",
        "name": run_dir.name,
        "created": before["created"] if before else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **runs.identity(plan.config),
        "corpus": manifest["corpus"],
        "tokenizer": manifest["tokenizer"],
        "device": plan.hardware.name,
        "precision": plan.hardware.precision,
        "parameters": parameters(prepared.model).total,
        "steps": prepared.steps,
        "budget": plan.config["budget"],
        "lives": before["lives"] + 1 if before else 1,
        "status": "running",
        "objective": None,
        "config": plan.config,
    }


def open_run(card: dict[str, Any], prepared: Prepared, run_dir: Path, overrides: list[str], step: int):
    """Makes the run folder, or takes it up again at the step of its checkpoint."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run folder {run_dir} cannot be made: {error.strerror}; give another runs_dir") from None
    runs.write_card(run_dir, card)  # before all else: it says whose folder this is
    runs.remove_torn(run_dir)
    for file in ("metrics.jsonl", "samples.jsonl"):
        events.cut(run_dir / file, step)
    (run_dir / "tokenizer").mkdir(exist_ok=True)
    prepared.tokenizer.save(run_dir / "tokenizer")
    for file, content in (("config.yaml", card["config"]), ("overrides.yaml", overrides)):
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        (run_dir / file).write_text(text, encoding="utf-8")


def describe(plan: Plan, prepared: Prepared, run_dir: Path, start: Path | None):
    """What is about to happen, in five lines."""
    model, counts = prepared.model, parameters(prepared.model)
    train_tokens, tokens = prepared.store.tokens("train"), prepared.tokens(prepared.steps * plan.data.batch_windows)
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


def fit(trainer, module, data, start: Path | None) -> Stopped | None:
    """Trains to the end or to a requested stop, which is returned."""
    try:
        trainer.fit(module, data, ckpt_path=str(start) if start else None, weights_only=True)
    except Stopped as stopped:
        return stopped
    except torch.OutOfMemoryError:
        raise ResourceError(
            f"out of memory with {data.microbatch} windows per forward pass; the same training fits into less with "
            f"trainer.microbatch={max(data.microbatch // 2, 1)}, or with model.gradient_checkpointing=true"
        ) from None
    return None


def best(run_dir: Path, metric: str) -> float | None:
    """The lowest value of a val/ metric, the last value of any other, from metrics.jsonl."""
    values = [event[metric] for event in events.lines(run_dir / "metrics.jsonl") if event.get(metric) is not None]
    return None if not values else min(values) if metric.startswith("val/") else values[-1]


def conclude(run_dir: Path, config: dict[str, Any], objective: float | None, stopped: Stopped | None):
    if stopped:
        print(f"{stopped.reason}; the same command with run_dir={shlex.quote(str(run_dir))} goes on from here")
        if stopped.exit_code:
            raise stopped
    else:
        prompt = ((config["callbacks"].get("samples") or {}).get("prompts") or ["Once upon a time"])[0]
        print(f"done:   {config['optimized_metric']} {objective:.4f}" if objective is not None else "done")
        print(f"        {run_dir / 'loss.png'}")
        print(f"        python generate.py ckpt={shlex.quote(str(run_dir))} prompt={shlex.quote(prompt)}")
        if config["callbacks"].get("stories"):
            print(f"        python -m slm.evaluate {shlex.quote(str(run_dir))}")


def is_first_process() -> bool:
    """True in the one process that speaks and writes for all of a distributed run."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"))
