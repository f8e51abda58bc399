"""The command line, read and checked: words to Hydra overrides, other frameworks' names to ours, mistakes to one line.

Imports neither torch nor Lightning, so a misspelt key is answered at once.
"""

import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from slm.errors import UserError
from slm.run import CONF
from slm.run.names import OPTIONAL_NODES, SAME_KEY, SYNONYMS, hint_for, hint_for_word
from slm.security import leaves, refuse_secrets

LITERAL = (  # values taken as they are typed, not as Hydra's grammar
    *("prompts_file", "ckpt", "run_dir", "runs_dir", "sweep_dir", "cache_dir", "resume", "fork", "init_from"),
    "hydra.sweep.dir",
    *("data.path", "data.separator", "data.template", "data.validation_files"),
)
SWEEP_KEYS = ("sweep_dir", "hparams_search")
GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
LENGTHS = ("steps", "tokens", "epochs", "minutes", "flops")  # of a budget, one at most
DIAL = {"optimizer": "muon", "schedule": "warmup_stable_decay"}
VALUE_FLAGS = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir")
TRAIN = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf-8"))
SHARED_KEYS = tuple(TRAIN["data"])  # of all data options
KEYS = (*TRAIN, *GROUPS)  # without a dot


def read_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str], Namespace]:
    """The overrides, Hydra's flags, and the flags as Hydra reads them.

    Raises UserError for a secret, a word that is neither an override nor a flag, or several values without -m.
    """
    overrides, flags = split_flags(arguments)
    refuse_secrets(dict(override.partition("=")[::2] for override in overrides))
    parser = get_args_parser()
    parser.error = lambda message: fail(
        f"{message}; a key stands without hyphens (seed=1), and python train.py --hydra-help lists the flags"
        + next((hint for flag in flags if (hint := hint_for_word(flag, None, KEYS, SYNONYMS))), "")
    )
    read = parser.parse_args(flags)
    if read.experimental_rerun is not None:  # it would unpickle the file
        raise UserError("--experimental-rerun is not supported; the same command with run_dir=<folder> resumes a run")
    if read.package and not read.cfg:
        raise UserError(f"--package={read.package} has no effect without --cfg job")
    if read.help or read.hydra_help or read.shell_completion:
        return overrides, flags, read
    check_ablation(overrides)
    overrides = expanded(overrides, read)
    found = parsed(overrides)
    if not read.multirun:
        check_single(found, "; add -m to run each of them")
        check_no_sweep(overrides)
        return overrides, flags, read
    for override in found:
        if override.is_sweep_override() and not has_values(override, (CONF, Path(read.config_dir or CONF))):
            raise UserError(f"{override.input_line} gives no value to run")
    return overrides, flags, read


def has_values(override: Override, folders: Iterable[Path]) -> bool:
    """False for an empty range, and for a glob without a match among the options of its group in these folders."""
    if isinstance(pattern := override.value(), Glob):
        group = override.key_or_group
        options = [path.stem for folder in folders for path in (folder / group).glob("*.yaml")]
        return group.startswith("hydra/") or bool(pattern.filter(options))
    return not override.is_discrete_sweep() or any(True for _ in override.sweep_iterator())


def fail(message: str):
    raise UserError(message)


def check_single(found: Sequence[Override], remedy: str):
    """Raises UserError for an override with several values."""
    if swept := [override.input_line for override in found if override.is_sweep_override()]:
        raise UserError(f"{swept[0]} gives several values{remedy}")


def check_no_sweep(overrides: Sequence[str]):
    """Raises UserError for a setting of sweeps in the command of one run; not in another process of a sweep's job."""
    for override in overrides if "SLM_RUN_DIR" not in os.environ else ():
        if (key := key_of(override)) in SWEEP_KEYS and not override.startswith("~") and not override.endswith("=null"):
            raise UserError(f"{key} is for a sweep; add -m, as in python train.py -m {key}=...")


def check_ablation(overrides: Sequence[str]):
    """Raises UserError for a key of ablations in any other command."""
    if not any(key_of(override) == "hparams_search" for override in overrides):
        for override in overrides:
            key = key_of(override)
            if key.partition(".")[0] == "variants" or SAME_KEY.get(key, "").startswith("hydra.sweeper."):
                raise UserError(f"{override} is for an ablation; add -m hparams_search=ablation")


