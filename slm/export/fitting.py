"""The layouts of other programs, as the choices of a model that they compute."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from slm.errors import UserError
from slm.huggingface.layouts import LAYOUTS
from slm.model import GPT, GPTConfig
from slm.own_model import OwnModel

Choices = Mapping[str, Sequence[Any]]  # of GPTConfig -> the values that a layout computes

NOWHERE: Choices = {  # what no other program has
    "value_embeddings": [False],
    "bigram_embeddings": [None],
    "residual_scalars": [False],
    "head_bias": [False],
    "logit_softcap": [None],
}
LLAMA: Choices = {"positions": ["rope"], "norm": ["rmsnorm"], "mlp": ["swiglu"], "qk_norm": [False], "window": [None]}
TRANSFORMERS: Mapping[str, Choices] = {name: layout.choices for name, layout in LAYOUTS.items()}


def kind_of_windows(config: GPTConfig) -> str | None:
    """None; one, the same in all blocks; some, of one width in some blocks; several widths."""
    widths = set(config.windows)
    if len(widths - {None}) > 1:
        return "several"
    return None if widths == {None} else "some" if None in widths else "one"


def fitting(model: GPT | OwnModel, format: str, layouts: Mapping[str, Choices]) -> str:
    """The name of the first layout that computes the model. Raises: UserError: with what differs from the nearest."""
    config = model.config
    if isinstance(model, OwnModel):
        raise UserError(f"format={format} takes a GPT of slm, not {config.target}; try format=weights")
    given = {**vars(config), "window": kind_of_windows(config)}
    given["kv_heads"] = None if config.kv_width == config.width else config.kv_heads
    missing = {
        name: {key: values[0] for key, values in {**NOWHERE, **choices}.items() if given[key] not in values}
        for name, choices in layouts.items()
    }
    nearest = min(missing, key=lambda name: len(missing[name]))
    if needed := missing[nearest]:
        have = {key: getattr(config, key) for key in needed}
        raise UserError(
            f"format={format} has no counterpart of {_overrides(have)}; train with {_overrides(needed)}, or with "
            "experiment=portable, which every format takes"
        )
    return nearest


def _overrides(choices: Mapping[str, Any]) -> str:
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in choices.items()}
    return " ".join(f"model.{key}={text}" for key, text in texts.items())
