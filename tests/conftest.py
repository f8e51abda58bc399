"""What tests share is in small_runs.py, which the process that only distributes tests does not import (8 seconds)."""

from importlib import import_module
from typing import Any


def pytest_configure(config):
    if hasattr(config, "workerinput") or config.getoption("dist") == "no":
        config.pluginmanager.import_plugin("small_runs")


def __getattr__(name: str) -> Any:
    """The names of small_runs.py, for `from conftest import`."""
    if name.startswith(("_", "pytest", "collect")):  # what pytest looks for
        raise AttributeError(name)
    return getattr(import_module("small_runs"), name)
