"""A GPT as the page reads it: matrices in 8 bits with a scale per row, everything else in float32."""

import copy
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

from slm.errors import UserError, one_line
from slm.generation.quantize import in_eight_bits
from slm.model import GPT, GPTConfig

MAX_NUMBERS = 10**8  # a page of 135 MB, which browsers still open
OF_TRAINING = {  # settings that do not change the function of a trained model on one document
    *("dropout", "attention_dropout", "embedding_dropout", "residual_dropout", "document_start"),
    *("init_std", "init_residual_scale", "zero_init_residual", "gradient_checkpointing"),
}
READ = {  # settings that gpt.js knows
    *("vocab_size", "context", "depth", "width", "head_dim", "kv_heads", "window", "qk_norm", "value_embeddings"),
    *("rope_base", "bias", "norm_eps", "mlp_width", "positions", "norm", "mlp", "tied", "head_bias"),
    *("bigram_embeddings", "residual_scalars", "logit_softcap"),
}


def check(model: Any):
    """Raises UserError for a model that the page cannot compute."""
    if not isinstance(model, GPT):
        raise UserError("format=page computes models of slm only, not a class of one's own; try format=weights")
    for field in fields(model.config):
        value, default = getattr(model.config, field.name), field.default
        if field.name not in READ | OF_TRAINING and (default is MISSING or value != default):
            shown = one_line(repr(value), 50)
            raise UserError(
                f"format=page cannot compute model.{field.name}={shown}; train with model.{field.name}={default}"
            )
    if (count := sum(parameter.numel() for parameter in model.parameters())) > MAX_NUMBERS:
        raise UserError(f"the model has {count:,} parameters, and a page holds {MAX_NUMBERS:,}; take format=hf or gguf")


def rounded(model: GPT) -> tuple[GPT, list[list], bytes]:
    """A copy with the weights of the page; the table of gpt.js, [name, rows, columns] or [name, length];
    and the numbers in its order, little-endian."""
    near = copy.deepcopy(model)
    table, parts = [], []
    for name, parameter in near.named_parameters():  # one name for a tied matrix
        table.append([name, *parameter.shape])
        if parameter.dim() == 2:
            eight, scales = in_eight_bits(parameter)
            parameter.data = eight.float() * scales.float()[:, None]
            parts += [eight.numpy().tobytes(), floats(scales)]
        else:
            parts.append(floats(parameter))
    if near.rotary:
        config = near.config
        frequencies = config.rope_base ** -(torch.arange(0, config.head_dim, 2) / config.head_dim)
        table.append(["frequencies", len(frequencies)])
        parts.append(floats(frequencies))
    return near, table, b"".join(parts)


def floats(numbers: Tensor) -> bytes:
    return numbers.detach().float().numpy().astype("<f4").tobytes()


def settings(config: GPTConfig, table: list[list]) -> dict[str, Any]:
    """The settings of gpt.js."""
    names = "vocab_size", "context", "depth", "width", "head_dim", "heads", "positions", "norm", "norm_eps", "mlp"
    return {
        **{name: getattr(config, name) for name in names},
        "kv_heads": config.kv_width // config.head_dim,
        "hidden": config.hidden_width,
        "windows": config.windows,
        "logit_softcap": config.logit_softcap,
        "weights": table,
    }
