"""An option of a group that replaces the one of an experiment takes away the settings that the experiment made for it.

`experiment=quickstart schedule=constant`: quickstart sets schedule.min_lr_ratio of warmup_stable_decay, which constant
does not have, and optimizer.weight_decay of Muon is another quantity in AdamW. Settings that every option has
(data.batch_windows, of conf/train.yaml) stay. Done while Hydra composes, so that it also holds for each job of a sweep.
"""

import re
from collections.abc import Iterable
from typing import Any

from hydra._internal import hydra as composition
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import IConfigRepository
from hydra.core.default_element import ConfigDefault, GroupDefault, ResultDefault
from omegaconf import DictConfig

from slm.run import CONF
from slm.run.dial import RULES, SHAPE
from slm.run.overrides import LENGTHS, with_dial

GROUPS = ("data", "tokenizer", "optimizer", "schedule")  # whose options are of different classes
CHOOSING = re.compile("(experiment|debug|hparams_search)/[^/]+")  # files that choose options
OF_A_SIZE = (  # what an experiment sets for its model
    *(*SHAPE, *(key for rules in RULES.values() for key in rules)),
    *(*(f"budget.{name}" for name in LENGTHS), "trainer.microbatch", "model.bigram_embeddings"),
)


class Composer(ConfigLoaderImpl):
    """Hydra's composition without settings that experiments made for options that are not taken, and with the options
    that model=dial brings."""

    def load_configuration(self, config_name: str | None, overrides: list[str], *rest: Any, **named: Any) -> DictConfig:
        overrides = with_dial(overrides) if is_ours(self.repository) else overrides
        return super().load_configuration(config_name, overrides, *rest, **named)

    def _compose_config_from_defaults_list(self, defaults: list[ResultDefault], repo: IConfigRepository) -> DictConfig:
        if is_ours(repo):
            drop_settings(defaults, repo)
            leave_open(defaults, repo)
        return super()._compose_config_from_defaults_list(defaults, repo)


composition.ConfigLoaderImpl = Composer


def is_ours(repo: IConfigRepository) -> bool:
    """False in somebody's own Hydra program."""
    return any(source.path == str(CONF) for source in repo.get_sources())


def drop_settings(defaults: Iterable[ResultDefault], repo: IConfigRepository):
    """Deletes from loaded files that choose options what they set for an option that is not among `defaults`."""
    paths = [default.config_path for default in defaults if default.config_path]
    taken = dict(path.split("/", 1) for path in paths if "/" in path)
    first = next((default.config_path for default in defaults if default.primary), None)
    if first is None:  # Hydra's own help
        return
    shared = repo.load_config(first).config
    for path in paths:
        if not CHOOSING.fullmatch(path):
            continue
        config = repo.load_config(path).config
        before = {} if path.startswith("hparams_search/") else choices(first, repo)  # a search alone chooses nothing
        for group, option in (before | choices(path, repo)).items():
            section = config.get(group) if group in GROUPS and taken.get(group) != option else None
            if isinstance(section, DictConfig):
                own = settings(group, option, repo) - set(shared.get(group) or {})
                config[group] = {key: value for key, value in section.items_ex(resolve=False) if key not in own}


def leave_open(defaults: Iterable[ResultDefault], repo: IConfigRepository):
    """With model=dial, makes null what it has rules for in conf/train.yaml and in the options of conf/, and deletes it
    from experiments that have chosen another model, so that what is not null in the end was given."""
    paths = [default.config_path for default in defaults if default.config_path]
    for path in paths if "model/dial" in paths else ():
        loaded, group = repo.load_config(path), path.partition("/")[0]
        config = loaded.config
        if group == "experiment" and choices(path, repo).get("model") not in (None, "dial"):
            for section, name in (key.split(".") for key in OF_A_SIZE):
                (config.get(section) or {}).pop(name, None)
        elif path == "train":
            config.data.batch_windows = None
        elif group in ("optimizer", "schedule") and loaded.path == f"file://{CONF}":
            config.update({key.split(".")[1]: None for key in RULES.get(config.get("_target_"), ())})


def settings(group: str, option: str, repo: IConfigRepository) -> set[str]:
    """The keys of an option in its group, empty if there is none of this name."""
    if not (loaded := repo.load_config(f"{group}/{option}")):
        return set()
    return set(loaded.config.get(group) or {} if loaded.header["package"] == "_global_" else loaded.config)


def choices(path: str, repo: IConfigRepository) -> dict[str, str]:
    """The options that the defaults list of a file names, and those of the files that it continues."""
    found, folder = {}, path.rpartition("/")[0]
    loaded = repo.load_config(path)
    for entry in loaded.defaults_list or [] if loaded else []:
        if isinstance(entry, ConfigDefault) and not entry.is_self() and entry.path:
            found |= choices(entry.path.lstrip("/") if entry.path.startswith("/") else f"{folder}/{entry.path}", repo)
        elif isinstance(entry, GroupDefault) and entry.value and (not folder or entry.is_override()):
            found[entry.group.lstrip("/")] = str(entry.value)
            if entry.group == "/experiment":  # which a search may choose
                found |= choices(f"experiment/{entry.value}", repo)
    return found
