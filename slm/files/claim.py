"""The folder of a run or a sweep in the hands of one process: created, locked, and not one of something else."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from slm import system
from slm.errors import DISK_ERRORS, ResourceError, UserError
from slm.files import atomic
from slm.files.run_folder import PARTIAL_FILE

# of operating systems, and of Hydra, which writes the last one into the folder of a sweep before the sweep begins
SYSTEM_FILES = "lost+found", "Thumbs.db", "desktop.ini", "Icon\r", "multirun.yaml"
Kind = Literal["run", "sweep"]


@contextlib.contextmanager
def claimed(folder: Path, kind: Kind) -> Iterator[None]:
    """Creates and locks a folder. A folder created here is removed again if no run or sweep started in it.

    Raises UserError if another process holds the lock or the path is a file, ResourceError if it cannot be written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in created:
            atomic.flush(path.parent)
        lock.touch()
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{kind}_dir={folder} is a file; give a folder") from None
    except OSError as error:
        error_class = ResourceError if error.errno in DISK_ERRORS else UserError
        raise error_class(f"{kind} folder {folder} cannot be written: {error.strerror}; give another one") from None
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(atomic.locked(lock, wait=False))
        except BlockingIOError:
            holder = ""
            with contextlib.suppress(OSError):
                holder = f" by process {lock.read_text(encoding='utf-8')}"
            problem = f"{kind} folder {folder} is in use{holder}"
            raise UserError(f"{problem}; wait for it, or give another {kind}_dir") from None
        try:
            yield
        finally:
            if created and not (folder / f"{kind}.json").exists():
                if system.WINDOWS:  # which deletes no open file, while elsewhere another process could lock it now
                    held.close()
                with contextlib.suppress(OSError):  # a folder that is not empty stays
                    lock.unlink(missing_ok=True)
                    for path in created:
                        path.rmdir()


def lock_inode(folder: Path) -> int | None:
    """Inode of the folder's lock file, which changes if the folder was replaced; None if it is gone."""
    try:
        return (folder / ".lock").stat().st_ino
    except OSError:
        return None


def check_folder(folder: Path, kind: Kind):
    """Raises UserError for a folder with files but no run.json or sweep.json: nothing of it may be deleted."""
    if folder.is_file():
        raise UserError(f"{kind}_dir={folder} is a file; give a folder")
    if (others := _visible(folder)) and not (folder / f"{kind}.json").exists():
        raise UserError(
            f"{kind}_dir={folder} holds {others[0].name} but no {kind}.json, so it is not a {kind}; give a new folder"
        )


def discard(folder: Path):
    """Deletes what this process has written into a new folder, which `check_folder` has found empty."""
    for path in _visible(folder):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else atomic.remove(path)


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, but for hidden files, SYSTEM_FILES and partial ones."""
    return [
        path
        for path in atomic.entries(folder)
        if not (path.name.startswith(".") or path.name in SYSTEM_FILES or PARTIAL_FILE.fullmatch(path.name))
    ]
