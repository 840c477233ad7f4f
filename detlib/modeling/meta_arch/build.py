"""The registry of meta-architectures: whole models, from a batch of samples to losses or predictions."""

from torch import nn

from detlib.config import CfgNode
from detlib.utils.env import select_device
from detlib.utils.registry import Registry

__all__ = ["META_ARCH_REGISTRY", "build_model"]

META_ARCH_REGISTRY = Registry("META_ARCH")
META_ARCH_REGISTRY.__doc__ = """
Meta-architectures, called as ``arch(cfg)``. The model takes ``list[dict]``, one for each image, and returns a dict of
losses when training, else a ``list[dict]`` of predictions.
"""


def build_model(cfg: CfgNode) -> nn.Module:
    """Build what ``cfg.MODEL.META_ARCHITECTURE`` names, on ``cfg.MODEL.DEVICE``, without loading any weights."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return model.to(select_device(cfg.MODEL.DEVICE))
