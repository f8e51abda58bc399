"""Where a run starts: at its newest checkpoint, that of another run, or anew; what must be as it was before; and the
settings that changed since, which take effect although the restored state holds the earlier ones."""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from slm import checkpoint
from slm.cache import changed_files
from slm.data.windows import Splits
from slm.errors import UserError
from slm.files import run_folder
from slm.optim.muon import MuonWithAdamW
from slm.run.changes import check_unchanged
from slm.run.config import RunConfig
from slm.run.fork import Point, check_fork
from slm.run.prepare import Job

TRAINING_STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers", "WindowsData")  # beside the weights


def check_again(config: RunConfig, run_dir: Path, before: dict[str, Any]):
    """Raises UserError if the run in run_dir, of which `before` is run.json, must not go on with this configuration."""
    if config.resume == "never":
        raise UserError(f"{run_dir} holds a run already; use resume=auto to go on with it, or another run_dir")
    check_unchanged(run_dir, before["config"], config, "another run_dir")


def check_corpus(run_dir: Path, before: dict[str, Any], config: RunConfig):
    """Raises UserError if the documents are others than those of run.json, with the files as far as the cache knows."""
    corpus = config.data.corpus
    if corpus.fingerprint() != before["corpus"]:
        cache, sources = Path(config.cache_dir), before.get("sources", {})
        files = changed_files(cache, before["corpus"], corpus)
        for name, source in getattr(corpus, "sources", {}).items():
            if name in sources and source.corpus.fingerprint() != (old := sources[name].get("corpus")):
                files = f"{name}: {changed_files(cache, old, source.corpus) or 'changed'}"
        shown = f" ({files})" if files else ""
        raise UserError(f"the corpus of {run_dir} is another one{shown}; give the same data, or another run_dir")


def find_start(config: RunConfig, run_dir: Path, before: dict[str, Any] | None, trunk: Point | None) -> Path | None:
    """The checkpoint to start from: this run's newest intact one, else that of the trunk, else the one that resume=
    names; None for a new run.

    `before` is run.json. A fork's folder may hold the best checkpoint of its trunk, from which it does not start.
    Raises UserError if this run's checkpoints are damaged or were deleted, or the other run has another configuration.
    """
    first = trunk.step if trunk else 0
    newest = run_folder.newest_intact(run_dir)
    if newest and run_folder.step_of(newest) >= first:
        return newest
    if any(run_folder.step_of(path) >= first for path in run_folder.checkpoints(run_dir)):
        raise UserError(f"no checkpoint in {run_dir / 'checkpoints'} is intact; move the folder away to start anew")
    named = config.resume not in ("auto", "never")
    wanted = named and before and config.resume != before["config"].get("resume")  # asked for in this attempt
    if before and not wanted and (sign := run_folder.signs_of_training(run_dir, before)):
        raise UserError(
            f"{run_dir} holds no checkpoint, and {sign} shows that it had some, so its metrics would be lost; "
            "give resume=<a .ckpt file> to go on, another run_dir, or move the folder away to start anew"
        )
    if trunk:
        check_fork(trunk, config)
        return trunk.checkpoint
    if not named:
        return None
    start = run_folder.find_resume_checkpoint(config.resume, Path(config.runs_dir))
    check_unchanged(start, checkpoint.read(start, outline=True)["slm"]["config"], config)
    return start


def check_start(start: Path | None, job: Job, run_info: dict[str, Any] | None) -> tuple[int, dict[str, Any]]:
    """The step to start from, -1 for a new run, and the configuration in the checkpoint.

    Raises UserError if the checkpoint does not fit the run.
    The same configuration with another corpus or tokenizer has other ids, which the weights do not know.
    """
    if start is None:
        return -1, {}
    content = checkpoint.read(start, outline=True)
    step = content["global_step"]
    if content["slm"]["tokenizer"] != checkpoint.tokenizer_files(job.tokenizer):
        raise UserError(f"{start} was trained with another tokenizer; give the same data")
    for key in ("state_dict", "current_model_state"):  # averaged and current weights, if they differ
        if key in content:
            checkpoint.check_weights(start, job.model, content[key])
    if "current_model_state" in content and not any(node.averages for node in job.config.callbacks.values()):
        raise UserError(f"{start} holds averaged weights; add callbacks=ema, with which the run was trained")
    if missing := [k for k in TRAINING_STATE if k not in content or (k == "optimizer_states" and not content[k])]:
        raise UserError(f"{start} holds no {missing[0]}, so training cannot go on from it; take a whole checkpoint")
    own = start.parent.parent == job.run_dir
    if own and run_info and content["slm"]["run_id"] != run_info["run_id"]:
        raise UserError(f"{start} belongs to another run ({content['slm']['run_id']}); move it away")
    if own and step != run_folder.step_of(start):
        raise UserError(f"{start} holds step {step}, so it was renamed; give it the name of its step, or move it away")
    if not own and step >= job.steps:
        raise UserError(f"{start} is at step {step} of {job.steps} already; give more steps")
    return step, content["slm"]["config"]


