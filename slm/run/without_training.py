"""plan=true and prepare=true, for one run, or with -m for each job of a sweep. No folder of a run or sweep is made."""

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from slm.cache import place
from slm.data.store import TokenStore, tokenizer_identity
from slm.errors import UserError
from slm.files import json_line
from slm.run import CONF
from slm.run.compose import one_line_composition, plain
from slm.run.config import RunConfig
from slm.run.init_from import source_of
from slm.run.overrides import key_of
from slm.run.parameter_table import parameter_rows
from slm.run.parameter_table import shown as parameters_shown
from slm.run.plan import make_plan
from slm.run.plan_text import shown, sweep_table
from slm.run.prepare import TokenizerPlan, is_saved, lost_text, prepare_stores, tokenizer_of, warn, windows_of
from slm.run.read_config import read_config
from slm.tables import columns

Row = dict[str, str | int]


def plan_run(config: RunConfig):
    """Prints what a run will take, or the table of its parameters. Raises UserError."""
    source_of(config, None, None)  # whose model must fit
    if config.plan == "parameters":
        rows = parameter_rows(config)
        json_line.note(parameters=rows)
        return print(parameters_shown(rows, config.model))
    plan = make_plan(config)
    json_line.note(**plan.facts())
    print(shown(plan))
    warn(config, plan.warnings)


def plan_sweep():
    """Prints a line per job of the command line, and their sum; or the table of the parameters of each. Raises
    UserError."""
    configs = swept_jobs()
    if all(config.plan == "parameters" for _, config in configs):
        tables = [(overrides, config, parameter_rows(config)) for overrides, config in configs]
        json_line.note(jobs=[{"overrides": overrides, "parameters": rows} for overrides, _, rows in tables])
        return print(
            "\n\n".join(f"{' '.join(given)}\n{parameters_shown(rows, its.model)}" for given, its, rows in tables)
        )
    jobs = [(overrides, make_plan(config)) for overrides, config in configs]
    json_line.note(jobs=[{"overrides": overrides, **plan.facts()} for overrides, plan in jobs])
    print(sweep_table(jobs))


def prepare_sweep():
    """Prepares what the jobs of the command line would read. Raises UserError."""
    prepare_runs(config for _, config in swept_jobs())


def swept_jobs() -> list[tuple[list[str], RunConfig]]:
    """The overrides and the configuration of each job of the command line, in sys.argv. Raises UserError."""
    jobs, mistakes = [], []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def job(cfg: DictConfig) -> float:
        hydra_config = HydraConfig.get()
        overrides = OmegaConf.to_container(hydra_config.overrides.task)
        try:
            jobs.append((overrides, read_config(*plain(cfg, hydra_config.runtime.choices, overrides))))
        except UserError as error:  # for which Hydra would print another line
            mistakes.append(error)
        return 0.0

    with tempfile.TemporaryDirectory() as folder, one_line_composition():
        kept = [word for word in sys.argv[1:] if key_of(word) not in ("hydra/launcher", "hydra.sweep.dir")]
        sys.argv[1:] = ["hydra/launcher=basic", f"hydra.sweep.dir='{folder}'", *kept]
        job()
    if mistakes:
        raise mistakes[0]
    return jobs


def prepare_runs(configs: Iterable[RunConfig]):
    """Prepares tokenizers and tokens of these runs, each once, and prints where they lie. Raises UserError.

    A GPU is not needed, whatever trainer says: the machine with the network may have none.
    """
    rows = list({row["folder"]: row for config in configs for row in prepared(config)}.values())
    json_line.note(prepared=rows)
    lines = [(row["prepared"], row["content"], f"{row['bytes'] / 1e6:,.2f} MB", row["folder"]) for row in rows]
    print(columns([("prepared", "content", "size", "folder"), *lines], width=1000))


def prepared(config: RunConfig) -> list[Row]:
    """What a run with this configuration reads: its tokenizer and its tokens. What is missing is prepared now."""
    tokenizer, chosen = tokenizer_of(config), TokenizerPlan.of(config)
    stores = prepare_stores(config, tokenizer)
    splits = windows_of(config, stores, tokenizer)  # refuses a text that is too short
    warn(config, [lost_text(config, splits.store)])
    folder = place(Path(config.cache_dir), "tokenizers", tokenizer_identity(chosen.settings, config.data.corpus))
    folder = Path(chosen.settings["path"]) if is_saved(config) else folder
    ids = f"{tokenizer.vocab_size:,} ids"
    return [
        row_of(f"tokenizer {chosen.name}", ids, folder),
        *(row_of(f"tokens {name}".strip(), size_of(store), store.folder) for name, store in stores.items()),
    ]


def row_of(what: str, content: str, folder: Path) -> Row:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"prepared": what, "content": content, "bytes": size, "folder": str(folder)}


def size_of(store: TokenStore) -> str:
    return f"{store.tokens('train'):,} train and {store.tokens('validation'):,} validation tokens"
