"""Checks on secrets, and on values read from files of others. docs/security.md states the trust rule.

What the user types or keeps in conf/ is trusted; the content of checkpoints, run folders, tokenizers and data is not.
"""

import netrc
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from slm.errors import UserError, environment_secrets, without_secrets

NAME = re.compile(r"[A-Za-z0-9._-]+")
SECRET = re.compile(
    r"(api|access|account|private)[_-]?key|secret|passw(or)?d|passphrase|credentials?$|authorization|"
    r"(^|\.)token$|(^|[._-])(auth|pwd)$|(access|api|auth|bearer|github|hf|hub|refresh|wandb)[_-]?token$",
    re.IGNORECASE,
)  # max_tokens, pad_token, token_every and tokenizer do not match
LOGIN = re.compile(  # in a URL: user:password@ or token@, or one among its parameters
    r"(?<=://)(?!git@)[^/\s@]+@|(?<=[?&])[\w-]*(key|token|secret|passw(or)?d|signature|sig)=[^&#\s]+", re.IGNORECASE
)
FROM_ENVIRONMENT = re.compile(r"\$\{oc\.env:\w+\}")
MAX_NODES, MAX_DEPTH = 10**5, 64  # of nested values in a file; ours have thousands, less than ten deep


def refuse_url(key: str, value: Any):
    """Raises UserError for a URL where a path is needed."""
    if "://" in str(value):
        raise UserError(f"{key}={without_login(str(value))} is a URL, and must be a path; download the file first")


def refuse_secrets(tree: Mapping[str, Any]):
    """Raises UserError, without the secret, if nested values contain one: a run writes its configuration to disk.

    A secret is a value under a key such as api_key, a URL with a password, or the value of an environment variable
    with a name such as HF_TOKEN.
    """
    known = environment_secrets()
    for key, value in leaves(tree):
        if SECRET.search(key) and not FROM_ENVIRONMENT.fullmatch(str(value)):
            raise UserError(
                f"{key} looks like a secret, and a run writes its configuration to disk; "
                "set an environment variable instead (WANDB_API_KEY, HF_TOKEN), or give ${oc.env:NAME}"
            )
        text = f"{key}={value}"
        if LOGIN.search(text):
            raise UserError(f"{without_login(key)} holds a URL with a password or token; give it without")
        for name, secret in known.items():
            if secret in text:
                raise UserError(f"{key} holds the value of {name}; leave it in the environment")


def without_login(text: str) -> str:
    return LOGIN.sub("...@", text)


def for_others(text: str) -> str:
    """The text without the user's name in paths, logins in addresses, and secrets of the environment."""
    home = str(Path.home())
    return without_secrets(without_login(text.replace(home, "~") if Path(home).parts[1:] else text))


def leaves(tree: Any, prefix: str = "", lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of every leaf of nested mappings and, unless not wanted, of lists."""
    if not isinstance(tree, (Mapping, list, tuple) if lists else Mapping):
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key), lists)


def differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Key -> [before, after] for the keys whose values differ; a missing one is None."""
    pairs = {key: [before.get(key), after.get(key)] for key in dict.fromkeys([*before, *after])}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def at(value: Any, *keys: str) -> Any:
    """A nested value; None if a part of the way is missing."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def corpus_node(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """data.corpus of a configuration; empty if it has none."""
    data = config.get("data")
    node = data.get("corpus") if isinstance(data, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def corpus_nodes(config: Mapping[str, Any], source: str = "") -> Iterator[Mapping[str, Any]]:
    """data.corpus of a configuration; of a mixture those of its sources, or of this one."""
    sources = (node := corpus_node(config)).get("sources")
    if not isinstance(sources, Mapping):
        yield node
        return
    for its in [sources.get(source)] if source else sources.values():
        if isinstance(its, Mapping) and isinstance(its.get("corpus"), Mapping):
            yield its["corpus"]


def is_bounded(tree: Any) -> bool:
    """True if nested mappings and lists have at most MAX_NODES values and MAX_DEPTH levels, shared values counted anew.

    A small file can describe a structure that takes forever to walk, by shared references.
    """
    stack = [(tree, 0)]
    for _ in range(MAX_NODES):
        if not stack:
            return True
        node, depth = stack.pop()
        children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
        if depth > MAX_DEPTH or len(children) > MAX_NODES:
            return False
        stack += ((child, depth + 1) for child in children)
        if len(stack) > MAX_NODES:
            return False
    return False


def is_number(value: Any) -> bool:
    """True for a finite number that a float can hold; False for true and false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def is_file_name(name: str) -> bool:
    """True for a name that is one file, not hidden, on every system."""
    return name.isprintable() and name[:1] not in ("", ".") and not set(name) & set("/\\:") and len(name.encode()) < 256


def has_wandb_key(host: str | None) -> bool:
    """True if Weights & Biases has a key for this host, in WANDB_API_KEY or by `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False
