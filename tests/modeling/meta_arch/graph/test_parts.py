"""Parts of a user's own, several heads on one trunk, and what parts say when samples or nodes do not fit."""

import pytest
import torch
from torch import nn

from detlib.config import configurable
from detlib.layers import ShapeSpec
from detlib.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    META_ARCH_REGISTRY,
    NECK_REGISTRY,
    ROI_HEADS_REGISTRY,
    Backbone,
    RetinaNet,
    StandardROIHeads,
    build_model,
)
from detlib.modeling.backbone import build_resnet_fpn_backbone
from detlib.modeling.head import ClsHead
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.structures import Instances
from detlib.utils.errors import ConfigError

RESNET = {"name": "backbone", "type": "build_resnet_backbone"}
PYRAMID = {
    "name": "fpn",
    "type": "fpn",
    "prev": "backbone",
    "kwargs": {"out_channels": 16, "top_block": "LastLevelP6P7"},
}
GAP = {"name": "gap", "type": "gap", "prev": "backbone"}
HEAD = {"name": "head", "type": "linear_cls_head", "prev": "gap", "kwargs": {"num_classes": 4}}
RETINANET = {"name": "det", "type": "retinanet_head", "prev": "fpn"}
SEMANTIC = {"name": "seg", "type": "sem_seg_head", "prev": "fpn"}
RPN = {"name": "rpn", "type": "rpn", "prev": "fpn"}


@pytest.fixture(autouse=True)
def registries(monkeypatch):
    """What a test registers is gone after it."""
    for registry in (BACKBONE_REGISTRY, HEAD_REGISTRY, META_ARCH_REGISTRY, NECK_REGISTRY, ROI_HEADS_REGISTRY):
        monkeypatch.setattr(registry, "_obj_map", dict(registry._obj_map))


