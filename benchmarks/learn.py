"""Bits per byte on the same validation windows after the same time or steps, by recipe.

    python benchmarks/learn.py --task stories --path FOLDER --seconds 150        # FOLDER as TinyStories on the Hub
    python benchmarks/learn.py --task shakespeare --path input.txt               # nanoGPT's 2,000 steps against ours
    python benchmarks/learn.py --task parts --path FOLDER --steps 300 --seeds 1 2 3

stories: each recipe first trains a few steps to measure its speed on this machine, then as many as fill the seconds,
compilation included, which our recipe has and nanoGPT's, as its README has it for a CPU, does not.
parts: the modern recipe, and the same without one of its parts, for equal steps. Each training is train.py in a process
of its own, with the same data, tokenizer and sizes. Times are those of the steps and of the whole command.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import ROOT, machine, one_line_errors, parsed, table

# a GPT that a CPU can train in minutes
SIZE = ["model=small", "model.depth=4", "model.width=192", "model.context=256", "tokenizer.vocab_size=4096"]
BATCH = ["data.batch_windows=16", "trainer.microbatch=16"]
COSINE = ["schedule=cosine", "schedule.min_lr_ratio=0.1"]
MODERN = ["experiment=modern_small"]
STORIES = {
    "modern_small": [*MODERN, "trainer.compile=true"],
    "modern_small, not compiled": MODERN,
    "nanoGPT": [
        "model.bias=false",
        *COSINE,
        "model.positions=learned",
        "optimizer.lr=1e-3",
        "optimizer.betas=[0.9,0.99]",
    ],
    "classic (lr 3e-4)": [*COSINE, "schedule.warmup_fraction=0.04", "optimizer.lr=3e-4"],
}
SHAKESPEARE = {
    "experiment=shakespeare": ["experiment=shakespeare"],
    "nanoGPT": [
        *("experiment=shakespeare", "model.positions=learned", "model.qk_norm=false", "model.zero_init_residual=false"),
        *("model.norm=layernorm", "model.tied=true", "model.bigram_embeddings=null", "model.residual_scalars=false"),
        *("optimizer=adamw", "optimizer.lr=1e-3", "optimizer.betas=[0.9,0.99]"),
        *(*COSINE, "schedule.warmup_steps=100"),
        *("data.batch_windows=12", "trainer.microbatch=12", "budget.steps=2000", "val_every_n_steps=2000"),
    ],
}
PARTS = {
    "modern": [],
    "AdamW (lr 3e-3)": ["optimizer=adamw", "optimizer.lr=3e-3"],
    "cosine to 0.1": COSINE,
    "without QK-norm": ["model.qk_norm=false"],
    "GELU": ["model.mlp=gelu"],
    "LayerNorm": ["model.norm=layernorm"],
    "residual branches not at zero": ["model.zero_init_residual=false"],
    "tied head": ["model.tied=true"],
    "without value embeddings": ["model.value_embeddings=false"],
    "without the table of pairs": ["model.bigram_embeddings=null"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=["stories", "shakespeare", "parts"])
    parser.add_argument("--path", required=True, help="stories in the Hub's layout, or Shakespeare's input.txt")
    parser.add_argument("--seconds", type=float, default=150, help="of training, for stories")
    parser.add_argument("--steps", type=int, default=300, help="for parts")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", help="only these recipes")
    arguments = parsed(parser)
    recipes = {"stories": STORIES, "shakespeare": SHAKESPEARE, "parts": PARTS}[arguments.task]
    if unknown := {*(arguments.only or [])} - recipes.keys():
        parser.error(f"--only takes {', '.join(recipes)}, not {min(unknown)}")
    fixed = [f"data.path={arguments.path}", "callbacks.samples=null", "callbacks.checkpoints.every_n_steps=100000"]
    if arguments.task != "shakespeare":
        fixed += [*SIZE, *BATCH, "val_every_n_steps=100000"]
    results = {name: [] for name in recipes if not arguments.only or name in arguments.only}
    with tempfile.TemporaryDirectory() as cache:
        fixed.append(f"cache_dir={cache}")
        for seed in arguments.seeds:
            for name in results:
                chosen = [*fixed, *(MODERN if arguments.task == "parts" else []), *recipes[name], f"seed={seed}"]
                if arguments.task == "parts":
                    chosen.append(f"budget.steps={arguments.steps}")
                if arguments.task == "stories":
                    trial = train([*chosen, "budget.steps=12", "schedule.warmup_fraction=0.1"])
                    steps = trial["steps_per_second"] * (arguments.seconds - trial["first_step"])
                    chosen.append(f"budget.steps={max(20, round(steps))}")
                results[name].append(train(chosen))
                print(f"  seed {seed}  {name:24} {results[name][-1]}", file=sys.stderr, flush=True)
    print(f"{machine('cpu')}; seeds {arguments.seeds}")
    print(table(["recipe", "steps", "training, s", "command, s", "val/loss", "bits per byte, by seed"], lines(results)))


def train(overrides: list[str]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run, compiler = Path(folder) / "run", {"TORCHINDUCTOR_CACHE_DIR": folder}  # empty, as on a new machine
        start = time.perf_counter()
        command = [sys.executable, str(ROOT / "train.py"), f"run_dir={run}", *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | compiler)
        total = time.perf_counter() - start
        metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        steps = json.loads((run / "run.json").read_text())["steps"]
    speeds = [line for line in metrics if "tokens_per_second" in line][1:]  # without the first step
    per_second = statistics.median(line["tokens_per_second"] for line in speeds)
    steps_per_second = per_second * steps / speeds[-1]["train/tokens"]
    return {
        "steps": steps,
        "steps_per_second": round(steps_per_second, 3),
        "first_step": metrics[0]["seconds"],
        "training": round(metrics[0]["seconds"] + (steps - 1) / steps_per_second, 1),
        "command": round(total, 1),
        "loss": metrics[-1]["val/loss"],
        "bits_per_byte": metrics[-1]["val/bits_per_byte"],
    }


def lines(results: dict[str, list[dict]]) -> list[list[str]]:
    def mean(values: list[dict], key: str) -> float:
        return statistics.mean(value[key] for value in values)

    def by_seed(values: list[dict]) -> str:
        return ", ".join(f"{value['bits_per_byte']:.4f}" for value in values)

    return [
        [
            name,
            f"{mean(values, 'steps'):,.0f}",
            f"{mean(values, 'training'):.0f}",
            f"{mean(values, 'command'):.0f}",
            f"{mean(values, 'loss'):.4f}",
            f"{mean(values, 'bits_per_byte'):.4f} ({by_seed(values)})",
        ]
        for name, values in results.items()
    ]


if __name__ == "__main__":
    with one_line_errors():
        main()
