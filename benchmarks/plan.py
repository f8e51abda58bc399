"""The plan against what happens: peak memory of configurations, each trained in a process of its own.

    python benchmarks/plan.py [--device cuda]      # all configurations
    python benchmarks/plan.py --held-out --only 3  # the first 3 of the 20 that no constant is fitted to

On a CPU: the highest resident memory of the process less the one just before the model is built. On a GPU: the peak of
torch's allocator, without torch.compile. Each trains four steps on random ids, validates twice and writes two
checkpoints.
"""

import tempfile
from pathlib import Path

import torch
from measure import another_process, argument_parser, machine, one_line_errors, parsed, table
from training import make_job, train_seconds

SMALL = {"vocab": 1024, "model.width": 128, "model.depth": 4, "model.context": 256, "trainer.microbatch": 8}
BFLOAT16, RECOMPUTED = {"trainer.precision": "bf16-mixed"}, {"model.gradient_checkpointing": "true"}
BYTES, TALL = {"vocab": 257}, {"model.context": 512, "trainer.microbatch": 4}
FITTED = [  # changes of SMALL
    {},
    {"trainer.precision": "bf16-mixed"},
    {"model.gradient_checkpointing": "true"},
    {"model.width": 64, "model.depth": 2, "trainer.microbatch": 32},
    {"model.width": 256, "trainer.microbatch": 4},
    {"model.width": 384, "model.depth": 6, "trainer.microbatch": 2},
    {"model.depth": 12},
    {"model.depth": 12, "model.gradient_checkpointing": "true", "trainer.precision": "bf16-mixed"},
    {"model.context": 1024, "trainer.microbatch": 2},
    {"model.context": 64, "trainer.microbatch": 64},
    {"trainer.microbatch": 32},
    {"trainer.microbatch": 32, "trainer.precision": "bf16-mixed"},
    {"vocab": 16000},
    {"vocab": 50257, "trainer.microbatch": 4},
    {"vocab": 16000, "model.tied": "false", "trainer.precision": "bf16-mixed"},
    {"optimizer": "muon", "model.width": 256},
    {"optimizer": "sgd", "vocab": 16000},
    {"optimizer": "adafactor", "vocab": 16000},
    {"data.batch_windows": 32, "model.dropout": 0.1},
    {"model.mlp": "swiglu", "model.norm": "rmsnorm", "model.qk_norm": "true", "model.kv_heads": 2, "model.window": 64},
    RECOMPUTED | BYTES | TALL,
    RECOMPUTED | BYTES | {"model.depth": 8},
    RECOMPUTED | BYTES | {"model.depth": 6, "model.width": 256, "trainer.microbatch": 4},
    RECOMPUTED | BYTES | BFLOAT16 | TALL | {"model.depth": 8},
    RECOMPUTED | TALL | {"vocab": 8000, "model.depth": 8},
    RECOMPUTED | BYTES | {"model.depth": 16, "model.context": 128, "trainer.microbatch": 32},
]
HELD_OUT = [
    BYTES | {"model.width": 96, "model.depth": 3, "model.context": 128, "trainer.microbatch": 16},
    BFLOAT16 | TALL | {"vocab": 8000, "model.width": 192, "model.depth": 5},
    BFLOAT16 | {"vocab": 8000, "model.width": 320, "model.context": 192, "optimizer": "muon"},
    RECOMPUTED | BYTES | TALL | {"model.depth": 8},
    RECOMPUTED | BFLOAT16 | {"vocab": 16000, "model.width": 256, "model.depth": 6},
    {"model.width": 512, "model.depth": 2, "model.context": 128},
    BFLOAT16 | {"vocab": 8000, "model.width": 64, "trainer.microbatch": 16, "optimizer": "sgd"},
    BYTES | {"model.width": 192, "model.depth": 6, "trainer.microbatch": 16, "optimizer": "muon"},
    {"model.width": 160, "model.depth": 10, "model.context": 384, "trainer.microbatch": 6}
    | {"model.mlp": "swiglu", "model.norm": "rmsnorm"},
    {"vocab": 16000, "model.width": 384, "model.depth": 3, "model.context": 512, "trainer.microbatch": 2},
    RECOMPUTED
    | BFLOAT16
    | {"vocab": 8000, "model.width": 256, "model.context": 1024, "trainer.microbatch": 2, "model.tied": "false"},
    BYTES | {"model.width": 32, "model.depth": 1, "model.context": 64, "trainer.microbatch": 64, "optimizer": "sgd"},
    BFLOAT16 | {"vocab": 2000, "model.width": 256, "model.depth": 3, "model.context": 384},
    {"vocab": 4096, "model.width": 96, "model.depth": 7, "trainer.microbatch": 12},
    RECOMPUTED | BYTES | BFLOAT16 | {"model.width": 192, "model.depth": 10},
    RECOMPUTED | TALL | {"vocab": 4096, "model.depth": 9, "model.context": 384, "optimizer": "muon"},
    BFLOAT16 | {"vocab": 32000, "model.depth": 2, "trainer.microbatch": 4},
    BYTES | {"model.width": 64, "model.depth": 3, "model.context": 512, "optimizer": "sgd"},
    BFLOAT16 | {"vocab": 8000, "model.width": 320, "model.depth": 3, "model.context": 128},
    {"model.width": 288, "model.depth": 5, "model.mlp": "swiglu", "trainer.microbatch": 4, "optimizer": "muon"},
]


def main():
    parser = argument_parser(__doc__, rounds=None)
    parser.add_argument("--only", type=int, help="the first so many configurations")
    parser.add_argument("--held-out", action="store_true", help="those that no constant is fitted to")
    arguments = parsed(parser)
    lines, errors = [], []
    for changes in (HELD_OUT if arguments.held_out else [*FITTED, *HELD_OUT])[: arguments.only]:
        planned, measured = elsewhere(changes, arguments.device)
        errors.append(planned / measured - 1)
        shown = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes.items())
        lines.append([shown or "as below", f"{planned / 1e6:,.0f}", f"{measured / 1e6:,.0f}", f"{errors[-1]:+.1%}"])
        print(*lines[-1], sep="  ", flush=True)
    print(machine(arguments.device))
    print(" ".join(f"{key}={value}" for key, value in SMALL.items()), "and, in each line, with these changes:")
    print(table(["", "planned, MB", "measured, MB", "difference"], lines))
    print(f"largest difference {max(errors, key=abs):+.1%}")


def elsewhere(changes: dict, device: str) -> tuple[float, float]:
    with another_process() as call:
        return call(planned_and_measured, changes, device)


def planned_and_measured(changes: dict, device: str) -> tuple[float, float]:
    """Bytes of the peak by plan, and as measured, of this process."""
    from slm.run import trainer  # imports Lightning: belongs to the memory before the model
    from slm.run.plan import plan_of

    settings = {"model": "tiny", "trainer.precision": "32-true"} | SMALL | changes
    settings = {"data.batch_windows": settings["trainer.microbatch"]} | settings
    vocab_size = settings.pop("vocab")
    settings["trainer.compile"] = "false"
    often = {"val_every_n_steps": 2, "callbacks.checkpoints.every_n_steps": 2}
    overrides = [f"{key}={value}" for key, value in (settings | often).items()]
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), overrides, vocab_size=vocab_size, steps=4, device=device)
        trainer.quiet_lightning()
        before = resident("VmRSS")
        train_seconds(job)
        measured = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM") - before
        return plan_of(job).memory.peak, measured


def resident(kind: str) -> int:
    """VmRSS, resident memory now, or VmHWM, its highest value so far, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


if __name__ == "__main__":
    with one_line_errors():
        main()
