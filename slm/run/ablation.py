"""hparams_search=ablation: a base and named variants of it with the same seeds, and what they answer.

python train.py -m hparams_search=ablation variants.swiglu=model.mlp=swiglu seeds=5
python train.py -m hparams_search=ablation variants.swiglu=model.mlp=swiglu detect=0.005 seeds=20

A sweeper of Hydra, so every launcher runs its jobs, and the sweep folder makes it go on after an interruption: what it
decides is a function of the finished pairs.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from slm.classes import did_you_mean
from slm.errors import UserError, printable
from slm.files import run_folder, sweep_folder
from slm.run.compose import plain
from slm.run.overrides import key_of, normalized, parsed

BASE = "base"
TARGET = "hydra_plugins.slm.AblationSweeper"  # Hydra accepts plugins under this prefix only
NAME = re.compile(r"[A-Za-z0-9_]+(-[A-Za-z0-9_]+)*")


KEYS = {"_target_": TARGET, "variants": {}, "only": None, "seeds": 5, "detect": None, "metric": None}
ConfigStore.instance().store(group="hydra/sweeper", name="ablation", node=KEYS, provider="slm")


class AblationSweeper(Sweeper):
    """Runs the base and each variant with seed 1, 2, ..., and prints the comparison.

    `variants`: name -> overrides, as one text or a list. `only`: the names of those that run, None: all. `seeds`: of
    each, or at most with `detect`, the smallest difference of the metric that matters: then each variant ends as soon
    as its pairs answer whether there is one. `metric`: val/bits_per_byte unless given. Raises UserError for a variant
    that changes nothing or is not valid.
    """

    def __init__(
        self,
        variants: Mapping[str, Any],
        seeds: int,
        detect: float | None,
        metric: str | None,
        only: Sequence[str] | None = None,
    ):
        self.given, self.only = variants, only  # checked in setup, since Hydra wraps errors of a constructor
        self.seeds, self.detect, self.metric = seeds, detect, metric

    def setup(self, *, hydra_context, task_function, config: DictConfig):
        self.read_variants()
        self.config, self.loader = config, hydra_context.config_loader
        self.folder = Path(config.hydra.sweep.dir)
        self.parts = {"hydra_context": hydra_context, "task_function": task_function, "config": config}
        self.launched = 0

    def read_variants(self):
        from slm.analysis.sequential import PILOT  # imports scipy

        self.variants = {str(name): words_of(str(name), value) for name, value in self.given.items()}
        if not self.variants:
            raise UserError(
                "an ablation needs variants: give variants.NAME=<key>=<value>, as in variants.swiglu=model.mlp=swiglu"
            )
        if self.only is not None:
            self.variants = {name: self.variants[name] for name in chosen(self.only, self.variants)}
        least = 2 if self.detect is None else PILOT + 1
        if not isinstance(self.seeds, int) or not least <= self.seeds <= 1000:
            with_detect = "" if self.detect is None else " with detect"
            raise UserError(f"seeds={self.seeds} must be a whole number from {least}{with_detect} to 1000")
        if self.detect is not None and not (isinstance(self.detect, int | float) and 0 < self.detect < math.inf):
            raise UserError(f"detect={self.detect} must be a number above 0: the smallest difference that matters")

    def sweep(self, arguments: list[str]):
        """Part of Hydra's interface: runs the jobs of the command's `arguments`, overrides without several values."""
        self.arguments = arguments
        self._check()
        self.launcher = Plugins.instance().instantiate_launcher(**self.parts)  # opens the sweep folder
        self.check_metric()
        if self.detect is None:
            self.launch(list(self.variants), range(1, self.seeds + 1))
            looks = {}
        else:
            looks = self.run_in_sequence()
        if self._is_kept():
            from slm.analysis.ablation import conclusion

            text = conclusion(self.folder, [BASE, *self.variants], self.metric, self.detect, looks)
            print("\n" + printable(text), flush=True)

    def check_metric(self):
        """Runs one job alone, to see that there is such a metric, if not every run has it. Raises UserError."""
        from slm.analysis.ablation import read_arms
        from slm.analysis.comparison import checked_metric
        from slm.run.config import METRICS

        if self.metric in (None, *METRICS):
            return
        self.launch([], [1])
        if self._is_kept() and (arms := read_arms(self.folder, [BASE])[0]):
            checked_metric(arms[BASE].runs, self.metric)

    def run_in_sequence(self):
        """Runs seed after seed, those of each variant until its pairs answer. Returns variant -> newest look."""
        from slm.analysis.ablation import newest_looks, progress
        from slm.analysis.sequential import PILOT

        names, active, seeds, found = [BASE, *self.variants], list(self.variants), PILOT, {}
        self.launch(active, range(1, seeds + 1))
        while self._is_kept():
            found, metric, seconds = newest_looks(
                self.folder, names, self.detect, most=self.seeds, seeds=seeds, metric=self.metric
            )
            known = [name for name in active if found[name]]
            lines = [progress(name, found[name], self.detect, self.seeds, metric, seconds) for name in known]
            print(printable("\n".join(lines)), flush=True)
            with sweep_folder.changed(self.folder) as sweep:
                sweep.answers, sweep.metric = lines, metric
            active = [name for name in active if found[name] is None or found[name].verdict is None]
            if not active or seeds == self.seeds:
                break
            seeds += 1
            self.launch(active, [seeds])
        return found

    def _is_kept(self) -> bool:
        """False for jobs of which nothing is kept, such as a plan or a trial run."""
        return (self.folder / "sweep.json").exists()

    def launch(self, variants: Sequence[str], seeds: Sequence[int]):
        """Runs the base and these variants with these seeds; finished ones are skipped by the launcher."""
        jobs = [self._job(name, seed) for seed in seeds for name in (BASE, *variants)]
        self.launcher.launch(jobs, initial_job_idx=self.launched)
        self.launched += len(jobs)

    def _job(self, name: str, seed: int) -> list[str]:
        """The overrides of one run: those of the variant replace those of the command."""
        own = self.variants.get(name, [])
        given = {key_of(word) for word in own}
        kept = [argument for argument in self.arguments if key_of(argument) not in given]
        return [*kept, *own, f"variant={name}", f"seed={seed}"]

    def _check(self):
        """Raises UserError, before any run, for several values of a key, or a variant that is wrong or no change."""
        check_words(self.arguments, "", "in an ablation each is a variant")
        from slm.run.read_config import read_config

        configs = {}
        for name in (BASE, *self.variants):
            job = self._job(name, 1)
            config = self.loader.load_sweep_config(self.config, job)
            values, _ = plain(config, config.hydra.runtime.choices, job)
            try:
                read_config(values)
            except UserError as error:
                raise UserError(f"{'the base' if name == BASE else f'variants.{name}'}: {error}") from None
            values.pop("variant")
            if (same := next((other for other in configs if configs[other] == values), None)) is not None:
                raise UserError(f"variants.{name}={shlex.join(self.variants[name])} gives the configuration of {same}")
            configs[name] = values
        self._check_before()

    def _check_before(self):
        """Raises UserError if the sweep folder holds a variant of this name with other overrides."""
        before = sweep_folder.read(self.folder)
        changed = {key_of(word) for words in self.variants.values() for word in words}  # by any variant
        for job in before.jobs if before else ():
            name = job.values.get("variant")
            words = run_folder.overrides(self.folder / job.folder)
            if name not in (BASE, *self.variants) or words is None:
                continue
            old, new = ({w for w in given if key_of(w) in changed} for given in (words, self._job(name, 1)))
            if old != new:
                shown = ", ".join(sorted(old - new)) or "without " + ", ".join(sorted(new - old))
                raise UserError(
                    f"variant {name} was started with {shown} in {self.folder}; give the variant another name, "
                    "or another sweep_dir"
                )


def chosen(only: Any, variants: Mapping[str, list[str]]) -> list[str]:
    """The names in `only`, each once. Raises UserError for what is no list of names of variants."""
    only = OmegaConf.to_container(only) if OmegaConf.is_config(only) else only
    names = [str(name) for name in (only if isinstance(only, list) else [only])]
    if unknown := [name for name in names if name not in variants]:
        hint = did_you_mean(unknown[0], variants)
        raise UserError(f"only=[{unknown[0]}] is no variant{hint or '; there are ' + ', '.join(variants)}")
    if not names:
        raise UserError("only=[] names no variant; leave only= out for all of them")
    return list(dict.fromkeys(names))


def words_of(name: str, value: Any) -> list[str]:
    """The overrides of a variant. Raises UserError for a wrong name, or what is not key=value."""
    if not NAME.fullmatch(name) or name == BASE:
        raise UserError(f"variants.{name}: a variant's name has letters, digits, _ and -, and is not {BASE}")
    value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    words = shlex.split(value) if isinstance(value, str) else value
    are_words = isinstance(words, list) and all(isinstance(w, str) and ("=" in w or w[:1] == "~") for w in words)
    if not (words and are_words):
        raise UserError(
            f"variants.{name}={value} must be overrides, as in variants.{name}=model.mlp=swiglu "
            f"or variants.{name}='optimizer=muon optimizer.lr=0.02'"
        )
    words = normalized(words)
    check_words(words, f"variants.{name}: ", "give a variant for each")
    return words


def check_words(words: Sequence[str], where: str, remedy: str):
    """Raises UserError for several values of a key, and for a key that the ablation sets itself."""
    for override in parsed(words):
        if override.is_sweep_override():
            raise UserError(f"{where}{override.input_line} gives several values; {remedy}")
        if override.key_or_group in ("seed", "variant"):
            raise UserError(f"{where}{override.key_or_group} is set by the ablation; give seeds=<n>")


Plugins.instance().class_name_to_class[TARGET] = AblationSweeper
