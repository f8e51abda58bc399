"""Tokens per second of training: slm as train.py runs it, and other projects' models in a plain loop, alternating.

    pip install transformers litgpt; git clone https://github.com/karpathy/nanoGPT
    python benchmarks/train.py --nanogpt nanoGPT                                      # model=small, vocabulary 16,000
    python benchmarks/train.py --nanogpt nanoGPT --set model=tiny model.width=256 --vocab-size 4096 --windows 16
    python benchmarks/train.py --nanogpt nanoGPT --device cuda --windows 32 --steps 40

The others run in a process of their own, in float32, as nanoGPT does on CPUs, and, where that is fast, in autocast to
16 bits; on a GPU with fused AdamW and TF32. With --float32 all do so in float32 only. On a GPU slm and one row of each
of the others are compiled; --compile adds such rows on a CPU. "the same batch every step" is slm without a data path;
the share of time that slm waits for batches measures the same with less noise. The limit is the fastest product of two
matrices of the model's shapes.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import measure
import peers
import torch
from training import make_job, train_seconds

from slm.estimate import training_flops_per_token
from slm.hardware import best_precision


def main():
    parser = measure.argument_parser(__doc__)
    parser.add_argument("--set", nargs="*", default=["model=small"], help="overrides of train.py")
    parser.add_argument("--windows", type=int, default=8, help="per step, in one microbatch")
    parser.add_argument("--steps", type=int, default=4, help="per measurement, after a first step that is left out")
    parser.add_argument("--nanogpt", help="a clone of nanoGPT")
    parser.add_argument("--compile", action="store_true", help="also compiled, on a CPU; always on a GPU")
    parser.add_argument("--float32", action="store_true", help="as on a CPU without fast 16 bits")
    arguments = measure.parsed(parser)
    device = torch.device(arguments.device)
    with tempfile.TemporaryDirectory() as folder, measure.another_process() as elsewhere:
        ways, config, waits = make_ways(arguments, device, Path(folder), elsewhere)
        values = measure.in_turn(ways, arguments.rounds)
    tokens, flops = arguments.windows * config.context, training_flops_per_token(config)
    width, rows = config.width, arguments.windows * config.context
    shapes = [(rows, width, config.hidden_width), (rows, config.hidden_width, width), (rows, width, 3 * width)]
    sixteen = measure.sixteen_bits(best_precision("gpu" if device.type == "cuda" else "cpu"))
    peaks = {dtype: measure.gemm_peak(shapes, dtype, device) for dtype in (torch.float32, sixteen)}
    ours = next(iter(values))
    lines = []
    for way, rates in values.items():
        precision = torch.float32 if "float32" in way or "32-true" in way else sixteen
        rate, faster = statistics.median(rates), measure.ratio(values[ours], rates)
        lines.append([way, f"{rate:,.0f}", f"{faster:.2f}", f"{rate * flops / peaks[precision]:.0%}"])
    shape = f"{config.depth} x {width}, context {config.context}, {tokens:,} tokens a step"
    print(f"{measure.machine(arguments.device)}; {shape}")
    limits = {str(dtype).removeprefix("torch."): peak / 1e9 for dtype, peak in peaks.items()}
    print(", ".join(f"{dtype} products {peak:,.0f} GFLOP/s" for dtype, peak in limits.items()))
    print(measure.table(["", "tokens/s", "slm is faster by", "of the products' peak"], lines))
    share = statistics.median(waits) * statistics.median(values[ours]) / tokens
    print(f"slm waits {statistics.median(waits) * 1e3:.2f} ms for a batch, {share:.2%} of a step")


def make_ways(arguments, device: torch.device, folder: Path, elsewhere: Callable):
    """Measurements by name: slm in the precision of trainer=auto, the same with one batch, the others.

    Also the model's configuration, and a list that collects the seconds that slm waits for each batch.
    """
    overrides = [*arguments.set, f"data.batch_windows={arguments.windows}", f"trainer.microbatch={arguments.windows}"]
    ways, steps = {}, arguments.steps + 1
    best = "32-true" if arguments.float32 else best_precision("gpu" if device.type == "cuda" else "cpu")

    def ours(*more: str, change=lambda trainer, data: None):
        sizes = {"vocab_size": arguments.vocab_size, "steps": steps, "device": device.type}
        job = make_job(folder, [f"trainer.precision={best}", *overrides, *more], **sizes)
        tokens = arguments.steps * arguments.windows * job.model.context
        return (lambda: tokens / train_seconds(job, change)), job.model

    waits = []
    ways[f"slm, {best}"], config = ours(change=lambda trainer, data: measure_waits(data, waits))
    ways[f"slm, {best}, the same batch every step"], _ = ours(change=one_batch)
    if arguments.compile and device.type == "cpu":
        ways[f"slm, {best}, compiled"], _ = ours("trainer.compile=true")
    for name in peers.names(arguments.nanogpt):
        kinds = [("float32", torch.float32, False)]
        if best != "32-true":  # where bfloat16 is faster
            kinds.append(("16 bits", measure.sixteen_bits(best), False))
        if arguments.compile or device.type == "cuda":
            kinds.append((f"{kinds[-1][0]}, compiled", kinds[-1][1], True))
        for kind, dtype, compile in kinds:
            what = name, config, arguments.nanogpt, arguments.windows, dtype, compile, device.type
            ways[f"{name}, {kind}"] = lambda what=what: elsewhere(peers.tokens_per_second, arguments.steps, *what)
    return ways, config, waits


def measure_waits(data, waits: list[float]):
    """Appends the seconds before each batch."""
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
    """Repeats the first microbatch in all steps."""
    real = data.train_dataloader

    def loader():
        batch = next(iter(real()))
        return itertools.repeat(batch)

    data.train_dataloader = loader


if __name__ == "__main__":
    with measure.one_line_errors():
        main()
