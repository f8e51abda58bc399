"""Tokens per second of training: through train.py's own trainer, beside others' models in a plain loop, in turn.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/train.py --nanogpt nanoGPT                                      # model=small, vocabulary 16,000
    python benchmarks/train.py --nanogpt nanoGPT --set model=tiny model.width=256 --vocab-size 4096 --windows 16
    python benchmarks/train.py --nanogpt nanoGPT --device cuda --windows 32 --steps 40

Peers run in a process of their own, in float32, as nanoGPT is shipped for CPUs, and, where that is fast, in autocast to
16 bits, with fused AdamW and TF32 on a GPU only, as shipped. On a GPU ours is compiled, and so is one row of each of
them; --compile adds such rows on a CPU. "one batch again and again" is ours without a data path, and the share of time
that ours spends on getting batches says the same without the noise of the machine. The limit is the fastest product of
two matrices of the model's own shapes, in each precision, in the same run.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import peers
import torch
from measure import another_process, gemm_peak, in_turn, machine, one_line_errors, parsed, ratio, sixteen_bits, table
from training import make_run, train_seconds

from slm.estimate import training_flops_per_token
from slm.hardware import best_precision


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="*", default=["model=small"], help="overrides of train.py")
    parser.add_argument("--vocab-size", type=int, default=16_000)
    parser.add_argument("--windows", type=int, default=8, help="per step, in one microbatch")
    parser.add_argument("--steps", type=int, default=4, help="per measurement, after a first one that is left out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    parser.add_argument("--compile", action="store_true", help="also compiled, on a CPU; on a GPU in any case")
    arguments = parsed(parser)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder, another_process() as elsewhere:
        ways, config, waits = make_ways(arguments, device, Path(folder), elsewhere)
        values = in_turn(ways, arguments.rounds)
    tokens, flops = arguments.windows * config.context, training_flops_per_token(config)
    width, rows = config.width, arguments.windows * config.context
    shapes = [(rows, width, config.hidden_width), (rows, config.hidden_width, width), (rows, width, 3 * width)]
    sixteen = sixteen_bits(best_precision("gpu" if device.type == "cuda" else "cpu"))
    peaks = {dtype: gemm_peak(shapes, dtype, device) for dtype in (torch.float32, sixteen)}
    ours = next(iter(values))
    lines = []
    for way, rates in values.items():
        precision = torch.float32 if "float32" in way or "32-true" in way else sixteen
        share = statistics.median(rates) * flops / peaks[precision]
        lines.append([way, f"{statistics.median(rates):,.0f}", f"{ratio(values[ours], rates):.2f}", f"{share:.0%}"])
    print(f"{machine(arguments.device)}; {config.depth} x {width}, context {config.context}, {tokens:,} tokens a step")
    print(
        ", ".join(
            f"{str(dtype).removeprefix('torch.')} products {peak / 1e9:,.0f} GFLOP/s" for dtype, peak in peaks.items()
        )
    )
    print(table(["", "tokens/s", "ours is faster by", "of the products' peak"], lines))
    share = statistics.median(waits) * statistics.median(values[ours]) / tokens
    print(f"getting a batch takes {statistics.median(waits) * 1e3:.2f} ms, {share:.2%} of a step")


def make_ways(arguments, device: torch.device, folder: Path, elsewhere: Callable):
    """Ours first: the precision that trainer=auto takes, then the same with one batch; then the peers.

    And the seconds that each batch of ours was waited for.
    """
    overrides = [*arguments.set, f"data.batch_windows={arguments.windows}", f"trainer.microbatch={arguments.windows}"]
    ways, steps = {}, arguments.steps + 1
    best = best_precision("gpu" if device.type == "cuda" else "cpu")

    def ours(*more: str, change=lambda trainer, data: None):
        plan, prepared = make_run(
            folder, [*overrides, *more], vocab_size=arguments.vocab_size, steps=steps, device=device.type
        )
        tokens = arguments.steps * arguments.windows * prepared.model.context
        run = lambda: tokens / train_seconds(plan, prepared, folder / "run", change)  # noqa: E731
        return run, prepared.model

    waits = []
    ways[f"slm, {best}"], config = ours(change=lambda trainer, data: watch(data, waits))
    ways[f"slm, {best}, one batch again and again"], _ = ours(change=one_batch)
    if arguments.compile and device.type == "cpu":
        ways[f"slm, {best}, compiled"], _ = ours("trainer.compile=true")
    for name in peers.names(arguments.nanogpt):
        kinds = [("float32", torch.float32, False)]
        if best != "32-true":  # where bfloat16 is slower, nobody would take it
            kinds.append(("16 bits", sixteen_bits(best), False))
        if arguments.compile or device.type == "cuda":
            kinds.append((f"{kinds[-1][0]}, compiled", kinds[-1][1], True))
        for kind, dtype, compile in kinds:
            what = name, config, arguments.nanogpt, arguments.windows, dtype, compile, device.type
            ways[f"{name}, {kind}"] = lambda what=what: elsewhere(peers.tokens_per_second, arguments.steps, *what)
    return ways, config, waits


def watch(data, waits: list[float]):
    real = data.train_dataloader

    def loader():
        batches = iter(real())
        while True:
            start = time.perf_counter()
            batch = next(batches)
            waits.append(time.perf_counter() - start)
            yield batch

    data.train_dataloader = loader


def one_batch(trainer, data):
    """The first microbatch of all steps, already made."""
    real = data.train_dataloader

    def loader():
        batch = next(iter(real()))
        return itertools.repeat(batch)

    data.train_dataloader = loader


if __name__ == "__main__":
    with one_line_errors():
        main()