def train(graph, batch):
    losses = graph.train()(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    return losses


@torch.no_grad()
def predict(graph, batch):
    return graph.eval()([{"image": x["image"]} for x in batch])


class MyRetinaNet(RetinaNet):
    """With an option of its own, and a from_config that knows of no graph."""

    @configurable
    def __init__(self, *, box_weight, **kwargs):
        super().__init__(**kwargs)
        self.box_weight = box_weight

    @classmethod
    def from_config(cls, cfg):
        return {**super().from_config(cfg), "box_weight": cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA}


def test_users_retinanet_is_built_on_the_maps_of_its_prev(graph_of, samples):
    META_ARCH_REGISTRY.register(MyRetinaNet)
    head = {**RETINANET, "type": "MyRetinaNet", "kwargs": {"smooth_l1_loss_beta": 0.5, "num_classes": 7}}
    graph = graph_of(RESNET, PYRAMID, head)
    module = graph.nodes["det"]
    assert (type(module), module.box_weight, module.num_classes) == (MyRetinaNet, 0.5, 7)
    assert {name.partition(".")[0] for name, _ in module.named_parameters()} == {"head"}  # And no backbone.
    assert set(train(graph, samples)) == {"det.loss_cls", "det.loss_box_reg"}
    assert [x["instances"].image_size for x in predict(graph, samples)] == [(64, 64), (48, 72)]


def test_detector_that_makes_its_backbone_itself_is_told_how_to_get_that_of_the_graph(graph_of):
    @META_ARCH_REGISTRY.register()
    class OwnBackbone(RetinaNet):
        @classmethod
        def from_config(cls, cfg):
            return {**super().from_config(cfg), "backbone": build_resnet_fpn_backbone(cfg, ShapeSpec(channels=3))}

    with pytest.raises(
        ConfigError, match=r"node 'det': OwnBackbone makes a backbone of its own; .*build_backbone\(cfg\)"
    ):
        graph_of(RESNET, PYRAMID, {**RETINANET, "type": "OwnBackbone"})


def test_detector_with_a_forward_of_its_own_is_refused(graph_of):
    @META_ARCH_REGISTRY.register()
    class OwnForward(RetinaNet):
        def forward(self, batched_inputs):
            return {}

    with pytest.raises(ConfigError, match=r"node 'det': OwnForward has a forward\(\) of its own"):
        graph_of(RESNET, PYRAMID, {**RETINANET, "type": "OwnForward"})


def test_detector_without_a_section_takes_cfg_in_place_of_kwargs(graph_of):
    @META_ARCH_REGISTRY.register()
    class NoSection(DenseDetector):
        pass

    with pytest.raises(ConfigError, match=r"NoSection has no num_classes_key.*write cfg in place of kwargs"):
        graph_of(RESNET, PYRAMID, {**RETINANET, "type": "NoSection", "kwargs": {"num_classes": 2}})


def test_users_roi_heads_are_a_node_by_their_name(graph_of, samples):
    @ROI_HEADS_REGISTRY.register()
    class DoubledHeads(StandardROIHeads):
        def forward(self, images, features, proposals, targets=None):
            results, losses = super().forward(images, features, proposals, targets)
            return results, {name: 2 * loss for name, loss in losses.items()}

    heads = {"name": "heads", "type": "StandardROIHeads", "prev": "fpn"}
    once = train(graph_of(RESNET, PYRAMID, RPN, heads), samples)
    torch.manual_seed(0)
    twice = train(graph_of(RESNET, PYRAMID, RPN, {**heads, "type": "DoubledHeads"}), samples)
    assert set(once) == set(twice) == {"rpn.loss_rpn_cls", "rpn.loss_rpn_loc", "heads.loss_cls", "heads.loss_box_reg"}
    assert twice["heads.loss_cls"] > once["heads.loss_cls"]


def test_roi_heads_by_alias_are_those_that_the_config_names(graph_of):
    options = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
    graph = graph_of(RESNET, PYRAMID, RPN, {"name": "heads", "type": "roi_heads", "prev": "fpn"}, options=options)
    assert type(graph.nodes["heads"]).__name__ == "CascadeROIHeads"


def test_users_backbone_function_is_a_node(graph_of, samples):
    class Halves(Backbone):
        def __init__(self, channels):
            super().__init__()
            self.conv = nn.Conv2d(channels, 6, 3, stride=2, padding=1)

        def forward(self, x):
            return {"half": self.conv(x)}

        def output_shape(self):
            return {"half": ShapeSpec(channels=6, stride=2)}

    @BACKBONE_REGISTRY.register()
    def build_halves(cfg, input_shape):
        return Halves(input_shape.channels)

    graph = graph_of({"name": "backbone", "type": "build_halves"}, GAP, HEAD)
    assert graph.nodes["head"].fc.in_features == 6
    assert set(train(graph, samples)) == {"head.loss_cls"}


class LastMap(nn.Module):
    """A pooling neck without output_shape(), which returns one tensor, of other channels."""

    def __init__(self, input_shape):
        super().__init__()
        self.name, shape = list(input_shape.items())[-1]
        self.linear = nn.Linear(shape.channels, 5)

    def forward(self, maps):
        return self.linear(maps[self.name].mean(dim=(2, 3)))


def test_shape_of_a_neck_without_output_shape_is_found_by_trying(graph_of, samples):
    NECK_REGISTRY.register(LastMap)
    graph = graph_of(RESNET, {**GAP, "type": "LastMap"}, HEAD)
    assert graph.nodes["head"].fc.in_features == 5
    assert graph.nodes["gap"].training
    assert set(train(graph, samples)) == {"head.loss_cls"}


def test_stride_of_a_neck_without_output_shape_is_found_by_trying(graph_of):
    @NECK_REGISTRY.register()
    class Halving(nn.Module):
        def forward(self, maps):
            return {name: nn.functional.avg_pool2d(x, 2) for name, x in maps.items()}

    graph = graph_of(RESNET, {"name": "neck", "type": "Halving", "prev": "backbone"})
    strides = {name: shape.stride for name, shape in graph.plan[1].shape.items()}
    assert strides == {"res3": 16, "res4": 32, "res5": 64}


def test_users_head_of_a_classifier_is_a_node(graph_of, samples):
    @HEAD_REGISTRY.register()
    class TwoLayers(ClsHead):
        def __init__(self, num_classes, in_channels, width):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(in_channels, width), nn.ReLU(), nn.Linear(width, num_classes))

        def forward(self, features):
            return self.layers(self.pre_logits(features))

    head = {**HEAD, "type": "TwoLayers", "kwargs": {"width": 3, "num_classes": 5}}
    graph = graph_of(RESNET, GAP, head)
    assert set(train(graph, samples)) == {"head.loss_cls"}
    assert [x["pred_score"].shape for x in predict(graph, samples)] == [(5,), (5,)]


def test_head_runs_once_when_training(graph_of, samples):
    graph = graph_of(RESNET, GAP, HEAD)
    calls = []
    graph.nodes["head"].fc.register_forward_hook(lambda *_: calls.append(1))
    train(graph, samples)
    assert len(calls) == 1


