"""Peak memory of training, each in a process of its own: ours as train.py runs it, and others' models.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/memory.py --nanogpt nanoGPT [--device cuda]    # model=small, vocabulary 16,000, 8 windows of 512

On a CPU that of the process, with what Python and its libraries take; on a GPU what tensors took of its memory, all
of them compiled and not.
"""

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from measure import another_process, machine, one_line_errors, parsed, sixteen_bits, table
from training import make_run, train_seconds

from slm.hardware import best_precision


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=["model=small"], help="overrides of train.py")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--windows", type=int, default=8, help="per step, in one microbatch")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    arguments = parsed(parser)
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *arguments.set,
            f"data.batch_windows={arguments.windows}",
            f"trainer.microbatch={arguments.windows}",
        ]
        _, prepared = make_run(
            Path(folder), overrides, vocab_size=arguments.vocab_size, steps=1, device=arguments.device
        )
        config, best = prepared.model, best_precision("gpu" if arguments.device == "cuda" else "cpu")
        lines, kinds = [], (False, True) if arguments.device == "cuda" else (False,)
        recompute, others = ["model.gradient_checkpointing=true"], peers.names(arguments.nanogpt)
        for compile in kinds:
            after = ", compiled" if compile else ""
            for name, more in (("slm", []), ("slm, gradient checkpointing", recompute)):
                chosen = [*overrides, *more, f"trainer.compile={str(compile).lower()}"]
                figures = elsewhere(of_ours, chosen, arguments.vocab_size, arguments.device)
                lines.append([f"{name}, {best}{after}", *figures])
            for name in others:
                for dtype in (torch.float32, *([sixteen_bits(best)] if best != "32-true" else [])):
                    what = name, config, arguments.nanogpt, arguments.windows, dtype, compile, arguments.device
                    lines.append([f"{name}, {str(dtype).removeprefix('torch.')}{after}", *elsewhere(of_peer, *what)])
    print(machine(arguments.device))
    print(table(["", "peak, MB", "before the first step, MB"], lines))


def elsewhere(function: Callable, *arguments) -> list[str]:
    with another_process() as call:
        return [f"{number / 1e6:,.0f}" for number in call(function, *arguments)]


def peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def of_ours(overrides: list[str], vocab_size: int, device: str) -> tuple[int, int]:
    import lightning.pytorch  # noqa: F401  (part of what is there before)

    with tempfile.TemporaryDirectory() as folder:
        plan, prepared = make_run(Path(folder), overrides, vocab_size=vocab_size, steps=4, device=device)
        before = peak(device)
        train_seconds(plan, prepared, Path(folder) / "run")
    return peak(device), before


def of_peer(*what) -> tuple[int, int]:
    before = peak(what[-1])
    peers.tokens_per_second(4, *what)
    return peak(what[-1]), before


if __name__ == "__main__":
    with one_line_errors():
        main()
