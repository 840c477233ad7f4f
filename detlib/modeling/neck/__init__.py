"""Necks: from feature maps to feature maps."""

from detlib.modeling.neck.build import NECK_REGISTRY, build_neck

__all__ = ["NECK_REGISTRY", "build_neck"]
