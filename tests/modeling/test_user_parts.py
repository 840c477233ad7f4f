"""Parts of a user's own file, one of each kind, used from a config: a detector is built of them and trained."""

import pytest
import torch

from detlib.config import get_cfg
from detlib.modeling import build_loss, build_model
from detlib.modeling.backbone import build_bottom_up
from detlib.utils.errors import ConfigError, ConfigTypeError

MOBILENET = """
from torch import nn
from detlib.layers import ShapeSpec
from detlib.modeling import BACKBONE_REGISTRY, Backbone

@BACKBONE_REGISTRY.register()
class MobileNetOfMine(Backbone):
    def __init__(self, arg1, arg2, in_channels=3):
        super().__init__()
        self.stages = nn.ModuleList()
        for stage in range(5):
            self.stages.append(nn.Conv2d(in_channels, arg1 if stage < 4 else arg2, 3, stride=2, padding=1))
            in_channels = self.stages[-1].out_channels
        self._out_features = ["res3", "res4", "res5"]
        self._out_feature_channels = {"res3": arg1, "res4": arg1, "res5": arg2}
        self._out_feature_strides = {"res3": 8, "res4": 16, "res5": 32}

    def forward(self, x):
        outputs = []
        for stage in self.stages:
            x = stage(x).relu()
            outputs.append(x)
        return dict(zip(self._out_features, outputs[2:]))
"""

PAFPN = """
import torch.nn.functional as F
from torch import nn
from detlib.layers import ShapeSpec
from detlib.modeling import NECK_REGISTRY

@NECK_REGISTRY.register()
class PAFPNOfMine(nn.Module):
    def __init__(self, input_shape, out_channels, num_outs, start_level=0, end_level=-1, add_extra_convs=False):
        super().__init__()
        self.names = list(input_shape)
        self.strides = [shape.stride for shape in input_shape.values()]
        self.laterals = nn.ModuleList(nn.Conv2d(s.channels, out_channels, 1) for s in input_shape.values())
        self.out_channels, self.num_outs = out_channels, num_outs

    def forward(self, inputs):
        outs = [lateral(inputs[name]) for name, lateral in zip(self.names, self.laterals)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], 1, stride=2))
        return dict(zip(self.output_shape(), outs))

    def output_shape(self):
        strides = [self.strides[0] * 2**i for i in range(self.num_outs)]
        return {f"p{s.bit_length() - 1}": ShapeSpec(channels=self.out_channels, stride=s) for s in strides}
"""

LOSS = """
import torch
from torch import nn
from detlib.modeling import LOSS_REGISTRY
from detlib.modeling.loss import weighted_loss

@weighted_loss
def my_loss(pred, target):
    assert pred.size() == target.size() and target.numel() > 0
    return torch.abs(pred - target)

@LOSS_REGISTRY.register()
class MyLoss(nn.Module):
    def __init__(self, reduction="mean", loss_weight=1.0):
        super().__init__()
        self.reduction = reduction
        self.loss_weight = loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        assert reduction_override in (None, "none", "mean", "sum")
        reduction = reduction_override if reduction_override else self.reduction
        return self.loss_weight * my_loss(pred, target, weight, reduction=reduction, avg_factor=avg_factor)

@LOSS_REGISTRY.register()
class MyClassLoss(nn.Module):
    use_sigmoid = True

    def __init__(self, loss_weight=1.0):
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred, target, weight=None, avg_factor=None, reduction_override=None):
        one_hot = nn.functional.one_hot(target, pred.shape[1] + 1)[:, :-1].to(pred.dtype)
        loss = (pred.sigmoid() - one_hot).square()
        if weight is not None:
            loss = loss * weight[:, None]
        return self.loss_weight * loss.sum() / avg_factor
"""

HEAD = """
from torch import nn
from detlib.modeling import HEAD_REGISTRY

@HEAD_REGISTRY.register()
class PlainHead(nn.Module):
    def __init__(self, in_channels, num_classes, num_anchors, scale):
        super().__init__()
        self.cls = nn.Conv2d(in_channels, num_anchors * num_classes, 1)
        self.box = nn.Conv2d(in_channels, num_anchors * 4, 1)
        self.scale = scale

    def forward(self, features):
        return [self.cls(x) * self.scale for x in features], [self.box(x) for x in features]
"""

