"""What a model costs, by arithmetic: parameters and floating-point operations, and what a device can do of them."""

import re
import time
from dataclasses import dataclass
from functools import cache

import torch
from torch import nn

from slm.model import GPT, GPTConfig

# Dense peak in TFLOP/s from the vendors' data sheets (no sparsity): 16-bit, float32, TF32.
PEAKS = {
    "H200": (989, 67, 495),
    "H100 PCIe": (756, 51, 378),
    "H100 NVL": (835, 60, 418),
    "H100": (989, 67, 495),
    "A100": (312, 19.5, 156),
    "L40": (181, 90.5, 90.5),
    "L40S": (362, 91.6, 183),
    "L4": (121, 30.3, 60),
    "T4": (65, 8.1, 8.1),
    "V100": (125, 15.7, 15.7),
    "A10": (125, 31.2, 62.5),
    "RTX 5090": (209.5, 104.8, 104.8),
    "RTX 4090": (165.2, 82.6, 82.6),
    "RTX 4080": (97.5, 48.7, 48.7),
    "RTX 3090": (71, 35.6, 35.6),
    "RTX 3080": (59.5, 29.8, 29.8),
}


@dataclass(frozen=True)
class Parameters:
    total: int
    non_embedding: int  # without embeddings of tokens, positions and values; an untied head counts


def parameters(config: GPTConfig) -> Parameters:
    """Exact counts, from a model that takes no memory."""
    model = _without_memory(config)
    total = sum(p.numel() for p in model.parameters())
    embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    return Parameters(total, total - sum(weight.numel() for weight in embeddings))


def training_flops_per_token(config: GPTConfig) -> int:
    """6 per weight of a linear layer, plus 12 * width per block and visible position for attention scores and their
    use (arXiv:2204.02311, appendix B): those of the context, or of the window if it is shorter. Recomputed
    activations do not count, as usual for MFU."""
    linear = [module for module in _without_memory(config).modules() if isinstance(module, nn.Linear)]
    visible = sum(window or config.context for window in config.windows)
    return 6 * sum(module.weight.numel() for module in linear) + 12 * config.width * visible


def _without_memory(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def device_peak(device: torch.device, sixteen_bit: bool) -> float | None:
    """FLOP/s that the device can reach: from the table for a GPU, measured for a CPU, None where unknown."""
    if device.type == "cpu":
        return measured_peak(torch.bfloat16 if sixteen_bit else torch.float32, torch.get_num_threads())
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return known_peak(torch.cuda.get_device_name(device), 0 if sixteen_bit else 2 if tf32 else 1)


def known_peak(name: str, column: int) -> float | None:
    """FLOP/s of a whole GPU of this name, by a column of PEAKS; None for a slice of one (MIG) or another variant."""
    if re.search(r"\b(MIG|Laptop|Max-Q|Ti|SUPER|D)\b", name):
        return None
    return next((1e12 * peaks[column] for key, peaks in PEAKS.items() if re.search(rf"\b{key}\b", name)), None)


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
