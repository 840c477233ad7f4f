"""Heads by name."""

from detlib.utils.registry import Registry

__all__ = ["HEAD_REGISTRY"]

HEAD_REGISTRY = Registry("HEAD")
HEAD_REGISTRY.__doc__ = """
Heads of dense detectors and classifiers: modules built by `build_component`. A detector offers ``input_shape``, the
list of ``ShapeSpec`` of its feature maps, ``in_channels``, ``num_classes`` and ``num_anchors``; a classifier
``in_channels`` and ``num_classes``.
"""
