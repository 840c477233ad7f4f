"""Pre-trained backbones in detectors and classifiers: each algorithm, each way, each kind of backbone."""

import functools
import logging
import runpy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.checkpoint.hand_over import fold_branches, resize_positions
from detlib.config import get_cfg
from detlib.modeling import build_model
from detlib.utils.errors import CheckpointError

ROOT = Path(__file__).parents[3]

RESNETS = [
    *("barlow_twins", "byol", "deepcluster", "densecl", "moco", "npid"),
    *("odc", "relative_loc", "rotation_pred", "simclr", "simsiam", "swav"),
]
VITS = {"mae": "MAEViT", "mocov3": "MoCoV3ViT", "cae": "CAEViT"}
WAYS = ["alone", "prefix", "extracted"]

RESNET = {"DEPTH": 18, "STEM_OUT_CHANNELS": 8, "RES2_OUT_CHANNELS": 8, "NORM": "BN", "OUT_FEATURES": ["res5"]}
VIT = {"PATCH_SIZE": 8, "EMBED_DIM": 64, "DEPTH": 3, "NUM_HEADS": 4}
SWIN = {"EMBED_DIM": 32, "DEPTHS": [2, 2], "NUM_HEADS": [2, 4], "WINDOW_SIZE": 4}


def test_all_algorithms_are_here():
    configs = {path.stem for path in (ROOT / "configs/SelfSupervised/tiny").glob("*.yaml")}
    assert configs == {*RESNETS, *VITS, "simmim"}


