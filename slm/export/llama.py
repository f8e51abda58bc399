"""What the formats for Llama's relatives share: the choices of a model that they have, and its tensors by name.

Shapes: H heads, D head_dim, C width.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from slm.errors import UserError
from slm.model import GPT
from slm.own_model import OwnModel

ALWAYS: Mapping[str, Collection[Any]] = {  # choice -> its values with a counterpart
    "positions": ("rope",),
    "norm": ("rmsnorm",),
    "value_embeddings": (False,),
    "residual_scalars": (False,),
    "logit_softcap": (None,),
    "head_bias": (False,),
}


def require(model: GPT | OwnModel, name: str, **choices: Collection[Any]):
    """Raises: UserError: for a model with a choice that is not among those of ALWAYS and of `choices`, or a window."""
    config = model.config
    if isinstance(model, OwnModel):
        raise UserError(f"format={name} takes a GPT of slm, not {config.target}; try format=weights")
    for key, values in {**ALWAYS, **choices}.items():
        if (given := getattr(config, key)) not in values:
            known = " or ".join(map(_written, values))
            raise UserError(
                f"format={name} has no counterpart of model.{key}={_written(given)}; train with model.{key}={known}, "
                "such as experiment=portable"
            )
    if any(config.windows):
        raise UserError(f"format={name} has no counterpart of model.window={config.window}; train with null")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def named_tensors(model: GPT, *, interleave: bool) -> dict[str, Tensor]:
    """The tensors by their names in GGUF, without a tied head. `interleave`: for programs that rotate neighbours."""
    tensors = {"token_embd.weight": model.tokens.weight, "output_norm.weight": model.norm.weight}
    if not model.config.tied:
        tensors["output.weight"] = model.head.weight
    for layer, block in enumerate(model.blocks):
        attention, mlp = block.attention, block.mlp
        parts = {
            "attn_norm": {"weight": block.attention_norm.weight},
            **_queries_keys_values(attention, interleave),
            "attn_output": dict(attention.out.named_parameters()),
            "ffn_norm": {"weight": block.mlp_norm.weight},
            "ffn_up": dict(mlp.up.named_parameters()),
            "ffn_down": dict(mlp.out.named_parameters()),
        }
        optional = {"attn_q_norm": attention.query_norm, "attn_k_norm": attention.key_norm, "ffn_gate": mlp.gate}
        parts |= {part: dict(module.named_parameters()) for part, module in optional.items() if module}
        tensors |= {f"blk.{layer}.{part}.{kind}": one for part, kinds in parts.items() for kind, one in kinds.items()}
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _queries_keys_values(attention, interleave: bool) -> dict[str, dict[str, Tensor]]:
    """The rows of the common matrix, and of its bias, apart."""
    sizes = [heads * attention.head_dim for heads in (attention.heads, attention.kv_heads, attention.kv_heads)]
    parts = {"attn_q": {}, "attn_k": {}, "attn_v": {}}
    for kind, joined in attention.qkv.named_parameters():
        for part, rows in zip(parts, joined.split(sizes)):
            turned = interleave and part != "attn_v"
            parts[part][kind] = interleaved(rows, attention.head_dim) if turned else rows
    return parts


def interleaved(rows: Tensor, head_dim: int) -> Tensor:
    """Rows (HD, ...) of queries or keys, in which the pair (i, i + D/2) of a rotation becomes (2i, 2i + 1)."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)