ROI_PARTS = """
import torch
from torch import nn
from detlib.layers import ROIAlign, ShapeSpec
from detlib.modeling import ROI_BOX_HEAD_REGISTRY, ROI_EXTRACTOR_REGISTRY, ROI_HEADS_REGISTRY, StandardROIHeads

@ROI_EXTRACTOR_REGISTRY.register()
class FinestMapOnly(nn.Module):
    def __init__(self, input_shape, output_size):
        super().__init__()
        self.output_size, self.out_channels = output_size, input_shape[0].channels
        self.align = ROIAlign((output_size, output_size), 1 / input_shape[0].stride, 0)

    def forward(self, maps, boxes):
        image = torch.cat([b.tensor.new_full((len(b), 1), i) for i, b in enumerate(boxes)])
        return self.align(maps[0], torch.cat([image, torch.cat([b.tensor for b in boxes])], dim=1))

@ROI_BOX_HEAD_REGISTRY.register()
class MeanBoxHead(nn.Module):
    def __init__(self, cfg, input_shape):
        super().__init__()
        self.output_shape = ShapeSpec(channels=input_shape.channels)

    def forward(self, x):
        return x.mean(dim=(2, 3))

@ROI_HEADS_REGISTRY.register()
class MyROIHeads(StandardROIHeads):
    pass
"""


@pytest.fixture
def config(tmp_path, tiny_cfg):
    """Writes a user's module and a YAML beside it, and reads the YAML over ``tiny_cfg``."""

    def make(cfg, modules, yaml):
        for name, text in modules.items():
            # Names of parts are taken once a test has run, hence new ones in each.
            (tmp_path / f"{name}.py").write_text(text)
        path = tmp_path / "model.yaml"
        imports = ", ".join(f"./{name}.py" for name in modules)
        path.write_text(f"CUSTOM_IMPORTS: {{IMPORTS: [{imports}]}}\n{yaml}")
        cfg.merge_from_file(str(path))
        return cfg

    return make


@pytest.fixture(autouse=True)
def parts_are_forgotten():
    """Takes what a test has registered out of the registries."""
    from detlib.modeling import loss
    from detlib.modeling.backbone import BACKBONE_REGISTRY
    from detlib.modeling.head import HEAD_REGISTRY
    from detlib.modeling.neck import NECK_REGISTRY
    from detlib.modeling.roi_extractor import ROI_EXTRACTOR_REGISTRY
    from detlib.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY

    registries = [BACKBONE_REGISTRY, HEAD_REGISTRY, NECK_REGISTRY, loss.LOSS_REGISTRY, ROI_EXTRACTOR_REGISTRY]
    registries += [ROI_BOX_HEAD_REGISTRY, ROI_HEADS_REGISTRY]
    before = [dict(registry._obj_map) for registry in registries]
    yield
    for registry, names in zip(registries, before):
        registry._obj_map.clear()
        registry._obj_map.update(names)


def losses_and_gradients(cfg, sample):
    torch.manual_seed(0)
    model = build_model(cfg)
    batch = [sample(64, 64, [[8, 8, 40, 40]], [1]), sample(64, 96)]
    losses = model(batch)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
    model.eval()
    assert len(model(batch)) == 2
    return model, losses


def test_backbone_neck_and_head_of_a_user_make_a_retinanet(config, tiny_cfg, sample):
    cfg = config(
        tiny_cfg,
        {"mobilenet": MOBILENET, "pafpn": PAFPN, "head": HEAD},
        """
MODEL:
  BACKBONE: {_DELETE_: true, NAME: MobileNetOfMine, ARG1: 8, ARG2: 16}
  NECK: {NAME: PAFPNOfMine, OUT_CHANNELS: 8, NUM_OUTS: 5}
  RETINANET: {HEAD: {NAME: PlainHead, SCALE: 0.5}}
""",
    )
    model, losses = losses_and_gradients(cfg, sample)
    assert type(model.head).__name__ == "PlainHead" and model.head.scale == 0.5
    assert model.head.cls.out_channels == 3 * 6  # classes x anchors, offered by the detector
    assert model.backbone.output_shape()["p7"].stride == 128
    assert set(losses) == {"loss_cls", "loss_box_reg"}


