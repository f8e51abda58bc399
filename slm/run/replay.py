"""The overrides of an earlier run, read from its folder, which may be somebody else's.

They are replayed by a fork. Files of others are not executed: a `_target_` in them is taken if conf/ names it, or if it
is a class of torch.optim or one of Lightning's callbacks and loggers; interpolations refer to keys only, and options to
files of conf/. The user types everything else again.
"""

import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override

from slm.classes import locate
from slm.errors import UserError
from slm.files import run_folder
from slm.run import CONF
from slm.run.overrides import GROUPS, key_of, normalized, parsed
from slm.security import leaves

# keys of one run alone
OWN = (
    *("name", "tags", "run_dir", "sweep_dir", "fork", "init_from", "resume", "allow_changes"),
    *("verify_resume", "plan", "prepare"),
)
CLASSES = ("torch.optim.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers.")


def recorded_overrides(folder: Path) -> list[str]:
    """overrides.yaml of a run folder without what is of Hydra or of one run only. Raises UserError if it is damaged."""
    if (found := run_folder.overrides(folder)) is None:
        path = folder / "overrides.yaml"
        raise UserError(f"{path} is missing or damaged, and a fork begins with the overrides of its trunk")
    return normalized([word for word in found if not key_of(word).startswith("hydra") and key_of(word) not in OWN])


def refuse_foreign(folder: Path, words: Sequence[str], given: Mapping[str, Override]):
    """Raises UserError for a recorded override that would call code, or read files or variables, which conf/ does not
    name; not for a key that the command line gives, or whose section it deletes."""
    for word in words:
        (override,) = parsed([word])
        key = override.key_or_group
        sections = [key[:end] for end, char in enumerate(key) if char == "."]
        if key in given or any(section in given and given[section].is_delete() for section in sections):
            continue
        if found := next(foreign_parts(override), None):
            raise UserError(
                f"overrides.yaml of {folder} holds {found}, which is not taken from a file; if you trust it, "
                f"type {shlex.quote(word)} again"
            )


def foreign_parts(override: Override) -> Iterator[str]:
    """What an override holds that is not taken from a file of others."""
    key, value = override.key_or_group, override.value()
    if key.startswith("hydra") or override.package or override.is_sweep_override():
        yield override.input_line
    if key.partition("/")[0] in GROUPS and not isinstance(value, dict | None):
        yield from (str(option) for option in (value if isinstance(value, list) else [value]) if not is_option(option))
    last = key.rpartition(".")[2]
    for name, item in leaves({last: value}):
        if isinstance(item, str) and re.search(r"\$\{(?![\w.]*\})", item):
            yield item
        if "_target_" in name.split(".") and not is_known_target(item):
            yield str(item)


def is_option(value: Any) -> bool:
    """True for the name of a file in a folder of conf/, not outside of it."""
    part = r"[\w-][\w.-]*"
    return re.fullmatch(rf"{part}(/{part})*", str(value)) is not None


def is_known_target(target: Any) -> bool:
    """True for what conf/ names, and for classes of the rooms in CLASSES that are defined there."""
    if not isinstance(target, str) or target in targets_of_conf():
        return isinstance(target, str)
    if not target.startswith(CLASSES):
        return False
    found = locate(target, "")
    return inspect.isclass(found) and f"{found.__module__}.".startswith(CLASSES)


@cache
def targets_of_conf() -> frozenset[str]:
    texts = (path.read_text(encoding="utf-8") for path in CONF.rglob("*.yaml"))
    return frozenset(target for text in texts for target in re.findall(r"_target_: *([\w.]+)", text))