def test_two_detectors_on_one_trunk_have_their_own_classes_and_detections(graph_of, samples):
    other = {**RETINANET, "name": "coarse", "kwargs": {"num_classes": 1, "score_thresh_test": 0.0}}
    other["rename"] = {"input": {"coarse_instances": "gt_instances"}, "output": {"instances": "coarse"}}
    fine = {**RETINANET, "cfg": {"MODEL": {"RETINANET": {"NUM_CLASSES": 5, "SCORE_THRESH_TEST": 0.0}}}}
    inputs = ["MODEL.MODULE_GRAPH.INPUTS", ["coarse_instances"]]
    graph = graph_of(RESNET, PYRAMID, fine, other, options=inputs)
    assert (graph.nodes["det"].num_classes, graph.nodes["coarse"].num_classes) == (5, 1)
    for x in samples:
        coarse = Instances(x["instances"].image_size, gt_boxes=x["instances"].gt_boxes)
        coarse.gt_classes = torch.zeros_like(x["instances"].gt_classes)
        x["coarse_instances"] = coarse
    losses = train(graph, samples)
    assert set(losses) == {"det.loss_cls", "det.loss_box_reg", "coarse.loss_cls", "coarse.loss_box_reg"}
    predictions = predict(graph, samples)
    assert [set(x) for x in predictions] == [{"instances", "coarse"}] * 2
    assert {int(c) for x in predictions for c in x["coarse"].pred_classes} == {0}
    assert max(int(c) for x in predictions for c in x["instances"].pred_classes) > 0


def test_weights_of_losses_are_factors(graph_of, samples):
    torch.manual_seed(0)
    plain = train(graph_of(RESNET, PYRAMID, RETINANET), samples)
    weights = {"loss_weights": {"loss_cls": 3, "det.loss_box_reg": 0.5}}
    weighted = train(graph_of(RESNET, PYRAMID, {**RETINANET, **weights}), samples)
    assert weighted["det.loss_cls"] == 3 * plain["det.loss_cls"]
    assert weighted["det.loss_box_reg"] == 0.5 * plain["det.loss_box_reg"]


@pytest.mark.parametrize(
    ("net", "message"),
    [
        ([PYRAMID, {**RETINANET, "prev": None}], "node 'det': retinanet_head takes feature maps, but it has no prev"),
        ([GAP, HEAD, {**RPN, "prev": "head"}], "node 'rpn': rpn takes feature maps, but prev head declares no outputs"),
        ([PYRAMID, {**RESNET, "name": "b", "prev": "fpn"}], "node 'b': a backbone takes one .*p3, p4, p5, p6, p7"),
        ([GAP, {**HEAD, "inputs": "features"}], "node 'head': a node with inputs needs outputs"),
        ([GAP, {"name": "loss", "type": "L1Loss"}], r"node 'loss': a loss needs inputs: .*\[logits, label\]"),
        (
            [GAP, {"name": "loss", "type": "L1Loss", "inputs": ["image", "image"], "outputs": "x"}],
            r"node 'loss': a loss gives one entry, with 'loss' in its name; outputs is \['x'\]",
        ),
        (
            [{**HEAD, "prev": "backbone"}],
            r"node 'head': the head takes features of shape \(N, 64\), got \(1, 64, 2, 2\)",
        ),
        (
            [PYRAMID, {**RETINANET, "kwargs": {"head": {"NAME": "FCOSHead", "NUM_CLASSES": 3, "CONV_DIMS": [8]}}}],
            r"node 'det': FCOSHead predicts maps of \[.*\] channels; RetinaNet needs",
        ),
        (
            [PYRAMID, {**RPN, "cfg": {"MODEL": {"PROPOSAL_GENERATOR": {"NAME": "PrecomputedProposals"}}}}],
            r"node 'rpn': .*samples bring proposals; leave the node out",
        ),
        (
            [{**RESNET, "name": "b", "kwargs": {"depth": 18}}],
            r"node 'b': .*MODEL.RESNETS.DEPTH.*In a node, write that as cfg: \{MODEL: \{\.\.\.\}\}",
        ),
    ],
)
def test_node_that_cannot_be_built_says_what_it_needs(graph_of, net, message):
    with pytest.raises(ConfigError, match=message):
        graph_of(RESNET, *net)


def test_name_in_two_registries_is_refused(graph_of):
    HEAD_REGISTRY.register("PAFPN", nn.Identity)
    with pytest.raises(ConfigError, match="'PAFPN', which is in the registries NECK, HEAD; rename one"):
        graph_of(RESNET, {"name": "neck", "type": "PAFPN", "prev": "backbone"})


def test_mixing_of_images_is_refused_as_a_graph_would_not_do_it(graph_of):
    options = ["MODEL.CLASSIFIER.BATCH_AUGMENTS", [{"NAME": "Mixup", "ALPHA": 0.2}]]
    with pytest.raises(ConfigError, match=r"node 'head': MODEL.CLASSIFIER.BATCH_AUGMENTS .*set it to \[\]"):
        graph_of(RESNET, GAP, HEAD, options=options)


