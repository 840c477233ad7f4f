"""Learning from images without labels."""

from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY

__all__ = ["MEMORY_REGISTRY"]
