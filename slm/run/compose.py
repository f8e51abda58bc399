"""Composition: the files of conf/, files of the user, and overrides to one configuration of plain types.

A mistake in a file is one line: a parser's errors are caught where a file is read, Hydra's where files are merged.
"""

import contextlib
import io
import traceback
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from slm.errors import ResourceError, UserError
from slm.files import atomic
from slm.files.run_folder import file_name
from slm.run import CONF, replaced  # noqa: F401  (what Hydra composes with)
from slm.run.overrides import (
    GROUPS,
    check_data_keys,
    check_left_out_callbacks,
    explained,
    flattened,
    key_of,
    normalized,
    one_line,
    own_nodes,
)
from slm.security import refuse_secrets

GLOBAL_GROUPS = ("experiment", "hparams_search", "debug", "local")  # their files change keys of every section
PLACES = ("name", "tags", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "resume")  # not what a run is
PATH_VARIABLES = ("SLM_CACHE",)  # the environment variables whose values a run may write


class FileConfigSource(file_config_source.FileConfigSource):  # Hydra registers its own class under this name
    """Hydra's reader of YAML files; a byte order mark is dropped. Raises UserError with file and line."""

    newest = Path()

    def load_config(self, config_path: str) -> ConfigResult:
        path = FileConfigSource.newest = Path(self.path, self._normalize_file_name(config_path))
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except OSError as error:
            raise ResourceError(f"{path} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError as error:
            line = error.object[: error.start].count(b"\n") + 1
            raise UserError(f"{path}, line {line}: this is not UTF-8 text; save the file as UTF-8") from None
        try:
            header, config = self._get_header_dict(text), OmegaConf.load(io.StringIO(text))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            tab = "; indent with spaces" if "\\t" in str(error.problem) else ""
            raise UserError(f"{path}, line {mark.line + 1}: {error.problem}{tab}") from None
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            raise UserError(f"{path}, line {line}: YAML has no character {chr(error.character)!r}") from None
        except RecursionError:
            raise UserError(f"{path} is nested too deeply") from None
        except (ValueError, OSError, OmegaConfBaseException) as error:
            raise UserError(f"{path}: {one_line(error)}") from None
        if not isinstance(config, DictConfig):
            raise UserError(f"{path} must hold keys and values, such as seed: 1, at its top")
        group = config_path.partition("/")[0]
        if group in GLOBAL_GROUPS and header["package"] != "_global_" and (config or group != "local"):
            raise UserError(f"{path} must begin with the line: # @package _global_")
        return ConfigResult(config=config, path=f"file://{self.path}", provider=self.provider, header=header)


SourcesRegistry.instance().types["file"] = FileConfigSource


class Environment:
    """The resolver oc.env, with a note of whether a variable was read that is not one of PATH_VARIABLES."""

    was_read = False

    def __call__(self, key: str, *default: Any) -> str | None:
        self.was_read |= key not in PATH_VARIABLES
        return oc.env(key, *default)


ENVIRONMENT = Environment()
OmegaConf.register_new_resolver("oc.env", ENVIRONMENT, replace=True)
OmegaConf.register_new_resolver("slm.file_name", file_name, replace=True)
OmegaConf.register_new_resolver("slm.expanded", lambda path: path and str(atomic.expanded(path)), replace=True)
OmegaConf.register_new_resolver("slm.or", lambda first, second: first or second, replace=True)


def recorded(cfg: DictConfig | ListConfig) -> Any:
    """Plain types for what a run writes: resolved, but with the interpolation where a value is of the environment."""
    raw, plain = OmegaConf.to_container(cfg), OmegaConf.to_container(cfg, resolve=True)
    for key, value in list(raw.items() if isinstance(raw, dict) else enumerate(raw)):
        if OmegaConf.is_interpolation(cfg, key):
            ENVIRONMENT.was_read = False
            found = cfg[key]
            if OmegaConf.is_config(found):
                OmegaConf.to_container(found, resolve=True)
            if ENVIRONMENT.was_read:
                plain[key] = value
        elif isinstance(value, dict | list):
            plain[key] = recorded(cfg[key])
    return plain


@contextlib.contextmanager
def one_line_composition(config_name: str = "train") -> Iterator[None]:
    """Turns what Hydra, OmegaConf and YAML raise about files and overrides into a UserError of one line."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise explained(error, partial(known_keys, config_name)) from error
    except RecursionError:
        raise UserError(
            f"the defaults lists include one another without end, near {FileConfigSource.newest}; "
            "a file must not include itself"
        ) from None
    except UnicodeEncodeError as error:
        raise UserError(f"{FileConfigSource.newest}: {error.object!r} cannot be the name of a file") from None
    except (ValueError, TypeError, AssertionError, AttributeError) as error:
        module = list(traceback.walk_tb(error.__traceback__))[-1][0].f_globals["__name__"]
        if isinstance(error, UserError) or module.partition(".")[0] not in ("hydra", "omegaconf"):
            raise
        file = f"{FileConfigSource.newest}: " if module.endswith(".config_repository") else ""
        raise UserError(file + one_line(error)) from error


@contextlib.contextmanager
def hydra_of_its_own() -> Iterator[None]:
    """Hydra with conf/, also inside somebody's Hydra program, whose state is restored."""
    state = GlobalHydra.instance()
    outer, state.hydra = state.hydra, None
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    finally:
        GlobalHydra.instance().hydra = outer


def composed(config_name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A configuration of conf/ with overrides as plain types: to be used, and to be written. Raises UserError."""
    with one_line_composition(config_name), hydra_of_its_own():
        cfg = hydra.compose(config_name, list(overrides), return_hydra_config=config_name == "train")
        if config_name == "train":
            return plain(cfg, cfg.hydra.runtime.choices, overrides)
        return OmegaConf.to_container(cfg, resolve=True), recorded(cfg)


def differences(written: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """What a run differs in from the options that it has chosen, for run.json: `choices`, group -> option, and
    `changed`, key -> [value of these options, value]. Empty if an option is in a folder of the user's own."""
    groups = [override for override in normalized(overrides) if key_of(override) in GROUPS]
    try:
        with one_line_composition(), hydra_of_its_own():
            cfg = hydra.compose("train", groups, return_hydra_config=True)
        choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
        before, after = (flattened(tree, PLACES) for tree in (plain(cfg, choices, groups)[1], written))
    except UserError:
        return {}
    changed = {key: [before.get(key), after.get(key)] for key in dict.fromkeys([*before, *after])}
    return {
        "choices": {key: option for key, option in choices.items() if "/" not in key},
        "changed": {key: pair for key, pair in changed.items() if pair[0] != pair[1]},
    }


@cache
def known_keys(config_name: str) -> list[str]:
    """The names of all keys and groups, for hints."""
    with hydra_of_its_own():
        base = OmegaConf.to_container(hydra.compose(config_name))
    return [*base, *flattened(base)]


def plain(cfg: DictConfig, choices: DictConfig, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The composed configuration as plain types, named after the model if it has no name: to be used, to be written.

    Raises UserError for a secret or a key without effect.
    """
    with one_line_composition():
        cfg = OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"])
        check_data_keys(overrides, OmegaConf.to_container(cfg))
        config, written = OmegaConf.to_container(cfg, resolve=True), recorded(cfg)
    refuse_secrets(written)
    refuse_secrets({key: config.get(key) for key in ("name", "run_dir", "runs_dir", "cache_dir")})  # names of folders
    for values in (config, written):
        own_nodes(overrides, values)
        values.pop("sweep_dir", None)  # of all jobs of a sweep, and no part of a run
        for folder in ("cache_dir", "runs_dir"):
            if values.get(folder) == "":
                raise UserError(f"{folder}= is empty, and must name a folder; . is the working folder")
            if isinstance(values.get(folder), str):
                values[folder] = str(atomic.expanded(values[folder]))
        values["name"] = values.get("name") or choices.get("model") or "run"
    check_left_out_callbacks(overrides, config)
    return config, written