def test_box_loss_of_a_user_in_retinanet_is_weighted(config, tiny_cfg, sample):
    yaml = "MODEL: {RETINANET: {LOSS_BBOX: {NAME: MyLoss, LOSS_WEIGHT: 2}}}"
    _, losses = losses_and_gradients(config(tiny_cfg, {"my_loss": LOSS}, yaml), sample)
    tiny_cfg.merge_from_list(["MODEL.RETINANET.LOSS_BBOX.LOSS_WEIGHT=1"])
    _, once = losses_and_gradients(tiny_cfg, sample)
    tiny_cfg.MODEL.RETINANET.LOSS_BBOX = {}
    tiny_cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA = 0.0  # L1
    _, plain = losses_and_gradients(tiny_cfg, sample)
    torch.testing.assert_close(losses["loss_box_reg"], 2 * once["loss_box_reg"])
    torch.testing.assert_close(once["loss_box_reg"], plain["loss_box_reg"])
    torch.testing.assert_close(losses["loss_cls"], plain["loss_cls"])


def test_loss_of_a_user_has_the_numbers_of_its_weights_and_reductions(config, tiny_cfg):
    cfg = config(tiny_cfg, {"my_loss": LOSS}, "MODEL: {RETINANET: {LOSS_BBOX: {NAME: MyLoss, LOSS_WEIGHT: 2}}}")
    loss = build_loss(cfg.MODEL.RETINANET.LOSS_BBOX)
    pred, target = torch.tensor([0.0, 2.0, 3.0]), torch.ones(3)
    assert type(loss.loss_weight) is float  # As its default is one.
    assert loss(pred, target).item() == pytest.approx(2 * 4 / 3)
    assert loss(pred, target, torch.tensor([1.0, 0.0, 1.0]), avg_factor=2).item() == 3.0
    assert loss(pred, target, reduction_override="none").tolist() == [2.0, 2.0, 4.0]


def test_losses_of_a_user_in_fcos(config, tiny_cfg, sample):
    tiny_cfg.MODEL.META_ARCHITECTURE = "FCOS"
    tiny_cfg.MODEL.FCOS.NUM_CLASSES = 3
    tiny_cfg.MODEL.FCOS.NUM_CONVS = 1
    tiny_cfg.MODEL.FCOS.NORM = ""
    yaml = "MODEL: {FCOS: {LOSS_BBOX: {NAME: MyLoss}, LOSS_CLS: {NAME: MyClassLoss}}}"
    model, _ = losses_and_gradients(config(tiny_cfg, {"my_loss": LOSS}, yaml), sample)
    assert type(model.loss_bbox).__name__ == "MyLoss" and type(model.loss_cls).__name__ == "MyClassLoss"


def test_losses_of_a_user_in_faster_rcnn(config, tiny_rcnn_cfg, sample):
    yaml = """
MODEL:
  RPN: {LOSS_CLS: {NAME: MyClassLoss}, LOSS_BBOX: {NAME: MyLoss}}
  ROI_BOX_HEAD: {LOSS_CLS: {NAME: MyClassLoss}, LOSS_BBOX: {NAME: MyLoss, LOSS_WEIGHT: 2.0}}
"""
    model, losses = losses_and_gradients(config(tiny_rcnn_cfg, {"my_loss": LOSS}, yaml), sample)
    assert type(model.proposal_generator.loss_bbox).__name__ == "MyLoss"
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def test_extractor_box_head_and_roi_heads_of_a_user(config, tiny_rcnn_cfg, sample):
    yaml = """
MODEL:
  ROI_HEADS: {NAME: MyROIHeads}
  ROI_BOX_HEAD: {NAME: MeanBoxHead, ROI_EXTRACTOR: {NAME: FinestMapOnly, OUTPUT_SIZE: 3}}
"""
    model, _ = losses_and_gradients(config(tiny_rcnn_cfg, {"roi_parts": ROI_PARTS}, yaml), sample)
    assert type(model.roi_heads).__name__ == "MyROIHeads"
    assert type(model.roi_heads.box_pooler).__name__ == "FinestMapOnly"


