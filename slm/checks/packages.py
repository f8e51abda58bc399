"""Python and the installed packages, against what pyproject.toml requires."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from slm.checks.finding import Finding

ROOT = Path(__file__).parents[2]
OLDEST = (3, 11)  # as in pyproject.toml
SHOWN = ("torch", "lightning", "hydra-core", "numpy", "datasets", "sentencepiece", "wandb")
WITHOUT_TORCH = (
    "python -m pip install torch (see pytorch.org for your GPU; on Linux without one: --index-url "
    "https://download.pytorch.org/whl/cpu), then python -m pip install -e ."
)

WITHOUT_TORCHVISION = "python -m pip uninstall torchvision, which slm does not need and which does not fit this torch"


def python() -> Finding:
    found = f"{sys.version.split()[0]} in {sys.prefix}"
    if sys.version_info < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Finding("Python", "error", found, f"slm needs Python {oldest}: python{oldest} -m venv .venv")
    return Finding("Python", "ok", found)


def packages() -> list[Finding]:
    """The required packages; torch has a line of its own if it is missing."""
    required, _ = requirements()
    missing = [name for name in required if version(name) is None and name != "torch"]
    unfit = [f"{name} {version(name)} is not {bounds}" for name, bounds in required.items() if not fits(name, bounds)]
    others = torchvision()
    found = ", ".join(f"{name} {version(name)}" for name in SHOWN if version(name))
    if missing or unfit:
        missing = [f"not installed: {', '.join(missing)}"] if missing else []
        others.insert(0, Finding("packages", "error", "; ".join([*missing, *unfit]), "python -m pip install -e ."))
    else:
        others.insert(0, Finding("packages", "ok", found))
    return others if version("torch") else [Finding("torch", "error", "not installed", WITHOUT_TORCH), *others]


def torchvision() -> list[Finding]:
    """An error if torchvision, which Lightning imports where it is installed, was built for another torch."""
    built_for = [line for line in required_by("torchvision") if re.match(r"torch\b(?![-.])", line)]
    bounds = [re.sub(r"^torch\s*|[()]", "", line.partition(";")[0]).strip() for line in built_for]
    if all(fits("torch", each) for each in bounds):
        return []
    found = f"torchvision {version('torchvision')} is for torch {bounds[0]}, not {version('torch')}"
    return [Finding("torchvision", "error", found, WITHOUT_TORCHVISION)]


def required_by(name: str) -> list[str]:
    """The requirements of an installed package; none of one that is not."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def extras() -> Finding:
    """The optional packages, which single options need."""
    _, optional = requirements()
    absent = [extra for extra, names in optional.items() if extra != "dev" and not all(map(version, names))]
    present = [extra for extra in optional if extra not in (*absent, "dev")]
    found = f"installed: {', '.join(present) or 'none'}; not installed: {', '.join(absent) or 'none'}"
    return Finding(
        "extras", "ok", found, "where an option needs one: python -m pip install -e '.[NAME]'" if absent else ""
    )


def version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fits(name: str, bounds: str) -> bool:
    """False for an installed version out of bounds; True where that cannot be known."""
    try:
        from packaging.specifiers import InvalidSpecifier, SpecifierSet
    except ImportError:
        return True
    try:
        return (found := version(name)) is None or SpecifierSet(bounds).contains(found, prereleases=True)
    except InvalidSpecifier:
        return True


def requirements() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Name -> bounds of the required packages of this system, and extra -> names of its packages."""
    required: dict[str, str] = {}
    optional: dict[str, list[str]] = {}
    for line in declared():
        text, _, marker = line.partition(";")
        name, bounds = re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*(.*)", text).groups()
        if extra := re.search(r"extra\s*==\s*['\"](\w+)", marker):
            optional.setdefault(extra[1], []).append(name)
        elif "sys_platform" not in marker or f"'{sys.platform}'" in marker.replace('"', "'"):
            required[name] = bounds.strip().strip("()")
    return required, optional


def declared() -> Iterator[str]:
    """The requirements, as the metadata of a package has them: of this checkout or the installed package."""
    if not (file := ROOT / "pyproject.toml").is_file():
        yield from metadata.requires("slm") or []
        return
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    yield from project["dependencies"]
    for extra, lines in project["optional-dependencies"].items():
        yield from (f"{line}; extra == '{extra}'" for line in lines)
