"""ROI_EXTRACTOR of a head's section: which heads take it, and which tell why not."""

import pytest
import torch
from torch import nn

from detlib.layers import ROIAlign, ShapeSpec
from detlib.modeling import build_model
from detlib.modeling.poolers import ROIPooler
from detlib.modeling.roi_extractor import ROI_EXTRACTOR_REGISTRY, GenericRoIExtractor, SingleRoIExtractor
from detlib.modeling.roi_heads import build_roi_heads
from detlib.structures import BitMasks, Keypoints
from detlib.utils.errors import ConfigError

SHAPES = {name: ShapeSpec(channels=16, stride=stride) for name, stride in (("p3", 8), ("p4", 16))}


@pytest.fixture
def finest():
    """Names an extractor of a user's own, which pools from the finest map and gives a channel more."""

    @ROI_EXTRACTOR_REGISTRY.register()
    class FinestWithSize(nn.Module):
        def __init__(self, input_shape, height, width=3):
            super().__init__()
            self.output_size = (height, width)
            self.out_channels = input_shape[0].channels + 1
            self.align = ROIAlign(self.output_size, 1 / input_shape[0].stride, 0)
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, maps, boxes, roi_scale_factor=None):
            image = torch.cat([b.tensor.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
            regions = self.align(maps[0], torch.cat([image, torch.cat([b.tensor for b in boxes])], dim=1))
            size = torch.cat([b.area().sqrt() for b in boxes]).view(-1, 1, 1, 1) * self.weight
            return torch.cat([regions, size.expand(-1, 1, *self.output_size)], dim=1)

    yield "FinestWithSize"
    del ROI_EXTRACTOR_REGISTRY._obj_map["FinestWithSize"]


@pytest.fixture
def batch(sample):
    """Images of two sizes, one with objects."""
    samples = [sample(64, 64, [[4.0, 4, 30, 40], [20, 20, 60, 60]], [0, 2]), sample(48, 72)]
    for x in samples:
        instances = x["instances"]
        instances.gt_masks = BitMasks(torch.ones(len(instances), *instances.image_size, dtype=torch.bool))
        instances.gt_keypoints = Keypoints(torch.full((len(instances), 2, 3), 25.0))
    return samples


def train_and_predict(cfg, batch):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    losses = model(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    with torch.no_grad():
        assert len(model.eval()(batch)) == 2
    return model


def test_extractor_of_a_user_trains_in_all_three_heads(tiny_rcnn_cfg, batch, finest):
    tiny_rcnn_cfg.MODEL.MASK_ON = tiny_rcnn_cfg.MODEL.KEYPOINT_ON = True
    for head, height in (("ROI_BOX_HEAD", 5), ("ROI_MASK_HEAD", 3), ("ROI_KEYPOINT_HEAD", 2)):
        tiny_rcnn_cfg.MODEL[head].ROI_EXTRACTOR = {"NAME": finest, "HEIGHT": height}
    heads = train_and_predict(tiny_rcnn_cfg, batch).roi_heads
    assert heads.box_head.fc1.in_features == 17 * 5 * 3
    assert heads.mask_pooler.output_size == (3, 3) and heads.keypoint_pooler.output_size == (2, 3)


def test_extractor_of_the_library_takes_what_its_node_does_not_say_from_the_pooler_keys(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.MASK_ON = True
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.merge_from_list(["POOLER_RESOLUTION", 3, "POOLER_TYPE", "ROIPool"])
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR = {"NAME": "SingleRoIExtractor", "FINEST_SCALE": 20}
    tiny_rcnn_cfg.MODEL.ROI_MASK_HEAD.ROI_EXTRACTOR = {"NAME": "GenericRoIExtractor", "OUTPUT_SIZE": 6}
    heads = build_roi_heads(tiny_rcnn_cfg, SHAPES)
    assert type(heads.box_pooler) is SingleRoIExtractor and heads.box_pooler.output_size == (3, 3)
    assert type(heads.box_pooler.level_poolers[0]).__name__ == "_ROIPool"
    assert type(heads.mask_pooler) is GenericRoIExtractor and heads.mask_pooler.output_size == (6, 6)


def test_without_a_node_the_pooler_is_that_of_the_pooler_keys(tiny_rcnn_cfg):
    assert type(build_roi_heads(tiny_rcnn_cfg, SHAPES).box_pooler) is ROIPooler


def test_concatenated_maps_make_regions_of_all_their_channels(tiny_rcnn_cfg, batch):
    node = {"NAME": "GenericRoIExtractor", "AGGREGATION": "concat", "OUTPUT_SIZE": 2}
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR = node
    heads = train_and_predict(tiny_rcnn_cfg, batch).roi_heads
    assert heads.box_head.fc1.in_features == 2 * 16 * 2 * 2


def test_all_stages_of_a_cascade_use_it(tiny_rcnn_cfg, batch, finest):
    tiny_rcnn_cfg.MODEL.ROI_HEADS.NAME = "CascadeROIHeads"
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR = {"NAME": finest, "HEIGHT": 2}
    heads = train_and_predict(tiny_rcnn_cfg, batch).roi_heads
    assert [head.fc1.in_features for head in heads.box_head] == [17 * 2 * 3] * 3


@pytest.fixture
def c4_cfg(tiny_rcnn_cfg):
    model = tiny_rcnn_cfg.MODEL
    model.BACKBONE.NAME = "build_resnet_backbone"
    model.RESNETS.DEPTH = 50
    model.RESNETS.WIDTH_PER_GROUP = 4
    model.RESNETS.OUT_FEATURES = model.RPN.IN_FEATURES = model.ROI_HEADS.IN_FEATURES = ["res4"]
    model.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
    model.ROI_HEADS.NAME = "Res5ROIHeads"
    model.MASK_ON = True
    return tiny_rcnn_cfg


def test_res5_heads_take_that_of_the_box_head(c4_cfg, batch):
    c4_cfg.MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR = {"NAME": "SingleRoIExtractor", "OUTPUT_SIZE": 6}
    assert train_and_predict(c4_cfg, batch).roi_heads.pooler.output_size == (6, 6)


def test_res5_heads_refuse_one_for_masks(c4_cfg):
    c4_cfg.MODEL.ROI_MASK_HEAD.ROI_EXTRACTOR = {"NAME": "SingleRoIExtractor"}
    with pytest.raises(ConfigError, match=r"set MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR in place of MODEL.ROI_MASK_HEAD"):
        build_model(c4_cfg)


@pytest.fixture
def rotated_cfg(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.ROI_HEADS.NAME = "RROIHeads"
    head = tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD
    head.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0, 1.0)
    head.ROI_EXTRACTOR = {"NAME": "SingleRoIExtractor"}
    return tiny_rcnn_cfg


def test_rotated_heads_take_one_of_rotated_regions(rotated_cfg):
    rotated_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignRotated"
    pooler = build_roi_heads(rotated_cfg, SHAPES).box_pooler
    assert type(pooler.level_poolers[0]).__name__ == "ROIAlignRotated"


def test_rotated_heads_refuse_one_of_upright_regions(rotated_cfg):
    rotated_cfg.MODEL.ROI_BOX_HEAD.POOLER_TYPE = "ROIAlignRotated"
    rotated_cfg.MODEL.ROI_BOX_HEAD.ROI_EXTRACTOR.ROI_LAYER = "ROIAlign"
    with pytest.raises(ConfigError, match=r"ROI_EXTRACTOR.ROI_LAYER there, is 'ROIAlign'; RROIHeads needs"):
        build_roi_heads(rotated_cfg, SHAPES)
