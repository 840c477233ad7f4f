"""Models wired as graphs give what their classes give with the same weights: equal numbers, not close ones."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from detlib.modeling import build_model
from detlib.structures import BitMasks, Boxes, Instances, Keypoints, ROIMasks

RESNET = {"name": "backbone", "type": "build_resnet_backbone"}
PYRAMID = {"name": "fpn", "type": "fpn", "prev": "backbone", "kwargs": {"out_channels": 16}}
RPN = {"name": "rpn", "type": "rpn", "prev": "fpn"}
ROI_HEADS = {"name": "roi_heads", "type": "roi_heads", "prev": "fpn"}

# Where the weights of a class are in the graph, by the first prefix that fits.
ON_PYRAMID = {"backbone.bottom_up.": "backbone.", "backbone.": "fpn."}


@dataclass
class Case:
    """A model as a class and as a graph.

    Attributes:
        class_name: in META_ARCH_REGISTRY.
        net: the same as nodes.
        weights: prefix of a weight's name in the class -> prefix in the graph.
        options: of the config, for both.
        own: of the config of the class, for what the graph has as kwargs.
        labels: what samples have besides images.
    """

    class_name: str
    net: list[dict]
    weights: dict[str, str]
    options: dict = field(default_factory=dict)
    own: dict = field(default_factory=dict)
    labels: Callable[[dict], dict] = lambda sample: {}


def regions(sample):
    """Masks and keypoints of the objects."""
    instances = sample["instances"]
    masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
    masks[:, 8:30, 8:25] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_keypoints = Keypoints(torch.tensor([[[25.0, 25, 2], [28, 30, 2]]]).expand(len(instances), 2, 3))
    return {}


def proposals(sample):
    boxes = torch.tensor([[4.0, 4, 30, 40], [2, 2, 28, 30], [10, 10, 20, 40]])
    size = sample["image"].shape[-2:]
    logits = torch.tensor([2.0, 1.0, 0.0])
    return {"proposals": Instances(tuple(size), proposal_boxes=Boxes(boxes), objectness_logits=logits)}


def pixels(sample):
    labels = torch.ones(sample["image"].shape[-2:], dtype=torch.int64)
    labels[:, 30:] = 2
    labels[:5] = 255
    return {"sem_seg": labels}


RETINANET = {"MODEL.RETINANET.SCORE_THRESH_TEST": 0.0, "MODEL.RETINANET.TOPK_CANDIDATES_TEST": 50}
FCOS = {"MODEL.FCOS.NUM_CLASSES": 3, "MODEL.FCOS.NUM_CONVS": 1, "MODEL.FCOS.SCORE_THRESH_TEST": 0.0}
FCOS |= {"MODEL.FCOS.TOPK_CANDIDATES_TEST": 50, "MODEL.FCOS.NORM": ""}
RCNN = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16], [32], [64]],
    "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20,
    "MODEL.RPN.POST_NMS_TOPK_TEST": 20,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.NUM_CLASSES": 3,
    "MODEL.ROI_HEADS.IN_FEATURES": ["p3", "p4"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 16,
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 4,
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": 4,
    "MODEL.ROI_MASK_HEAD.NUM_CONV": 1,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 8,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_RESOLUTION": 4,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": (8,),
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": 2,
}
CASCADE = {
    "MODEL.ROI_HEADS.NAME": "CascadeROIHeads",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": True,
}
C4 = {
    "MODEL.BACKBONE.NAME": "build_resnet_backbone",
    "MODEL.RESNETS.DEPTH": 50,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.OUT_FEATURES": ["res4"],
    "MODEL.RPN.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.IN_FEATURES": ["res4"],
    "MODEL.ROI_HEADS.NAME": "Res5ROIHeads",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[16, 32, 64]],
}
SEMANTIC = {
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.SEM_SEG_HEAD.IN_FEATURES": ["p3", "p4", "p5"],
    "MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
}
CLASSES = {"MODEL.BACKBONE.NAME": "build_resnet_backbone", "MODEL.CLASSIFIER.NUM_CLASSES": 4}
SOFT = {"LOSS": {"NAME": "CrossEntropyLoss", "USE_SOFT": True}}

P6P7 = {**PYRAMID, "kwargs": {"out_channels": 16, "top_block": "LastLevelP6P7"}}
P6 = {**PYRAMID, "kwargs": {"out_channels": 16, "top_block": "LastLevelMaxPool"}}
P6P7_OF_P5 = {**PYRAMID, "kwargs": {**P6P7["kwargs"], "top_block_in_feature": "p5"}}
TWO_STAGES = {**ON_PYRAMID, "proposal_generator.": "rpn.", "roi_heads.": "roi_heads."}
GAP = {"name": "gap", "type": "gap", "prev": "backbone"}
CLASSIFIER = {"backbone.": "backbone.", "head.": "head."}

CASES = {
    "RetinaNet": Case(
        "RetinaNet",
        [RESNET, P6P7, {"name": "head", "type": "retinanet_head", "prev": "fpn"}],
        {**ON_PYRAMID, "head.": "head.head."},
        RETINANET,
    ),
    "RetinaNet with the backbone of the config": Case(
        "RetinaNet",
        [{"name": "backbone", "type": "backbone"}, {"name": "head", "type": "RetinaNet", "prev": "backbone"}],
        {"backbone.": "backbone.", "head.": "head.head."},
        RETINANET,
    ),
    "FCOS": Case(
        "FCOS",
        [RESNET, P6P7_OF_P5, {"name": "head", "type": "FCOS", "prev": "fpn"}],
        {**ON_PYRAMID, "head.": "head.head."},
        {**FCOS, "MODEL.BACKBONE.NAME": "build_fcos_resnet_fpn_backbone"},
    ),
    "Faster R-CNN": Case("GeneralizedRCNN", [RESNET, P6, RPN, ROI_HEADS], TWO_STAGES, RCNN),
    "Mask R-CNN": Case(
        "GeneralizedRCNN", [RESNET, P6, RPN, ROI_HEADS], TWO_STAGES, {**RCNN, "MODEL.MASK_ON": True}, labels=regions
    ),
    "Mask R-CNN, C4": Case(
        "GeneralizedRCNN",
        [RESNET, {**RPN, "prev": "backbone"}, {**ROI_HEADS, "prev": "backbone"}],
        {"backbone.": "backbone.", "proposal_generator.": "rpn.", "roi_heads.": "roi_heads."},
        {**RCNN, **C4, "MODEL.MASK_ON": True},
        labels=regions,
    ),
    "Cascade R-CNN": Case(
        "GeneralizedRCNN",
        [RESNET, P6, {**RPN, "type": "RPN"}, {**ROI_HEADS, "type": "CascadeROIHeads"}],
        TWO_STAGES,
        {**RCNN, **CASCADE},
    ),
    "Keypoint R-CNN": Case(
        "GeneralizedRCNN", [RESNET, P6, RPN, ROI_HEADS], TWO_STAGES, {**RCNN, "MODEL.KEYPOINT_ON": True}, labels=regions
    ),
    "Fast R-CNN of precomputed proposals": Case(
        "GeneralizedRCNN",
        [RESNET, P6, ROI_HEADS],
        TWO_STAGES,
        RCNN,
        {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"},
        labels=proposals,
    ),
    "SemanticSegmentor": Case(
        "SemanticSegmentor",
        [RESNET, PYRAMID, {"name": "sem_seg_head", "type": "sem_seg_head", "prev": "fpn"}],
        {**ON_PYRAMID, "sem_seg_head.": "sem_seg_head."},
        SEMANTIC,
        labels=pixels,
    ),
    "ImageClassifier": Case(
        "ImageClassifier",
        [RESNET, GAP, {"name": "head", "type": "linear_cls_head", "prev": "gap"}],
        CLASSIFIER,
        CLASSES,
        labels=lambda sample: {"label": sample["image"].shape[1] % 4},
    ),
    "ImageClassifier of soft labels": Case(
        "ImageClassifier",
        [RESNET, GAP, {"name": "head", "type": "LinearClsHead", "prev": "gap", "kwargs": {"loss": SOFT["LOSS"]}}],
        CLASSIFIER,
        CLASSES,
        {"MODEL.CLASSIFIER.HEAD": {"NAME": "LinearClsHead", **SOFT}},
        labels=lambda sample: {"score": torch.tensor([0.1, 0.2, 0.3, 0.4])},
    ),
    "ImageClassifier of several labels": Case(
        "ImageClassifier",
        [RESNET, GAP, {"name": "head", "type": "MultiLabelLinearClsHead", "prev": "gap"}],
        CLASSIFIER,
        CLASSES,
        {"MODEL.CLASSIFIER.HEAD": {"NAME": "MultiLabelLinearClsHead"}},
        labels=lambda sample: {"labels": [1, 3]},
    ),
}
BOXES = [[4.0, 4, 30, 40], [20, 20, 60, 60]]
BATCHES = {
    "two sizes, one image without objects": [(64, 64, BOXES, [0, 2]), (48, 72)],
    "one image": [(50, 70, BOXES, [1, 1])],
    "no objects": [(64, 64), (64, 64)],
}


@pytest.fixture
def pair(tiny_cfg):
    """The class of a case and its graph, with the same random weights."""

    def build(case):
        cfg = tiny_cfg
        for key, value in case.options.items():
            cfg.merge_from_list([key, value])
        graph_cfg = cfg.clone()
        for key, value in case.own.items():
            cfg.merge_from_list([key, value])
        cfg.MODEL.META_ARCHITECTURE = case.class_name
        graph_cfg.MODEL.META_ARCHITECTURE = "ModuleGraph"
        graph_cfg.MODEL.MODULE_GRAPH.NET = case.net
        torch.manual_seed(0)
        model, graph = build_model(cfg), build_model(graph_cfg)
        weights = {renamed(name, case.weights): x for name, x in model.state_dict().items()}
        graph.load_state_dict(weights)  # All of them, and no others.
        return model, graph

    return build


def renamed(name, prefixes):
    """The name that a weight of the class has in the graph."""
    old = next(prefix for prefix in prefixes if name.startswith(prefix))
    return f"nodes.{prefixes[old]}{name.removeprefix(old)}"


def losses_and_gradients(model, batch):
    torch.manual_seed(1)  # R-CNNs sample regions.
    losses = model.train()(batch)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def assert_same(found, expected):
    """Equal, also of each field of Instances and each item of lists."""
    assert type(found) is type(expected)
    if isinstance(expected, Instances):
        assert found.image_size == expected.image_size
        found, expected = found.get_fields(), expected.get_fields()
    if isinstance(expected, Boxes | ROIMasks):
        found, expected = found.tensor, expected.tensor
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for item, value in zip(found, expected):
            assert_same(item, value)
    elif isinstance(expected, Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


@pytest.fixture
def batch_of(sample):
    """The samples of a batch with the labels of a case; the first is wanted in another size than that of its image."""

    def make(case, name):
        batch = [sample(*arguments) for arguments in BATCHES[name]]
        batch[0].update(height=33, width=90)
        return [{**x, **case.labels(x)} for x in batch]

    return make


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch", BATCHES)
def test_losses_and_gradients_are_those_of_the_class(pair, batch_of, case, batch):
    model, graph = pair(case)
    batch = batch_of(case, batch)
    losses, gradients = losses_and_gradients(model, batch)
    found_losses, found_gradients = losses_and_gradients(graph, batch)
    nodes = {key.partition(".")[0] for key in found_losses}
    assert nodes <= {node["name"] for node in case.net}
    assert_same({key.partition(".")[2]: loss for key, loss in found_losses.items()}, losses)
    assert_same(found_gradients, {renamed(name, case.weights): grad for name, grad in gradients.items()})
    assert any(grad is not None and grad.any() for grad in gradients.values())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch", BATCHES)
@torch.no_grad()
def test_predictions_are_those_of_the_class(pair, batch_of, case, batch):
    model, graph = pair(case)
    batch = batch_of(case, batch)
    expected = model.eval()(batch)
    assert_same(graph.eval()(batch), expected)
    assert all(len(x) > 0 for prediction in expected for x in prediction.values() if isinstance(x, Instances))
