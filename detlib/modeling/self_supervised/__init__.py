"""Learning from images without labels: an algorithm in each file, named after its paper.

To read first: base.py, and simsiam.py, the shortest. Then byol.py with momentum.py, moco.py with memories.py and
distributed.py; deepcluster.py with pseudo_labels.py and clustering.py, swav.py; mae.py with masking.py and
vision_transformer.py. docs/tutorials/self_supervised.md has the parts of each in a table.
"""

from detlib.modeling.self_supervised.barlow_twins import BarlowTwins, CrossCorrelationLoss, LatentCrossCorrelationHead
from detlib.modeling.self_supervised.base import SelfSupModel
from detlib.modeling.self_supervised.byol import BYOL
from detlib.modeling.self_supervised.cae import CAE, CAEHead, CAELoss, CAENeck, CAEViT
from detlib.modeling.self_supervised.deepcluster import DeepCluster, PseudoLabels
from detlib.modeling.self_supervised.densecl import DenseCL, DenseCLHead, DenseCLNeck
from detlib.modeling.self_supervised.heads import ContrastiveHead, CosineSimilarityLoss, LatentPredictHead
from detlib.modeling.self_supervised.mae import (
    MAE,
    MAEPretrainDecoder,
    MAEPretrainHead,
    MAEReconstructionLoss,
    MAEViT,
)
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY, KeyQueue, SimpleMemory
from detlib.modeling.self_supervised.moco import MoCo
from detlib.modeling.self_supervised.mocov3 import MoCoV3, MoCoV3Head, MoCoV3ViT
from detlib.modeling.self_supervised.momentum import MomentumEncoder
from detlib.modeling.self_supervised.necks import AvgPool2dNeck, LinearNeck, MoCoV2Neck, NonLinearNeck
from detlib.modeling.self_supervised.npid import NCE, NPID
from detlib.modeling.self_supervised.odc import ODC, ODCMemory, ODCNeck
from detlib.modeling.self_supervised.pseudo_labels import PseudoLabelModel
from detlib.modeling.self_supervised.relative_loc import RelativeLoc, RelativeLocNeck
from detlib.modeling.self_supervised.rotation_pred import RotationPred
from detlib.modeling.self_supervised.simclr import SimCLR
from detlib.modeling.self_supervised.simmim import (
    SimMIM,
    SimMIMHead,
    SimMIMNeck,
    SimMIMReconstructionLoss,
    SimMIMSwinTransformer,
)
from detlib.modeling.self_supervised.simsiam import SimSiam
from detlib.modeling.self_supervised.swav import SwAV, SwAVHead, SwAVLoss, SwAVNeck
from detlib.modeling.self_supervised.target_generators import TARGET_GENERATOR_REGISTRY, DALLEEncoder
from detlib.modeling.self_supervised.vision_transformer import VisionTransformer

__all__ = [
    "BYOL",
    "CAE",
    "MAE",
    "MEMORY_REGISTRY",
    "NCE",
    "NPID",
    "ODC",
    "TARGET_GENERATOR_REGISTRY",
    "AvgPool2dNeck",
    "BarlowTwins",
    "CAEHead",
    "CAELoss",
    "CAENeck",
    "CAEViT",
    "ContrastiveHead",
    "CosineSimilarityLoss",
    "CrossCorrelationLoss",
    "DALLEEncoder",
    "DeepCluster",
    "DenseCL",
    "DenseCLHead",
    "DenseCLNeck",
    "KeyQueue",
    "LatentCrossCorrelationHead",
    "LatentPredictHead",
    "LinearNeck",
    "MAEPretrainDecoder",
    "MAEPretrainHead",
    "MAEReconstructionLoss",
    "MAEViT",
    "MoCo",
    "MoCoV2Neck",
    "MoCoV3",
    "MoCoV3Head",
    "MoCoV3ViT",
    "MomentumEncoder",
    "NonLinearNeck",
    "ODCMemory",
    "ODCNeck",
    "PseudoLabelModel",
    "PseudoLabels",
    "RelativeLoc",
    "RelativeLocNeck",
    "RotationPred",
    "SelfSupModel",
    "SimCLR",
    "SimMIM",
    "SimMIMHead",
    "SimMIMNeck",
    "SimMIMReconstructionLoss",
    "SimMIMSwinTransformer",
    "SimSiam",
    "SimpleMemory",
    "SwAV",
    "SwAVHead",
    "SwAVLoss",
    "SwAVNeck",
    "VisionTransformer",
]
