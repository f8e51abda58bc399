"""The command that repeats runs with several seeds."""

import shlex
from collections.abc import Sequence

from slm.analysis.groups import FinishedRun, Group
from slm.files import run_folder

SEEDS = (1, 2, 3, 4, 5)
LEFT_OUT = ("seed=", "run_dir=", "sweep_dir=", "resume=", "variant=", "hparams_search=")


def command_with_seeds(groups: Sequence[Group]) -> list[str]:
    """One command for groups of one run whose overrides differ in the value of one key, else one for each of them.

    The seeds are those of the groups that have several.
    """
    seeds = sorted({seed for group in groups if len(group.by_seed) > 1 for seed in group.by_seed}) or SEEDS
    groups = [group for group in groups if len(group.by_seed) == 1]
    typed = {group.name: overrides(group.runs[0]) for group in groups}
    different = {key for each in typed.values() for key in each if any(t.get(key) != each[key] for t in typed.values())}
    if len(different) == 1 and all(different <= each.keys() for each in typed.values()):
        (key,) = different
        each = next(iter(typed.values())) | {key: ",".join(dict.fromkeys(t[key] for t in typed.values()))}
        return [command(each, seeds)]
    return [f"{command(each, seeds)} sweep_dir=sweeps/{shlex.quote(name)}" for name, each in typed.items()]


def command(values: dict[str, str], seeds: Sequence[int]) -> str:
    words = [*(f"{key}={value}" for key, value in values.items()), f"seed={','.join(map(str, seeds))}"]
    return " ".join(["python train.py -m", *map(shlex.quote, words)])


def overrides(run: FinishedRun) -> dict[str, str]:
    """Key -> value of the overrides with which a run was started, without those that name it."""
    words = run_folder.overrides(run.folder) or []
    kept = [word for word in words if not word.startswith(LEFT_OUT) and not word.endswith("=null")]
    return dict(word.partition("=")[::2] for word in kept)
