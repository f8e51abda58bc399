"""torch.compile where it works: fewer and larger kernels from the same code."""

import sys
from collections.abc import Callable

import torch


def compiled(function: Callable, device: torch.device) -> Callable:
    """The function, to be compiled at its first call; itself, with a warning, where there is no compiler."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of torch, Triton and the C++ compiler: they have no base in common
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        print(f"warning: torch.compile does not work here ({reason[:200]}); training without it", file=sys.stderr)
        return function
    return torch.compile(function)
