"""What a parameter is: weight decay, learning rate and Muon decide by its role or its kind."""

from typing import Literal, get_args

from torch import nn

from slm.attention import Attention
from slm.lora import LoRALinear
from slm.model import GPT
from slm.parametrization import Kind, Rule

Role = Literal["embedding", "readout", "hidden", "vector"]
ROLES: tuple[Role, ...] = get_args(Role)


def kinds(model: GPT) -> dict[str, Kind]:
    """Parameter name -> kind, as in slm.parametrization.

    Of LoRA's thin matrices the first reads the layer's input, the second few channels (arXiv:2402.12354).
    In a model of one's own the head is a reader, and a tensor of more dimensions, which Muon cannot take, is a readout.
    Raises: ValueError: if a parameter of GPT has no kind.
    """
    found: dict[str, Kind] = {}
    own, thin = not isinstance(model, GPT), [its.lora_b for its in model.modules() if isinstance(its, LoRALinear)]
    known = {module.weight: "embedding" for module in model.modules() if isinstance(module, nn.Embedding)}
    known = dict.fromkeys(thin, "narrow") | (known if own else model.matrices())
    for name, parameter in model.named_parameters():  # a tied matrix appears once
        if parameter.ndim > 2 and not own:
            raise ValueError(f"no role for {name} of shape {tuple(parameter.shape)}")
        kind = ("vector", "vector", "reader")[parameter.ndim] if parameter.ndim < 3 else "readout"
        found[name] = known.get(parameter, kind)
    return found


def roles(model: GPT) -> dict[str, Role]:
    """Parameter name -> role: embedding (of tokens, pairs, positions, values), untied head, matrix of a block, or gain,
    bias or scalar.

    A tied matrix is an embedding. The gate of value embeddings, a small matrix, is hidden, as in nanochat.
    Raises: ValueError: if a parameter of GPT has no role.
    """
    own: dict[Kind, Role] = {"bigram": "embedding", **{role: role for role in ROLES}}
    return {name: own.get(kind, "hidden") for name, kind in kinds(model).items()}


def rules(model: GPT) -> dict[str, Rule]:
    """Parameter name -> the numbers of its kind; in a model of one's own nothing changes with the size."""
    kind = kinds(model)
    if not isinstance(model, GPT):
        return dict.fromkeys(kind, Rule())
    inside, outside = model.config.rules(), model.config.rules(in_block=False)
    return {name: (inside if name.startswith("blocks.") else outside)[its] for name, its in kind.items()}


def stacked(model: GPT) -> dict[str, list[int]]:
    """Name -> rows of each, for a parameter that stacks several matrices of which each is a map of its own."""
    return {
        f"{name}.qkv.weight": [heads * module.head_dim for heads in (module.heads, module.kv_heads, module.kv_heads)]
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    }
