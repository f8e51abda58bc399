"""The command lines: arguments to configuration through Hydra, mistakes to one line, outcomes to exit codes."""

import contextlib
import math
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from slm.errors import Stopped, UserError, refusal, report
from slm.files import atomic
from slm.files.run_folder import file_name, flatten, new_folder
from slm.run.instantiate import check, did_you_mean, is_node, locate
from slm.security import NAME, check_files, check_flag, check_hydra, refuse_secrets

CONF = Path(__file__).parents[2] / "conf"
LITERAL = (  # taken as they are, not as Hydra's grammar
    *("prompts_file", "ckpt", "run_dir", "runs_dir", "cache_dir", "resume"),
    *("data.path", "data.separator"),
)
OPEN = ("callbacks", "hooks", "logger", "hydra", "tags")  # where a user may add names with +
LENGTHS = ("budget.steps", "budget.tokens", "budget.epochs")

OmegaConf.register_new_resolver("slm.file_name", file_name, replace=True)
OmegaConf.register_new_resolver("slm.or", lambda first, second: first or second, replace=True)


def train_main():
    """python train.py: composes, checks, trains. Exits with 0, 2, 3, 4, 130, 143, or 1 and a traceback for our bugs."""
    outcomes: list[Outcome] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
    def job(cfg: DictConfig) -> float:
        outcomes.append(run_job(cfg))
        return outcomes[-1].objective

    os.environ["HYDRA_FULL_ERROR"] = "1"  # it raises what it finds wrong, so that here it is one line
    with one_line_errors():
        refuse_secrets(dict(argument.partition("=")[::2] for argument in sys.argv[1:]))
        check_files(CONF)
        sys.argv[1:] = [quoted(argument) for argument in one_length(sys.argv[1:])]
        check_overrides(overrides_of(sys.argv[1:]), multirun())
        job()
    if multirun():
        print("\nobjective  run")
        for outcome in outcomes:
            print(f"{outcome.objective:.4f}  {outcome.name}" + ("  failed, see above" if outcome.exit_code else ""))
    sys.exit(max((outcome.exit_code for outcome in outcomes), default=0))


def generate_main():
    """python generate.py: what follows prompt= is taken literally, whatever it contains."""
    with one_line_errors():
        prompts = [argument for argument in sys.argv[1:] if argument.startswith("prompt=")]
        others = [argument for argument in sys.argv[1:] if argument not in prompts]
        refuse_secrets(dict(argument.partition("=")[::2] for argument in others))
        for word in others:
            if word.startswith("-") and word not in ("-h", "--help"):
                raise UserError(f"{word} is not taken; give key=value, and python generate.py --help lists the keys")
        overrides = [quoted(argument.replace("ckpt_path=", "ckpt=", 1)) for argument in others]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            base = OmegaConf.to_container(hydra.compose("generate"))
            if any(argument in ("-h", "--help") for argument in overrides):
                return print("python generate.py [key=value ...]\n\n" + (CONF / "generate.yaml").read_text())
            for override in parsed(overrides):
                check_key(override, base)
                if override.is_sweep_override():
                    raise UserError(f"{override.input_line} gives several values, and generate.py takes one")
            config = OmegaConf.to_container(hydra.compose("generate", overrides=overrides), resolve=True)
        from slm.generation.command import Request, generate_command

        signal.signal(signal.SIGINT, signal.default_int_handler)

        if prompts:
            config["prompt"] = prompts[-1].removeprefix("prompt=")
        check(Request, config, "")
        generate_command(Request(**config))


@dataclass(frozen=True)
class Outcome:
    """How a job of a sweep, or the only one, ended."""

    name: str
    objective: float
    exit_code: int


