import logging

import pytest
import torch

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.structures import Boxes, Instances


@pytest.fixture(autouse=True)
def loggers_as_before():
    """Takes away the handlers that trainers add, as they write to the output of the test that is over."""
    loggers = [logging.getLogger(name) for name in ("detlib", "fvcore")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        for handler in set(logger.handlers).difference(handlers):
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def catalogs_as_before():
    """Takes away the datasets that a test registers, so that tests can run in any order."""
    before = [(catalog.data, set(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    yield
    for data, names in before:
        for name in data.keys() - names:
            del data[name]


def build_tiny_cfg():
    """RetinaNet with a narrow ResNet-18, 3 classes and 64-pixel images, on the CPU."""
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 16
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[x, x * 1.5] for x in (16, 32, 64, 128, 256)]
    cfg.MODEL.RETINANET.NUM_CLASSES = 3
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    cfg.INPUT.MIN_SIZE_TRAIN = (64,)
    cfg.INPUT.MIN_SIZE_TEST = 64
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


def build_tiny_rcnn_cfg(cfg=None):
    """Faster R-CNN with the backbone of ``tiny_cfg``; MASK_ON and KEYPOINT_ON give it small further heads."""
    cfg = cfg or build_tiny_cfg()
    cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16], [32], [64]]
    cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.RPN.PRE_NMS_TOPK_TRAIN = cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = 50
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 8
    cfg.MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS = (8,)
    cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = 2
    return cfg


# As functions, too, since other processes have no fixtures.
tiny_cfg = pytest.fixture(build_tiny_cfg, name="tiny_cfg")


@pytest.fixture
def tiny_rcnn_cfg(tiny_cfg):
    return build_tiny_rcnn_cfg(tiny_cfg)


@pytest.fixture
def tiny_semantic_cfg(tiny_cfg):
    """A semantic segmentor of 4 classes with the backbone of ``tiny_cfg``."""
    cfg = tiny_cfg
    cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p3", "p4", "p5"]
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 8
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 4
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 32
    return cfg


def make_sample(height, width, boxes_xyxy=(), classes=(), seed=0):
    """A training sample, whose picture depends on its size and the seed."""
    generator = torch.Generator().manual_seed(height * 1000 + width + seed)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    classes = torch.tensor(classes, dtype=torch.int64)
    instances = Instances((height, width), gt_boxes=boxes, gt_classes=classes)
    return {"image": image, "height": height, "width": width, "instances": instances}


@pytest.fixture
def sample():
    """Makes a training sample: ``sample(height, width, boxes_xyxy, classes)``."""
    return make_sample