def randomize(model, seed):
    """Give every tensor values of its own, that of a momentum encoder too."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.2 + (0.5 if "running_var" in name else -0.1))


@functools.cache
def pretrained(name, sobel=False):
    """The tiny model of an algorithm, on a narrow ResNet-18 where its paper has a ResNet."""
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / f"configs/SelfSupervised/tiny/{name}.yaml"))
    if name in RESNETS:
        cfg.MODEL.BACKBONE.NAME = "build_sobel_resnet_backbone" if sobel else "build_resnet_backbone"
        for key in ("DEPTH", "BASE_CHANNELS", "ZERO_INIT_RESIDUAL"):  # of ResNet_CIFAR
            cfg.MODEL.BACKBONE.pop(key, None)
        cfg.MODEL.RESNETS.merge_from_list([x for pair in RESNET.items() for x in pair])
    if name == "mocov3":
        cfg.MODEL.BACKBONE.IMG_SIZE, cfg.MODEL.BACKBONE.PATCH_SIZE = 64, 8
    model = build_model(cfg)
    randomize(model, seed=1)
    return model.eval()


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """Writes a checkpoint as the trainer does, and gives what MODEL.WEIGHTS is to be: ``weights(model, "prefix")``."""

    def write(model, way):
        DetectionCheckpointer(model, str(tmp_path)).save("model_final", iteration=3)
        path = tmp_path / "model_final.pth"
        if way == "prefix":
            return f"{path}?prefix=backbone."
        if way == "extracted":
            tool = runpy.run_path(str(ROOT / "tools/extract_backbone.py"))
            monkeypatch.setattr(sys, "argv", ["extract_backbone.py", str(path), str(tmp_path / "extracted.pth")])
            tool["run"]()
            return str(tmp_path / "extracted.pth")
        return str(path)

    return write


@functools.cache
def target(meta_architecture, backbone, *options):
    """A model that takes a backbone: options are keys and values of MODEL, one after the other."""
    cfg = get_cfg()
    model = {
        "DEVICE": "cpu",
        "META_ARCHITECTURE": meta_architecture,
        "BACKBONE.NAME": backbone,
        "BACKBONE.FREEZE_AT": 0,
        "FPN.OUT_CHANNELS": 16,
        "FPN.TOP_BLOCK": "",
        "RETINANET.NUM_CONVS": 1,
        "MASK_ON": True,
        "ROI_HEADS.NAME": "StandardROIHeads",
        "ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
        "ROI_BOX_HEAD.NUM_FC": 1,
        "ROI_BOX_HEAD.FC_DIM": 16,
        "ROI_MASK_HEAD.CONV_DIM": 8,
        "CLASSIFIER.NUM_CLASSES": 3,
        **dict(zip(options[::2], options[1::2])),
    }
    cfg.merge_from_list([x for key, value in model.items() for x in (f"MODEL.{key}", value)])
    return build_model(cfg).eval()


def options_of(section, values):
    return tuple(x for key, value in values.items() for x in (f"{section}.{key}", tuple_of(value)))


def tuple_of(value):
    return tuple(value) if isinstance(value, list) else value


def mask_rcnn(backbone, levels, *options):
    sizes = tuple((2.0 ** (1 + int(level[-1])),) for level in levels)
    keys = ("RPN.IN_FEATURES", "ROI_HEADS.IN_FEATURES")
    features = tuple(x for key in keys for x in (key, levels))
    return target("GeneralizedRCNN", backbone, "ANCHOR_GENERATOR.SIZES", sizes, *features, *options)


def resnet_targets():
    stages = ("res3", "res4", "res5")
    resnet = options_of("RESNETS", {**RESNET, "OUT_FEATURES": stages})
    pyramid = (*resnet, "FPN.IN_FEATURES", stages)
    sizes = ("ANCHOR_GENERATOR.SIZES", tuple((2.0**i,) for i in range(5, 10)))
    return [
        (target("RetinaNet", "build_retinanet_resnet_fpn_backbone", *pyramid, *sizes), "backbone.bottom_up"),
        (mask_rcnn("build_resnet_fpn_backbone", ("p3", "p4", "p5"), *pyramid), "backbone.bottom_up"),
        (target("ImageClassifier", "build_resnet_backbone", *options_of("RESNETS", RESNET)), "backbone"),
    ]


def vit_options(**changes):
    return options_of("VIT", {**VIT, "IMG_SIZE": 64, "PRETRAIN_IMG_SIZE": 64, **changes})


def vit_detector(**changes):
    return mask_rcnn("build_vit_fpn_backbone", ("p3", "p4"), *vit_options(**changes), "FPN.SCALE_FACTORS", (1.0, 0.5))


def swin_detector(window_size, **changes):
    options = {**SWIN, "WINDOW_SIZE": window_size, "OUT_INDICES": [0, 1], **changes}
    levels = ("FPN.IN_FEATURES", ("p0", "p1"))
    return mask_rcnn("build_swin_fpn_backbone", ("p2", "p3"), *options_of("SWIN", options), *levels)


def assert_handed_over(model, part, path, expected, new=()):
    """After loading, every tensor of the part is the one expected, but for those of the target that are new."""
    randomize(model, seed=2)
    DetectionCheckpointer(model).load(path)
    loaded = {name: x for name, x in model.get_submodule(part).state_dict().items() if not name.startswith(new or "-")}
    computed = {name for name in loaded if name.endswith("relative_position_index")}
    assert loaded.keys() - computed <= expected.keys()
    assert [name for name in loaded.keys() - computed if not torch.equal(loaded[name], expected[name])] == []
    assert len(loaded) > 30


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RESNETS)
def test_resnet_goes_into_retinanet_mask_rcnn_and_classifier(weights, name, way):
    source = pretrained(name)
    path = weights(source, way)
    for model, part in resnet_targets():
        assert_handed_over(model, part, path, source.backbone.state_dict())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("heads", ["Res5ROIHeads", "Res5ROIHeadsExtraNorm"])
def test_last_stage_goes_into_the_heads_of_a_c4_detector(weights, heads, way):
    narrow = {**RESNET, "DEPTH": 50, "RES2_OUT_CHANNELS": 16, "WIDTH_PER_GROUP": 4}
    source = target("ImageClassifier", "build_resnet_backbone", *options_of("RESNETS", narrow))
    path, expected = weights(source, way), source.backbone.state_dict()
    options = options_of("RESNETS", {**narrow, "OUT_FEATURES": ["res4"]})
    model = mask_rcnn("build_resnet_backbone", ("res4",), "ROI_HEADS.NAME", heads, *options)
    assert_handed_over(model, "backbone", path, expected)
    res5 = {name.removeprefix("res5."): x for name, x in expected.items() if name.startswith("res5.")}
    assert_handed_over(model, "roi_heads.res5", path, res5, new="norm.")
    assert hasattr(model.roi_heads.res5, "norm") == (heads == "Res5ROIHeadsExtraNorm")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VITS)
def test_vit_goes_into_vitdet_and_classifier(weights, name, way):
    source = pretrained(name)
    path = weights(source, way)
    detector, classifier = vit_detector(), target("ImageClassifier", "build_vit_backbone", *vit_options())
    expected = source.backbone.state_dict()
    fold_branches(expected, detector.state_dict())
    assert_handed_over(detector, "backbone.net", path, expected)
    assert_handed_over(classifier, "backbone", path, expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", VITS)
def test_vit_with_class_token_goes_into_a_classifier_as_it_is(weights, name, way):
    source = pretrained(name)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = "ImageClassifier", "cpu"
    layer_scale = {"LAYER_SCALE": 0.1} if name == "cae" else {}
    cfg.MODEL.BACKBONE = {"NAME": VITS[name], "IMG_SIZE": 64, **VIT, **layer_scale}
    expected = source.backbone.state_dict()
    assert {"cls_token", "norm.weight"} < expected.keys()
    assert_handed_over(build_model(cfg), "backbone", weights(source, way), expected)


@pytest.mark.parametrize("way", WAYS)
def test_swin_goes_into_a_detector_and_a_classifier_but_norms_of_further_stages_are_new(weights, way):
    source = pretrained("simmim")
    path, expected = weights(source, way), source.backbone.state_dict()
    assert_handed_over(swin_detector(4), "backbone.bottom_up", path, expected, new="norm0.")
    options = options_of("SWIN", {**SWIN, "OUT_INDICES": [1]})
    assert_handed_over(target("ImageClassifier", "build_swin_backbone", *options), "backbone", path, expected)


@pytest.mark.parametrize("way", WAYS)
def test_swin_windows_of_another_size_get_resized_tables(weights, way):
    source, model = pretrained("simmim"), swin_detector(5)
    path, expected = weights(source, way), source.backbone.state_dict()
    resize_positions(expected, model.backbone.bottom_up.state_dict())
    assert expected["layers.0.blocks.0.attn.relative_position_bias_table"].shape == (9 * 9, 2)
    assert_handed_over(model, "backbone.bottom_up", path, expected, new="norm0.")
    index = model.backbone.bottom_up.layers[0].blocks[0].attn.relative_position_index
    assert (index.shape, index.max()) == ((25, 25), 80)


@pytest.mark.parametrize("size", [32, 96])
def test_vit_pre_trained_on_images_of_another_size_gets_resized_positions(weights, size):
    source, model = pretrained("mae"), vit_detector(PRETRAIN_IMG_SIZE=size)
    expected = source.backbone.state_dict()
    resize_positions(expected, model.backbone.net.state_dict())
    assert expected["pos_embed"].shape == (1, (size // 8) ** 2 + 1, 64)
    assert_handed_over(model, "backbone.net", weights(source, "alone"), expected)


def test_relative_positions_of_vitdet_start_from_zero(weights):
    source, model = pretrained("mae"), vit_detector(USE_REL_POS=True)
    for name, parameter in model.named_parameters():
        if "rel_pos" in name:
            nn.init.zeros_(parameter)
    DetectionCheckpointer(model).load(weights(source, "alone"))
    assert torch.equal(model.backbone.net.blocks[2].mlp.fc2.weight, source.backbone.blocks[2].mlp.fc2.weight)
    assert (model.backbone.net.blocks[0].attn.rel_pos_h == 0).all()


@torch.no_grad()
def test_resnet_of_a_detector_computes_the_map_of_the_pre_trained_one(weights):
    source, (detector, _) = pretrained("moco"), resnet_targets()[0]
    DetectionCheckpointer(detector).load(weights(source, "alone"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(detector.backbone.bottom_up(images)["res5"], source.extract_feat(images)["res5"])


@pytest.mark.parametrize("name", VITS)
@torch.no_grad()
def test_vit_of_a_detector_computes_what_the_pre_trained_blocks_give_without_a_class_token(weights, name):
    source, detector = pretrained(name).backbone, vit_detector()
    DetectionCheckpointer(detector).load(weights(pretrained(name), "alone"))
    images = torch.rand(2, 3, 64, 64)
    tokens = source.embed(images)
    for block in source.blocks:
        tokens = block(tokens)
    torch.testing.assert_close(detector.backbone.net(images)["last_feat"].flatten(2).transpose(1, 2), tokens)


@torch.no_grad()
def test_swin_of_a_detector_computes_the_map_of_the_pre_trained_one(weights):
    source, detector = pretrained("simmim"), swin_detector(4)
    DetectionCheckpointer(detector).load(weights(source, "alone"))
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(detector.backbone.bottom_up(images)["p1"], source.extract_feat(images)["p1"])


def test_table_tells_what_was_loaded_and_what_was_not(weights, caplog):
    with caplog.at_level(logging.INFO):
        DetectionCheckpointer(swin_detector(4)).load(weights(pretrained("simmim"), "alone"))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in caplog.text.splitlines() if "|" in line]
    assert ["missing, as initialised", "2", "backbone.bottom_up.norm0.{weight,bias}"] in rows
    assert any(row[0] == "loaded" and row[2].startswith("backbone.bottom_up.") for row in rows)
    assert any(row[0] == "unexpected, ignored" and "backbone.mask_token" in row[2] for row in rows)


# A ResNet-50 has all norms and most of the 3x3 convolutions of a ResNet-18.
@pytest.mark.parametrize(
    "other", [{"STEM_OUT_CHANNELS": 4, "RES2_OUT_CHANNELS": 4}, {"DEPTH": 50, "WIDTH_PER_GROUP": 8}]
)
@pytest.mark.parametrize("way", WAYS)
def test_backbone_of_another_width_or_depth_is_refused_with_the_keys_to_change(weights, way, other):
    model = target("ImageClassifier", "build_resnet_backbone", *options_of("RESNETS", {**RESNET, **other}))
    with pytest.raises(CheckpointError, match=r"has another backbone: \d+ of its .* MODEL\.RESNETS, VIT or SWIN"):
        DetectionCheckpointer(model).load(weights(pretrained("moco"), way))
    with pytest.raises(CheckpointError, match="has another backbone"):
        DetectionCheckpointer(model).load_part("backbone", weights(pretrained("moco"), way))


@pytest.mark.parametrize("way", WAYS)
def test_backbone_of_another_kind_is_refused(weights, way):
    model, _ = resnet_targets()[0]
    with pytest.raises(CheckpointError, match=r"is for another model: of its \d+ weights, 0 fit this model"):
        DetectionCheckpointer(model).load(weights(pretrained("mae"), way))


@pytest.mark.parametrize("way", WAYS)
def test_backbone_of_edges_is_refused_by_a_detector_with_what_to_do(weights, way):
    model, _ = resnet_targets()[0]
    with pytest.raises(CheckpointError, match=r"edges of images, .* pre-train with .* build_resnet_backbone"):
        DetectionCheckpointer(model).load(weights(pretrained("deepcluster", sobel=True), way))


def torchvision_names(backbone, prefix=""):
    """The weights of detlib's ResNet under the names of torchvision."""
    pairs = [(f"res{i}.", f"layer{i - 1}.") for i in range(2, 6)]
    pairs += [(".shortcut.norm.", ".downsample.1."), (".shortcut.", ".downsample.0."), ("stem.conv1.norm.", "bn1.")]
    pairs += [("stem.", ""), *((f".conv{i}.norm.", f".bn{i}.") for i in (1, 2, 3))]
    renamed = {}
    for name, weight in backbone.state_dict().items():
        for own, theirs in pairs:
            name = name.replace(own, theirs)
        renamed[prefix + name] = weight.clone()
    return renamed


