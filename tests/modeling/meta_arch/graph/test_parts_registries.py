"""Every part that detlib has by name is a node that trains and predicts: a new part is tested by existing."""

import pytest
import torch

from detlib.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    LOSS_REGISTRY,
    META_ARCH_REGISTRY,
    NECK_REGISTRY,
    PROPOSAL_GENERATOR_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    build_model,
)
from detlib.modeling.head import ClsHead
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.structures import RotatedBoxes

# Options that make parts small, for all of them.
SECTIONS = """
MODEL:
  META_ARCHITECTURE: ModuleGraph
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  REGNET: {DEPTH: 6, W_A: 4.0, W_0: 8, W_M: 1.5, GROUP_WIDTH: 4, NORM: BN, OUT_FEATURES: [s1, s2, s3]}
  VIT: {IMG_SIZE: 64, EMBED_DIM: 8, DEPTH: 2, NUM_HEADS: 2, WINDOW_BLOCK_INDEXES: [0], WINDOW_SIZE: 3}
  SWIN: {EMBED_DIM: 8, DEPTHS: [1, 1, 1, 1], NUM_HEADS: [1, 2, 4, 8], WINDOW_SIZE: 4}
  MVIT: {EMBED_DIM: 4, DEPTH: 4, LAST_BLOCK_INDEXES: [0, 1, 2, 3], ADAPTIVE_WINDOW_SIZE: 16}
  FPN: {TOP_BLOCK: LastLevelP6P7}
  CLASSIFIER: {NUM_CLASSES: 4}
  FCOS: {NUM_CLASSES: 3, NUM_CONVS: 1, NORM: ""}
  SEM_SEG_HEAD: {NUM_CLASSES: 4, CONVS_DIM: 32}
  ANCHOR_GENERATOR: {SIZES: [[16, 32]]}
  MODULE_GRAPH: {INPUTS: [target]}
"""
ROTATED_RPN = {
    "ANCHOR_GENERATOR": {"NAME": "RotatedAnchorGenerator", "SIZES": [[24]], "ANGLES": [[-60, 0, 60]]},
    "RPN": {"BBOX_REG_WEIGHTS": [1.0, 1.0, 1.0, 1.0, 1.0]},
}
RESNET_50 = {"RESNETS": {"DEPTH": 50, "WIDTH_PER_GROUP": 4, "OUT_FEATURES": ["res4"]}, "RPN": {"IN_FEATURES": ["res4"]}}

# What single parts need besides: arguments, and options of the config.
KWARGS = {
    "MobileNet": {"width_mult": 0.25},
    "MobileNetV2": {"width_mult": 0.25},
    "ResNet_CIFAR": {"depth": 18, "base_channels": 4},
    "TimmBackbone": {"model_name": "mobilenetv3_small_050"},
    "TorchvisionBackbone": {"model_name": "mobilenet_v2", "model_kwargs": {"width_mult": 0.25}},
    "RetinaNetHead": {"conv_dims": [8], "num_classes": 3},
    "FCOSHead": {"conv_dims": [8], "num_classes": 3},
    "LabelSmoothLoss": {"label_smooth_val": 0.1},
    "MoCoV3ViT": {"embed_dim": 16, "depth": 1, "num_heads": 2, "out_features": ["last_feat"]},
    "NonLinearNeck": {"hid_channels": 8, "out_channels": 8},
}
OPTIONS = {
    "build_regnet_fpn_backbone": {"FPN": {"IN_FEATURES": ["s1", "s2", "s3"]}},
    "build_swin_fpn_backbone": {"FPN": {"IN_FEATURES": ["p0", "p1", "p2", "p3"]}},
    "build_mvit_fpn_backbone": {"FPN": {"IN_FEATURES": ["scale2", "scale3", "scale4", "scale5"]}},
    "RRPN": ROTATED_RPN,
    "CascadeROIHeads": {"ROI_BOX_HEAD": {"CLS_AGNOSTIC_BBOX_REG": True}},
    "RROIHeads": {
        "ROI_BOX_HEAD": {
            "POOLER_TYPE": "ROIAlignRotated",
            "POOLER_SAMPLING_RATIO": 2,
            "BBOX_REG_WEIGHTS": [10.0, 10.0, 5.0, 5.0, 1.0],
        }
    },
    "Res5ROIHeads": {**RESNET_50, "ROI_HEADS": {"IN_FEATURES": ["res4"]}},
    "Res5ROIHeadsExtraNorm": {**RESNET_50, "ROI_HEADS": {"IN_FEATURES": ["res4"]}},
}
# Regression losses, and one of masks, compare with numbers of the same shape; others with a class.
OF_NUMBERS = {
    "GHMR",
    "L1Loss",
    "SmoothL1Loss",
    "MSELoss",
    "IoULoss",
    "GIoULoss",
    "DIoULoss",
    "CIoULoss",
    "DiceLoss",
    "CosineSimilarityLoss",
}
# Of self-supervised learning, the parts that need more than features: masks, keys, or another view.
NEED_MORE = {
    "MAEViT",
    "SimMIMSwinTransformer",
    "CAEViT",
    "CAENeck",
    "DenseCLNeck",
    "MAEPretrainDecoder",
    "RelativeLocNeck",
    "SimMIMNeck",
    "ContrastiveHead",
    "LatentPredictHead",
    "LatentCrossCorrelationHead",
    "CAEHead",
    "DenseCLHead",
    "MAEPretrainHead",
    "MoCoV3Head",
    "SimMIMHead",
    "SwAVHead",
    "CrossCorrelationLoss",
    "CAELoss",
    "MAEReconstructionLoss",
    "NCE",
    "SimMIMReconstructionLoss",
    "SwAVLoss",
}