def test_part_with_inputs_is_called_with_them(graph_of, samples):
    head = {
        "name": "head",
        "type": "RetinaNetHead",
        "prev": "fpn",
        "inputs": "features",
        "outputs": ["logits", "deltas"],
    }
    head["kwargs"] = {"num_classes": 2, "num_anchors": 3, "conv_dims": [8]}
    graph = graph_of(RESNET, PYRAMID, head, options=["MODEL.MODULE_GRAPH.OUTPUTS", ["image_sizes"]])
    assert [tuple(x["image_sizes"]) for x in predict(graph, samples)] == [(64, 64), (48, 72)]


def test_backbone_below_another_node_counts_its_stride_from_the_image(graph_of, samples, returning):
    shape = {"stem": ShapeSpec(channels=3, stride=2)}
    returning(
        "stem", lambda _, data: {"features": [nn.functional.avg_pool2d(data["image"], 2)], "strides": [2]}, None, shape
    )
    vit = {"name": "vit", "type": "build_vit_backbone", "prev": "stem"}
    vit["cfg"] = {"MODEL": {"VIT": {"EMBED_DIM": 8, "DEPTH": 1, "NUM_HEADS": 1, "IMG_SIZE": 32}}}
    graph = graph_of({"name": "stem", "type": "stem"}, vit, {**GAP, "prev": "vit"}, HEAD)
    assert {name: x.stride for name, x in graph.plan[1].shape.items()} == {"last_feat": 32}
    assert graph.preprocessor.size_divisibility == 32
    assert len(predict(graph, samples)) == 2  # 48 x 72 becomes 64 x 96.


@pytest.mark.parametrize(
    "node",
    [
        {"name": "b", "type": "MobileNetV2", "kwargs": {"width_mult": 0.25}},
        {"name": "b", "type": "backbone", "kwargs": {"NAME": "MobileNetV2", "WIDTH_MULT": 0.25}},
    ],
)
def test_options_of_another_backbone_are_not_those_of_the_node(graph_of, samples, node):
    options = ["MODEL.BACKBONE", {"NAME": "ResNet_CIFAR", "DEPTH": 18, "FREEZE_AT": 0}]
    graph = graph_of(node, {**GAP, "prev": "b"}, HEAD, options=options)
    assert type(graph.nodes["b"]).__name__ == "MobileNetV2"
    assert set(train(graph, samples)) == {"head.loss_cls"}


@pytest.mark.parametrize(
    ("name", "section", "options"),
    [
        ("build_vit_fpn_backbone", "VIT", {"EMBED_DIM": 8, "DEPTH": 1, "NUM_HEADS": 1, "IMG_SIZE": 64}),
        ("build_swin_backbone", "SWIN", {"EMBED_DIM": 8, "DEPTHS": [1] * 4, "NUM_HEADS": [1] * 4, "WINDOW_SIZE": 4}),
        ("build_resnet_fpn_backbone", "FPN", {"IN_FEATURES": ["res3", "res4", "res5"]}),
    ],
)
def test_padding_that_a_backbone_asks_for_reaches_the_images(graph_of, samples, name, section, options):
    square = {"FPN": {"SQUARE_PAD": 128, **(options if section == "FPN" else {})}}
    node = {"name": "b", "type": name, "cfg": {"MODEL": {section: options, **square}}}
    graph = graph_of(node, {**GAP, "prev": "b"}, HEAD)
    height, width = graph.preprocess_image(samples).tensor.shape[-2:]
    side = 128 if "fpn" in name else 64
    assert (height, width) == (side, 128 if "fpn" in name else 96)


def test_graph_of_a_full_retinanet_is_built_on_the_meta_device(tiny_cfg):
    cfg = tiny_cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    cfg.MODEL.RESNETS.merge_from_list(["DEPTH", 50, "STEM_OUT_CHANNELS", 64, "RES2_OUT_CHANNELS", 256])
    cfg.MODEL.FPN.OUT_CHANNELS = 256
    cfg.MODEL.RETINANET.merge_from_list(["NUM_CLASSES", 80, "NUM_CONVS", 4])
    pyramid = {**PYRAMID, "kwargs": {"top_block": "LastLevelP6P7"}}
    with torch.device("meta"):
        model = build_model(cfg)
        cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
        cfg.MODEL.MODULE_GRAPH.NET = [RESNET, pyramid, RETINANET]
        graph = build_model(cfg)
    shapes = [sorted(tuple(p.shape) for p in x.parameters() if p.is_meta) for x in (model, graph)]
    assert shapes[0] == shapes[1] and len(shapes[1]) == len(list(graph.parameters()))