def zeros_like(weights, own, other):
    return {other + name.removeprefix(own): torch.zeros_like(x) for name, x in weights.items() if name.startswith(own)}


FOREIGN_RESNETS = {
    # software: prefix of the backbone, prefix of its average, names of other parts, what to write behind the path
    "torchvision": ("", None, ["fc.weight", "fc.bias"], ""),
    "SwAV": ("module.", None, ["module.projection_head.0.weight", "module.prototypes.weight"], ""),
    "MoCo": ("module.encoder_q.", "module.encoder_k.", ["module.encoder_q.fc.0.weight", "module.queue"], "encoder_q."),
    "MoCo, prefix of DDP": ("module.encoder_q.", "module.encoder_k.", ["module.queue"], "module.encoder_q."),
    "MoCo v3": ("module.base_encoder.", "module.momentum_encoder.", ["module.predictor.0.weight"], "base_encoder."),
    "MMSelfSup": ("backbone.", "target_net.0.", ["neck.fc0.weight"], "backbone."),
    "MMSelfSup, BYOL": ("online_net.0.", "target_net.0.", ["online_net.1.fc0.weight"], "online_net.0."),
}


def foreign_resnet(software):
    own, average, others, _ = FOREIGN_RESNETS[software]
    state = torchvision_names(pretrained("byol").backbone, own)
    before = zeros_like(state, own, average) if average else {}
    # The average comes first, as nothing must depend on the order.
    return {**before, **state, **{name: torch.zeros(2) for name in others}}


