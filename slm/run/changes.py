"""Which settings differ between two configurations, and which of them a resumed run may change."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from slm.data.mixture import MixedSplits
from slm.errors import UserError
from slm.model import GPTConfig
from slm.run.config import ORDER, RunConfig
from slm.run.overrides import flattened
from slm.run.prepare import Job
from slm.security import differing

PATHS = ("run_dir", "runs_dir", "cache_dir", "resume", "fork", "data.path", "data.corpus.path", "data.corpus.cache")
FREE = (  # settings that a resumed run may change: its length, its observers, its machine
    *PATHS,
    *("name", "tags", "budget", "dial", "log_every_n_steps", "optimized_metric", "callbacks", "logger", "log_windows"),
    *("report", "allow_changes", "plan", "prepare", "lint", "price_per_hour", "verify_resume"),
    *("on_nonfinite", "on_spike", "model.gradient_checkpointing"),
    *("data.workers", "data.timeout", "data.streaming", "data.corpus.streaming"),
    *(f"trainer.{key}" for key in ("accelerator", "devices", "num_nodes", "strategy", "precision", "microbatch")),
    *(f"trainer.{key}" for key in ("auto_microbatch", "accumulate_grad_batches", "compile", "tf32", "deterministic")),
    *(f"trainer.{key}" for key in ("benchmark", "detect_anomaly", "profiler", "fast_dev_run", "limit_val_batches")),
    *(f"trainer.{key}" for key in ("num_sanity_val_steps", "enable_model_summary", "inference_mode")),
)
# callbacks that do not only observe
CHANGING = ("slm.training.callbacks.gradients.", "slm.training.callbacks.auxiliary_loss.")
ADDED = {"data.order": "shuffle", "data.attention_across_documents": True}
ADDED |= {"schedule.min_lr_clips": False, "schedule.microbatches": 1}
ADDED |= {"optimizer.cautious": False, "optimizer.weight_decay_schedule": "constant", "optimizer.momentum_warmup": 0}
ADDED |= {"optimizer.iteration": "newton_schulz", "optimizer.neuron_normalization": False}
OPTIMIZER = "optimizer._target_"


def differences(old: dict[str, Any], new: dict[str, Any], without: Sequence[str]) -> dict[str, list[Any]]:
    """The dotted keys whose values differ: [before, after]. `without` names keys and sections to leave out.

    An option that was added since stands for what was done before; any other missing key is None.
    """
    before, after = flattened(old, without), flattened(new, without)
    defaults = ADDED | {f"model.{its.name}": its.default for its in fields(GPTConfig) if its.default is not MISSING}
    before = {key: defaults[key] for key in defaults.keys() & after} | before
    return dict(sorted(differing(before, after).items()))


def check_unchanged(what: Path, old: dict[str, Any], new: RunConfig, *remedies: str):
    """Raises UserError with the differences that a resumed run must not have. `what` was trained with `old`."""
    sources = new.plain["data"].get("sources") or {}
    paths = [f"data.sources.{name}.path" for name in sources]
    paths += [f"data.corpus.sources.{name}.corpus.{key}" for name in sources for key in ("path", "cache")]
    if new.init_from:
        paths.append("tokenizer.path")  # a copy, which may lie elsewhere: run.json has its digest
    found = differences(old, new.plain, (*FREE, *paths, *new.allow_changes))
    found |= changed_callbacks(old, new)
    changed = {key: f"{key}: {before} -> {after}" for key, (before, after) in found.items()}
    optimizers = [flattened(plain).get(OPTIMIZER) for plain in (old, new.plain)]
    fixed = any(f"{key}.".startswith(ORDER) for key in changed)
    if optimizers[0] == optimizers[1]:
        remedies = (*remedies, None if fixed else f"allow_changes=[{','.join(changed)}]")
    else:
        changed[OPTIMIZER] = f"{OPTIMIZER}: {optimizers[0]} -> {optimizers[1]}, which cannot use the state of the first"
    if changed:
        give = " or ".join(filter(None, (", ".join(("the same one", *remedies[:-1])), *remedies[-1:])))
        raise UserError(f"{what} was trained with another configuration ({'; '.join(changed.values())}); give {give}")


def changed_callbacks(old: dict[str, Any], new: RunConfig) -> dict[str, list[Any]]:
    """The differences in callbacks of CHANGING, as in `differences`; all others may change."""
    before, after = old.get("callbacks"), new.plain["callbacks"]
    before, found = before if isinstance(before, Mapping) else {}, {}
    for name in {**before, **after}:
        pair = [section.get(name) for section in (before, after)]
        targets = [node.get("_target_") if isinstance(node, Mapping) else None for node in pair]
        if any(str(target).startswith(CHANGING) for target in targets):
            nodes = pair if targets[0] == targets[1] else targets
            found |= differences(*({"callbacks": {name: node}} for node in nodes), new.allow_changes)
    return {key: values for key, values in found.items() if not key.endswith(".every_n_steps")}


def recorded_sources(job: Job, before: dict[str, Any] | None) -> dict[str, Any]:
    """The sources of a mixture, for run.json. `before` is that of the previous attempt.

    Raises: UserError: if their epochs do not suffice; if the order is another one than before.
    """
    splits = job.splits.over(job.steps * job.config.data.batch_windows)
    if not isinstance(splits, MixedSplits):
        return {}
    found = {name: {**its, "passes": job.passes[name]} for name, its in splits.record().items()}
    if before and any(before["sources"][name]["shares"] != its["shares"] for name, its in found.items()):
        steps = before["steps"]
        raise UserError(
            f"the weights of data.sources change over {steps:,} steps, with which the run has begun, so another length "
            f"has another order; give budget.steps={steps}, or another run_dir"
        )
    return {"sources": found}