@pytest.mark.parametrize("name", ["L1Loss", "IoULoss", "GHMR"])
def test_box_losses_of_the_library_train_a_retinanet(tiny_cfg, sample, name):
    tiny_cfg.MODEL.RETINANET.LOSS_BBOX = {"NAME": name}
    model, losses = losses_and_gradients(tiny_cfg, sample)
    assert type(model.loss_bbox).__name__ == name and losses["loss_box_reg"] > 0


@pytest.mark.parametrize("name", ["GHMC", "FocalLoss", "CrossEntropyLoss"])
def test_class_losses_of_the_library_train_a_retinanet(tiny_cfg, sample, name):
    tiny_cfg.MODEL.RETINANET.LOSS_CLS = {"NAME": name, **({"USE_SIGMOID": True} if name != "GHMC" else {})}
    model, losses = losses_and_gradients(tiny_cfg, sample)
    assert type(model.loss_cls).__name__ == name and losses["loss_cls"] > 0


def test_sigmoid_class_loss_in_an_rcnn_scores_by_sigmoid(tiny_rcnn_cfg, sample):
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.LOSS_CLS = {"NAME": "FocalLoss"}
    model, _ = losses_and_gradients(tiny_rcnn_cfg, sample)
    logits = torch.zeros(1, 4)
    proposals = [type("P", (), {"__len__": lambda self: 1})()]
    (probs,) = model.roi_heads.box_predictor.predict_probs((logits, None), proposals)
    assert probs.tolist() == [[0.5] * 4]


def test_named_focal_loss_gives_the_numbers_of_the_keys(tiny_cfg, sample):
    _, by_keys = losses_and_gradients(tiny_cfg, sample)
    tiny_cfg.MODEL.RETINANET.LOSS_CLS = {"NAME": "FocalLoss", "GAMMA": 2, "ALPHA": 0.25}
    tiny_cfg.MODEL.RETINANET.LOSS_BBOX = {"NAME": "SmoothL1Loss", "BETA": 0.1}
    _, by_names = losses_and_gradients(tiny_cfg, sample)
    assert by_keys == by_names


def test_key_that_the_base_left_gets_the_advice_to_delete(tiny_cfg):
    tiny_cfg.MODEL.RETINANET.LOSS_BBOX = {"NAME": "GIoULoss", "BETA": 1.0}
    with pytest.raises(ConfigTypeError, match=r"MODEL.RETINANET.LOSS_BBOX: GIoULoss takes no BETA.*_DELETE_: true"):
        build_model(tiny_cfg)


def test_option_that_a_builder_of_the_backbone_would_not_read_is_refused(tmp_path, tiny_cfg):
    (tmp_path / "a.yaml").write_text("MODEL: {BACKBONE: {DEPTH: 34}}")
    tiny_cfg.merge_from_file(str(tmp_path / "a.yaml"))
    with pytest.raises(
        Exception, match=r"MODEL.BACKBONE.DEPTH: build_retinanet_resnet_fpn_backbone .*MODEL.RESNETS.DEPTH"
    ):
        build_model(tiny_cfg)


def test_default_config_names_no_loss_and_no_head():
    cfg = get_cfg()
    assert cfg.MODEL.RETINANET.LOSS_BBOX == cfg.MODEL.RPN.LOSS_CLS == cfg.MODEL.FCOS.HEAD == {}


