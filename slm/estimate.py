"""What a model costs, by arithmetic: parameters and floating-point operations, and what a device can do of them."""

import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import yaml
from torch import nn

from slm.files import CONF
from slm.model import GPT, GPTConfig
from slm.own_model import AnyConfig, OwnModel, build

PARTS = {  # of a model -> names of parameters, of which the first that fits counts
    "embedding": r"^(tokens|bigrams|positions)\.|value_embedding",
    "norms": r"norm|scales$",
    "attention": r"\.attention\.",
    "MLP": r"\.mlp\.",
    "head": r"^head\.",
}
NEWEST: dict[str, GPT | OwnModel] = {}  # the model that was counted last: a run counts one several times


@dataclass(frozen=True)
class Parameters:
    total: int
    non_embedding: int  # without embeddings of tokens, pairs, positions and values; an untied head counts


def parameters(config: AnyConfig) -> Parameters:
    """Exact counts, from a model that takes no memory."""
    model = _without_memory(config)
    total = sum(p.numel() for p in model.parameters())
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return Parameters(total, total - sum(weight.numel() for weight in embeddings))


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Numbers of parameters, as a sharded training gathers them."""

    depth: int
    block: int  # of the largest block
    blocks: int
    outside: int  # of blocks
    trained: int  # that have a gradient

    @property
    def total(self) -> int:
        return self.blocks + self.outside


def weights(config: AnyConfig) -> Weights:
    """The parameters by blocks; a model of one's own has none."""
    model = _without_memory(config)
    blocks = [sum(p.numel() for p in block.parameters()) for block in getattr(model, "blocks", ())]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    outside = parameters(config).total - sum(blocks)
    return Weights(
        depth=len(blocks), block=max(blocks, default=0), blocks=sum(blocks), outside=outside, trained=trained
    )


def parts(config: AnyConfig) -> dict[str, int]:
    """The parameters by part of the model, none of them twice; a tied head has none of its own."""
    counts = dict.fromkeys([*PARTS, "other"], 0)
    for name, parameter in _without_memory(config).named_parameters():
        part = next((part for part, pattern in PARTS.items() if re.search(pattern, name)), "other")
        counts[part] += parameter.numel()
    return {part: count for part, count in counts.items() if count}


def training_flops_per_token(config: AnyConfig) -> int:
    """6 per weight of a linear layer, 4 of one that LoRA freezes (an input gradient and no weight gradient), plus
    12 * width per block and visible position for attention scores and their use (arXiv:2204.02311, appendix B): those
    of the context, or of the window if it is shorter. Recomputed activations do not count, as usual for MFU. Of a model
    of one's own: 6 per parameter but embeddings; a head that is tied to one counts."""
    if not isinstance(config, GPTConfig):
        others = [module for module in _without_memory(config).modules() if not isinstance(module, nn.Embedding)]
        return 6 * sum(p.numel() for p in {p for module in others for p in module.parameters(recurse=False)})
    linear = [module for module in _without_memory(config).modules() if isinstance(module, nn.Linear)]
    matrices = [weight for module in linear for weight in module.parameters(recurse=False) if weight.dim() == 2]
    visible = sum(window or config.context for window in config.windows)
    return sum((6 if its.requires_grad else 4) * its.numel() for its in matrices) + 12 * config.width * visible


def _without_memory(config: AnyConfig) -> GPT | OwnModel:
    if (key := repr(config)) not in NEWEST:
        NEWEST.clear()
        with torch.device("meta"):
            NEWEST[key] = build(config)
    return NEWEST[key]


def device_peak(device: torch.device, sixteen_bit: bool) -> float | None:
    """FLOP/s that the device can reach: from the table for a GPU, measured for a CPU, None where unknown."""
    if device.type == "cpu":
        return measured_peak(torch.bfloat16 if sixteen_bit else torch.float32, torch.get_num_threads())
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return known_peak(torch.cuda.get_device_name(device), 0 if sixteen_bit else 2 if tf32 else 1)


@cache
def device_table() -> dict[str, Any]:
    """conf/devices.yaml: peaks, memory and prices of GPUs, and what is assumed about them."""
    return yaml.safe_load((CONF / "devices.yaml").read_text(encoding="utf-8"))


def known_device(name: str) -> dict[str, Any] | None:
    """The entry of the table for a whole GPU of this name; None for a slice of one (MIG) or another variant."""
    if re.search(r"\b(MIG|Laptop|Max-Q|Ti|SUPER|D)\b", name):
        return None
    return next((entry for key, entry in device_table()["devices"].items() if re.search(rf"\b{key}\b", name)), None)


def known_peak(name: str, column: int) -> float | None:
    """FLOP/s of a known GPU in 16 bits (column 0), float32 (1) or TF32 (2)."""
    return (entry := known_device(name)) and 1e12 * entry["peaks"][column]


@cache
def measured_peak(dtype: torch.dtype, threads: int, seconds: float = 0.1) -> float:
    """The fastest of the square matrix products that fit into the time, on this process's `threads`, measured once."""
    size, best = 1024, 0.0
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best