RESNET = {"name": "backbone", "type": "build_resnet_backbone"}
PYRAMID = {"name": "fpn", "type": "fpn", "prev": "backbone"}
PYRAMID["kwargs"] = {"out_channels": 16, "top_block": "LastLevelP6P7"}


def ours(registry):
    """Names of detlib's own parts; tests of others may register more."""
    return [name for name, target in registry if target.__module__.startswith("detlib.") and name not in NEED_MORE]


def node(name, prev=None, **keys):
    """A node of a part with what it needs to be small."""
    if name in OPTIONS:
        keys["cfg"] = {"MODEL": OPTIONS[name]}
    return {"name": "part", "type": name, "kwargs": KWARGS.get(name, {}), **({"prev": prev} if prev else {}), **keys}


@pytest.fixture
def build(tmp_path, tiny_rcnn_cfg):
    (tmp_path / "tiny.yaml").write_text(SECTIONS)
    tiny_rcnn_cfg.merge_from_file(str(tmp_path / "tiny.yaml"))

    def build_graph(*net):
        torch.manual_seed(0)
        tiny_rcnn_cfg.MODEL.MODULE_GRAPH.NET = list(net)
        return build_model(tiny_rcnn_cfg)

    return build_graph


@pytest.fixture
def batch(sample):
    """Two images with all that heads learn from."""
    samples = [sample(64, 64, [[4.0, 4, 30, 40], [20, 20, 60, 60]], [0, 2]), sample(64, 96)]
    for x in samples:
        x.update(label=2, target=torch.tensor([0.0, 0.0, 1.0, 1.0]), sem_seg=torch.ones(x["image"].shape[1:]))
    return samples


@pytest.fixture
def rotated_batch(batch):
    """The same with rotated boxes, for parts that know no others."""
    for x in batch:
        boxes = x["instances"].gt_boxes
        sizes = boxes.tensor[:, 2:] - boxes.tensor[:, :2]
        rotated = torch.cat([boxes.get_centers(), sizes, torch.full((len(boxes), 1), 30.0)], dim=1)
        x["instances"].gt_boxes = RotatedBoxes(rotated)
    return batch


