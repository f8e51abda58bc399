"""How costs grow with the model, the corpus, the runs in a folder and the processes, each with its fitted exponent.

    python benchmarks/scaling.py [--only model corpus runs ranks shards] [--folder FOLDER]

model: a training step (512 tokens, float32) and a checkpoint, written and read, of models of 1 to 130 million weights;
up to 1.3 billion the FLOPs of a token and the time of a plan, on tensors without content. corpus: opening stores
of 10 MB to 100 GB, sparse files, and reading 8 windows. runs: what commands do with a folder of 10 to 10,000 runs, and
with a sweep of as many jobs. ranks: a step of 8 windows on 1, 2 and 4 processes over gloo, which share these cores.
shards: the bytes that each of so many processes keeps of a model that FSDP2 divides among them (exponent -1: a share).

The exponent e of seconds = a * size^e is fitted to the larger half of the sizes, at least three of them; below, what
every call costs outweighs the rest. A cost whose exponent is above 1.15 is marked.
"""

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from measure import ROOT, argument_parser, command, machine, one_line_errors, parsed, table
from opening import make_sparse
from training import make_job, train_seconds

ABOVE_LINEAR = 1.15  # exponents of costs that grow faster than their size
SHAPES = (4, 128), (4, 256), (6, 384), (8, 512), (12, 768), (16, 768), (24, 1024), (24, 2048)  # depth, width
TIMED = 130  # million parameters; larger models are counted only
GIGABYTES = 0.01, 0.1, 1, 10, 100
RANKS = 1, 2, 4
RUNS = 10, 100, 1000, 10_000
SMALL_RUN = (
    *("model=tiny", "model.width=32", "model.depth=1", "model.head_dim=16", "model.context=64", "tokenizer=bytes"),
    *("data=text", f"data.path={ROOT / 'docs' / 'plan.md'}", "data.batch_windows=4", "data.validation_windows=4"),
    *("trainer=cpu", "callbacks.samples=null", "report=false", "lint=false"),
)

Costs = dict[str, dict[float, float]]  # what costs -> size -> seconds


def main():
    parser = argument_parser(__doc__, rounds=3)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--folder", help="for files of up to 2 GB, which are deleted (default: the temporary folder)")
    arguments = parsed(parser)
    print(machine("cpu"))
    for name in arguments.only:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            unit, costs = PARTS[name](Path(folder), arguments.rounds)
        print(f"\n{grown(unit, costs)}\n\n{name}: {time.perf_counter() - start:.0f} s", flush=True)


def grown(unit: str, costs: Costs) -> str:
    """A table: a line per cost, a column per size, and the exponent of its growth."""
    sizes = sorted({size for values in costs.values() for size in values})
    rows = []
    for name, values in costs.items():
        slope = exponent(values)
        mark = " above linear" if slope > ABOVE_LINEAR else ""
        rows.append([name, *(shown(values.get(size)) for size in sizes), f"{slope:.2f}{mark}"])
    return table([unit, *(f"{size:,.4g}" for size in sizes), "exponent"], rows)


def exponent(values: dict[float, float]) -> float:
    """The slope of log cost over log size, by least squares over the larger half of the sizes, at least three."""
    points = sorted(values.items())[-max(3, math.ceil(len(values) / 2)) :]
    sizes, costs = zip(*points, strict=True)
    return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:,.3g}"


