"""What the framework costs, and what exactness and durability cost in it: training steps in four ways, in turn.

    python benchmarks/overhead.py [--model small] [--steps 12] [--rounds 5] [--device cpu]

bare: a loop of twenty lines of torch. inexact: Lightning, callbacks and logging, without what makes a run exact
(reseeding, the look at loss and gradient norm before each update). exact: as train.py runs. saving: the same with one
checkpoint, which is copied, written, flushed and hashed while training goes on.
All train the same model on the same windows with the same optimizer, clipping and precision. Prints the seconds of each
round, the ratios of the medians, and what exactness and a checkpoint every 100 steps add together.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import in_turn, one_line_errors, parsed, sixteen_bits, synchronize
from training import make_run, train_seconds

from slm.data.windows import InfiniteShuffle
from slm.loss import cross_entropy
from slm.run.instantiate import build
from slm.run.trainer import assemble
from slm.training.callbacks.guard import Guard
from slm.training.callbacks.metrics import Seeding


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="small")
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parsed(parser)
    overrides = [f"model={arguments.model}", "data.batch_windows=8", "trainer.compile=false"]  # as the bare loop
    with tempfile.TemporaryDirectory() as folder:
        plan, prepared = make_run(
            Path(folder), overrides, vocab_size=arguments.vocab_size, steps=arguments.steps + 1, device=arguments.device
        )
        ways = {"bare": bare_loop, "inexact": inexact, "exact": train_seconds, "saving": saving}
        per_step = {
            way: lambda take=take: take(plan, prepared, Path(folder) / "run") / arguments.steps
            for way, take in ways.items()
        }
        seconds = in_turn(per_step, arguments.rounds)
    bare, without, ours, _ = (statistics.median(seconds[way]) for way in ways)
    pairs = zip(seconds["saving"], seconds["exact"], strict=True)
    checkpoint = statistics.median(with_it - without_it for with_it, without_it in pairs) * arguments.steps
    print(f"median seconds per step: bare {bare:.4f}, inexact {without:.4f}, exact {ours:.4f}")
    print(f"the framework adds {ours / bare - 1:+.1%} to the bare loop")
    added = (ours + checkpoint / 100) / without - 1
    print(f"exactness, and a checkpoint of {checkpoint:.3f} s every 100 steps, add {added:+.1%} to inexact steps")


def inexact(plan, prepared, run_dir: Path) -> float:
    def without(trainer, data):
        trainer.callbacks = [each for each in trainer.callbacks if not isinstance(each, Seeding | Guard)]

    return train_seconds(plan, prepared, run_dir, without)


def saving(plan, prepared, run_dir: Path) -> float:
    """With one checkpoint early enough for its writing to end before the last step."""

    def once(trainer, data):
        trainer.checkpoint_callback.every_n_steps = prepared.steps // 2 + 1

    return train_seconds(plan, prepared, run_dir, once)


def bare_loop(plan, prepared, run_dir: Path) -> float:
    """The same in twenty lines of torch."""
    device = plan.hardware.device
    _, module, data = assemble(plan, prepared, run_dir, {"run_id": "", "name": "", "rewinds": [], "corpus": ""})
    model = module.model.to(device).train()
    optimizer = build(plan.config["optimizer"], "optimizer", model=model)
    order = iter(InfiniteShuffle(len(data.train), plan.config["seed"]))
    dtype = sixteen_bits(plan.hardware.precision)
    for step in range(prepared.steps):
        if step == 1:
            synchronize(device)
            start = time.perf_counter()
        for _ in range(plan.accumulation):
            windows = data.train.__getitems__([next(order) for _ in range(plan.microbatch)]).to(device)
            with torch.autocast(device.type, dtype, enabled=plan.hardware.sixteen_bit):
                features = model.features(windows[:, :-1])
                loss = cross_entropy(features, model.head.weight, windows[:, 1:]) / plan.accumulation
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), plan.trainer.clip)
        for group in optimizer.param_groups:
            group["lr"] = plan.config["optimizer"]["lr"] * module.schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    with one_line_errors():
        main()
