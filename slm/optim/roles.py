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
    Raises: ValueError: if a parameter has no role.
    """
    found: dict[str, Role] = {}
    gpt = isinstance(model, GPT)
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if isinstance(module, nn.Embedding) or (gpt and parameter is model.tokens.weight):
                found[name] = "embedding"
            elif parameter.ndim == 1:
                found[name] = "vector"
            elif (gpt and module is model.head) or (not gpt and parameter.ndim > 2):
                found[name] = "readout"
            elif parameter.ndim == 2:
                found[name] = "hidden"
            else:
                raise ValueError(f"no role for {name} of shape {tuple(parameter.shape)}")
    return {name: found[name] for name, _ in model.named_parameters()}  # a tied matrix appears once


def stacked(model: GPT) -> dict[str, list[int]]:
    """Name -> rows of each, for a parameter that stacks several matrices of which each is a map of its own."""
    return {
        f"{name}.qkv.weight": [heads * module.head_dim for heads in (module.heads, module.kv_heads, module.kv_heads)]
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    }
