"""Convert configs between versions of the format."""

from detlib.config.node import CfgNode
from detlib.config.versions import LATEST, guess_version, rename_between

__all__ = ["downgrade_config", "upgrade_config"]


def upgrade_config(cfg: CfgNode, to_version: int | None = None) -> CfgNode:
    """Return a copy in a later version of the format.

    Args:
        cfg: Its VERSION, where it has none, is guessed from its options.
        to_version: By default the latest.

    Raises:
        ConfigError: The version is unknown.
    """
    return _convert(cfg, LATEST if to_version is None else to_version)


def downgrade_config(cfg: CfgNode, to_version: int) -> CfgNode:
    """Return a copy in an earlier version of the format, for programs that read no other.

    Raises:
        ConfigError: The version is unknown.
    """
    return _convert(cfg, to_version)


def _convert(cfg: CfgNode, to_version: int) -> CfgNode:
    cfg = cfg.clone()
    cfg.defrost()
    rename_between(cfg, cfg.get("VERSION", guess_version(cfg)), to_version)
    return cfg
