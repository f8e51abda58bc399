"""plan=true with -m: a line per job of a sweep, and their sum. prepare=true with -m. No sweep folder is made."""

import sys
import tempfile
from collections.abc import Callable, Sequence

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slm.files import json_line
from slm.run import CONF
from slm.run.compose import one_line_composition, plain
from slm.run.overrides import key_of
from slm.tables import clock, columns, gigabytes


def asks_for(key: str, overrides: Sequence[str]) -> bool:
    """True if the command line sets plan or prepare."""
    asked = [override.partition("=")[2] for override in overrides if key_of(override) == key]
    return asked[-1:] not in ([], ["false"])


def plan_sweep():
    """Plans the jobs that the command line, in sys.argv, would run, in this process. Raises UserError."""
    from slm.run.plan import Plan, make_plan

    jobs: list[tuple[list[str], Plan]] = []
    for_each_job(lambda overrides, config: jobs.append((overrides, make_plan(config))))
    json_line.note(jobs=[{"overrides": overrides, **plan.facts()} for overrides, plan in jobs])
    print(sweep_table(jobs))


def prepare_sweep():
    """Prepares what the jobs would read, each tokenizer and each text once. Raises UserError."""
    from slm.run.prepare_only import prepared, report

    found: dict[str, dict] = {}  # by folder
    for_each_job(lambda overrides, config: found.update((row["folder"], row) for row in prepared(config)))
    report(list(found.values()))


def for_each_job(call: Callable[[list[str], "RunConfig"], object]):  # noqa: F821 (imports torch)
    """Calls a function with the overrides and the configuration of each job of the command line, in sys.argv."""
    from slm.run.config import read_config

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def job(cfg: DictConfig) -> float:
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task)
        call(overrides, read_config(*plain(cfg, hydra_config.runtime.choices, overrides)))
        return 0.0

    with tempfile.TemporaryDirectory() as folder, one_line_composition():
        kept = [word for word in sys.argv[1:] if key_of(word) not in ("hydra/launcher", "hydra.sweep.dir")]
        sys.argv[1:] = ["hydra/launcher=basic", f"hydra.sweep.dir='{folder}'", *kept]
        job()


def sweep_table(jobs: Sequence[tuple[Sequence[str], "Plan"]]) -> str:  # noqa: F821 (imports torch)
    """The swept keys, sizes, time and cost of each job, and the sums."""
    from slm.estimate import device_table, parameters
    from slm.planning.devices import money

    values = [dict(override.partition("=")[::2] for override in overrides) for overrides, _ in jobs]
    swept = [key for key in values[0] if len({str(value.get(key)) for value in values}) > 1]
    rows = [[*swept, "parameters", "steps", "tokens", "memory GB", "time", "cost"]]
    plans = [plan for _, plan in jobs]
    seconds, tokens = [plan.seconds for plan in plans], [plan.tokens for plan in plans]
    costs = [plan.device.cost(plan.seconds) for plan in plans]
    for value, plan, cost in zip(values, plans, costs, strict=True):
        rows.append(
            [
                *(value.get(key, "") for key in swept),
                f"{parameters(plan.model).total:,}",
                "?" if plan.steps is None else f"{plan.steps:,}",
                "?" if plan.tokens is None else f"{plan.tokens:,}",
                gigabytes(plan.memory.peak),
                "?" if plan.seconds is None else clock(plan.seconds),
                money(cost),
            ]
        )
    total = [f"{len(jobs)} jobs", *[""] * (len(swept) + 1)] if swept else [f"{len(jobs)} jobs", ""]
    total += [
        "?" if None in tokens else f"{sum(tokens):,}",
        gigabytes(max(plan.memory.peak for plan in plans)),
        "?" if None in seconds else clock(sum(seconds)),
        "?" if None in costs else money(sum(costs)),
    ]
    assumed = f"{device_table()['utilisation']:.0%} of the peak assumed; plan=measure measures"
    rate = "measured" if all(plan.rate for plan in plans) else assumed
    device = plans[0].device.name.removeprefix("this one, ")
    if rate == "measured" and not all(plan.text.cached for plan in plans):
        rate += " on random windows, as tokens are not in the cache"
    return f"{columns([*rows, total], right=True)}\nOn {device}, one after another; {rate}."
