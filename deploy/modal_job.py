"""What deploy/modal_app.py runs on Modal: the command line, the GPU and the hours, from the words of train.py.

`python deploy/modal_job.py experiment=gpt2_124m trainer=gpu` prints them, without Modal's package or an account.
"""

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

CHECKOUT = "/slm"  # in the container, where modal_app.py puts it; the working folder is the volume
GPUS = {  # trainer preset -> Modal's GPU of that memory, or None for a CPU
    "auto": "A10",
    "gpu": "A10",
    "ddp": "A10",
    "fsdp": "A10",
    "rtx4090": "A10",
    "t4": "T4",
    "cpu": None,
    "ddp_sim": None,
    "debug": None,
}
SEVERAL = ("ddp", "fsdp")  # presets whose devices are all those of the machine
FOLDERS = ("run_dir", "runs_dir", "sweep_dir", "cache_dir")
MAX_HOURS = 24  # of one attempt on Modal; a retry goes on


@dataclass(frozen=True, kw_only=True)
class Job:
    """A training on Modal: the words of its command, its GPUs such as A10:2 (None: a CPU), the hours of one attempt."""

    command: list[str]
    gpu: str | None
    hours: float

    @classmethod
    def from_words(cls, words: Sequence[str]) -> "Job":
        """Reads the words of train.py, with --gpu=TYPE[:COUNT] and --hours=N among them.

        A run that names no folder gets one, so that a retry of the same command goes on in it. Raises ValueError.
        """
        parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False, add_help=False)
        parser.add_argument("--gpu")
        parser.add_argument("--hours", type=float, default=MAX_HOURS)
        try:
            flags, overrides = parser.parse_known_args([word for word in words if word != "--"])
        except argparse.ArgumentError as error:
            raise ValueError(f"{error}; as in --gpu=A100-80GB --hours=6") from None
        if not 0 < flags.hours <= MAX_HOURS:
            raise ValueError(f"--hours={flags.hours:g} must be above 0 and at most {MAX_HOURS}; a retry goes on")
        values = dict(word.split("=", 1) for word in overrides if "=" in word)
        gpu = flags.gpu or default_gpu(values)
        command = ["python", f"{CHECKOUT}/train.py", *overrides, *new_folder(values, sweep="-m" in overrides)]
        return cls(command=command, gpu=gpu, hours=flags.hours)

    def __str__(self) -> str:
        machine = f"GPU {self.gpu}" if self.gpu else "CPU"
        return f"{machine}, at most {self.hours:g} hours per attempt\n{shlex.join(self.command)}"


def default_gpu(values: dict[str, str]) -> str | None:
    """Modal's GPU for the trainer preset of these overrides, with trainer.devices as its count. Raises ValueError."""
    preset = values.get("trainer", "auto")
    if preset not in GPUS:
        raise ValueError(f"trainer={preset} has no GPU of Modal; take one of {', '.join(GPUS)}, or give --gpu=TYPE")
    devices = values.get("trainer.devices", "auto" if preset in SEVERAL else "1")
    if GPUS[preset] and devices == "auto":
        raise ValueError(f"trainer={preset} takes all GPUs, and Modal must know how many; give --gpu={GPUS[preset]}:2")
    return f"{GPUS[preset]}:{devices}" if GPUS[preset] and devices != "1" else GPUS[preset]


def new_folder(values: dict[str, str], *, sweep: bool) -> list[str]:
    """The override of a folder on the volume, where none is given. Raises ValueError for one outside the volume."""
    for key in FOLDERS:
        if values.get(key, "").startswith(("/", "~")):
            raise ValueError(f"{key}={values[key]} is not on the volume; give a relative folder, as in {key}=mine")
    if "run_dir" in values or "sweep_dir" in values:
        return []
    now = time.strftime("%Y-%m-%d_%H%M%S")
    return [f"sweep_dir=sweeps/{now}" if sweep else f"run_dir=runs/{now}"]


def read(words: Sequence[str]) -> Job:
    """The job of these words; a mistake ends the program with one line and exit code 2."""
    try:
        return Job.from_words(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    print(read(sys.argv[1:]))
