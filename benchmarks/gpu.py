"""All that only a CUDA device can tell, in one command: does it work, is it exact, how fast is it, what does it need.

    python benchmarks/gpu.py | tee gpu.md         # nine minutes; --minutes 30 reaches the end on slow hosts
    python benchmarks/gpu.py --nanogpt nanoGPT --part peers training  # a clone of github.com/karpathy/nanoGPT

It measures training of four models, with its peak of memory, compiled and not, with recomputed blocks, in each
precision; compiled training beside nanoGPT, in turns; generation of 1 and 32 texts beside others; verify_resume, eager
and compiled; the first step of a small run; what exactness and checkpoints cost; attention over many lengths, as
documents have them, by each of torch's kernels; attention within documents by each mask. Last it runs `pytest -m gpu`.
Each part is a process of its own with a share of the time left, and begins with what matters most: one that fails or
needs longer is printed as such, and the others go on.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure
import peers
import torch
from startup import first_step
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import make_job, train_seconds

from slm.attention import attend
from slm.errors import Stopped
from slm.estimate import device_peak, training_flops_per_token
from slm.hardware import first_sentence
from slm.masks import document_masks, document_starts

VOCABULARY = {"gpt2_124m": 50_257}  # of other models --vocab-size
MARGIN = 3  # seconds that a part has left for its last words, when a program of its own has used up its time
WARM = 10  # first steps, in which kernels are compiled and memory is taken from the device
RUN = "model=tiny", "data=storyworld", "data.stories=2000", "trainer=gpu", "callbacks.stories=null"
TRAINED = (  # model, precision, settings
    ("gpt2_124m", "bf16-mixed", "trainer.compile=true"),
    ("small", "bf16-mixed", "trainer.compile=true"),
    ("small", "bf16-mixed", "trainer.compile=false"),
    ("gpt2_124m", "bf16-mixed", "model.gradient_checkpointing=true"),
    ("small", "16-mixed", "trainer.compile=true"),
    ("tiny", "bf16-mixed", "trainer.compile=true"),
    ("base", "bf16-mixed", "trainer.compile=true"),
    ("small", "bf16-mixed", "model.gradient_checkpointing=true"),
    ("small", "bf16-mixed", "optimizer=muon"),
    ("small", "32-true", "trainer.compile=true"),
    ("small", "16-mixed", "trainer.compile=false"),
    ("small", "32-true", "trainer.compile=false"),
)


def main():
    parser = measure.argument_parser(__doc__, rounds=1)
    parser.set_defaults(device="cuda")
    parser.add_argument("--minutes", type=float, default=9, help="of all parts together")
    parser.add_argument("--steps", type=int, default=30, help="per measurement, after ten that are left out")
    parser.add_argument("--nanogpt", help="a clone of nanoGPT, for the part peers")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="only these")
    parser.add_argument("--until", type=float, help="of the monotonic clock: this process is one part")
    arguments = measure.parsed(parser)
    chosen = arguments.part or [part for part in PARTS if part != "peers" or arguments.nanogpt]
    if arguments.until:
        work, _ = PARTS[chosen[0]]
        return work(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # through the ends of the parts
    end = time.monotonic() + 60 * arguments.minutes
    machine = f"capability {torch.cuda.get_device_capability()}" if arguments.device == "cuda" else "no GPU"
    print(measure.machine(arguments.device), machine, sep="; ", flush=True)
    for number, part in enumerate(chosen):
        print(f"\n## {part}\n", flush=True)
        shares = [PARTS[name][1] for name in chosen[number:]]
        until = time.monotonic() + (end - time.monotonic()) * shares[0] / sum(shares)
        own = "--part", part, "--until", str(until)
        print(part_ended(str(Path(__file__).resolve()), *sys.argv[1:], *own, until=until), flush=True)


def part_ended(*command: str, until: float) -> str:
    """How a part ended, if it failed. At its end, at the time `until` or with this process all that it has started ends
    (on Windows only the part itself)."""
    with subprocess.Popen([sys.executable, *command], cwd=measure.ROOT, start_new_session=True) as process:
        try:
            code = process.wait(timeout=until - time.monotonic())
        except subprocess.TimeoutExpired:
            return "no end in its share of the time"
        finally:
            process.kill()
            with contextlib.suppress(AttributeError, OSError):  # no such function, or nothing left
                os.killpg(process.pid, signal.SIGKILL)
    return f"exit code {code}" if code else ""


def ended(*command: str, until: float, last: int) -> str:
    """The last lines that a program of a part printed, and how it ended, if it failed or was killed at the time
    `until`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, *command], cwd=measure.ROOT, text=True, **pipes) as process:
        try:
            printed, errors = process.communicate(timeout=max(until - time.monotonic(), 1))
            how = [f"exit code {process.returncode}"] if process.returncode else []
        except subprocess.TimeoutExpired as error:
            process.kill()
            printed, errors = (text.decode(errors="replace") if text else "" for text in (error.stdout, error.stderr))
            how = ["no end in its share of the time"]
    lines = (printed + (errors if how else "")).strip().splitlines()[-last:]
    return "\n".join(lines + how)


