"""Every option with its default value, by topic."""

from typing import Any

from detlib.config.defaults.backbones import BACKBONES
from detlib.config.defaults.base import BASE
from detlib.config.defaults.detection import DETECTION, MODEL

__all__ = ["DEFAULTS"]

DEFAULTS: dict[str, Any] = {**BASE, "MODEL": {**MODEL, **BACKBONES, **DETECTION}}
"""The whole tree, as plain dicts."""
