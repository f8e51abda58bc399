"""The commands, and slm.train: arguments to a configuration by Hydra, mistakes to one line, outcomes to exit codes."""

import gc
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from slm.classes import given
from slm.errors import Stopped, UserError, explain, one_line, one_line_errors, report
from slm.files import atomic, json_line
from slm.files.run_folder import new_folder
from slm.results import Run, facts
from slm.run import CONF, ablation  # noqa: F401  (ablation: Hydra's sweeper)
from slm.run.compose import composed, one_line_composition, plain
from slm.run.names import GENERATION_SYNONYMS, hint_for_word
from slm.run.overrides import check_no_sweep, check_single, expanded, key_of, parsed, quoted, read_arguments
from slm.run.process import is_new, printed_once
from slm.run.sweep import recording
from slm.run.sweep_jobs import Outcome, is_listed, process_name, recorded_job
from slm.security import refuse_secrets


def train_main():
    """python train.py: exits with 0, 2, 3, 4, 129, 130, 143, 152, or 1 and a traceback for a bug of this program."""
    outcomes: list[Outcome] = []
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors, so that one_line_errors can print them
    arguments = sys.argv[1:]
    with one_line_errors(), json_line.printed(arguments), one_line_errors():
        overrides, flags, read = read_arguments(arguments)
        sys.argv[1:] = [*overrides, *flags]
        places = {"dir": read.config_dir, "name": read.config_name, "path": read.config_path}
        own_files = [f"--config-{key}={value}" for key, value in places.items() if value]
        if read.multirun and (is_given("prepare", overrides) or is_given("plan", overrides)):
            from slm.run.without_training import plan_sweep, prepare_sweep

            return prepare_sweep() if is_given("prepare", overrides) else plan_sweep()
        launching_process = process_name()  # the function below may run in another one

        @hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
        def job(cfg: DictConfig) -> float:
            hydra_config = HydraConfig.get()
            folder = Path(hydra_config.runtime.output_dir)
            if hydra_config.mode == RunMode.MULTIRUN and is_listed(folder):
                is_worker = process_name() != launching_process
                return recorded_job(folder, is_worker, lambda: run_job(cfg, own_files))
            outcomes.append(run_job(cfg, own_files))
            if outcomes[-1].failure:
                json_line.note(error=outcomes[-1].failure)
            if outcomes[-1].stopped:
                sys.exit(outcomes[-1].exit_code)
            return math.nan if outcomes[-1].objective is None else outcomes[-1].objective

        with recording(overrides) as launchers, printed_once():
            try:
                with one_line_composition():
                    job()
            except SystemExit as end:  # Hydra's own, for a package that does not exist
                sys.exit(2 if read.cfg and end.code == 1 else end.code)
            except UserError:  # of a sweeper that cannot go on
                for launcher in launchers:
                    launcher.conclude()
                raise
            codes = [launcher.conclude() for launcher in launchers]
        if code := max((*codes, *(outcome.exit_code for outcome in outcomes)), default=0):
            sys.exit(code)
    sys.exit(0)


def is_given(key: str, overrides: Sequence[str]) -> bool:
    """True if the last override of a key is another value than false."""
    values = [override.partition("=")[2] for override in overrides if key_of(override) == key]
    return values[-1:] not in ([], ["false"])


def generate_main():
    """python generate.py: the value of prompt= is taken literally, whatever it contains."""
    arguments = sys.argv[1:]
    with one_line_errors(), json_line.printed(arguments), one_line_errors():
        prompts = [argument for argument in arguments if argument.lstrip("+").startswith("prompt=")]
        others = [argument for argument in arguments if argument not in prompts]
        refuse_secrets(dict(argument.partition("=")[::2] for argument in others if not argument.startswith("token=")))
        if any(word in ("-h", "--help") for word in others):
            return print(
                "python generate.py [key=value ...]\n\n" + (CONF / "generate.yaml").read_text(encoding="utf-8")
            )
        known = list(yaml.safe_load((CONF / "generate.yaml").read_text(encoding="utf-8")))
        for word in others:
            if word.startswith("-") or "=" not in word:
                hint = hint_for_word(word, None, known, GENERATION_SYNONYMS)
                hint = f"; did you mean ckpt={word}?" if Path(word).suffix in (".ckpt", ".pt") else hint
                raise UserError(f"{word} is not key=value{hint or '; python generate.py --help lists the keys'}")
        overrides = [quoted(argument.replace("ckpt_path=", "ckpt=", 1)) for argument in others]
        check_single(parsed(overrides), ", and generate.py takes one")
        config, _ = composed("generate", overrides)
        from slm.generation.command import Request, generate_command
        from slm.run.read_config import typed

        signal.signal(signal.SIGINT, signal.default_int_handler)

        if prompts:
            config["prompt"] = prompts[-1].partition("=")[2]
        request = typed(Request, config, "")
        classes = given(request)
        if request.ui or request.serve:
            from slm.serving.command import serve_command

            return serve_command(request, classes)
        generate_command(request, classes)


