"""torch.compile where it works: fewer and larger kernels from the same code."""

import sys
from collections.abc import Callable

import torch


def compiled(function: Callable, device: torch.device, *, lengths_vary: bool) -> Callable:
    """The function, to be compiled at its first call; itself, with a warning, where there is no compiler.

    What a process compiled before is forgotten, and lengths that vary are told at once: else torch would choose the
    kernels by what came first, and a run that goes on, or is one of a sweep, would differ in its last digits.
    """
    torch.compiler.reset()
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
    except Exception as error:  # of torch, Triton and the C++ compiler: they have no base in common
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if not device.index:  # one process says it for all
            print(f"warning: torch.compile does not work here ({reason[:200]}); training without it", file=sys.stderr)
        return function
    return torch.compile(function, dynamic=True if lengths_vary else None)
