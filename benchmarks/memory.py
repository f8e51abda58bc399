"""Peak memory of training, each in a process of its own: slm as train.py runs it, and other projects' models.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/memory.py --nanogpt nanoGPT [--device cuda]    # model=small, vocabulary 16,000, 8 windows of 512

On a CPU: the memory of the process, with Python and its libraries. On a GPU: the memory of tensors, with and without
torch.compile.
"""

import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from measure import another_process, argument_parser, machine, one_line_errors, parsed, sixteen_bits, table
from training import make_job, train_seconds

from slm.hardware import best_precision


def main():
    parser = argument_parser(__doc__, rounds=None)
    parser.add_argument("--set", nargs="*", default=["model=small"], help="overrides of train.py")
    parser.add_argument("--windows", type=int, default=8, help="per step, in one microbatch")
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    arguments = parsed(parser)
    windows, device = arguments.windows, arguments.device
    overrides = [*arguments.set, f"data.batch_windows={windows}", f"trainer.microbatch={windows}"]
    sizes = {"vocab_size": arguments.vocab_size, "device": device}
    with tempfile.TemporaryDirectory() as folder:
        config = make_job(Path(folder), overrides, steps=1, **sizes).model
    best, recompute = best_precision("gpu" if device == "cuda" else "cpu"), ["model.gradient_checkpointing=true"]
    others, lines = peers.names(arguments.nanogpt), []
    for compile in (False, True) if device == "cuda" else (False,):
        after = ", compiled" if compile else ""
        for name, more in (("slm", []), ("slm, gradient checkpointing", recompute)):
            chosen = [*overrides, *more, f"trainer.compile={str(compile).lower()}"]
            lines.append([f"{name}, {best}{after}", *elsewhere(of_slm, chosen, arguments.vocab_size, device)])
        for name in others:
            for dtype in (torch.float32, *([sixteen_bits(best)] if best != "32-true" else [])):
                what = name, config, arguments.nanogpt, windows, dtype, compile, device
                lines.append([f"{name}, {str(dtype).removeprefix('torch.')}{after}", *elsewhere(of_peer, *what)])
    print(machine(device))
    print(table(["", "peak, MB", "before the first step, MB"], lines))


def elsewhere(function: Callable, *arguments) -> list[str]:
    with another_process() as call:
        return [f"{number / 1e6:,.0f}" for number in call(function, *arguments)]


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def of_slm(overrides: list[str], vocab_size: int, device: str) -> tuple[int, int]:
    import lightning.pytorch  # noqa: F401  (belongs to the memory before the first step)

    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), overrides, vocab_size=vocab_size, steps=4, device=device)
        before = peak(device)
        train_seconds(job)
    return peak(device), before


def of_peer(*what) -> tuple[int, int]:
    before = peak(what[-1])
    peers.tokens_per_second(4, *what)
    return peak(what[-1]), before


if __name__ == "__main__":
    with one_line_errors():
        main()
