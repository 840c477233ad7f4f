"""detlib: vision meta-architectures from a config, in the shape that detectron2 made standard."""

from typing import Any

__all__ = ["__version__", "setup_environment"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "setup_environment":  # On first use, as it brings torch.
        from detlib.utils.env import setup_environment

        return setup_environment
    raise AttributeError(f"module 'detlib' has no attribute {name!r}")