def seconds_of(work: Callable[[], object], rounds: int) -> float:
    """The median of several calls, which print nothing; one alone if it takes more than ten seconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        with redirect_stdout(StringIO()):
            work()
        times.append(time.perf_counter() - start)
        if times[-1] > 10:
            break
    return statistics.median(times)


def model(folder: Path, rounds: int) -> tuple[str, Costs]:
    """Seconds by millions of parameters."""
    import torch

    from slm.estimate import parameters, training_flops_per_token
    from slm.files import atomic
    from slm.planning.memory import training_memory
    from slm.run import cli
    from slm.training.checkpoint_io import DurableCheckpointIO

    costs: Costs = {}
    settings = {"microbatch": 2, "device": torch.device("cpu"), "precision": "32-true"}
    for depth, width in SHAPES:
        words = [f"model.depth={depth}", f"model.width={width}", "trainer.precision=32-true", "trainer.compile=false"]
        words += ["data.batch_windows=2", "trainer.microbatch=2", "model.context=256"]
        config = cli.compose([*words, "name=scaling", "plan=true"])
        sized = replace(config.model, vocab_size=4096)
        size = round(parameters(sized).total / 1e6, 1)
        works = {
            "a plan's memory": lambda sized=sized, config=config: training_memory(sized, config.optimizer, **settings)
        }
        costs.setdefault("GFLOP per token", {})[size] = training_flops_per_token(sized) / 1e9
        if size < TIMED:
            place = folder / f"{size}"
            place.mkdir()
            job = make_job(place, words, vocab_size=4096, steps=1 + rounds, device="cpu")
            costs.setdefault("a step", {})[size] = train_seconds(job) / rounds
            state = {"state_dict": {name: torch.zeros(round(size * 1e6)) for name in ("weights", "first", "second")}}
            saving, file = DurableCheckpointIO(place), place / "checkpoints" / "step-1.ckpt"

            def saved(saving=saving, state=state, file=file):
                saving.save_checkpoint(state, file)
                saving.wait()

            works |= {
                "a checkpoint written": saved,
                "a checkpoint read": lambda file=file: atomic.is_intact(file) and torch.load(file, weights_only=True),
            }
        for name, work in works.items():
            costs.setdefault(name, {})[size] = seconds_of(work, 1)
        print(
            f"{size} million parameters: {', '.join(f'{n} {v[size]:.3g}' for n, v in costs.items() if size in v)}",
            flush=True,
        )
        shutil.rmtree(folder / f"{size}", ignore_errors=True)
    return "seconds, by millions of parameters", costs


def corpus(folder: Path, rounds: int) -> tuple[str, Costs]:
    """Seconds by gigabytes of token ids, in this process, with the store's files stamped as verified."""
    from slm.data.store import TokenStore
    from slm.data.windows import split_windows

    costs: Costs = {}
    for size in (0.01, *GIGABYTES):  # the first time to warm up
        place = folder / f"{size}-{time.time_ns()}"
        place.mkdir()
        make_sparse(place, size)

        def begun(place=place, order="shuffle"):
            splits = split_windows(TokenStore.open(place, {"vocab_size": 257}), 256, context=256, order=order)
            splits.chosen_windows.__getitems__([*islice(splits.order(seed=0).indices(0), 8)])

        for order in ("shuffle", "replacement"):
            work = partial(begun, order=order)
            costs.setdefault(f"opened, and 8 windows read, order={order}", {})[size] = seconds_of(work, rounds)
        shutil.rmtree(place)
    return "seconds, by GB of token ids", costs


def ranks(folder: Path, rounds: int) -> tuple[str, Costs]:
    """Seconds of a step by processes, each on one thread."""
    costs: Costs = {}
    os.environ["OMP_NUM_THREADS"] = "1"
    words = [word for word in SMALL_RUN if not word.startswith(("model", "data.batch"))]
    words += ["model=tiny", "model.context=128", "data.batch_windows=8", "trainer.microbatch=1", "budget.steps=30"]
    words += [f"cache_dir={folder / 'cache'}", "log_every_n_steps=1", "trainer.precision=32-true"]
    for strategy in ("ddp", "fsdp"):
        for count in RANKS:
            place = folder / f"{strategy}-{count}"
            command("train.py", *words, f"run_dir={place}", f"trainer.devices={count}", f"trainer.strategy={strategy}")
            lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
            rates = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")][10:]
            costs.setdefault(f"a step, {strategy}", {})[count] = 8 * 128 / statistics.median(rates)
            print(f"{count} processes, {strategy}: {costs[f'a step, {strategy}'][count]:.3g} s", flush=True)
    return "seconds, by processes", costs


