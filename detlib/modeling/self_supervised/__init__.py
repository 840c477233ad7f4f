"""Learning from images without labels: an algorithm in each file, named after its paper."""

from detlib.modeling.self_supervised.base import SelfSupModel
from detlib.modeling.self_supervised.heads import ContrastiveHead, CosineSimilarityLoss, LatentPredictHead
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY
from detlib.modeling.self_supervised.momentum import MomentumEncoder
from detlib.modeling.self_supervised.necks import AvgPool2dNeck, LinearNeck, MoCoV2Neck, NonLinearNeck
from detlib.modeling.self_supervised.simsiam import SimSiam

__all__ = [
    "MEMORY_REGISTRY",
    "AvgPool2dNeck",
    "ContrastiveHead",
    "CosineSimilarityLoss",
    "LatentPredictHead",
    "LinearNeck",
    "MoCoV2Neck",
    "MomentumEncoder",
    "NonLinearNeck",
    "SelfSupModel",
    "SimSiam",
]
