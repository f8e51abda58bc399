"""What comes from outside, and what of it is refused before it is composed, built or written.

Names that are no names, flags and files that lead out of conf/, secrets, and structures that expand without end.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slm.errors import UserError

NAME = re.compile(r"[A-Za-z0-9._-]+")
PREFIX = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\.?")  # of dotted names: my_lab, my_lab.hooks.
SECRET = re.compile(r"api[_-]?key|secret|passw(or)?d|token(?![a-z])", re.IGNORECASE)  # but tokens, tokenizer
LOGIN = re.compile(r"://[^/\s:@]*:[^/\s@]*@")  # user:password@ in a URL
SECRET_LENGTH = 8  # characters of an environment variable, below which finding it elsewhere may be chance

FLAGS = (  # Hydra's, without those that load a pickle or another configuration than conf/
    *("-h", "--help", "--hydra-help", "--version", "-m", "--multirun", "-r", "--run", "-c", "--cfg", "--resolve"),
    *("-p", "--package", "-i", "--info", "-sc", "--shell-completion"),
)
QUIET = {"version": 1, "root": None, "disable_existing_loggers": False}
FIXED = {"callbacks": {}, "searchpath": [], "job.env_set": {}, "job_logging": QUIET, "hydra_logging": QUIET}
LAUNCHERS = ("hydra._internal.core_plugins.", "hydra_plugins.", "optuna.samplers.")
MOST_NODES, DEEPEST = 10**5, 64  # of a YAML file or a checkpoint; ours have some thousands, in less than ten layers


def check_flag(word: str):
    """Raises UserError for a flag that is not Hydra's own and harmless, also abbreviated."""
    if word.partition("=")[0] not in FLAGS:
        raise UserError(
            f"{word.partition('=')[0]} is not taken: every configuration lies in conf/, "
            "yours in conf/experiment/ or conf/local/default.yaml"
        )


def check_prefixes(prefixes: Sequence[str]):
    for prefix in prefixes:
        if not PREFIX.fullmatch(prefix):
            raise UserError(f"trusted_targets={prefix!r} must be a package, such as my_lab or my_lab.hooks")


def refuse_url(key: str, value: Any):
    if "://" in str(value):
        raise UserError(f"{key}={without_login(str(value))} is a URL, and takes a path; download first what it names")


def refuse_secrets(tree: Mapping[str, Any]):
    """Raises UserError, which does not repeat it, for what looks like a secret: everything in `tree` is written down.

    By its key, as a URL with a password, or as the value of an environment variable with such a name.
    """
    known = {
        name: value
        for name, value in os.environ.items()
        if SECRET.search(name) and len(value) >= SECRET_LENGTH and not value.startswith("/")  # where one is kept
    }
    for key, value in leaves(tree):
        if SECRET.search(key):
            raise UserError(
                f"{key} looks like a secret, and a run writes down all that it is given; "
                "give it in the environment instead (WANDB_API_KEY, HF_TOKEN)"
            )
        text = f"{key}={value}"
        if LOGIN.search(text):
            raise UserError(f"{without_login(key)} holds a URL with a password; give it without")
        for name, secret in known.items():
            if secret in text:
                raise UserError(f"{key.replace(secret, '...')} holds what {name} does; leave it to the environment")


def without_login(text: str) -> str:
    return LOGIN.sub("://...@", text)


def check_hydra(node: Mapping[str, Any]):
    """Hydra calls and loads what its own node names, before a run begins: it may choose how to sweep, and no more."""
    for key, usual in FIXED.items():
        found = node
        for name in key.split("."):
            found = found[name]
        if found != usual:
            raise UserError(f"hydra.{key} would run or load what it names, so it is not taken")
    for key, value in leaves(node, "hydra"):
        if key.endswith("._target_") and not str(value).startswith(LAUNCHERS):
            raise UserError(f"{key}={value} is outside {', '.join(LAUNCHERS)}")


def check_files(folder: Path):
    """Raises UserError for a file of conf/ that leads out of it, trusts in others' code or expands without end."""
    for path in sorted(folder.rglob("*.yaml")):
        try:
            root = yaml.compose(path.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
            endless = not bounded(root)
        except (yaml.YAMLError, UnicodeError):
            continue  # Hydra says so where the file is used
        except RecursionError:
            endless = True
        if endless:
            raise UserError(f"{path} expands to more than {MOST_NODES:,} values or {DEEPEST} layers; take it away")
        for key, value in root.value if isinstance(root, yaml.MappingNode) else ():
            if key.value == "trusted_targets" and path.parent not in (folder, folder / "local"):
                raise UserError(f"{path} sets trusted_targets; only you may, as an argument or in conf/local")
            if key.value == "defaults" and (out := [name for name in _scalars(value) if _leads_out(name)]):
                raise UserError(f"{path} leads out of conf/: {out[0]}")


def _scalars(node: yaml.Node) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode):
        yield node.value
    else:
        for child in node.value:
            for part in child if isinstance(child, tuple) else [child]:
                yield from _scalars(part)


def _leads_out(name: str) -> bool:
    return ".." in name.split("/") or "//" in name


def leaves(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested mappings and lists that is neither."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list | tuple) else None
    if items is None:
        yield prefix, tree
        return
    for key, value in items:
        yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))


def bounded(tree: Any) -> bool:
    """False for mappings, lists or YAML nodes in which a value used many times stands for more than can be walked."""
    stack = [(tree, 0)]
    for _ in range(MOST_NODES):
        if not stack:
            return True
        node, depth = stack.pop()
        if isinstance(node, yaml.CollectionNode):
            node = node.value
        children = node.values() if isinstance(node, Mapping) else node if isinstance(node, list | tuple) else ()
        if depth > DEEPEST or len(children) > MOST_NODES:
            return False
        stack += ((child, depth + 1) for child in children)
        if len(stack) > MOST_NODES:
            return False
    return False