def shards(folder: Path, rounds: int) -> tuple[str, Costs]:
    """Megabytes by processes, of the process with the most."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch", "lightning.pytorch"])
    costs: Costs = {}
    for count in RANKS:
        place = folder / f"{count}"
        place.mkdir()
        started = [context.Process(target=kept, args=(place, rank, count)) for rank in range(count)]
        for process in started:
            process.start()
        for process in started:
            process.join()
        every = [json.loads(file.read_text()) for file in place.glob("*.json")]
        for name in every[0]:
            costs.setdefault(name, {})[count] = max(its[name] for its in every) / 1e6
    return "MB, by processes", costs


def kept(place: Path, rank: int, count: int):
    """Writes the bytes that this process keeps after a step, by what they hold."""
    import torch
    import torch.distributed as dist

    from slm.model import GPT
    from slm.optim.shares import is_divided
    from slm.run import cli
    from slm.training.sharded import shard

    dist.init_process_group("gloo", init_method=f"file://{place / 'store'}", rank=rank, world_size=count)
    sizes = {}
    for name in ("adamw", "muon"):
        config = cli.compose(["model=small", f"optimizer={name}", "name=scaling", "plan=true"])
        model = GPT(replace(config.model, vocab_size=4096))
        if count > 1:
            shard(model, dist.init_device_mesh("cpu", (count,)), "32-true")
        optimizer = config.optimizer(model)
        model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
        optimizer.step()
        weights = list(model.parameters())
        states = [
            value for its in optimizer.state.values() for value in its.values() if isinstance(value, torch.Tensor)
        ]
        for part, tensors in {"weights": weights, "gradients": [w.grad for w in weights], "optimizer": states}.items():
            own = [tensor.to_local() if is_divided(tensor) else tensor for tensor in tensors]
            sizes[f"{part}, {name}"] = sum(tensor.nbytes for tensor in own)
    (place / f"{rank}.json").write_text(json.dumps(sizes))
    dist.destroy_process_group()


def runs(folder: Path, rounds: int) -> tuple[str, Costs]:
    """Seconds of what reads a folder of runs or a sweep."""
    import slm
    from slm import report
    from slm.files import run_folder, sweep_folder
    from slm.run.sweep_results import table as sweep_table
    from slm.run.sweep_results import write_results

    command("train.py", *SMALL_RUN, "budget.steps=20", f"run_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}")
    costs: Costs = {}
    for count in (RUNS[0], *RUNS):  # the first time to warm up
        place = folder / str(count)
        jobs = make_sweep(folder / "run", place, count)

        def one_more(place=place, jobs=jobs):
            """What a sweep does when a job ends."""
            touched = place / jobs[-1].folder / "metrics.jsonl"
            os.utime(touched)
            with sweep_folder.changed(place) as sweep:
                sweep.job(jobs[-1].folder).status = "done"
            write_results(place)

        works = {
            "latest": lambda place=place: run_folder.find_resume_checkpoint("latest", place),
            "slm.runs(), printed": lambda place=place: repr(slm.runs(place)),
            "sweep: jobs listed": lambda jobs=jobs: listed(jobs),
            "sweep: results.csv, first": lambda place=place: write_results(place),
            "sweep: a job ends": one_more,
            "sweep: table": lambda place=place: sweep_table(place, sweep_folder.require(place)),
            "sweep: report.html": lambda place=place: report.create(place),
        }
        for name, work in works.items():
            once = "first" in name or "report" in name
            costs.setdefault(name, {})[count] = seconds_of(work, 1 if once else rounds)
            print(f"{count} runs, {name}: {costs[name][count]:.3g} s", flush=True)
        shutil.rmtree(place)
    return "seconds, by runs in the folder", costs


def listed(jobs: Sequence) -> None:
    from slm.files.sweep_folder import Sweep

    Sweep().add(*(job.values for job in jobs))


def make_sweep(run: Path, place: Path, count: int) -> list:
    """A sweep folder of so many finished jobs: copies of a run with other learning rates and seeds. Its jobs."""
    from slm.files.sweep_folder import Sweep, changed

    place.mkdir()
    info = json.loads((run / "run.json").read_text())
    metrics = (run / "metrics.jsonl").read_bytes()
    sweep, rates = Sweep(objective="val/loss"), math.ceil(count / 5)
    values = [(f"{0.001 * 1.01 ** (number % rates):.6g}", number // rates) for number in range(count)]
    jobs = sweep.add(*({"optimizer.lr": rate, "seed": str(seed)} for rate, seed in values))
    for number, (job, (rate, seed)) in enumerate(zip(jobs, values, strict=True)):
        job.status, job.objective, job.exit_code, job.seconds = "done", 2 + number / count, 0, 1.0
        folder = place / job.folder
        (folder / "checkpoints").mkdir(parents=True)
        info["config"] |= {"seed": seed, "optimizer": info["config"]["optimizer"] | {"lr": float(rate)}}
        info |= {"run_id": f"{number:08x}", "seed": seed, "objective": job.objective}
        (folder / "run.json").write_text(json.dumps(info, indent=1))
        (folder / "metrics.jsonl").write_bytes(metrics)
        for file in (run / "checkpoints").iterdir():
            os.link(file, folder / "checkpoints" / file.name)
    with changed(place) as written:
        vars(written).update(vars(sweep))
    return jobs


PARTS: dict[str, Callable[[Path, int], tuple[str, Costs]]] = {
    "model": model,
    "corpus": corpus,
    "runs": runs,
    "ranks": ranks,
    "shards": shards,
}

if __name__ == "__main__":
    with one_line_errors():
        main()
