"""Folders: can they be written, and what room is there?"""

import os
import shutil
import tempfile
from pathlib import Path

from slm.checks.finding import Finding
from slm.files import atomic

LITTLE_DISK = 5e9, 0.5e9  # bytes free: a warning, an error
CACHE = "SLM_CACHE"


def folders() -> dict[str, Path]:
    """What a run writes to without further keys: as in conf/train.yaml."""
    cache = atomic.expanded(os.environ.get(CACHE, "~/.cache/slm"))
    return {"cache": cache, "runs": Path("runs").absolute(), "temporary files": Path(tempfile.gettempdir())}


def disk() -> list[Finding]:
    """One finding for each folder: writable, and with room."""
    remedies = {
        "cache": f"set {CACHE}=FOLDER, or cache_dir=FOLDER",
        "runs": "give runs_dir=FOLDER, or change the folder",
    }
    found = []
    for name, folder in folders().items():
        fix = remedies.get(name, "set TMPDIR=FOLDER")
        place = next(parent for parent in (folder, *folder.parents) if parent.exists())
        try:
            tempfile.TemporaryFile(dir=place).close()
            free = shutil.disk_usage(place).free
        except OSError as error:
            found.append(Finding(name, "error", f"{folder} cannot be written: {error.strerror}", fix))
            continue
        warn, fail = LITTLE_DISK
        status = "error" if free < fail else "warning" if free < warn else "ok"
        fix = "" if status == "ok" else f"make room (python -m slm.cache prune deletes old tokens), or {fix}"
        found.append(Finding(name, status, f"{folder}, writable, {free / 1e9:.1f} GB free", fix))
    return found


def cache() -> Finding:
    """The size of tokenizers and token stores."""
    from slm.cache import entries  # imports numpy, which may be missing

    folder = folders()["cache"]
    found = entries(folder) if folder.is_dir() else []
    kept = f"{len(found)} tokenizers and token stores, {sum(entry.bytes for entry in found) / 1e9:.2f} GB"
    return Finding("cached", "ok", kept, "python -m slm.cache lists them" if found else "")