def tests(arguments):
    processes = max(1, min(12, (os.cpu_count() or 2) - 2, torch.cuda.mem_get_info()[1] // 2**32))
    command = "-m", "pytest", "-q", "-p", "no:benchmark", "-n", str(processes), "-m", "gpu", "tests/test_gpu.py"
    print(ended(*command, until=arguments.until - MARGIN, last=30))


def resume(arguments):
    with tempfile.TemporaryDirectory() as folder:
        for compile in ("false", "true"):
            where = f"run_dir={folder}/{compile}", f"cache_dir={folder}/cache", f"trainer.compile={compile}"
            command = "train.py", *RUN, "budget.steps=16", *where, "verify_resume=true"
            print(f"- trainer.compile={compile}: {ended(*command, until=arguments.until - MARGIN, last=3)}", flush=True)


def start(arguments):
    """Seconds from the command to the line of its first step, with the data in the cache; the second time compiled code
    is in torch's cache."""
    with tempfile.TemporaryDirectory() as folder:
        settings = *RUN, "budget.steps=1", "callbacks.samples=null", f"cache_dir={folder}/cache"
        run = [str(measure.ROOT / "train.py"), *settings]
        first_step([*run, "trainer.compile=false"], Path(folder) / "warm-up")
        for number, compile in enumerate(("false", "true", "true")):
            seconds = first_step([*run, f"trainer.compile={compile}"], Path(folder) / str(number))
            print(f"- trainer.compile={compile}: {seconds:.1f} s", flush=True)


def training(arguments):
    """Tokens per second, the share of the device's peak, and the memory of tensors."""
    print(measure.table(["training", "tokens/s", "MFU", "peak, GB"], []), flush=True)
    for model, precision, setting in TRAINED:
        try:
            numbers = speed_and_memory(arguments, model, precision, setting)
        except Stopped:
            raise
        except Exception as error:  # of this row only: too little memory, say
            numbers = f"{type(error).__name__}: {first_sentence(error)[:80]}", "", ""
        print(measure.table_row((f"{model}, {precision}, {setting}", *numbers)), flush=True)


def speed_and_memory(arguments, model: str, precision: str, setting: str) -> tuple[str, str, str]:
    overrides = [f"model={model}", "trainer.microbatch=32", f"trainer.precision={precision}", setting]
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"vocab_size": VOCABULARY.get(model, arguments.vocab_size), "steps": arguments.steps + WARM}
        job = make_job(Path(folder), overrides, **sizes, device="cuda")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        tokens = arguments.steps * job.config.data.batch_windows * job.model.context
        rate = max(tokens / train_seconds(job, first=WARM) for _ in range(arguments.rounds))
    peak = device_peak(torch.device("cuda"), "16" in precision)
    share = f"{rate * training_flops_per_token(job.model) / peak:.0%}" if peak else "unknown"
    return f"{rate:,.0f}", share, f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"


def beside_nanogpt(arguments):
    """Tokens per second of training in bfloat16, both compiled, in turns in one process; the best of the rounds."""
    print(measure.table(["", "tokens/s", "MFU", "slm is faster by"], []), flush=True)
    for model, windows in (("gpt2_124m", 32), ("small", 64)):
        overrides = [f"model={model}", f"data.batch_windows={windows}", f"trainer.microbatch={windows}"]
        sizes = {"vocab_size": VOCABULARY.get(model, arguments.vocab_size), "steps": arguments.steps + WARM}
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(Path(folder), overrides, **sizes, device=arguments.device)
            what = job.model, arguments.nanogpt, windows, torch.bfloat16, True, arguments.device

            def nanogpt(what=what) -> float:
                step = peers.train_step("nanoGPT", *what)
                measure.seconds(step, arguments.device, WARM)  # a training of slm drops what is compiled
                return measure.seconds(step, arguments.device, arguments.steps)

            ways = {"slm": lambda job=job: train_seconds(job, first=WARM) / arguments.steps, "nanoGPT": nanogpt}
            seconds = {way: min(values) for way, values in measure.in_turn(ways, arguments.rounds).items()}
        peers.train_step.cache_clear()
        torch.compiler.reset()  # or the next model is compiled for any size
        tokens, flops = windows * job.model.context, training_flops_per_token(job.model)
        peak = device_peak(torch.device(arguments.device), True) or float("nan")
        for way, its in seconds.items():
            numbers = f"{tokens / its:,.0f}", f"{tokens / its * flops / peak:.0%}", f"{its / seconds['slm']:.2f}"
            print(measure.table_row((f"{model}, {windows} windows: {way}", *numbers)), flush=True)


def generation(arguments):
    nanogpt = ["--nanogpt", arguments.nanogpt] if arguments.nanogpt else []
    sizes = "--model", "gpt2_124m", "--vocab-size", str(VOCABULARY["gpt2_124m"]), "--rounds", "1"
    for batch in ("1", "32"):  # nanoGPT has no cache, so 32 texts would take it minutes
        more = nanogpt if batch == "1" else []
        settings = "--device", arguments.device, *sizes, "--batch", batch, *more
        print(ended("benchmarks/generate.py", *settings, until=arguments.until - MARGIN, last=14), flush=True)


def overhead(arguments):
    command = "benchmarks/overhead.py", "--device", arguments.device, "--rounds", "2"
    print(ended(*command, until=arguments.until - MARGIN, last=3))


def attention(arguments):
    """Milliseconds a length, forward and backward, of 32 documents of 64 lengths: at first, and again."""
    rows = []
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def all_lengths(kernel=kernel):
            with sdpa_kernel(kernel):
                for length in range(100, 484, 6):
                    q, k, v = (torch.randn(32, 6, length, 64, device="cuda").bfloat16().requires_grad_() for _ in "qkv")
                    attend(q, k, v).sum().backward()

        try:
            times = [f"{measure.seconds(all_lengths, 'cuda') / 64 * 1e3:.2f}" for _ in range(2)]
        except RuntimeError as error:
            times = [first_sentence(error)[:80], ""]
        rows.append([kernel.name, *times])
    print(measure.table(["kernel", "first, ms", "again, ms"], rows))


def documents(arguments):
    """Attention within documents of 200 tokens, forward and backward with its mask, for 32,768 tokens in windows of
    several lengths; and without a mask. Beside it the greatest difference of the results from those of a dense mask."""
    rows = []
    for length, window in ((512, None), (2048, None), (2048, 256), (8192, None)):
        tokens = torch.arange(2**15, device="cuda").view(-1, length) % 200
        qkv = [torch.randn(len(tokens), 6, length, 64, device="cuda").bfloat16().requires_grad_() for _ in "qkv"]
        expected = None
        for way, blocks in (("dense mask", False), ("blocks", True), ("no documents", None)):

            def step(tokens, *qkv, window=window, blocks=blocks):
                masks = {} if blocks is None else document_masks(document_starts(tokens, 0), [window], blocks)
                return attend(*qkv, window=window, mask=masks.get(window))

            torch.compiler.reset()
            try:
                milliseconds, peak, results = attention_cost(torch.compile(step), tokens, qkv)
            except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
                rows.append([length, window, way, first_sentence(error)[:80], "", ""])
                continue
            expected = expected or results
            apart = max((a - b).abs().max().item() for a, b in zip(results, expected, strict=True))
            rows.append([length, window, way, f"{milliseconds:.2f}", f"{peak:.2f}", f"{apart:.3f}" if blocks else ""])
    print(measure.table(["tokens in a window", "model.window", "mask", "ms", "peak, GB", "apart"], rows))


def attention_cost(step, tokens, qkv) -> tuple[float, float, list[torch.Tensor]]:
    """Milliseconds and GB of one forward and backward pass, and its result and gradients."""
    upstream = torch.ones_like(qkv[0])
    results = [step(tokens, *qkv), *torch.autograd.grad(step(tokens, *qkv), qkv, upstream)]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    seconds = measure.seconds(lambda: torch.autograd.grad(step(tokens, *qkv), qkv, upstream), "cuda", 20)
    return seconds * 1e3, (torch.cuda.max_memory_allocated() - before) / 1e9, [x.detach() for x in results]


PARTS = {  # and the share of the time that each has, in seconds of nine minutes
    "training": (training, 130),
    "peers": (beside_nanogpt, 80),
    "generation": (generation, 60),
    "resume": (resume, 60),
    "start": (start, 30),
    "overhead": (overhead, 30),
    "attention": (attention, 10),
    "documents": (documents, 10),
    "tests": (tests, 130),
}

if __name__ == "__main__":
    with measure.one_line_errors():
        main()