def run_job(cfg: DictConfig) -> Outcome:
    """One run of train.py, alone or in a sweep, which goes on when one of its jobs fails."""
    from slm.run.config import Settings, typed
    from slm.run.train import train
    from slm.run.verify_resume import rehearse

    hydra_config, name, arguments = HydraConfig.get(), "run", sys.argv[1:]
    try:
        typed(Settings, OmegaConf.to_container(cfg, resolve=True), "")
        for folder in ("cache_dir", "runs_dir"):
            cfg[folder] = str(atomic.expanded(cfg[folder]))
        config = OmegaConf.to_container(cfg, resolve=True)
        config["name"] = config["name"] or hydra_config.runtime.choices["model"]
        refuse_secrets(config)
        if hydra_config.mode == RunMode.MULTIRUN:
            if config["run_dir"]:
                raise UserError(f"run_dir={config['run_dir']} is one folder and -m makes many; leave it out")
            run_dir = Path(hydra_config.runtime.output_dir)
            print(f"\n{run_dir.name}", flush=True)
            # what the other processes of a distributed job are started with
            os.environ["SLM_RUN_DIR"], sys.argv[1:] = str(run_dir), list(hydra_config.overrides.task)
        else:
            run_dir = own_folder(config)
        name = run_dir.name
        if config["verify_resume"]:
            same = rehearse(list(hydra_config.overrides.task), run_dir.resolve().with_name(f"verify_{name}"))
            return Outcome(name, math.nan, 0 if same else 1)
        objective = train(config, run_dir=run_dir, overrides=list(hydra_config.overrides.task))
        return Outcome(name, math.nan if objective is None else objective, 0)
    except Stopped as stopped:
        sys.exit(stopped.exit_code)
    except (UserError, OmegaConfBaseException) as error:
        return Outcome(name, math.nan, report(error))
    except Exception as error:
        if refused := refusal(error):
            return Outcome(name, math.nan, report(refused))
        traceback.print_exc()
        return Outcome(name, math.nan, 1)
    finally:
        os.environ.pop("SLM_RUN_DIR", None)
        sys.argv[1:] = arguments


def own_folder(config: dict) -> Path:
    """run_dir, or a new folder, which the other processes of a distributed run learn from the environment."""
    if config["run_dir"]:
        return atomic.expanded(config["run_dir"])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "SLM_RUN_DIR" not in os.environ:
        raise UserError("several processes need one folder that they all know; give run_dir=<folder>")
    moment = time.strftime("%Y-%m-%d_%H%M%S")
    folder = os.environ.setdefault("SLM_RUN_DIR", str(new_folder(Path(config["runs_dir"]), config["name"], moment)))
    return Path(folder)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line and an exit code for everything that is not our bug."""
    try:
        yield
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(report(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        if not (refused := refusal(error)):
            raise
        sys.exit(report(refused))


def multirun() -> bool:
    return any(argument in ("-m", "--multirun") for argument in sys.argv[1:])


def one_length(arguments: list[str]) -> list[str]:
    """Lengths of training on the command line take the place of the configured one."""
    given = [argument.lstrip("+").split("=", 1)[0] for argument in arguments]
    if any(key in given for key in LENGTHS):
        return [*arguments, *(f"{key}=null" for key in LENGTHS if key not in given)]
    return arguments


def overrides_of(arguments: list[str]) -> list[str]:
    """The overrides among the arguments. Raises UserError for a word that is neither one nor part of a flag."""
    overrides, before = [], ""
    for word in arguments:
        if word.startswith("-"):
            check_flag(word)
        elif "=" in word or word.startswith("~"):
            overrides.append(word)
        elif not before.startswith("-"):
            raise UserError(f"{word!r} is not key=value; python train.py --help lists the keys")
        before = word if word not in ("-m", "--multirun") else ""
    return overrides


def quoted(argument: str) -> str:
    """Quotes a path for Hydra's grammar, in which commas, equals signs, stars and numbers mean something else."""
    key, equals, value = argument.partition("=")
    if key.lstrip("+") not in LITERAL or not equals or re.fullmatch(r"null|'.*'|\".*\"", value):
        return argument
    escaped = value.replace("'", "\\'")
    return f"{key}='{escaped}'"


def parsed(overrides: list[str]) -> list[Override]:
    parser, found = OverridesParser.create(), []
    for override in overrides:
        try:
            found += parser.parse_overrides([override])
        except HydraException:  # whose message repeats the value, which may be a secret
            key = override.partition("=")[0]
            raise UserError(f"cannot read {key}; write key=value, and quote special characters") from None
    return found