def as_begun(splits: Splits, before: dict[str, Any] | None, earlier: dict[str, Any]) -> Splits:
    """The splits, with the number of arrangements in `before`, which is run.json. A run, or the trunk of a fork, that
    began when all passes had the same windows goes on so; `earlier` is the configuration in its checkpoint."""
    if before:
        return replace(splits, arrangements=before.get("arrangements", 1))
    return splits if "order" in earlier.get("data", {"order": None}) else replace(splits, arrangements=1)


def check_optimizer(optimizer: torch.optim.Optimizer):
    """Raises UserError if the restored state of an optimizer of torch or slm lacks what its settings need, or has a
    tensor of another shape, which fused kernels would read beyond its end."""
    if not type(optimizer).__module__.startswith(("torch.optim", "slm.optim")):
        return
    fresh: dict[tuple, dict[str, tuple[int, ...] | None]] = {}  # by what a state depends on: one step for each
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor):  # torch keeps a state that belongs to no parameter
            raise UserError("the optimizer's state is damaged: one belongs to no parameter; take another checkpoint")
        kind = parameter.shape, parameter.dtype, parameter.device, tuple(state)
        if state and kind not in fresh:
            fresh[kind] = _fresh_state(optimizer, parameter)
        needed = fresh[kind] if state else {}
        if missing := [name for name in needed if name not in state]:
            raise UserError(
                f"with these settings the optimizer needs {missing[0]}, which the checkpoint does not hold; "
                "give the settings of its run, or start another run"
            )
        for name, shape in needed.items():
            value = state[name]
            if shape is not None and not (isinstance(value, torch.Tensor) and value.shape == shape):
                raise UserError(
                    f"the optimizer's state is damaged: {name} has not the shape {shape}; take another checkpoint"
                )


def _fresh_state(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> dict[str, tuple[int, ...] | None]:
    """Name and shape, None for other values than tensors, of a parameter's state after one step."""
    if isinstance(optimizer, MuonWithAdamW):
        return optimizer.state_shapes(parameter)
    sizes = tuple(range(2, 2 + parameter.dim()))  # all different, so that a shape tells its dimensions
    small = torch.ones(sizes, dtype=parameter.dtype, device=parameter.device, requires_grad=True)
    arguments = inspect.signature(type(optimizer)).parameters
    fresh = type(optimizer)([small], **{key: value for key, value in optimizer.defaults.items() if key in arguments})
    small.grad = torch.ones_like(small)
    fresh.step()
    shapes = {name: getattr(value, "shape", None) for name, value in fresh.state[small].items()}
    return {
        name: None if shape is None else tuple(parameter.size(size - 2) if size > 1 else 1 for size in shape)
        for name, shape in shapes.items()
    }


def apply_settings(callbacks: Mapping[str, Any], old: Mapping[str, Any], config: RunConfig):
    """Gives callbacks those settings that changed and that the state of the checkpoint has set back.

    `old` is the configuration of the checkpoint. A setting is known by the same name in state and callback.
    """
    before = old.get("callbacks")
    for name, callback in callbacks.items():
        earlier = before.get(name) if isinstance(before, Mapping) else None
        if isinstance(earlier, Mapping):
            state = callback.state_dict()
            for key, value in config.plain["callbacks"][name].items():
                if key in state and hasattr(callback, key) and earlier.get(key) != value:
                    setattr(callback, key, value)
