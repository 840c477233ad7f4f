"""MODEL: architectures, their heads, and what they have in common."""

from typing import Any

from detlib.config.defaults.part import Part

__all__ = ["DETECTION", "MODEL"]

MODEL: dict[str, Any] = {
    # Read proposals from files in place of computing them.
    "LOAD_PROPOSALS": False,
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    # "cuda", "mps" or "cpu"; a missing accelerator is replaced, with a warning.
    "DEVICE": "cuda",
    # Compile the model with torch.compile for training; the first steps then take minutes.
    "COMPILE": False,
    # Modules whose activations are computed again in the backward pass, which saves memory and takes time: patterns of
    # their names, such as "backbone.bottom_up.res*.*" or "backbone.net.blocks.*".
    "ACTIVATION_CHECKPOINT": [],
    # By its name in META_ARCH_REGISTRY.
    "META_ARCHITECTURE": "GeneralizedRCNN",
    # File or URL of the weights to start from; "" starts from random ones.
    "WEIGHTS": "",
    # Mean and deviation of each channel, in the order of INPUT.FORMAT. The deviation of 1 belongs to the original
    # ImageNet weights in BGR, which were trained on values in [0, 255].
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],
}

ANCHORS = {
    "NAME": "DefaultAnchorGenerator",
    # Side of a square of the anchor's area, in pixels of the input: a list for each feature map, or one for all.
    "SIZES": [[32, 64, 128, 256, 512]],
    # Height over width, likewise.
    "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
    # Degrees, for rotated anchors, likewise.
    "ANGLES": [[-90, 0, 90]],
    # Offset of anchor centres from the corner of their cell, in cells: 0 or 0.5.
    "OFFSET": 0.0,
}

RETINANET = {
    # Without background.
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    # Convolutions of each tower before the prediction.
    "NUM_CONVS": 4,
    # Anchors below the first overlap are background (0), between the two ignored (-1), above objects (1).
    "IOU_THRESHOLDS": [0.4, 0.5],
    "IOU_LABELS": [0, -1, 1],
    # Score that the untrained head gives to every class of every anchor.
    "PRIOR_PROB": 0.01,
    # Selection: lowest score, candidates per feature map, overlap of suppression.
    "SCORE_THRESH_TEST": 0.05,
    "TOPK_CANDIDATES_TEST": 1000,
    "NMS_THRESH_TEST": 0.5,
    # Weights of dx, dy, dw, dh.
    "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "FOCAL_LOSS_GAMMA": 2.0,
    "FOCAL_LOSS_ALPHA": 0.25,
    # Point where smooth L1 turns from quadratic to linear; 0 gives L1.
    "SMOOTH_L1_LOSS_BETA": 0.1,
    # "smooth_l1", "giou", "diou" or "ciou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    # Normalisation in the towers; "" for none.
    "NORM": "",
    # Parts by name, {NAME: X, ...}: losses of LOSS_REGISTRY, and the head of HEAD_REGISTRY; empty takes the keys above.
    "LOSS_CLS": Part(),
    "LOSS_BBOX": Part(),
    "HEAD": Part(),
}

FCOS = {
    # Without background.
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
    # Convolutions of each tower before the prediction, and their normalisation.
    "NUM_CONVS": 4,
    "NORM": "GN",
    # Score that the untrained head gives to every class of every cell.
    "PRIOR_PROB": 0.01,
    # Cells within this many strides of an object's centre, along both axes, learn it.
    "CENTER_SAMPLING_RADIUS": 1.5,
    "FOCAL_LOSS_GAMMA": 2.0,
    "FOCAL_LOSS_ALPHA": 0.25,
    # Selection: lowest score, candidates per feature map, overlap of suppression.
    "SCORE_THRESH_TEST": 0.2,
    "TOPK_CANDIDATES_TEST": 1000,
    "NMS_THRESH_TEST": 0.6,
    # Parts by name, see RETINANET.
    "LOSS_CLS": Part(),
    "LOSS_BBOX": Part(),
    "HEAD": Part(),
}

