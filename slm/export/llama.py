"""What the formats of llama.cpp and llama2.c share: the choices of a model that they have, and its tensors by name.

Shapes: H heads, D head_dim.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from slm.attention import Attention
from slm.errors import UserError
from slm.huggingface.layouts import NOWHERE
from slm.model import GPT
from slm.own_model import OwnModel

Choices = Mapping[str, Any]  # of GPTConfig, with the value that each must have

PLAIN: Choices = {"window": None, **NOWHERE}
LLAMA: Choices = {"positions": "rope", "norm": "rmsnorm", "mlp": "swiglu", "qk_norm": False}


def fitting(model: GPT | OwnModel, format: str, layouts: Mapping[str, Choices]) -> str:
    """The name of the layout that computes the model. Raises: UserError: with what differs from the nearest one."""
    config = model.config
    if isinstance(model, OwnModel):
        raise UserError(f"format={format} takes a GPT of slm, not {config.target}; try format=weights")
    given = {**vars(config), "window": config.window if any(config.windows) else None}
    missing = {
        name: {key: value for key, value in {**PLAIN, **choices}.items() if given[key] != value}
        for name, choices in layouts.items()
    }
    nearest = min(missing, key=lambda name: len(missing[name]))
    if needed := missing[nearest]:
        have = _written({key: given[key] for key in needed})
        raise UserError(f"format={format} has no counterpart of {have}; train with {_written(needed)}")
    return nearest


def _written(choices: Choices) -> str:
    """As overrides of a command."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in choices.items()}
    return " ".join(f"model.{key}={text}" for key, text in texts.items())


def named_tensors(model: GPT, *, interleave: bool) -> dict[str, Tensor]:
    """The tensors by their names in GGUF, without a tied head. `interleave`: for programs that rotate neighbours."""
    modules = {"token_embd": model.tokens, "position_embd": model.positions, "output_norm": model.norm}
    modules |= {} if model.config.tied else {"output": model.head}
    tensors = {}
    for layer, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        parts = {"attn_norm": block.attention_norm, "attn_output": attention.out}
        parts |= {"attn_q_norm": attention.query_norm, "attn_k_norm": attention.key_norm}
        parts |= {"ffn_norm": block.mlp_norm, "ffn_gate": mlp.gate, "ffn_up": mlp.up, "ffn_down": mlp.out}
        modules |= {f"blk.{layer}.{part}": module for part, module in parts.items()}
        if model.rotary:
            tensors |= {f"blk.{layer}.{part}": rows for part, rows in _apart(attention, interleave).items()}
        else:
            modules[f"blk.{layer}.attn_qkv"] = attention.qkv
    for name, module in modules.items():
        tensors |= {f"{name}.{kind}": tensor for kind, tensor in (module.named_parameters() if module else ())}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _apart(attention: Attention, interleave: bool) -> dict[str, Tensor]:
    """The rows of the common matrix of queries, keys and values, and of its bias, apart."""
    sizes = [heads * attention.head_dim for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
    parts = {}
    for kind, joined in attention.qkv.named_parameters():
        queries, keys, values = joined.split(sizes)
        if interleave:
            queries, keys = interleaved(queries, attention.head_dim), interleaved(keys, attention.head_dim)
        parts |= {f"attn_q.{kind}": queries, f"attn_k.{kind}": keys, f"attn_v.{kind}": values}
    return parts


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (HD, ...) of queries or keys, in which the pair (i, i + D/2) of a rotation becomes (2i, 2i + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
