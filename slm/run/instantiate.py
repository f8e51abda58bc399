"""Configuration nodes to objects, after checking every key and type against the constructor that will receive them."""

import contextlib
import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from slm.errors import UserError

TRUSTED = (  # not all of slm: what writes files or starts programs is nobody's to call by name
    *("slm.corpora.", "slm.generation.sampling.", "slm.hooks.", "slm.optim.", "slm.tokenizers.", "slm.training."),
    *("torch.optim.", "lightning.pytorch.callbacks.", "lightning.pytorch.loggers."),
)


def build(node: Mapping[str, Any], where: str, *, trusted: Sequence[str] = (), **facts) -> Any:
    """The object that a node with a `_target_` describes; facts go in where its constructor names them.

    Nested nodes with a `_target_` are built first. `where` is the node's place in the configuration, for messages;
    `trusted` are the user's trusted_targets.
    """
    target = locate(node["_target_"], where, trusted)
    check(target, node, where)
    accepted = inspect.signature(target).parameters
    values = {
        key: build(value, f"{where}.{key}", trusted=trusted, **facts) if is_node(value) else value
        for key, value in node.items()
        if key != "_target_"
    }
    return target(**values, **{key: fact for key, fact in facts.items() if key in accepted and key not in values})


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def locate(path: str, where: str, trusted: Sequence[str] = ()) -> Callable:
    """The class, function or classmethod that a dotted path names, defined within the trusted packages.

    Nothing outside of them is imported, and what they import themselves is not theirs.
    """
    prefixes = (*TRUSTED, *(f"{prefix.rstrip('.')}." for prefix in trusted))
    if not isinstance(path, str) or not path.startswith(prefixes):
        raise UserError(
            f"{where}._target_={path} is outside {', '.join(prefixes)}; put your own code under slm/hooks/, "
            "or name its package in trusted_targets"
        )
    parts = path.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found = import_module(".".join(parts[:cut]))
        except ModuleNotFoundError as error:
            if error.name and not path.startswith(error.name):
                raise UserError(f"{where}._target_={path} needs the package {error.name}: pip install it") from None
            continue
        for name in parts[cut:]:
            found = getattr(found, name, None)
        if callable(found):
            return _at_home(found, path, where, prefixes)
    raise UserError(f"{where}._target_={path} does not exist")


def _at_home(found: Callable, path: str, where: str, prefixes: tuple[str, ...]) -> Callable:
    """`found`, if it and the class whose method it is were defined under one of the prefixes."""
    owners = (found, found.__self__) if inspect.ismethod(found) else (found,)
    for owner in owners:
        known = inspect.isclass(owner) or inspect.isfunction(owner) or inspect.ismethod(owner)
        if not known or not f"{owner.__module__}.".startswith(prefixes):
            raise UserError(f"{where}._target_={path} is no class or function of that package, or not its own")
    return found


def check(target: Callable, values: Mapping[str, Any], where: str):
    """Raises UserError for a key that `target` does not take or a value of the wrong type, naming the place."""
    prefix = f"{where}." if where else ""
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = hints_of(target.__init__ if inspect.isclass(target) else target)
    for key, value in values.items():
        if key == "_target_" or is_node(value):
            continue
        if key not in parameters and not open_ended:
            raise UserError(
                f"{prefix}{key} is not a setting{did_you_mean(prefix + key, [prefix + p for p in parameters])}"
            )
        if key in hints and not fits(value, hints[key]):
            given = "null" if value is None else repr(value)
            raise UserError(f"{prefix}{key}={given} must be {describe(hints[key])}")


def hints_of(function: Callable) -> dict[str, Any]:
    """Its annotations as types, those apart that name what a library imports for type checkers only."""
    hints = {}
    for name, annotation in inspect.get_annotations(function).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError):
            hints |= get_type_hints(one, globalns=inspect.unwrap(function).__globals__)
    return hints


def did_you_mean(given: str, known: Sequence[str]) -> str:
    close = get_close_matches(given, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML may go where the annotation says. What is not understood fits."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (Union, types.UnionType):
        return any(fits(value, argument) for argument in arguments)
    if hint is type(None):
        return value is None
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (str, bool):
        return isinstance(value, hint)
    if is_dataclass(hint):
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(fits(item, inner) for item in value)
    return True


def describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if is_dataclass(hint):
        return f"a node whose _target_ is {hint.__module__}.{hint.__qualname__}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    return words.get(hint, "a list" if origin in (list, tuple, Sequence) else str(hint))
