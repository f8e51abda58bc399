"""What a model costs, by arithmetic: parameters and floating-point operations, and what a device can do of them."""

import re
import time
from dataclasses import dataclass
from functools import cache

import torch

from slm.model import GPT, GPTConfig

# Dense peak in TFLOP/s from the vendors' data sheets (tensor cores, no sparsity): 16-bit, and 32-bit as torch runs it.
PEAKS = {
    "H200": (989, 67),
    "H100": (989, 67),
    "A100": (312, 19.5),
    "L40": (181, 90.5),
    "L40S": (362, 91.6),
    "L4": (121, 30.3),
    "T4": (65, 8.1),
    "V100": (125, 15.7),
    "A10": (125, 31.2),
    "RTX 5090": (209.5, 104.8),
    "RTX 4090": (165.2, 82.6),
    "RTX 4080": (97.5, 48.7),
    "RTX 3090": (71, 35.6),
    "RTX 3080": (59.5, 29.8),
}


@dataclass(frozen=True)
class Parameters:
    total: int
    non_embedding: int  # without token and position embeddings; an untied head counts


def parameters(config: GPTConfig) -> Parameters:
    """Exact counts, from a model that takes no memory."""
    with torch.device("meta"):
        model = GPT(config)
    total = sum(p.numel() for p in model.parameters())
    embeddings = [model.tokens.weight, *([model.positions.weight] if model.positions else [])]
    return Parameters(total, total - sum(p.numel() for p in embeddings))


def least_parameters(config: GPTConfig) -> int:
    """The large matrices of a model and its tables of positions, by arithmetic: for sizes that nothing could hold."""
    positions = config.width if config.positions == "learned" else 2 * config.head_dim
    embeddings = config.vocab_size * config.width * (1 if config.tied else 2)
    return config.depth * _per_block(config) + embeddings + config.context * positions


def _per_block(config: GPTConfig) -> int:
    """Weights of a block's matrices."""
    attention = config.width * (config.width + 2 * config.kv_width) + config.width * config.width
    return attention + config.width * config.hidden_width * (3 if config.mlp == "swiglu" else 2)


def training_flops_per_token(config: GPTConfig) -> int:
    """6 per matrix weight and token, plus 12 * width per block and position of context for attention scores and
    their use (arXiv:2204.02311, appendix B). Recomputed activations do not count, as usual for MFU."""
    matrices = config.depth * _per_block(config) + config.vocab_size * config.width
    return 6 * matrices + 12 * config.depth * config.width * config.context


def device_peak(device: torch.device, sixteen_bit: bool) -> float | None:
    """FLOP/s that the device can reach: from the table for a GPU, measured for a CPU, None where unknown."""
    if device.type == "cpu":
        return measured_peak(torch.bfloat16 if sixteen_bit else torch.float32, torch.get_num_threads())
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    known = [peaks for key, peaks in PEAKS.items() if re.search(rf"\b{key}\b", name) and "Laptop" not in name]
    return known[0][0 if sixteen_bit else 1] * 1e12 if known else None


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