PROPOSALS = {
    # By its name in PROPOSAL_GENERATOR_REGISTRY; "PrecomputedProposals" with MODEL.LOAD_PROPOSALS.
    "NAME": "RPN",
    # Proposals with a side below this many pixels are dropped.
    "MIN_SIZE": 0,
}

RPN = {
    "HEAD_NAME": "StandardRPNHead",
    "IN_FEATURES": ["res4"],
    # Anchors further outside the image than this many pixels are not trained on; -1 keeps all.
    "BOUNDARY_THRESH": -1,
    # Anchors below the first overlap are background (0), between the two ignored (-1), above objects (1).
    "IOU_THRESHOLDS": [0.3, 0.7],
    "IOU_LABELS": [0, -1, 1],
    # Anchors sampled per image for the loss, and the largest part of them that are objects.
    "BATCH_SIZE_PER_IMAGE": 256,
    "POSITIVE_FRACTION": 0.5,
    # "smooth_l1", "giou", "diou" or "ciou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_LOSS_WEIGHT": 1.0,
    "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
    "SMOOTH_L1_BETA": 0.0,
    # Factor on both losses.
    "LOSS_WEIGHT": 1.0,
    # Best proposals kept before suppression (per feature map) and after it (per image).
    "PRE_NMS_TOPK_TRAIN": 12000,
    "PRE_NMS_TOPK_TEST": 6000,
    "POST_NMS_TOPK_TRAIN": 2000,
    "POST_NMS_TOPK_TEST": 1000,
    "NMS_THRESH": 0.7,
    # Channels of the head's convolutions; -1 keeps those of the features.
    "CONV_DIMS": [-1],
    # Losses by their names in LOSS_REGISTRY, {NAME: X, ...}, times the factors above; empty takes the keys above.
    "LOSS_CLS": Part(),
    "LOSS_BBOX": Part(),
}

ROI_HEADS = {
    "NAME": "Res5ROIHeads",
    # Without background.
    "NUM_CLASSES": 80,
    "IN_FEATURES": ["res4"],
    # Proposals below the overlap are background (0), above it objects (1).
    "IOU_THRESHOLDS": [0.5],
    "IOU_LABELS": [0, 1],
    # Proposals sampled per image for the losses, and the largest part of them that are objects.
    "BATCH_SIZE_PER_IMAGE": 512,
    "POSITIVE_FRACTION": 0.25,
    "SCORE_THRESH_TEST": 0.05,
    "NMS_THRESH_TEST": 0.5,
    # Add the true boxes to the proposals when training.
    "PROPOSAL_APPEND_GT": True,
}

ROI_BOX_HEAD = {
    # By its name in ROI_BOX_HEAD_REGISTRY.
    "NAME": "",
    # "smooth_l1", "giou", "diou" or "ciou".
    "BBOX_REG_LOSS_TYPE": "smooth_l1",
    "BBOX_REG_LOSS_WEIGHT": 1.0,
    "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
    "SMOOTH_L1_BETA": 0.0,
    # Cells per side of the pooled region, samples per cell and axis (0: as many as fit), and the operator.
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "POOLER_TYPE": "ROIAlignV2",
    # Convolutions first, then fully connected layers.
    "NUM_FC": 0,
    "FC_DIM": 1024,
    "NUM_CONV": 0,
    "CONV_DIM": 256,
    "NORM": "",
    # One box for all classes in place of one each.
    "CLS_AGNOSTIC_BBOX_REG": False,
    # Train later heads on boxes that this one predicts, in place of proposals.
    "TRAIN_ON_PRED_BOXES": False,
    # Federated loss (LVIS): sigmoid per class over a sample of classes, drawn by their frequency to this power.
    "USE_FED_LOSS": False,
    "USE_SIGMOID_CE": False,
    "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
    "FED_LOSS_NUM_CLASSES": 50,
    # Losses by their names in LOSS_REGISTRY, {NAME: X, ...}, times the factors above; empty takes the keys above.
    "LOSS_CLS": Part(),
    "LOSS_BBOX": Part(),
    # By its name in ROI_EXTRACTOR_REGISTRY; the POOLER keys count where it is silent. Empty takes a ROIPooler.
    "ROI_EXTRACTOR": Part(),
}

