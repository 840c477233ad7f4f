"""Losses by name."""

from detlib.modeling.loss.build import LOSS_REGISTRY, build_loss

__all__ = ["LOSS_REGISTRY", "build_loss"]
