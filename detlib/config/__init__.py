"""Configuration: one tree of options with defaults, YAML files and command line overrides on top."""

from detlib.config.compat import downgrade_config, upgrade_config
from detlib.config.config import CfgNode, build_component, configurable, get_cfg, global_cfg, set_global_cfg
from detlib.config.custom_imports import import_custom_modules

__all__ = [
    "CfgNode",
    "build_component",
    "configurable",
    "downgrade_config",
    "get_cfg",
    "global_cfg",
    "import_custom_modules",
    "set_global_cfg",
    "upgrade_config",
]
