"""What a command sweeps: the keys with several values, and what another start of the same sweep may change."""

from collections.abc import Sequence
from pathlib import Path

from slm.errors import UserError
from slm.files.sweep_folder import Sweep
from slm.run.overrides import key_of, parsed

FREE = (  # keys that another start of a sweep may change: they have no influence on results
    *("report", "sweep_dir", "cache_dir", "runs_dir", "data.workers", "data.timeout", "trainer.microbatch"),
    *("trainer.auto_microbatch", "trainer.accumulate_grad_batches", "model.gradient_checkpointing"),
)


def check_command(folder: Path, sweep: Sweep, command: Sequence[str]):
    """Raises UserError if a command differs from that of a sweep in more than the values of its swept keys."""
    if not sweep.jobs:
        return
    old, new = (settings(words, sweep.swept) for words in (sweep.command, command))
    for key in sorted(old.keys() | new.keys()):
        before, now = (f"with {key}{values[key]}" if key in values else f"without {key}" for values in (old, new))
        if before != now and not (key in sweep.swept and key in new):
            raise UserError(
                f"sweep_dir={folder} was started {before}, not {now}; only the values of its swept keys "
                f"({', '.join(sweep.swept) or 'none'}) may change: give the same, or another sweep_dir"
            )


def settings(command: Sequence[str], swept: Sequence[str]) -> dict[str, str]:
    """Key -> value, with =, of a command without what may change; ` swept` for the keys of the sweep."""
    found = {}
    for override in parsed(command):
        key, value = key_of(override.input_line), override.input_line.partition("=")[2]
        if not key.startswith(("hydra.", "hydra/")) and key not in FREE:
            is_swept = key in swept or override.is_sweep_override()
            found[key] = " swept" if is_swept else " left out" if override.is_delete() else f"={value}"
    return found


def fixed_keys(command: Sequence[str]) -> set[str]:
    """The keys to which a command gives one value. The last override of a key counts, as in Hydra."""
    is_swept = {key_of(override.input_line): override.is_sweep_override() for override in parsed(command)}
    return {key for key, several in is_swept.items() if not several}


def swept_values(overrides: Sequence[str], fixed: set[str]) -> dict[str, str]:
    """Key -> value of a job's overrides that the command does not fix."""
    pairs = ((key_of(override), override.partition("=")[2]) for override in overrides)
    values = {key: value for key, value in pairs if key not in fixed and not key.startswith("hydra.")}
    return {key: values[key] for key in ("variant", "seed")} if "variant" in values else values  # of an ablation
