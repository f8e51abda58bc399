"""Composition: the files of conf/, files of the user, and overrides to one configuration of plain types.

A mistake in a file is one line: a parser's errors are caught where a file is read, Hydra's where files are merged.
"""

import contextlib
import copy
import io
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import hydra
import yaml
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from slm.errors import ResourceError, UserError
from slm.files import atomic
from slm.files.run_folder import file_name
from slm.run import CONF, replaced  # noqa: F401  (what Hydra composes with)
from slm.run.dial import fill
from slm.run.names import REFUSED_TRAINER_KEYS, hint_for, hint_for_option
from slm.run.overrides import check_data_keys, check_left_out_nodes, flattened, own_nodes
from slm.run.sources import with_sources
from slm.security import refuse_secrets

TYPES = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}  # of OmegaConf
GLOBAL_GROUPS = ("experiment", "hparams_search", "recipe", "debug", "local")  # their files change keys of every section
EXTRAS = {  # launcher or sweeper -> the extra of this package that installs it
    **dict.fromkeys(("joblib", "submitit_local", "submitit_slurm", "optuna"), "sweeps"),
    "ray": "ray",
}
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
            header, config = self._get_header_dict(text), copy.deepcopy(loaded(text))
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


@cache  # a third of the time of a composition, of which a sweep has one for each job
def loaded(text: str) -> DictConfig | ListConfig:
    """The content of a YAML file, not to be changed."""
    return OmegaConf.load(io.StringIO(text))


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


def explained(error: Exception, known_keys: Callable[[], Sequence[str]]) -> UserError:
    """A composition error of Hydra as one line, with the nearest name where it is about a key or an option.

    `known_keys` composes conf/ once more for the names.
    """
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, option = re.fullmatch("(hydra/[^/]*|[^/]*)/?(.*)", str(error.missing_cfg_file)).groups()
        if not (options := sorted(error.options)):
            return UserError(f"{group}={option}: there is no group {group}")
        hint = hint_for_option(group, option, options)
        if extra := EXTRAS.get(option) if group in ("hydra/launcher", "hydra/sweeper") else None:
            hint = f'; for {option}, pip install -e ".[{extra}]"'
        return UserError(f"{group}={option} is not one of {', '.join(options)}{hint}")
    if match := re.match(r"Could not (override|append to config|delete from config)[^']*'([^']+)'", str(error)):
        if refusal := REFUSED_TRAINER_KEYS.get(match[2].removeprefix("trainer.")):
            return UserError(f"{match[2]} is not passed on to Lightning: {refusal}")
        known, group = known_keys(), match[2].partition(".")[0]
        is_known = any(f"{key}.".startswith(f"{match[2]}.") for key in known)  # a key or a section
        if match[1] == "delete from config" and is_known:
            return UserError(f"~{match[2]} has no effect: its value is null, or {group} has another option")
        other = f", since {group} is left out or has another option"
        to_add = f"; to add it, write +{match[2]}=..." if match[2].endswith("._target_") else ""
        if match[2] == "model._target_":
            to_add = "; a class of yours takes the option model=own, too"
        reason = to_add or (other if is_known else hint_for(match[2], known))
        return UserError(f"there is no key {match[2]}{reason}")
    if match := re.match(r"Error merging override (\S+)$", str(error)):  # the cause says why
        kind = re.search(r"could not be converted to (\w+)", str(error.__cause__))
        reason = TYPES.get(kind[1]) if kind else None
        return UserError(f"{match[1]} must be {reason}" if reason else f"{match[1]}: {one_line(error.__cause__)}")
    return UserError(one_line(error))


def one_line(error: BaseException) -> str:
    """The message of an error of Hydra or OmegaConf without a list of folders, with the key in front."""
    while not str(error) and (error.__cause__ or error.__context__):  # Hydra wraps its errors in empty ones
        error = error.__cause__ or error.__context__
    text = str(error).partition("Config search path:")[0]
    key = re.search(r"\n\s*full_key: (\S.*)", text)  # OmegaConf appends the key and the type of its section
    text = re.sub(r"\n\s*(full_key|object_type).*", "", text)
    return " ".join(f"{key[1]}: {text}".split() if key else text.split())


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
        config, written = (
            with_sources(cfg, kind) for kind in (partial(OmegaConf.to_container, resolve=True), recorded)
        )
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
    check_left_out_nodes(overrides, config)
    if config.get("dial") is not None:
        raise UserError("dial is what model=dial writes, so it cannot be given; leave it out")
    if isinstance(model := config.get("model"), dict) and "dial" in model and "_target_" not in model:
        fill(config, written, overrides)
    return config, written
