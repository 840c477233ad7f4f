"""The config system's front door: the default config, and the parts that code asks for by name."""

from detlib.config.component import build_component
from detlib.config.configurable import configurable
from detlib.config.defaults import DEFAULTS
from detlib.config.node import CfgNode
from detlib.config.origins import format_with_origins

__all__ = [
    "CfgNode",
    "build_component",
    "configurable",
    "format_with_origins",
    "get_cfg",
    "global_cfg",
    "set_global_cfg",
]


def get_cfg() -> CfgNode:
    """Return a new config with all options at their defaults."""
    return CfgNode.from_defaults(DEFAULTS)


global_cfg = CfgNode()
"""A config that any code can reach, for quick experiments; empty until `set_global_cfg`."""


def set_global_cfg(cfg: CfgNode) -> None:
    """Let `global_cfg` have the options of `cfg`, as :func:`detlib.engine.default_setup` does."""
    global_cfg.clear()
    global_cfg.update(cfg)
