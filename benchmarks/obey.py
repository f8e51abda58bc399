"""The share of stories that obey their request, after all weights or thin matrices (LoRA) were trained on instructions.

    python benchmarks/obey.py [--ranks 4 16] [--steps 150 250] [--seeds 1 2]

A model of the storyworld goes on with data=storyworld_instructions. Every training and evaluation is a command in a
process of its own; a program judges 100 stories of each model, at temperature 0.5.
"""

import argparse
import json
import tempfile
from pathlib import Path

from measure import command, evaluated, machine, mean_of, one_line_errors, parsed, table

DATA = [
    "data.level=tiny",
    "data.stories=4000",
    "data.validation_stories=200",
    "data.batch_windows=16",
    "trainer.microbatch=16",
]
TRAIN = ["report=false", "callbacks.samples=null", "val_every_n_steps=100000", "model.context=256"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--steps", type=int, nargs=2, default=[150, 250], help="of the first and of the second run")
    parser.add_argument("--lr", type=float, nargs=2, default=[1e-3, 1e-2], help="of all weights, and of thin matrices")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    arguments = parsed(parser)
    whole, thin = (f"optimizer.lr={lr:g}" for lr in arguments.lr)
    ways = {"all weights": [whole]}
    ways |= {f"LoRA, rank {rank}": [thin, f"model.lora.rank={rank}"] for rank in arguments.ranks}
    results: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            fixed = [*DATA, *TRAIN, f"cache_dir={folder}/cache", f"seed={seed}"]
            base = f"{folder}/{seed}"
            command("train.py", "experiment=quickstart", f"budget.steps={arguments.steps[0]}", f"run_dir={base}",
                    *fixed)  # fmt: skip
            for number, (way, words) in enumerate(ways.items()):
                run = f"{folder}/{seed}-{number}"
                command("train.py", f"init_from={base}", "data=storyworld_instructions", *words,
                        f"budget.steps={arguments.steps[1]}", f"run_dir={run}", *fixed)  # fmt: skip
                shares = evaluated(run, "measures=[stories]", "temperature=[0.5]")["requests"]["rows"]["T=0.5"]
                loss = json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])["val/loss"]
                results.setdefault(way, []).append([loss, *(shares[key]["mean"] for key in ("valid", "hero", "obeys"))])
                print(f"  seed {seed}  {way}  {results[way][-1]}", flush=True)
    print(f"{machine('cpu')}; mean of seeds {arguments.seeds} and each of them")
    forms = ".3f", ".0%", ".0%", ".0%"
    rows = [[way, *map(mean_of, zip(*its, strict=True), forms)] for way, its in results.items()]
    print(table(["trained", "val/loss", "valid", "with the hero", "obey"], rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
