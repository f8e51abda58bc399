"""The cost of the framework, of exact resume and of checkpoints: training steps in four ways, alternating.

    python benchmarks/overhead.py [--model small] [--steps 12] [--rounds 5] [--device cpu]

bare: a loop of twenty lines of torch. inexact: Lightning, callbacks and logging without the parts that make a run exact
(reseeding, the check of loss and gradient norm before each update). exact: as train.py runs. saving: the same with one
checkpoint, which is copied, written, flushed and hashed while training goes on.
All train the same model on the same windows with the same optimizer, clipping and precision. Prints the seconds of each
round, the ratios of the medians, and the cost of exactness together with a checkpoint every 100 steps.
"""

import statistics
import tempfile
import time
from pathlib import Path

import torch
from measure import argument_parser, in_turn, one_line_errors, parsed, sixteen_bits, synchronize
from training import make_job, train_seconds

from slm.loss import cross_entropy
from slm.run.prepare import Job
from slm.run.record import describe_run


def main():
    parser = argument_parser(__doc__, vocab_size=4096)
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps per measurement")
    arguments = parsed(parser)
    overrides = [f"model={arguments.model}", "data.batch_windows=8", "trainer.compile=false"]  # as the bare loop
    sizes = {"vocab_size": arguments.vocab_size, "steps": arguments.steps + 1}
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), overrides, **sizes, device=arguments.device)
        ways = {"bare": bare_loop, "inexact": inexact, "exact": train_seconds, "saving": saving}
        per_step = {name: lambda way=way: way(job) / arguments.steps for name, way in ways.items()}
        seconds = in_turn(per_step, arguments.rounds)
    bare, without, ours, _ = (statistics.median(seconds[way]) for way in ways)
    pairs = zip(seconds["saving"], seconds["exact"], strict=True)
    checkpoint = statistics.median(with_it - without_it for with_it, without_it in pairs) * arguments.steps
    print(f"median seconds per step: bare {bare:.4f}, inexact {without:.4f}, exact {ours:.4f}")
    print(f"the framework adds {ours / bare - 1:+.1%} to the bare loop")
    added = (ours + checkpoint / 100) / without - 1
    print(f"exactness, and a checkpoint of {checkpoint:.3f} s every 100 steps, add {added:+.1%} to inexact steps")


def inexact(job: Job) -> float:
    from slm.training.callbacks.guard import Guard
    from slm.training.callbacks.seeding import Seeding

    def without(trainer, data):
        trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, Seeding | Guard)]

    return train_seconds(job, without)


def saving(job: Job) -> float:
    """Seconds with one checkpoint, early enough for its writing to end before the last step."""

    def once(trainer, data):
        trainer.checkpoint_callback.every_n_steps = job.steps // 2 + 1

    return train_seconds(job, once)


def bare_loop(job: Job) -> float:
    """Seconds of the same steps in twenty lines of torch."""
    from slm.run.trainer import assemble

    config, hardware, device, accumulation = job.config, job.hardware, job.hardware.device, job.accumulation
    run = assemble(job, describe_run(job, None, step=-1), {})
    model = run.module.model.to(device).train()
    optimizer = config.optimizer(model)
    peaks = [group["lr"] for group in optimizer.param_groups]
    order = run.data.order.indices(0)
    dtype = sixteen_bits(hardware.precision)
    for step in range(job.steps):
        if step == 1:
            synchronize(device)
            start = time.perf_counter()
        for _ in range(accumulation):
            windows = run.data.train.__getitems__([next(order) for _ in range(job.microbatch)]).to(device)
            with torch.autocast(device.type, dtype, enabled=hardware.sixteen_bit):
                features = model.features(windows[:, :-1])
                loss = cross_entropy(features, targets=windows[:, 1:], **model.readout)
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.trainer.gradient_clip_val)
        for group, peak in zip(optimizer.param_groups, peaks):
            group["lr"] = peak * run.module.schedule(step)
        optimizer.step()
        optimizer.zero_grad()
    synchronize(device)
    return time.perf_counter() - start


if __name__ == "__main__":
    with one_line_errors():
        main()
