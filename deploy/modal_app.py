"""python train.py on Modal, with the same words: docs/deploy.md.

    modal run --detach deploy/modal_app.py -- experiment=gpt2_124m trainer=gpu run_dir=runs/gpt2 --gpu=A100-80GB

A preemption, a timeout or a lost machine restarts the function with the same command, which goes on in its run folder.
"""

import signal
import subprocess
import sys
from pathlib import Path

import modal

CHECKOUT = Path("/slm")  # in the container
ROOT = Path(__file__).resolve().parents[1] if modal.is_local() else CHECKOUT
VOLUME = "/volume"  # the working folder: runs/, sweeps/ and cache/ outlast the container
SECRETS = ("wandb", "huggingface")  # WANDB_API_KEY and HF_TOKEN; each is used if the account has it

volume = modal.Volume.from_name("slm", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .pip_install_from_pyproject(str(ROOT / "pyproject.toml"), optional_dependencies=["gpt2", "hf", "zstd"])
    .env({"SLM_CACHE": f"{VOLUME}/cache", "PYTHONUNBUFFERED": "1"})
    .add_local_file(ROOT / "train.py", str(CHECKOUT / "train.py"))
    .add_local_dir(ROOT / "slm", str(CHECKOUT / "slm"), ignore=["**/__pycache__"])
    .add_local_dir(ROOT / "conf", str(CHECKOUT / "conf"), ignore=["local"])
)
app = modal.App("slm", image=image)


@app.function(
    volumes={VOLUME: volume},
    cpu=4.0,
    memory=16 * 1024,  # MiB
    retries=modal.Retries(max_retries=10, initial_delay=0.0),
    single_use_containers=True,  # a retry sees the volume as the last attempt left it
)
def train(command: list[str]) -> int:
    """The exit code of the command. Raises RuntimeError where the same command goes on, so that Modal retries."""
    process = subprocess.Popen(command, cwd=VOLUME, start_new_session=True)
    try:
        code = process.wait()
    except KeyboardInterrupt:  # Modal's signal before a preemption
        process.send_signal(signal.SIGTERM)  # finishes the step and saves it
        process.wait()
        raise
    finally:
        volume.commit()
    if code < 0 or code > 128:
        raise RuntimeError(f"stopped by signal {-code if code < 0 else code - 128}")
    return code


def found_secrets() -> list[modal.Secret]:
    """Those of SECRETS that the account has."""
    found = []
    for name in SECRETS:
        secret = modal.Secret.from_name(name)
        try:
            secret.hydrate()
        except modal.exception.NotFoundError:
            print(f"no secret {name!r}: going on without it")
        else:
            found.append(secret)
    return found


@app.local_entrypoint()
def main(*words: str):
    from modal_job import read  # beside this file, and needed on this machine alone

    job = read(words)
    print(job)
    remote = train.with_options(gpu=job.gpu, timeout=round(3600 * job.hours), secrets=found_secrets())
    if code := remote.spawn(job.command).get():
        print(f"error: exit code {code}; `modal app logs slm` shows why", file=sys.stderr)
        sys.exit(code)