def train(graph, batch):
    """The losses of a step, all of which reach the part."""
    losses = graph.train()(batch)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    gradients = [p.grad for p in graph.nodes["part"].parameters() if p.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    return losses


@torch.no_grad()
def predict(graph, batch):
    return graph.eval()([{key: x[key] for key in ("image", "height", "width")} for x in batch])


@torch.no_grad()
def run_nodes(graph, batch):
    """All that the nodes give, also to each other."""
    run = GraphRun(graph.eval().collate(batch))
    for planned in graph.plan:
        run.run(planned, graph.nodes[planned.name])
    return run


@pytest.mark.parametrize("name", ours(BACKBONE_REGISTRY))
def test_backbone(build, batch, name):
    if name == "GivenFeatures":  # It stands for maps of other nodes within a part.
        with pytest.raises(KeyError, match="unknown type 'GivenFeatures'"):
            build(node(name))
        return
    if name == "TimmBackbone":
        pytest.importorskip("timm")
    gap = {"name": "gap", "type": "gap", "prev": "part"}
    graph = build(node(name), gap, {"name": "head", "type": "linear_cls_head", "prev": "gap"})
    module = graph.nodes["part"]
    assert graph.preprocessor.size_divisibility == module.size_divisibility
    assert graph.plan[0].shape == module.output_shape()
    losses = graph.train()(batch)
    losses["head.loss_cls"].backward()
    assert any(p.grad is not None and p.grad.any() for p in module.parameters())
    assert [x["pred_score"].shape for x in predict(graph, batch)] == [(4,), (4,)]


@pytest.mark.parametrize("name", ours(NECK_REGISTRY))
def test_neck(build, batch, name):
    graph = build(RESNET, node(name, prev="backbone"))
    maps = run_nodes(graph, batch).maps["part"]
    shapes = graph.plan[1].shape
    assert {name: x.shape[1] for name, x in maps.items()} == {name: shape.channels for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ours(HEAD_REGISTRY))
def test_head(build, batch, name):
    if issubclass(HEAD_REGISTRY.get(name), ClsHead):
        graph = build(RESNET, {"name": "gap", "type": "gap", "prev": "backbone"}, node(name, prev="gap"))
        assert set(train(graph, batch)) == {"part.loss_cls"}
        assert [set(x) for x in predict(graph, batch)] == [{"pred_score", "pred_label"}] * 2
    else:
        graph = build(RESNET, PYRAMID, node(name, prev="fpn"))
        predictions = run_nodes(graph, batch).data["part"]
        assert [x.shape[1] for x in predictions[0]] == [3] * 6  # K classes on p2 to p7


@pytest.mark.parametrize("name", ours(LOSS_REGISTRY))
def test_loss(build, batch, name):
    target = "target" if name in OF_NUMBERS else "label"
    gap = {"name": "gap", "type": "gap", "prev": "backbone"}
    head = {"name": "head", "type": "LinearClsHead", "prev": "gap", "inputs": "feature_dict", "outputs": "logits"}
    graph = build(RESNET, gap, head, node(name, inputs=["logits", target]))
    graph.nodes["head"].fc.bias.data = torch.tensor([0.0, 0, 2, 2])  # A box that is one, and overlaps with that wanted.
    assert set(train(graph, batch)) == {"part.loss"}
    assert graph.nodes["head"].fc.weight.grad.any()
    assert [x["logits"].shape for x in predict(graph, batch)] == [(4,), (4,)]


@pytest.mark.parametrize("name", ours(PROPOSAL_GENERATOR_REGISTRY))
def test_proposal_generator(build, request, name):
    batch = request.getfixturevalue("rotated_batch" if name in ("RRPN",) else "batch")
    graph = build(RESNET, PYRAMID, node(name, prev="fpn"))
    assert set(train(graph, batch)) == {"part.loss_rpn_cls", "part.loss_rpn_loc"}
    assert all(len(x) > 0 for x in run_nodes(graph, batch).data["proposals"])


@pytest.mark.parametrize("name", ours(ROI_HEADS_REGISTRY))
def test_roi_heads(build, request, name):
    rotated = name == "RROIHeads"
    batch = request.getfixturevalue("rotated_batch" if rotated else "batch")
    rpn = {"name": "rpn", "type": "RRPN", "cfg": {"MODEL": ROTATED_RPN}} if rotated else {"name": "rpn", "type": "rpn"}
    if name.startswith("Res5"):
        below = {"cfg": {"MODEL": RESNET_50}}
        graph = build({**RESNET, **below}, {**rpn, **below, "prev": "backbone"}, node(name, prev="backbone"))
    else:
        graph = build(RESNET, PYRAMID, {**rpn, "prev": "fpn"}, node(name, prev="fpn"))
    losses = train(graph, batch)
    assert any(key.startswith("part.loss_box_reg") for key in losses)
    assert [x["instances"].image_size for x in predict(graph, batch)] == [(64, 64), (64, 96)]


@pytest.mark.parametrize("name", ours(SEM_SEG_HEADS_REGISTRY))
def test_semantic_head(build, batch, name):
    pyramid = {**PYRAMID, "kwargs": {"out_channels": 16}}
    graph = build(RESNET, pyramid, node(name, prev="fpn"))
    assert set(train(graph, batch)) == {"part.loss_sem_seg"}
    assert [x["sem_seg"].shape for x in predict(graph, batch)] == [(4, 64, 64), (4, 64, 96)]


@pytest.mark.parametrize("name", ours(META_ARCH_REGISTRY))
def test_dense_detector(build, batch, name):
    target = META_ARCH_REGISTRY.get(name)
    if not (isinstance(target, type) and issubclass(target, DenseDetector)):
        with pytest.raises(
            ValueError, match=f"node 'part' has the type '{name}', which is a whole model.*write its parts"
        ):
            build(RESNET, PYRAMID, node(name, prev="fpn"))
        return
    graph = build(RESNET, PYRAMID, node(name, prev="fpn"))
    train(graph, batch)
    assert [x["instances"].image_size for x in predict(graph, batch)] == [(64, 64), (64, 96)]