def compose(overrides: Sequence[str] = ()):
    """The RunConfig of these overrides, as `python train.py` would read them. Raises UserError."""
    from slm.run.read_config import read_config

    overrides = expanded(overrides)
    check_single(parsed(overrides), ", and one run takes one")
    check_no_sweep(overrides)
    return read_config(*composed("train", overrides))


def train(overrides: str | Sequence[str] = ()) -> Run:
    """slm.train: trains like `python train.py` with these overrides, and returns the run.

    A run stopped by Ctrl-C or SIGTERM has the status "stopped"; the same run_dir resumes it. Raises UserError,
    ResourceError or Diverged.
    """
    overrides = expanded([overrides] if isinstance(overrides, str) else overrides)
    config = compose(overrides)
    try:
        folder = choose_folder(config)
        if run(config, folder, overrides)[1]:
            raise UserError("verify_resume: the resumed run differs, see above")
    except Stopped:
        pass
    finally:
        os.environ.pop("SLM_RUN_DIR", None)
    return Run(folder)


def run_job(cfg: DictConfig, own_files: Sequence[str]) -> Outcome:
    """One run of train.py, alone or in a sweep. A mistake in one job does not end the sweep.

    `own_files` are the flags that name configuration files of the user, for other processes of the job.
    """
    hydra_config, arguments, environment = HydraConfig.get(), sys.argv[1:], dict(os.environ)
    sweep = hydra_config.mode == RunMode.MULTIRUN
    overrides = OmegaConf.to_container(hydra_config.overrides.task)  # interpolations as they were typed
    try:
        values = plain(cfg, hydra_config.runtime.choices, overrides)
        from slm.run.read_config import read_config

        config = read_config(*values)
        if sweep:
            if config.run_dir:
                raise UserError(f"run_dir={config.run_dir} is one folder and -m makes many; give sweep_dir=<folder>")
            overrides = [override for override in overrides if key_of(override) != "sweep_dir"]
            folder = Path(hydra_config.runtime.output_dir)
            print(f"\n{folder.name}", flush=True)
            run_dir = choose_folder(config) if config.trainer.fast_dev_run else folder
            # the arguments of the other processes of a distributed job
            os.environ["SLM_RUN_DIR"], sys.argv[1:] = str(run_dir), [*overrides, *own_files]
        else:
            run_dir = choose_folder(config)
        again = f"sweep_dir={hydra_config.sweep.dir}" if sweep else None
        return Outcome(*run(config, run_dir, overrides, own_files, again))
    except Stopped as stopped:
        return Outcome(None, stopped.exit_code, stopped=True)
    except Exception as error:
        if explanation := explain(error):
            failure = one_line(explanation)
            code = report(explanation) if is_new(failure) else explanation.exit_code
            return Outcome(None, code, failure)
        traceback.print_exc()
        return Outcome(None, 1, one_line(f"{type(error).__name__}: {error}"))
    finally:
        os.environ.clear()
        os.environ.update(environment)
        sys.argv[1:] = arguments
        gc.collect()  # a Trainer is full of cycles, which would keep the memory of a GPU from the next job of a sweep


def run(
    config, run_dir: Path, overrides: list[str], own_files: Sequence[str] = (), again: str | None = None
) -> tuple[float, int]:
    """Trains, prepares, plans, or verifies that a run resumes exactly. Returns the objective and the exit code."""
    if config.prepare or config.plan:
        from slm.run.without_training import plan_run, prepare_runs

        if config.prepare:
            prepare_runs([config])
        else:
            plan_run(config)
        return math.nan, 0
    if config.verify_resume:
        from slm.run.verify_resume import verify_resume

        same = verify_resume([*own_files, *overrides], run_dir.resolve().with_name(f"verify_{run_dir.name}"))
        json_line.note(resumes_exactly=same)
        return math.nan, 0 if same else 1
    from slm.hardware import is_first_process
    from slm.run.train import train as train_into

    temporary = config.trainer.fast_dev_run and is_first_process(config.trainer)
    json_line.note_at_end(lambda: facts(run_dir))
    try:
        objective = train_into(config, run_dir=run_dir, overrides=overrides, again=again)
    finally:
        if temporary:
            shutil.rmtree(run_dir, ignore_errors=True)
    return math.nan if objective is None else objective, 0


def choose_folder(config) -> Path:
    """run_dir, or a new folder, whose name the other processes of a distributed run read from the environment."""
    if config.trainer.fast_dev_run:
        if "SLM_RUN_DIR" not in os.environ:
            os.environ["SLM_RUN_DIR"] = tempfile.mkdtemp(prefix="slm_fast_dev_run_")
        return Path(os.environ["SLM_RUN_DIR"])
    if config.run_dir:
        return atomic.expanded(config.run_dir)
    from slm.hardware import launched_processes  # imports torch

    if launched_processes(config.trainer) > 1 and "SLM_RUN_DIR" not in os.environ:
        raise UserError("several processes need to know one folder; give run_dir=<folder>")
    folder = new_folder(Path(config.runs_dir), config.name, time.strftime("%Y-%m-%d_%H%M%S"))
    return Path(os.environ.setdefault("SLM_RUN_DIR", str(folder)))
