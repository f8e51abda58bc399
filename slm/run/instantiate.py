"""Configuration nodes to objects: `_target_` names a class or function, the other keys are its arguments.

Keys and types are checked against the signature when the configuration is read, so a mistake is found before any work.
"""

import contextlib
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from slm.classes import did_you_mean, locate, name_of
from slm.errors import UserError
from slm.run.names import hint_for


@dataclass(frozen=True)
class Node:
    """A checked configuration node: the callable that `_target_` names and its settings, which may hold nodes."""

    where: str  # its key in the configuration, for messages
    target: Callable
    settings: Mapping[str, Any]

    @classmethod
    def read(cls, where: str, value: Any) -> "Node":
        """The node from plain types. Raises UserError for a missing target, an unknown key or a wrong type."""
        if not is_node(value):
            raise UserError(f"{where} must have a _target_, the class to build, not be {value!r}")
        settings = {key: cls.nested(f"{where}.{key}", item) for key, item in value.items() if key != "_target_"}
        target = locate(value["_target_"], f"{where}._target_")
        check(target, settings, where)
        return cls(where, target, settings)

    @classmethod
    def nested(cls, where: str, value: Any) -> Any:
        """A setting: a node, a mapping of nodes by name, or any other value as it is."""
        if is_node(value):
            return cls.read(where, value)
        if isinstance(value, Mapping) and value and all(map(is_node, value.values())):
            return {name: cls.read(f"{where}.{name}", node) for name, node in value.items()}
        return value

    def build(self, *positional, **facts) -> Any:
        """Calls the target with its settings, and with those facts that its signature names and the settings do not.

        Raises UserError for a missing argument or package, and whatever the target raises.
        """
        self.check_complete(facts, len(positional))
        parameters = inspect.signature(self.target).parameters
        values = {k: built(v, facts) for k, v in self.settings.items()}
        values |= {k: fact for k, fact in facts.items() if k in parameters and k not in values}
        try:
            return self.target(*positional, **values)
        except ModuleNotFoundError as error:
            needed = f"the package {error.name}; pip install it" if error.name else f"a package: {error}"
            raise UserError(f"{self.where} needs {needed}") from None

    def check_complete(self, facts: Collection[str], positional: int = 0):
        """Raises UserError for an argument that neither the settings nor the facts give."""
        for name in required(self.target)[positional:]:
            if name not in self.settings and name not in facts:
                raise UserError(f"{self.where}.{name} is missing: {name_of(self.target)} needs it")

    @property
    def averages(self) -> bool:
        """True for a callback that averages weights, also in a plan, where the target is a name."""
        kinds = (self.target, *getattr(self.target, "__mro__", ()))
        return any("WeightAveraging" in getattr(kind, "__name__", str(kind)) for kind in kinds)

    def names(self, fact: str) -> bool:
        """True if the signature names this fact and the settings do not give it."""
        return fact in inspect.signature(self.target).parameters and fact not in self.settings


def built(value: Any, facts: Mapping[str, Any]) -> Any:
    """A setting with its nodes built."""
    if isinstance(value, Mapping):
        return {name: built(item, facts) for name, item in value.items()}
    return value.build(**facts) if isinstance(value, Node) else value


def required(target: Callable) -> list[str]:
    """The parameters without a default."""
    parameters = inspect.signature(target).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def is_node(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def check(target: Callable, values: Mapping[str, Any], where: str):
    """Raises UserError for a key that `target` does not take or a value of the wrong type, with the key's full name."""
    prefix = f"{where}." if where else ""
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = hints_of(target.__init__ if inspect.isclass(target) else target)
    unknown = [key for key in values if key not in parameters]
    if unknown and not open_ended:
        known = [prefix + p for p in parameters]
        ours, key = target.__module__.startswith("slm."), f"{prefix}{unknown[0]}"
        hint = hint_for(key, known) if ours else did_you_mean(key, known, cutoff=0.8)
        if len(unknown) > 1:
            hint = f"; nor are {', '.join(map(str, unknown[1:]))}"
        owner = "" if target.__module__.startswith("slm.run.") else f" of {name_of(target)}"
        raise UserError(f"{prefix}{unknown[0]} is not a setting{owner}{hint}")
    for key, value in values.items():
        if key in hints and not fits(value, hints[key]):
            given = "null" if value is None else "{_target_: ...}" if isinstance(value, Node) else repr(value)
            raise UserError(f"{prefix}{key}={given} must be {describe(hints[key])}{remedy(value, hints[key])}")


def hints_of(function: Callable) -> dict[str, Any]:
    """Its annotations as types, without those that a library imports for type checkers only."""
    hints = {}
    for name, annotation in inspect.get_annotations(function).items():
        one = types.SimpleNamespace(__annotations__={name: annotation})
        with contextlib.suppress(NameError):
            hints |= get_type_hints(one, globalns=getattr(inspect.unwrap(function), "__globals__", {}))
    return hints


def fits(value: Any, hint: Any) -> bool:
    """True if a value from YAML has the annotated type. An annotation that is not understood fits any value."""
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
    if is_dataclass(hint):
        return isinstance(value, hint | Node)
    if hint in (str, bool):
        return isinstance(value, hint)
    if origin in (list, tuple, Sequence):
        inner = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(fits(item, inner) for item in value)
    return True


def remedy(value: Any, hint: Any) -> str:
    """What to write instead, where only YAML's reading of what was typed has the wrong type."""
    text = [str(item) for item in value] if isinstance(value, list) else str(value)
    if value not in (None, []) and fits(text, hint):
        return """; quote what looks like a number or true: '"1"' on a command line, "1" in a file"""
    if isinstance(value, float) and value.is_integer() and fits(int(value), hint):
        return f"; write {int(value)}"
    return f"; write [{value}]" if fits([value], hint) else ""


def describe(hint: Any) -> str:
    """A type annotation in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(describe(argument) for argument in arguments)
    if is_dataclass(hint):
        return f"a node whose _target_ is {hint.__module__}.{hint.__qualname__}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if origin in (list, tuple, Sequence):
        return f"a list ({describe(arguments[0])} each)" if arguments else "a list"
    return words.get(hint, str(hint))