ROI_BOX_CASCADE_HEAD = {
    # One entry for each stage.
    "BBOX_REG_WEIGHTS": ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0)),
    # Overlap from which a proposal is an object; that of the first stage is also ROI_HEADS.IOU_THRESHOLDS.
    "IOUS": (0.5, 0.6, 0.7),
}

ROI_MASK_HEAD = {
    "NAME": "MaskRCNNConvUpsampleHead",
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "NUM_CONV": 0,
    "CONV_DIM": 256,
    "NORM": "",
    # One mask for all classes in place of one each.
    "CLS_AGNOSTIC_MASK": False,
    "POOLER_TYPE": "ROIAlignV2",
    # By its name in ROI_EXTRACTOR_REGISTRY; the POOLER keys count where it is silent. Empty takes a ROIPooler.
    "ROI_EXTRACTOR": Part(),
}

ROI_KEYPOINT_HEAD = {
    "NAME": "KRCNNConvDeconvUpsampleHead",
    "POOLER_RESOLUTION": 14,
    "POOLER_SAMPLING_RATIO": 0,
    "CONV_DIMS": (512,) * 8,
    "NUM_KEYPOINTS": 17,
    # Training images with fewer visible keypoints are left out.
    "MIN_KEYPOINTS_PER_IMAGE": 1,
    # Divide the loss by the visible keypoints of the batch rather than by a number that is fixed beforehand.
    "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
    "LOSS_WEIGHT": 1.0,
    "POOLER_TYPE": "ROIAlignV2",
    # By its name in ROI_EXTRACTOR_REGISTRY; the POOLER keys count where it is silent. Empty takes a ROIPooler.
    "ROI_EXTRACTOR": Part(),
}

SEM_SEG_HEAD = {
    "NAME": "SemSegFPNHead",
    "IN_FEATURES": ["p2", "p3", "p4", "p5"],
    # Label of pixels that do not count.
    "IGNORE_VALUE": 255,
    # Stuff classes, with one for all things together.
    "NUM_CLASSES": 54,
    "CONVS_DIM": 128,
    # Stride to which all feature maps are brought before they are added.
    "COMMON_STRIDE": 4,
    "NORM": "GN",
    "LOSS_WEIGHT": 1.0,
}

PANOPTIC_FPN = {
    # Factor on the instance losses; MODEL.SEM_SEG_HEAD.LOSS_WEIGHT is that of the other.
    "INSTANCE_LOSS_WEIGHT": 1.0,
    # Join instances and semantic segmentation: best instances first, unless too much of them is hidden already;
    # then stuff of at least an area in pixels.
    "COMBINE": {
        "ENABLED": True,
        "OVERLAP_THRESH": 0.5,
        "STUFF_AREA_LIMIT": 4096,
        "INSTANCES_CONFIDENCE_THRESH": 0.5,
    },
}

DETECTION: dict[str, Any] = {
    "ANCHOR_GENERATOR": ANCHORS,
    "RETINANET": RETINANET,
    "FCOS": FCOS,
    "PROPOSAL_GENERATOR": PROPOSALS,
    "RPN": RPN,
    "ROI_HEADS": ROI_HEADS,
    "ROI_BOX_HEAD": ROI_BOX_HEAD,
    "ROI_BOX_CASCADE_HEAD": ROI_BOX_CASCADE_HEAD,
    "ROI_MASK_HEAD": ROI_MASK_HEAD,
    "ROI_KEYPOINT_HEAD": ROI_KEYPOINT_HEAD,
    "SEM_SEG_HEAD": SEM_SEG_HEAD,
    "PANOPTIC_FPN": PANOPTIC_FPN,
}
