"""What a model of TinyStories forgets when it goes on with Shakespeare, with shares of its old data among the new.

    python benchmarks/replay.py --stories FOLDER --path input.txt [--shares 0 0.1] [--seeds 1 2]

FOLDER has the layout of the Hub. Every training and evaluation is a command in a process of its own. Bits per byte are
those of held-out text.
"""

import argparse
import tempfile

from measure import command, evaluated, machine, mean_of, one_line_errors, parsed, table

SIZE = ["model=tiny", "model.depth=2", "model.width=96", "model.head_dim=32", "model.context=128"]
TRAIN = ["data.batch_windows=16", "report=false", "callbacks.samples=null", "val_every_n_steps=100000"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", required=True, help="a folder of TinyStories in the Hub's layout")
    parser.add_argument("--path", required=True, help="Shakespeare's input.txt")
    parser.add_argument("--shares", type=float, nargs="+", default=[0, 0.1], help="of TinyStories in the second run")
    parser.add_argument("--steps", type=int, nargs=2, default=[500, 200], help="of the first and of the second run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    arguments = parsed(parser)
    if not all(0 <= share < 1 for share in arguments.shares):
        parser.error("--shares takes numbers from 0 to below 1")
    stories, bard = f"data.path={arguments.stories}", f"data.path={arguments.path}"
    results: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            fixed = [*TRAIN, f"cache_dir={folder}/cache", f"seed={seed}"]
            runs = {"before": f"{folder}/{seed}"}
            command("train.py", "data=tinystories", stories, *SIZE, "tokenizer.vocab_size=2048", "optimizer.lr=3e-3",
                    f"budget.steps={arguments.steps[0]}", f"run_dir={runs['before']}", *fixed)  # fmt: skip
            for share in arguments.shares:
                runs[f"{share:.0%} replay"] = run = f"{folder}/{seed}-{share}"
                command("train.py", f"init_from={runs['before']}", *mixture(share, stories, bard), "optimizer.lr=1e-3",
                        f"budget.steps={arguments.steps[1]}", f"run_dir={run}", *fixed)  # fmt: skip
            for name, run in runs.items():
                texts = ("data=tinystories", stories), ("data=shakespeare", bard)
                found = [evaluated(run, *text, "measures=[loss]", "tokens=50000") for text in texts]
                results.setdefault(name, []).append([its["loss"]["bits_per_byte"]["mean"] for its in found])
                print(f"  seed {seed}  {name}  {results[name][-1]}", flush=True)
    print(f"{machine('cpu')}; bits per byte, mean of seeds {arguments.seeds} and each of them")
    rows = [[name, *(mean_of(values, ".3f") for values in zip(*its, strict=True))] for name, its in results.items()]
    print(table(["", "TinyStories", "Shakespeare"], rows))


def mixture(share: float, stories: str, bard: str) -> list[str]:
    """The second run's data: Shakespeare, with that share of tokens from TinyStories."""
    if not share:
        return ["data=shakespeare", bard]
    sources = {"new": ("shakespeare", bard, 1 - share), "old": ("tinystories", stories, share)}
    words = ["data=mixture"]
    for name, (option, path, weight) in sources.items():
        key = f"data.sources.{name}"
        words += [f"{key}={option}", f"{key}.{path.removeprefix('data.')}", f"{key}.weight={weight:g}"]
    return words


if __name__ == "__main__":
    with one_line_errors():
        main()
