"""From a command to a finished run: the composition root, and the only package that imports Hydra."""

from slm.files import CONF, PACKAGE

__all__ = ["CONF", "PACKAGE"]