def check_overrides(overrides: list[str], sweep: bool):
    """Raises UserError for an unknown option or key, also behind +, with the nearest name, and for closed doors."""
    options, values, own = sorted_out(overrides, sweep)
    base = composition(options, own)
    if swept := base["hydra"]["sweeper"].get("params"):  # overrides that a file gives
        more, others, refused = sorted_out([f"{key}={value}" for key, value in swept.items()], sweep=True)
        if refused or any(override.key_or_group == "trusted_targets" for override in others):
            raise UserError("hydra.sweeper.params may set neither hydra nor trusted_targets")
        options, values = more | options, [*others, *values]
        base = composition(options, own)
    for group, choices in options.items():
        for choice in choices[1:]:
            composition({**options, group: [choice]}, own)
    for override in values:
        check_key(override, base)


def sorted_out(overrides: list[str], sweep: bool) -> tuple[dict[str, list], list[Override], list[str]]:
    """The options chosen in each group, the overrides of values, and those of Hydra's own node as they were given."""
    known = {path.name: [file.stem for file in path.glob("*.yaml")] for path in CONF.iterdir() if path.is_dir()}
    options, values, own = {}, [], []
    for override in parsed(overrides):
        key, swept = override.key_or_group, override.is_sweep_override()
        endless = override.value_type == ValueType.INTERVAL_SWEEP
        given = [None] if endless else list(override.sweep_iterator()) if swept else [override.value()]
        for value in given:
            refuse_secrets({key: value})
        if override.is_delete():
            raise UserError(f"{override.input_line} takes a key away; give {key}=null instead")
        if swept and not sweep:
            raise UserError(f"{override.input_line} gives several values; add -m to run each of them")
        if key in known and override.package is None:
            for choice in given:
                if choice not in (None, "null", *known[key]):
                    names = ", ".join(sorted(known[key]))
                    raise UserError(f"{key}={choice} is not one of {names}{did_you_mean(str(choice), known[key])}")
            options[key] = given
        elif re.fullmatch(r"hydra(/[a-z_]+)+", key) and NAME.fullmatch(str(given[0])):
            own.append(override.input_line)
        elif "/" in key or override.package is not None:
            raise UserError(f"{override.input_line} is none of the options in conf/")
        else:
            values.append(override)
            own += [override.input_line] if key.partition(".")[0] == "hydra" else []
    return options, values, own


def composition(options: dict[str, list], own: list[str]) -> dict:
    """conf/ with the first of the options, unresolved, if it does nothing that no configuration may."""
    chosen = [f"{group}={choices[0]}" for group, choices in options.items()]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        base = OmegaConf.to_container(hydra.compose("train", overrides=[*chosen, *own], return_hydra_config=True))
    if "local" in base:
        raise UserError("conf/local/default.yaml must begin with the line: # @package _global_")
    known = OmegaConf.load(CONF / "train.yaml").keys() | {path.name for path in CONF.iterdir() if path.is_dir()}
    if unknown := base.keys() - known:
        raise UserError(f"conf/local or an experiment sets {min(unknown)}{did_you_mean(min(unknown), list(base))}")
    check_hydra(base["hydra"])
    refuse_secrets(base)
    return base


def check_key(override: Override, base: dict):
    """The key must be in the configuration, or, behind +, be taken by the constructor whose node it joins."""
    node, path = base, override.key_or_group.split(".")
    for name in path[:-1]:
        node = node.get(name) if isinstance(node, dict) else None
    if isinstance(node, dict) and path[-1] in node:
        return
    if override.is_add() or override.is_force_add():
        if path[0] in OPEN and path[0] in base:
            return
        if is_node(node):
            where = ".".join(path[:-1])
            check(locate(node["_target_"], where, base["trusted_targets"]), {path[-1]: override.value()}, where)
            return
    known = [*base, *(key for key in flatten(base) if not key.startswith("hydra."))]
    last = [key for key in known if key.rpartition(".")[2] == path[-1]]  # the right name at another place
    hint = did_you_mean(override.key_or_group, known) or (f"; did you mean {last[0]}?" if last else "")
    raise UserError(f"there is no key {override.key_or_group}{hint}")
