"""Which code a run is made of: the commit, uncommitted changes, and the files of the classes that it names."""

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Mapping
from functools import cache
from typing import Any

from slm.classes import file_hash, locate, name_of
from slm.errors import UserError
from slm.model import GPT
from slm.run import PACKAGE
from slm.security import leaves

CODE = ("slm", "conf", "*.py", "*.yaml")  # new files that may change a run; not its logs and data


def classes(config: Mapping[str, Any]) -> dict[str, dict[str, str | None]]:
    """Key -> the class or function that it names by `_target_`, and the sha256 of the file that defines it.

    None for one without a Python file. The model is slm.model.GPT unless the configuration names another.
    """
    found = {"model": GPT}
    for key, target in leaves(config):
        if key.endswith("._target_"):
            with contextlib.suppress(UserError):  # an interpolation, in a setting that is not built
                found[key.removesuffix("._target_")] = locate(target, key)
    return {key: {"class": name_of(its), "sha256": file_hash(its)} for key, its in found.items()}


@cache  # what is imported stays the same
def source_code() -> dict[str, str | None]:
    """The commit of this program's source tree, and a hash of uncommitted changes and new files; None without git."""
    commit, diff = _git("rev-parse", "HEAD"), _git("diff", "HEAD")
    new = (_git("ls-files", "--others", "--exclude-standard", "-z", *CODE) or b"").split(b"\0")[:-1]
    files = {name: PACKAGE.parent / os.fsdecode(name) for name in new}
    content = [name + path.read_bytes() for name, path in files.items() if path.is_file()]
    dirty = b"".join([diff or b"", *content])
    return {
        "git_commit": commit and commit.decode().strip(),
        "git_dirty": hashlib.sha256(dirty).hexdigest() if dirty else None,
    }


def _git(*arguments: str) -> bytes | None:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=PACKAGE.parent, capture_output=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
