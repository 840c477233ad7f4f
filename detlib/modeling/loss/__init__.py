"""Losses by name."""

from detlib.modeling.loss.build import LOSS_REGISTRY, build_loss, check_losses
from detlib.modeling.loss.classification import AsymmetricLoss, CrossEntropyLoss, FocalLoss, LabelSmoothLoss
from detlib.modeling.loss.gradient_harmonized import GHMC, GHMR
from detlib.modeling.loss.regression import (
    CIoULoss,
    DiceLoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    MSELoss,
    SmoothL1Loss,
    l1_loss,
)
from detlib.modeling.loss.weighted import WeightedLoss, reduce_loss, weight_reduce_loss, weighted_loss

__all__ = [
    "GHMC",
    "GHMR",
    "LOSS_REGISTRY",
    "AsymmetricLoss",
    "CIoULoss",
    "CrossEntropyLoss",
    "DIoULoss",
    "DiceLoss",
    "FocalLoss",
    "GIoULoss",
    "IoULoss",
    "L1Loss",
    "LabelSmoothLoss",
    "MSELoss",
    "SmoothL1Loss",
    "WeightedLoss",
    "build_loss",
    "check_losses",
    "l1_loss",
    "reduce_loss",
    "weight_reduce_loss",
    "weighted_loss",
]