def test_freezing_layers_of_a_backbone_that_cannot_is_refused(config, tiny_cfg):
    yaml = "MODEL: {{BACKBONE: {{_DELETE_: true, NAME: MobileNetOfMine, ARG1: 8, ARG2: 16, FREEZE_AT: {}}}}}"
    cfg = config(tiny_cfg, {"mobilenet": MOBILENET}, yaml.format(0))
    assert build_bottom_up(cfg).stages[0].weight.requires_grad
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    with pytest.raises(ConfigTypeError, match=r"MODEL.BACKBONE: MobileNetOfMine takes no FREEZE_AT"):
        build_bottom_up(cfg)


def test_builder_of_a_backbone_needs_no_more_than_its_name(config, tiny_cfg):
    name = tiny_cfg.MODEL.BACKBONE.NAME
    cfg = config(tiny_cfg, {"empty": ""}, f"MODEL: {{BACKBONE: {{_DELETE_: true, NAME: {name}}}}}")
    assert not build_bottom_up(cfg).bottom_up.stem.conv1.weight.requires_grad  # FREEZE_AT is 2 by default.


def test_head_of_a_user_in_fcos_is_offered_one_anchor(config, tiny_cfg):
    cfg = config(tiny_cfg, {"head": HEAD}, "MODEL: {FCOS: {NUM_CLASSES: 3, HEAD: {NAME: PlainHead, SCALE: 1}}}")
    cfg.MODEL.META_ARCHITECTURE = "FCOS"
    assert build_model(cfg).head.box.out_channels == 4


@pytest.mark.parametrize(
    ("section", "node", "message"),
    [
        ("RETINANET", {"LOSS_CLS": {"NAME": "CrossEntropyLoss"}}, "CrossEntropyLoss has a softmax, .*USE_SIGMOID"),
        ("FCOS", {"LOSS_CLS": {"NAME": "LabelSmoothLoss"}}, "MODEL.FCOS.LOSS_CLS LabelSmoothLoss has a softmax"),
        ("RPN", {"LOSS_CLS": {"NAME": "CrossEntropyLoss"}}, "MODEL.RPN.LOSS_CLS CrossEntropyLoss has a softmax"),
        ("RPN", {"LOSS_BBOX": {"NAME": "GHMC"}}, "MODEL.RPN.LOSS_BBOX GHMC is a loss of scores; .*SmoothL1Loss"),
        ("RETINANET", {"LOSS_BBOX": {"NAME": "DiceLoss"}}, "MODEL.RETINANET.LOSS_BBOX DiceLoss is a loss of scores"),
        ("ROI_BOX_HEAD", {"LOSS_BBOX": {"NAME": "CrossEntropyLoss"}}, "LOSS_BBOX CrossEntropyLoss is a loss of scores"),
        ("ROI_BOX_HEAD", {"LOSS_CLS": {"NAME": "GIoULoss"}}, "MODEL.ROI_BOX_HEAD.LOSS_CLS GIoULoss is a loss of boxes"),
        ("FCOS", {"LOSS_BBOX": {"NAME": "L1Loss", "REDUCTION": "none"}}, "LOSS_BBOX.REDUCTION is 'none'; .*'mean'"),
    ],
)
def test_loss_that_does_not_fit_is_refused(tiny_rcnn_cfg, section, node, message):
    cfg = tiny_rcnn_cfg
    if section in ("RETINANET", "FCOS"):
        cfg.MODEL.META_ARCHITECTURE = {"RETINANET": "RetinaNet", "FCOS": "FCOS"}[section]
        cfg.MODEL[section].IN_FEATURES = ["p3", "p4", "p5"]
        cfg.MODEL[section].NORM = ""
    cfg.MODEL[section].update(node)
    with pytest.raises(ConfigError, match=message):
        build_model(cfg)


def test_label_smoothing_in_an_rcnn_trains_a_softmax_with_the_background(tiny_rcnn_cfg, sample):
    tiny_rcnn_cfg.MODEL.ROI_BOX_HEAD.LOSS_CLS = {"NAME": "LabelSmoothLoss", "NUM_CLASSES": 4}
    model, _ = losses_and_gradients(tiny_rcnn_cfg, sample)
    assert not model.roi_heads.box_predictor._scores_by_sigmoid
