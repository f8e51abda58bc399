"""Where 16-bit arithmetic is fast."""

from functools import cache

import torch


@cache
def fast_bfloat16(device: torch.device | str) -> bool:
    """Whether it multiplies bfloat16 matrices faster than float32 ones; some CPUs do it at a quarter of the speed."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return kind == "cpu" and any(getattr(torch.cpu, name, lambda: False)() for name in known)
