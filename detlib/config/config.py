"""The config system's front door: the default config, and the parts that code asks for by name."""

from detlib.config.configurable import configurable
from detlib.config.defaults import DEFAULTS
from detlib.config.node import CfgNode
from detlib.config.origins import format_with_origins

__all__ = ["CfgNode", "configurable", "format_with_origins", "get_cfg", "global_cfg", "set_global_cfg"]


def get_cfg() -> CfgNode:
    """Return a new config with all options at their defaults."""
    cfg = CfgNode(DEFAULTS)
    _name_sections(cfg, "")
    return cfg


def _name_sections(section: CfgNode, name: str) -> None:
    section.__dict__["_section"] = name
    for key, value in section.items():
        if isinstance(value, CfgNode):
            _name_sections(value, f"{name}.{key}" if name else key)


global_cfg = CfgNode()
"""A config that any code can reach, for quick experiments; empty until `set_global_cfg`."""


def set_global_cfg(cfg: CfgNode) -> None:
    """Let `global_cfg` have the options of `cfg`, as :func:`detlib.engine.default_setup` does."""
    global_cfg.clear()
    global_cfg.update(cfg)
