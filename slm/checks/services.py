"""What lies outside of the machine, its clock, and git."""

import os
import time
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from slm.checks.finding import Finding
from slm.checks.machine import answer_of
from slm.checks.packages import ROOT
from slm.errors import one_line
from slm.security import has_wandb_key

SECONDS = 3  # for an answer
FAR_CLOCK = 300  # seconds
WRITTEN = 1_767_225_600  # 2026-01-01: no clock that is right shows less


def hub() -> list[Finding]:
    """The Hugging Face Hub, and the clock by its answer."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    offline = "data=storyworld and data=text need no network; for others, prepare=true where there is one"
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false"):
        return [Finding("Hub", "warning", "HF_HUB_OFFLINE is set", f"{offline}, or unset it"), clock(None)]
    answer, reason = answered(address)
    if answer is None:
        return [
            Finding("Hub", "warning", f"no answer from {address} ({reason})", f"{offline}; HTTPS_PROXY?"),
            clock(None),
        ]
    return [Finding("Hub", "ok", f"{address} answers"), clock(answer.headers.get("Date"))]


def answered(address: str):
    """The response to a request without content, or None; and the reason."""
    try:
        import requests  # as huggingface_hub and W&B do: with its certificates and proxies
    except ImportError:
        return None, "requests is not installed"
    try:
        return requests.head(address, timeout=SECONDS), None
    except (requests.RequestException, ValueError) as error:
        return None, one_line(type(error).__name__, 100)


def clock(date: str | None) -> Finding:
    """Against the date of an HTTP answer, if there is one."""
    now = time.time()
    shown, fix = (
        time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "set the clock (timedatectl set-ntp true): names of runs have it",
    )
    if now < WRITTEN:
        return Finding("clock", "warning", f"{shown} is in the past", fix)
    if date is None:
        return Finding("clock", "ok", f"{shown}, not compared")
    if abs(off := now - parsedate_to_datetime(date).timestamp()) > FAR_CLOCK:
        return Finding("clock", "warning", f"{shown} is {off:+.0f} s away from the Hub's", fix)
    return Finding("clock", "ok", shown)


def wandb() -> Finding:
    """Whether there is a key, never the key."""
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if os.environ.get("WANDB_MODE") in ("offline", "disabled"):
        return Finding("W&B", "ok", f"WANDB_MODE={os.environ['WANDB_MODE']}")
    if not has_wandb_key(urlsplit(address).hostname):
        return Finding("W&B", "ok", "no key: logger=wandb records offline", "wandb login, to see runs on the web")
    answer, reason = answered(address)
    if answer is None:
        return Finding(
            "W&B", "warning", f"a key, but no answer from {address} ({reason})", "wandb sync RUN/wandb/offline-* later"
        )
    return Finding("W&B", "ok", f"a key, and {address} answers")


def git() -> Finding:
    """Whether run.json can name the commit."""
    fix = "git clone instead of an archive, and install git: run.json then names the code of a run"
    commit = answer_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD", seconds=3)
    if not commit:
        return Finding("git", "warning", f"{ROOT} is not a checkout that git can read", fix)
    changed = answer_of("git", "-C", str(ROOT), "status", "--porcelain", seconds=3)
    return Finding("git", "ok", f"commit {commit}{', with changes' if changed else ''}")
