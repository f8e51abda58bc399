"""Classes and functions from outside slm: by their dotted paths, and the code that they are made of."""

import contextlib
import hashlib
import inspect
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any

from slm.errors import UserError

OPTIONS = {"model": "my_models.Recurrent", "tokenizer": "my_tokenizers.Words"}  # part of a checkpoint -> example


def locate(path: str, key: str) -> Callable:
    """The class, function or classmethod with that dotted path. Raises UserError if it cannot be imported."""
    parts = path.split(".") if isinstance(path, str) else []
    for cut in range(len(parts) - 1 if all(parts) else 0, 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and not f"{path}.".startswith(f"{error.name}."):
                raise UserError(f"{key}={path} needs the package {error.name}; pip install it") from None
            continue
        except SyntaxError as error:
            place = f"{error.filename}, line {error.lineno}: " if error.filename else ""
            raise UserError(f"{key}={path} cannot be imported: {place}{error.msg}") from None
        except (ImportError, ValueError) as error:  # the latter of the module's own statements
            raise UserError(f"{key}={path} cannot be imported: {error}") from None
        for name in parts[cut:]:
            if not hasattr(found, name):
                hint = did_you_mean(name, dir(found)) or classes_in(found)
                owner = getattr(found, "__name__", found)
                raise UserError(f"{key}={path} cannot be imported: {owner} has no {name}{hint}")
            found = getattr(found, name)
        if callable(found):
            with contextlib.suppress(ValueError):
                inspect.signature(found)
                return found
            raise UserError(f"{key}={path} has no signature to check settings against; wrap it in a class")
    missing = f"; there is no package {parts[0]}, and no {parts[0]}.py in the working folder" if parts else ""
    hint = missing if len(parts) > 1 else "; it must be a dotted path such as my_package.my_module.MyClass"
    raise UserError(f"{key}={path} cannot be imported{hint}")


def optional(module: str, extra: str, purpose: str) -> Any:
    """A module of a package that is an extra. Raises UserError, with the command to install it, if it is missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise UserError(
            f'{purpose} needs {error.name}: pip install "slm[{extra}]", in a checkout pip install -e ".[{extra}]"'
        ) from None


def classes_in(module: Any) -> str:
    """What a module defines, for a message; empty if it defines no class."""
    entries = getattr(module, "__dict__", {}).items()
    own = [name for name, its in entries if inspect.isclass(its) and its.__module__ == getattr(module, "__name__", "")]
    return f"; it has {', '.join(own[:20])}" if own else ""


def name_of(target: Any) -> str:
    """The dotted path of a class or function, as `_target_` has it."""
    return f"{target.__module__}.{getattr(target, '__qualname__', target)}"


def did_you_mean(given: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    close = get_close_matches(given, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]}?" if close else ""


def file_hash(target: Any) -> str | None:
    """The sha256 of the Python file of a class or function; None for one without a file."""
    try:
        return hashlib.sha256(Path(inspect.getfile(inspect.unwrap(target))).read_bytes()).hexdigest()
    except (OSError, TypeError):  # built in, or from an archive
        return None


def add_options(parser: ArgumentParser):
    """--model-class and --tokenizer-class, for a command that loads a checkpoint."""
    for name, example in OPTIONS.items():
        parser.add_argument(f"--{name}-class", metavar="CLASS", help=f"of a {name} of your own, such as {example}")


def given(settings: object, key: str = "{}_class") -> dict[str, Callable]:
    """The classes of the attributes model_class and tokenizer_class, as arguments of slm.load. `key`: how they are
    typed. Raises UserError if one cannot be imported."""
    paths = {name: getattr(settings, f"{name}_class") for name in OPTIONS}
    return {name: locate(path, key.format(name)) for name, path in paths.items() if path}
