"""The registry of proposal generators: from feature maps to boxes that may hold an object."""

from torch import nn

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.utils.registry import Registry

__all__ = ["PROPOSAL_GENERATOR_REGISTRY", "build_proposal_generator"]

PROPOSAL_GENERATOR_REGISTRY = Registry("PROPOSAL_GENERATOR")
PROPOSAL_GENERATOR_REGISTRY.__doc__ = """
Proposal generators: called with ``(cfg, input_shape)``, the ``ShapeSpec`` of each feature map by name. The module takes
``(images, features, gt_instances)`` and returns the proposals of each image and a dict of losses.
"""


def build_proposal_generator(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> nn.Module | None:
    """Build what ``cfg.MODEL.PROPOSAL_GENERATOR.NAME`` names.

    Args:
        input_shape: of each feature map of the backbone.

    Returns:
        None for "PrecomputedProposals", which come with the images.
    """
    name = cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if name == "PrecomputedProposals":
        return None
    return PROPOSAL_GENERATOR_REGISTRY.get(name)(cfg, input_shape)
