"""What is remembered of earlier batches."""

from detlib.utils.registry import Registry

__all__ = ["MEMORY_REGISTRY"]

MEMORY_REGISTRY = Registry("MEMORY")
MEMORY_REGISTRY.__doc__ = """
Memories of earlier samples: modules built by `build_component` that keep what they remember in buffers, so that
checkpoints have it.
"""
