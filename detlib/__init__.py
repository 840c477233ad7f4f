"""detlib: vision meta-architectures from a config, in the shape that detectron2 made standard."""

__all__ = ["__version__"]

__version__ = "0.1.0"
