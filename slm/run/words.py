"""The words of a command beside train.py: RUN, FOLDER, and key=value in the grammar of train.py's overrides."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

from slm.classes import did_you_mean
from slm.errors import UserError
from slm.files import run_folder
from slm.run.instantiate import check, hints_of
from slm.run.overrides import check_single, key_of, parsed, quoted


def divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The places, such as RUN, ckpt=RUN or FOLDER, and the settings, key=value; a path may hold the sign, too."""
    places = [word for word in words if run_folder.named(word) != word or not re.match(r"[\w.]+=", word)]
    return [*map(run_folder.named, places)], [word for word in words if word not in places]


def values_of(words: Sequence[str], *takers: Callable) -> list[dict[str, Any]]:
    """The values of settings for each taker, a dataclass or a function, by its keywords that the words name.

    What takes text takes it as it is typed. Raises: UserError: for a word that cannot be read, a key that no taker has,
    and a value of the wrong type.
    """
    hints = [_keywords(taker) for taker in takers]
    known = {key: hint for its in hints for key, hint in its.items()}
    for key in map(key_of, words):
        if key not in known:
            raise UserError(
                f"{key} is not a setting{did_you_mean(key, [*known]) or '; these are: ' + ', '.join(known)}"
            )
    literal = [key for key, hint in known.items() if hint in (str, str | None)]
    found = parsed([quoted(word, literal) for word in words])
    check_single(found, "; write a list as [a,b]")
    values = [{o.key_or_group: o.value() for o in found if o.key_or_group in its} for its in hints]
    for taker, its in zip(takers, values):
        check(taker, its, "")
    return values


def _keywords(taker: Callable) -> dict[str, Any]:
    """Keyword-only parameter -> type."""
    hints = hints_of(taker.__init__ if inspect.isclass(taker) else taker)
    parameters = inspect.signature(taker).parameters.values()
    return {p.name: hints.get(p.name, Any) for p in parameters if p.kind is p.KEYWORD_ONLY}
