"""Every option with its default value, by topic."""

from typing import Any

from detlib.config.defaults.backbones import BACKBONES
from detlib.config.defaults.base import BASE
from detlib.config.defaults.detection import DETECTION, MODEL
from detlib.config.defaults.part import Part, Parts
from detlib.config.defaults.representation import REPRESENTATION

__all__ = ["DEFAULTS", "Part", "Parts"]

DEFAULTS: dict[str, Any] = {**BASE, "MODEL": {**MODEL, **BACKBONES, **DETECTION, **REPRESENTATION}}
"""The whole tree, as plain dicts."""
