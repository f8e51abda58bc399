"""What the framework costs, and what exactness and durability cost in it: training steps in four ways, in turn.

    python benchmarks/overhead.py --text FILE [--model small] [--steps 12] [--rounds 5] [--device cpu]

bare: a loop of twenty lines of torch. inexact: Lightning, callbacks and logging, without what makes a run exact
(reseeding, the look at loss and gradient norm before each update). exact: as train.py runs. saving: the same with one
checkpoint, which is copied, written, flushed and hashed while training goes on.
All train the same model on the same windows with the same optimizer, clipping and precision. Prints the seconds of each
round, the ratios of the medians, and what exactness and a checkpoint every 100 steps add together.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import hydra
import torch
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm import cli  # noqa: E402, F401  (registers the resolvers that conf/ uses)
from slm.assemble import assemble  # noqa: E402
from slm.build import build  # noqa: E402
from slm.data.windows import EndlessOrder  # noqa: E402
from slm.lives import make_card, open_run  # noqa: E402
from slm.loss import cross_entropy  # noqa: E402
from slm.plan import make_plan  # noqa: E402
from slm.prepare import prepare_data  # noqa: E402
from slm.training.callbacks import Randomness  # noqa: E402
from slm.training.guard import Guard  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="a UTF-8 file of a megabyte or so")
    parser.add_argument("--model", default="small")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        plan, prepared = prepare(arguments, Path(folder))
        ways = {"bare": bare_loop, "inexact": inexact, "exact": exact, "saving": saving}
        seconds = {way: [] for way in ways}
        for number in range(arguments.rounds + 1):  # the first is a warm-up
            for way in ways if number % 2 else reversed(ways):
                taken = ways[way](plan, prepared, Path(folder) / f"{way}{number}")
                if number:
                    seconds[way].append(taken / arguments.steps)
                    print(f"round {number}  {way:9}  {seconds[way][-1]:.4f} s per step", flush=True)
    bare, without, ours, _ = (statistics.median(seconds[way]) for way in ways)
    pairs = zip(seconds["saving"], seconds["exact"], strict=True)
    checkpoint = statistics.median(with_it - without_it for with_it, without_it in pairs) * arguments.steps
    print(f"median seconds per step: bare {bare:.4f}, inexact {without:.4f}, exact {ours:.4f}")
    print(f"the framework adds {ours / bare - 1:+.1%} to the bare loop")
    added = (ours + checkpoint / 100) / without - 1
    print(f"exactness, and a checkpoint of {checkpoint:.3f} s every 100 steps, add {added:+.1%} to inexact steps")


def prepare(arguments, folder: Path):
    accelerator = {"cpu": "cpu", "cuda": "gpu"}[arguments.device]
    overrides = [
        f"model={arguments.model}",
        "data=text",
        f"data.path='{arguments.text}'",
        "tokenizer.vocab_size=4096",
        "data.batch_windows=8",
        f"trainer.accelerator={accelerator}",
        f"budget={{steps: {arguments.steps}, tokens: null, epochs: null}}",
        "data.validation_windows=1",
        "callbacks.samples.prompts=[]",
        "trainer.compile=false",  # as the bare loop
        f"cache_dir='{folder}'",
    ]
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose("train", overrides=overrides), resolve=True)
    plan = make_plan(config | {"name": "overhead"})
    return plan, prepare_data(plan)


def exact(plan, prepared, run_dir: Path, without: tuple = (), every_n_steps: int | None = None) -> float:
    """Seconds from the start of the first step to the end of the last, as train.py runs them."""
    run_dir.mkdir()
    card = make_card(plan, prepared, run_dir, None, step=-1)
    trainer, module, data = assemble(plan, prepared, run_dir, card)
    open_run(card, prepared, run_dir, [], step=-1)
    marks = Marks()
    trainer.callbacks = [marks, *(callback for callback in trainer.callbacks if not isinstance(callback, without))]
    if every_n_steps:
        trainer.checkpoint_callback.every_n_steps = every_n_steps
    trainer.fit(module, data)
    return marks.end - marks.start


def inexact(plan, prepared, run_dir: Path) -> float:
    return exact(plan, prepared, run_dir, without=(Randomness, Guard))


def saving(plan, prepared, run_dir: Path) -> float:
    """With one checkpoint early enough for its writing to end before the last step."""
    return exact(plan, prepared, run_dir, every_n_steps=prepared.steps // 2 + 1)


def bare_loop(plan, prepared, run_dir: Path) -> float:
    """The same in twenty lines of torch."""
    device = plan.hardware.device
    _, module, data = assemble(plan, prepared, run_dir, {"run_id": "", "name": "", "rewinds": [], "corpus": ""})
    model = module.model.to(device).train()
    optimizer = build(plan.config["optimizer"], "optimizer", model=model)
    order = iter(EndlessOrder(len(data.train), plan.config["seed"]))
    dtype = torch.bfloat16 if plan.hardware.sixteen_bit else torch.float32
    start = time.perf_counter()
    for step in range(prepared.steps):
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
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    from lightning.pytorch.callbacks import Callback

    class Marks(Callback):
        """The moments between which the steps lie; the end comes after every other callback's."""

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx == 0:
                self.start = time.perf_counter()

        def on_validation_start(self, trainer, module):
            if trainer.global_step == trainer.max_steps:
                self.end = time.perf_counter()

    main()
