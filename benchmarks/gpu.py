"""All that only a CUDA device can tell, in one command: does it work, is it exact, how fast is it, what does it need.

    python benchmarks/gpu.py                      # about ten minutes on one H100; --quick: about three, --steps 10
    python benchmarks/gpu.py | tee gpu.md

It runs `pytest -m gpu`; verify_resume, eager and compiled; then measures training in each precision, eager and
compiled, without a data path, with its peak of memory; attention over many lengths, as documents have them, by each of
torch's kernels. A part that fails is printed as such, and the others go on.
"""

import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import measure
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from training import make_job, train_seconds

from slm.attention import attend
from slm.estimate import device_peak, training_flops_per_token

RESUMED = (
    "model=tiny",
    "data=storyworld",
    "data.stories=2000",
    "trainer=gpu",
    "budget.steps=16",
    "callbacks.stories=null",
)


def main():
    parser = measure.argument_parser(__doc__, rounds=2)
    parser.set_defaults(device="cuda")
    parser.add_argument("--steps", type=int, default=30, help="per measurement, after a first step that is left out")
    parser.add_argument("--quick", action="store_true", help="without the tests and verify_resume")
    arguments = measure.parsed(parser)
    print(measure.machine("cuda"), f"capability {torch.cuda.get_device_capability()}", sep="; ", flush=True)
    parts = [] if arguments.quick else [tests, resume]
    for part in (*parts, training, attention):
        print(f"\n## {part.__name__}\n", flush=True)
        try:
            part(arguments)
        except Exception:
            traceback.print_exc(file=sys.stdout)


def tests(arguments):
    print(last_lines("-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests/test_gpu.py", count=15))


def resume(arguments):
    with tempfile.TemporaryDirectory() as folder:
        for compile in ("false", "true"):
            where = f"run_dir={folder}/{compile}", f"cache_dir={folder}/cache", f"trainer.compile={compile}"
            printed = last_lines("train.py", *RESUMED, *where, "verify_resume=true", count=1)
            print(f"- trainer.compile={compile}: {printed}", flush=True)


def last_lines(*command: str, count: int) -> str:
    done = subprocess.run([sys.executable, *command], cwd=measure.ROOT, capture_output=True, text=True)
    return "\n".join((done.stdout + done.stderr).strip().splitlines()[-count:])


def training(arguments):
    """Tokens per second of model=small, of the device's peak, and the memory of tensors."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("16-mixed", "bf16-mixed", "32-true"):
            for settings in (["trainer.compile=false"], ["trainer.compile=true"], ["optimizer=muon"]):
                overrides = ["model=small", "trainer.microbatch=32", f"trainer.precision={precision}", *settings]
                sizes = {"vocab_size": arguments.vocab_size, "steps": arguments.steps + 1, "device": "cuda"}
                job = make_job(Path(folder), overrides, **sizes)
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                tokens = arguments.steps * job.config.data.batch_windows * job.model.context
                rate = max(tokens / train_seconds(job) for _ in range(arguments.rounds))
                memory = torch.cuda.max_memory_allocated() / 1e9
                peak = device_peak(torch.device("cuda"), "16" in precision)
                share = f"{rate * training_flops_per_token(job.model) / peak:.0%}" if peak else "unknown"
                rows.append([f"{precision}, {settings[0]}", f"{rate:,.0f}", share, f"{memory:.1f}"])
                print(rows[-1], file=sys.stderr, flush=True)
    print(measure.table(["model=small", "tokens/s", "MFU", "peak, GB"], rows))


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
            times = [str(error).splitlines()[0][:80], ""]
        rows.append([kernel.name, *times])
    print(measure.table(["kernel", "first, ms", "again, ms"], rows))


if __name__ == "__main__":
    with measure.one_line_errors():
        main()
