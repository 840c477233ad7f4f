"""Configuration: one tree of options with defaults, YAML files and command line overrides on top."""

from detlib.config.compat import downgrade_config, upgrade_config
from detlib.config.config import CfgNode, configurable, get_cfg, global_cfg, set_global_cfg

__all__ = [
    "CfgNode",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "set_global_cfg",
    "upgrade_config",
]