@pytest.mark.parametrize("software", FOREIGN_RESNETS)
def test_resnet_of_other_software_goes_into_detectors_and_classifiers(tmp_path, software):
    prefix = FOREIGN_RESNETS[software][3]
    torch.save({"state_dict": foreign_resnet(software), "epoch": 200}, tmp_path / "foreign.pth.tar")
    path = f"{tmp_path}/foreign.pth.tar" + (f"?prefix={prefix}" if prefix else "")
    for model, part in resnet_targets():
        assert_handed_over(model, part, path, pretrained("byol").backbone.state_dict())


@pytest.mark.parametrize("software", ["MoCo", "MoCo v3", "MMSelfSup", "MMSelfSup, BYOL"])
def test_without_its_prefix_other_software_is_refused_with_the_prefix_to_write(tmp_path, software):
    torch.save({"state_dict": foreign_resnet(software)}, tmp_path / "foreign.pth.tar")
    with pytest.raises(CheckpointError) as error:
        DetectionCheckpointer(resnet_targets()[0][0]).load(f"{tmp_path}/foreign.pth.tar")
    assert f"then write ?prefix={FOREIGN_RESNETS[software][3]} after its path" in str(error.value)


def test_average_of_other_software_is_refused(tmp_path):
    torch.save({"state_dict": foreign_resnet("MoCo")}, tmp_path / "foreign.pth.tar")
    with pytest.raises(CheckpointError, match="encoder_k only follows the backbone that was trained"):
        DetectionCheckpointer(resnet_targets()[0][0]).load(f"{tmp_path}/foreign.pth.tar?prefix=module.encoder_k.")


@pytest.mark.parametrize(
    ("own", "average", "suffix"),
    [
        ("", None, "?matching_heuristics=True"),  # MAE
        ("module.base_encoder.", "module.momentum_encoder.", "?prefix=module.base_encoder."),  # MoCo v3
        ("encoder.", "teacher.", "?prefix=encoder."),  # CAE
    ],
)
def test_vit_of_other_software_goes_into_vitdet_and_classifier(tmp_path, own, average, suffix):
    source = pretrained("mae")
    state = {own + name: x for name, x in source.backbone.state_dict().items()}
    averages = zeros_like(state, own, average) if average else {}
    others = {name.removeprefix("neck."): x for name, x in source.neck.state_dict().items()}
    assert "decoder_blocks.0.attn.qkv.weight" in others
    torch.save({"model": {**averages, **state, **others, f"{own}head.0.weight": torch.zeros(2)}}, tmp_path / "vit.pth")
    expected = source.backbone.state_dict()
    for model, part in (
        (vit_detector(), "backbone.net"),
        (target("ImageClassifier", "build_vit_backbone", *vit_options()), "backbone"),
    ):
        assert_handed_over(model, part, f"{tmp_path}/vit.pth{suffix}", expected)