def split_flags(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and flags with their values. Raises UserError for any other word."""
    overrides, flags, takes_value = [], [], False
    for word in arguments:
        if word.startswith("-") or takes_value:
            flags.append(word)
            takes_value = not takes_value and word in VALUE_FLAGS
        elif word.find("=") > 0 or word.startswith("~"):
            overrides.append(word)
        elif flags and flags[-1] in ("-i", "--info"):
            flags.append(word)
        else:
            hint = hint_for_word(word, flags[-1] if flags else None, KEYS, SYNONYMS)
            raise UserError(f"{word!r} is not key=value{hint or '; python train.py --help lists the keys'}")
    return overrides, flags


def expanded(overrides: Sequence[str], flags: Namespace | None = None) -> list[str]:
    """The overrides with this project's names, and with those of the trunk of a fork, or of the model of init_from=,
    before them. Raises UserError."""
    overrides, keys = normalized(overrides), [*map(key_of, overrides)]
    if "init_from" in keys:
        from slm.run.init_from import with_source  # imports torch

        overrides = with_source(overrides)
    if "fork" not in keys:
        return overrides
    from slm.run.fork import with_trunk  # imports torch

    return with_trunk(overrides, flags)


def normalized(overrides: Sequence[str]) -> list[str]:
    """The overrides in Hydra's grammar and with this project's names."""
    targets = [key_of(override).removesuffix("_target_") for override in overrides if "._target_=" in override]
    kept = [o for o in overrides if not (o.startswith("~") and o[1:].startswith(tuple(targets)))]  # see own_nodes
    return exclusive_budget([quoted(translated(override, overrides)) for override in kept])


def key_of(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def own_nodes(overrides: Sequence[str], config: dict[str, Any]):
    """Empties each node of a configuration whose `_target_` the command line names, but for keys given there.

    The context stays: every model has one. Otherwise a class would silently receive settings of the one it replaces.
    """
    given = [*map(key_of, overrides), "model.context"]
    if "parametrization" in given and "model._target_" in given:
        raise UserError("parametrization is for slm's GPT, not for a class of yours; leave out one of them")
    for key in given:
        *path, last = key.split(".")
        node = config
        for part in path:
            node = node.get(part) if isinstance(node, dict) else None
        if last == "_target_" and isinstance(node, dict):
            prefix = ".".join(path)
            for name in [n for n in node if not any(f"{g}.".startswith(f"{prefix}.{n}.") for g in given)]:
                del node[name]


def translated(override: str, overrides: Sequence[str]) -> str:
    """The override with our name for a key of Lightning; + becomes ++ for values, so that it may name a known key."""
    if override == "print=parameters":
        return "plan=parameters"
    sign, key, value = re.fullmatch(r"(\+{0,2}|~)([^=]*)(.*)", override, re.DOTALL).groups()
    launched_by_lightning = any(word.startswith("hydra.job.name=train_ddp_process") for word in overrides)
    if source := re.fullmatch(r"data\.sources\.[^.]+(\..+)?", key) if sign != "~" else None:
        option = "" if source[1] or value.startswith(("={", "=null")) else ".data"  # data.sources.NAME=OPTION
        return f"++{key}{option}{value}"
    if key.startswith("variants.") and sign in ("", "+"):
        return f"++hydra.sweeper.{key}{value}"
    if key in SAME_KEY and not (key.startswith("hydra") and launched_by_lightning):
        return SAME_KEY[key] + value
    if sign != "~" and key in GROUPS:  # an option of a group
        return f"~{key}" if value == "=null" else f"{key}{value}"  # Hydra takes an option away with ~
    return f"++{key}{value}" if sign == "+" and "." in key and "/" not in key and "@" not in key else override


def quoted(override: str, literal: Sequence[str] = LITERAL) -> str:
    """Quotes the value of a `literal` key for Hydra's grammar, in which commas, equals signs, stars and numbers have a
    meaning. An option's name that looks like a number is quoted, too."""
    key, equals, value = override.partition("=")
    is_option = key.lstrip("+") in GROUPS and re.fullmatch(r"[\d.]+|true|false", value)
    source = re.sub(r"^data\.sources\.[^.]+\.", "data.", key.lstrip("+"))  # a key of a source is one of data
    is_literal = source in literal or key.startswith("++hydra.sweeper.variants.")
    if not (is_literal or is_option) or not equals or re.fullmatch(r"null|'.*'|\".*\"", value):
        return override
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
    return f"{key}='{escaped}'"


def exclusive_budget(overrides: list[str]) -> list[str]:
    """A length of training on the command line replaces the configured one."""
    given, lengths = [key_of(override) for override in overrides], [f"budget.{name}" for name in LENGTHS]
    if any(key in given for key in lengths):
        return [*overrides, *(f"{key}=null" for key in lengths if key not in given)]
    return overrides


def with_dial(overrides: list[str]) -> list[str]:
    """The overrides of one run; model=dial brings the optimizer and schedule of its rules, unless they or an experiment
    are given."""
    given = {*map(key_of, overrides)}
    if "model=dial" not in overrides or "experiment" in given:
        return overrides
    return [*overrides, *(f"{key}={option}" for key, option in DIAL.items() if key not in given)]


def parsed(overrides: Sequence[str]) -> list[Override]:
    """Hydra's view of the overrides. Raises UserError, without the value, which may be a secret."""
    parser, found = OverridesParser.create(), []
    for override in overrides:
        if any("\ud800" <= char <= "\udfff" for char in override):  # Python's escapes of bytes that it cannot decode
            raise UserError(f"{key_of(override)} is not text in this locale; set PYTHONUTF8=1, or use another name")
        try:
            found += parser.parse_overrides([override])
        except (HydraException, ValueError, RecursionError):  # the latter for very long numbers, very deep lists
            check_commas(override)
            raise UserError(f"cannot read {key_of(override)}; write key=value, and quote special characters") from None
    return found


def check_commas(override: str):
    """Raises UserError for numbers with a comma too many."""
    key, _, value = override.partition("=")
    if re.fullmatch(r"[-+.,\deE ]{1,100}", value) and (numbers := re.findall(r"[^, ]+", value)):
        raise UserError(f"{override} must have one value between two commas, as in {key}={','.join(numbers)}")


def check_data_keys(overrides: Sequence[str], unresolved: Any):
    """Checks the keys of `data` to which no other value refers: without effect, whatever their value is.

    Raises UserError for one that the command line adds or that has the name of a known key; warns of any other.
    """
    text, data = str(unresolved), unresolved.get("data")
    data = data if isinstance(data, dict) else {}
    known = [key for key in data if f"data.{key}" in text or key in (*SHARED_KEYS, "corpus")]
    added = [key_of(override) for override in overrides if override.startswith("+")]
    for name in set(data) - {*known, "vocab_size"}:  # of tokenizer=sentencepiece
        hint = hint_for(f"data.{name}", [f"data.{other}" for other in known])
        if hint or f"data.{name}" in added or isinstance(data[name], dict):
            raise UserError(f"there is no key data.{name}{hint}")
        print(f"warning: data.{name} has no effect: no other key refers to it", file=sys.stderr)


def check_left_out_nodes(overrides: Sequence[str], config: Mapping[str, Any]):
    """Raises UserError for a setting on the command line of a callback or logger that the option leaves out."""
    for key in map(key_of, overrides):
        group, _, rest = key.partition(".")
        name, nodes = rest.partition(".")[0], config.get(group)
        if name not in OPTIONAL_NODES.get(group, ()) or not isinstance(nodes, Mapping) or key == f"{group}.{name}":
            continue
        if isinstance(nodes.get(name), Mapping) and "_target_" not in nodes[name]:
            remedy = "callbacks=default" if group == "callbacks" else f"logger={name}"
            raise UserError(f"{key} has no effect: {group}.{name} is left out; take {remedy}")


def flattened(config: Mapping[str, Any], without: Sequence[str] = ()) -> dict[str, Any]:
    """Nested keys joined by dots, without the named keys and what lies below them."""
    left_out = tuple(f"{key}." for key in without)
    return {key: value for key, value in leaves(config, lists=False) if not f"{key}.".startswith(left_out)}
