"""What a parameter is: weight decay and Muon both decide by its role."""

from typing import Literal, get_args

from torch import nn

from slm.attention import Attention
from slm.model import GPT

Role = Literal["embedding", "readout", "hidden", "vector"]
ROLES: tuple[Role, ...] = get_args(Role)


def roles(model: GPT) -> dict[str, Role]:
    """Parameter name -> role: embedding (of tokens, positions, values), untied head, matrix of a block, or gain,
    bias or scalar.

    A tied matrix is an embedding. The gate of value embeddings, a small matrix, is hidden, as in nanochat.
    In a model of one's own the head is hidden, and a tensor of more dimensions, which Muon cannot take, is a readout.
    Raises: ValueError: if a parameter of GPT has no role.
    """
    found: dict[str, Role] = {}
    head = model.head.weight if isinstance(model, GPT) else None
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    for name, parameter in model.named_parameters():  # a tied matrix appears once
        if parameter in embeddings:
            found[name] = "embedding"
        elif parameter.ndim < 2:
            found[name] = "vector"
        elif head is not None and parameter.ndim > 2:
            raise ValueError(f"no role for {name} of shape {tuple(parameter.shape)}")
        else:
            found[name] = "readout" if parameter is head or parameter.ndim > 2 else "hidden"
    return found


def stacked(model: GPT) -> dict[str, list[int]]:
    """Name -> rows of each, for a parameter that stacks several matrices of which each is a map of its own."""
    return {
        f"{name}.qkv.weight": [heads * module.head_dim for heads in (module.heads, module.kv_heads, module.kv_heads)]
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    }
