"""The options of PointRend."""

from detlib.config import CfgNode

__all__ = ["add_pointrend_config"]


def add_pointrend_config(cfg: CfgNode) -> None:
    """Add the options of this project to a config; sections are those of the paper."""
    mask_head = cfg.MODEL.ROI_MASK_HEAD
    # Feature maps that the coarse mask is predicted from.
    mask_head.IN_FEATURES = ("p2",)
    # Width and number of the fully connected layers of the coarse head.
    mask_head.FC_DIM = 1024
    mask_head.NUM_FC = 2
    # Cells per side of the coarse mask.
    mask_head.OUTPUT_SIDE_RESOLUTION = 7
    # Without a point head the coarse mask is the result.
    mask_head.POINT_HEAD_ON = False

    point_head = cfg.MODEL.POINT_HEAD = CfgNode()
    point_head.NAME = "StandardPointHead"
    # As many as ROI_HEADS.NUM_CLASSES for masks of objects, or SEM_SEG_HEAD.NUM_CLASSES for semantic segmentation.
    point_head.NUM_CLASSES = 80
    # Feature maps that give a point its fine-grained features.
    point_head.IN_FEATURES = ("p2",)
    # Points of each mask, or of each image, to learn from (sec. 4.1).
    point_head.TRAIN_NUM_POINTS = 14 * 14
    # k and beta of sec. 3.1: random candidates for each point, and the part of the points that is most uncertain.
    point_head.OVERSAMPLE_RATIO = 3.0
    point_head.IMPORTANCE_SAMPLE_RATIO = 0.75
    # How often a mask is doubled in size, and how many points are predicted anew each time (sec. 3.1).
    point_head.SUBDIVISION_STEPS = 5
    point_head.SUBDIVISION_NUM_POINTS = 28 * 28
    # Width and number of the hidden layers.
    point_head.FC_DIM = 256
    point_head.NUM_FC = 3
    # One mask for all classes in place of one each; the coarse mask has one for each class in any case.
    point_head.CLS_AGNOSTIC_MASK = False
    # Give the coarse prediction to every layer rather than to the first only.
    point_head.COARSE_PRED_EACH_LAYER = True
    # The head in SEM_SEG_HEADS_REGISTRY whose prediction PointRendSemSegHead refines.
    point_head.COARSE_SEM_SEG_HEAD_NAME = "SemSegFPNHead"
