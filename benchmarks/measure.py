"""Imported by the benchmarks: arguments, alternating measurements, limits of the machine, tables."""

import argparse
import contextlib
import json
import multiprocessing
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from slm.errors import UserError  # noqa: E402
from slm.run.cli import one_line_errors  # noqa: E402, F401  (for the last lines of a benchmark)


def argument_parser(doc: str, *, vocab_size: int = 16_000, rounds: int | None = 5) -> argparse.ArgumentParser:
    """A parser with --vocab-size and --device, and --rounds unless it is None."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=vocab_size)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    if rounds:
        parser.add_argument("--rounds", type=int, default=rounds)
    return parser


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments. Ends the program with one line and exit code 2 if a value is out of range."""
    given = parser.parse_args()
    for name, value in vars(given).items():
        option = f"--{name.replace('_', '-')}"
        numbers = value if isinstance(value, list) else [value]
        if name not in ("seeds", "shares") and any(type(number) in (int, float) and number <= 0 for number in numbers):
            parser.error(f"{option} takes numbers above 0")
        if name in ("nanogpt", "path", "folder", "text", "stories") and value and not Path(value).exists():
            parser.error(f"{option} {value} does not exist")
    if getattr(given, "device", None) == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch sees no CUDA GPU here; take --device cpu")
    return given


def in_turn(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The values of each way, in rounds of all ways, every other round in reverse; a first round is left out."""
    values = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way in ways if number % 2 else reversed(ways):
            value = ways[way]()
            if number:
                values[way].append(value)
                print(f"  round {number}  {way:42} {value:,.4g}", file=sys.stderr, flush=True)
    return values


@contextlib.contextmanager
def another_process() -> Iterator[Callable]:
    """Yields call(function, *arguments), which runs the function in one other process, with its caches."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield lambda function, *arguments: pool.submit(function, *arguments).result()


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of the ratios of each round, in which a change of the machine's speed cancels out."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def seconds(work: Callable[[], object], device: torch.device | str = "cpu", repeat: int = 1) -> float:
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / repeat


def synchronize(device: torch.device | str):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def gemm_peak(shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype, device: torch.device | str) -> float:
    """FLOP/s of the fastest of the products (rows, columns in, columns out), forward or backward."""
    best, repeat = 0.0, 2 if torch.device(device).type == "cpu" else 200  # a product takes microseconds on a GPU
    for rows, inner, outer in shapes:
        sizes = (rows, inner), (outer, inner), (rows, outer)
        x, w, g = (torch.randn(size, device=device).to(dtype) for size in sizes)
        for product in (lambda x=x, w=w: x @ w.T, lambda g=g, w=w: g @ w, lambda g=g, x=x: g.T @ x):
            product()
            best = max(best, *(2 * rows * inner * outer / seconds(product, device, repeat) for _ in range(3)))
    return best


def read_bandwidth(device: torch.device | str) -> float:
    """Bytes/s of a sum over more memory than any cache holds."""
    numbers = torch.ones(2**27, device=device)  # 512 MiB
    numbers.sum()
    return max(numbers.nbytes / seconds(numbers.sum, device) for _ in range(5))


def sixteen_bits(precision: str) -> torch.dtype:
    """The 16-bit type of one of Lightning's precisions; bfloat16 for one of 32 bits."""
    return torch.float16 if precision.startswith("16") else torch.bfloat16


def command(script: str, *words: str):
    """Runs a command of this project, such as train.py. Raises: UserError: with its last words if it fails."""
    arguments = ["-m", script] if not script.endswith(".py") else [str(ROOT / script)]
    done = subprocess.run([sys.executable, *arguments, *words], capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script} {' '.join(words)} ends with {done.returncode}: {done.stderr.strip()[-300:]}")


def evaluated(run: str, *words: str) -> dict[str, Any]:
    """What `python -m slm.evaluate` finds of a run."""
    command("slm.evaluate", run, *words)
    return json.loads(Path(run, "evaluation.json").read_text())["evaluations"][-1]


def mean_of(values: Sequence[float], form: str) -> str:
    """The mean of several seeds, and each of them."""
    each = ", ".join(f"{value:{form}}" for value in values)
    return f"{statistics.mean(values):{form}} ({each})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    return "\n".join(map(table_row, [header, ["---"] * len(header), *rows]))


def table_row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def machine(device: str) -> str:
    """A line for RESULTS.md: processor, versions, date."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{processor()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}, {date.today()}"


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "CPU")
    known = {flag for line in lines if line.startswith("flags") for flag in line.split()}
    return name + "".join(f" {flag}" for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in known)
