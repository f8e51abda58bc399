"""print=parameters: each kind of tensor of a model, where it starts, and the settings with which it is trained."""

import re
from collections import Counter
from typing import Any

import torch
from hydra.core.utils import env_override

from slm.optim.roles import kinds, rules
from slm.own_model import AnyConfig, build
from slm.run.config import RunConfig
from slm.run.plan import find_text
from slm.run.prepare import model_of
from slm.tables import columns

Row = dict[str, Any]
HEAD = {"name": "parameter", "tensors": "tensors", "shape": "shape", "kind": "kind", "std": "start (std)"}
HEAD |= {"forward": "multiplier", "lr": "lr", "weight_decay": "weight decay", "eps": "eps"}


def parameter_rows(config: RunConfig) -> list[Row]:
    """A row for each tensor, equal ones of several blocks in one; the peak rates. Raises UserError.

    The vocabulary is that of the cached tokenizer, else the one that a plan assumes. Nothing takes memory.
    """
    with env_override({"HF_HUB_OFFLINE": "1"}):  # no request to the Hugging Face Hub
        vocab_size = find_text(config).vocab_size
    with torch.device("meta"):
        model = build(model_of(config, vocab_size))
        optimizer = config.optimizer(model)
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    kind, rule, counted = kinds(model), rules(model), Counter()
    for name, parameter in model.named_parameters():
        its, group = rule[name], groups.get(id(parameter), {})
        std = None if ".lora_" in name else its.std
        settings = (group.get(key) for key in ("lr", "weight_decay", "eps"))
        pattern = re.sub(r"^blocks\.\d+\.", "blocks.*.", name)
        counted[pattern, tuple(parameter.shape), kind[name], std, its.forward, *settings] += 1
    keys = [key for key in HEAD if key != "tensors"]
    return [dict(zip(keys, values, strict=True)) | {"tensors": count} for values, count in counted.items()]


def shown(rows: list[Row], model: AnyConfig) -> str:
    """The table; empty where a tensor has no such number, such as one that LoRA freezes."""
    lines = [[*HEAD.values()]]
    for row in rows:
        sizes = " x ".join(f"{size:,}" for size in row["shape"])
        numbers = [_number(row[key]) for key in ("std", "forward", "lr", "weight_decay", "eps")]
        lines.append([row["name"], row["tensors"], sizes, row["kind"], *numbers])
    parametrization = getattr(model, "parametrization", None)
    if parametrization is None:
        return columns(lines)
    rule = model.rules()
    return (
        f"{columns(lines)}\nparametrization {parametrization}: features before the head times "
        f"{rule['readout'].forward:.4g}, results of attention and MLP times {rule['writer'].forward:.4g}"
    )


def _number(value: float | None) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""
