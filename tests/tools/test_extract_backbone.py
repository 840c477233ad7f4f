import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.modeling import build_model
from detlib.modeling.self_supervised.cae import CAEViT


@pytest.fixture
def backbone(tiny_cfg):
    """The weights of a ResNet, by its own names."""
    return build_model(tiny_cfg).backbone.bottom_up.state_dict()


@pytest.fixture
def pretrained(backbone, tmp_path):
    """A checkpoint as of MoCo: other parts have the names of the backbone, too."""
    others = {f"encoder_k.0.{name}": torch.full_like(value, 7) for name, value in backbone.items()}
    others |= {f"teacher.backbone.{name}": torch.full_like(value, 8) for name, value in backbone.items()}
    trained = {f"backbone.{name}": value for name, value in backbone.items()}
    model = {**others, **trained, "neck.0.weight": torch.zeros(1), "queue": torch.zeros(1)}
    torch.save({"model": model, "iteration": 3}, tmp_path / "pretrained.pth")
    return tmp_path / "pretrained.pth"


def assert_loads(model, part, path, expected):
    """All tensors of a part are those expected after loading, and none was before."""
    before = {name: value.clone() for name, value in model.get_submodule(part).state_dict().items()}
    DetectionCheckpointer(model).load(str(path))
    after = model.get_submodule(part).state_dict()
    assert after.keys() == expected.keys()
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    convolutions = [name for name in expected if expected[name].dim() == 4]
    assert convolutions and not any(torch.equal(before[name], expected[name]) for name in convolutions)


def test_online_backbone_is_taken_without_prefix_and_others_are_left_out(call_tool, pretrained, backbone, tmp_path):
    done = call_tool("extract_backbone", pretrained, "extracted.pth")
    assert done.status == 0, done.err
    data = torch.load(tmp_path / "extracted.pth", weights_only=True)
    assert data.keys() == {"model", "__author__", "matching_heuristics"} and data["matching_heuristics"] is True
    assert data["model"].keys() == backbone.keys()
    assert all(torch.equal(data["model"][name], value) for name, value in backbone.items())


def test_what_is_taken_and_left_is_told(call_tool, pretrained, backbone):
    done = call_tool("extract_backbone", pretrained, "extracted.pth")
    num_values = sum(value.numel() for value in backbone.values())
    assert f"Taken: {len(backbone)} tensors with {num_values:,} values from backbone.*:" in done.out
    assert "6 stem.conv1." in done.out
    assert f"Left out: encoder_k ({len(backbone)}), teacher ({len(backbone)}), neck (1), queue (1)" in done.out
    assert "MODEL.WEIGHTS=extracted.pth" in done.out


def test_it_loads_into_a_retinanet(call_tool, pretrained, backbone, tiny_cfg, tmp_path):
    call_tool("extract_backbone", pretrained, "extracted.pth")
    assert_loads(build_model(tiny_cfg), "backbone.bottom_up", tmp_path / "extracted.pth", backbone)


def test_it_loads_into_a_mask_rcnn(call_tool, pretrained, backbone, tiny_rcnn_cfg, tmp_path):
    tiny_rcnn_cfg.MODEL.MASK_ON = True
    call_tool("extract_backbone", pretrained, "extracted.pth")
    assert_loads(build_model(tiny_rcnn_cfg), "backbone.bottom_up", tmp_path / "extracted.pth", backbone)


def classifier(cfg):
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    return build_model(cfg)


def test_it_loads_into_a_classifier_and_into_its_backbone_alone(call_tool, pretrained, backbone, tiny_cfg, tmp_path):
    call_tool("extract_backbone", pretrained, "extracted.pth")
    model = classifier(tiny_cfg)
    assert_loads(model, "backbone", tmp_path / "extracted.pth", backbone)
    other = classifier(tiny_cfg)
    DetectionCheckpointer(other).load_part("backbone", str(tmp_path / "extracted.pth"))
    assert all(torch.equal(value, backbone[name]) for name, value in other.backbone.state_dict().items())


def test_of_a_detector_the_part_below_the_neck_is_taken(call_tool, tiny_cfg, tmp_path):
    detector = build_model(tiny_cfg)
    torch.save({"model": detector.state_dict()}, tmp_path / "detector.pth")
    done = call_tool("extract_backbone", "detector.pth", "extracted.pth")
    assert "from backbone.bottom_up.*" in done.out
    expected = detector.backbone.bottom_up.state_dict()
    assert_loads(classifier(tiny_cfg), "backbone", tmp_path / "extracted.pth", expected)


def test_prefixes_of_wrappers_do_not_matter(call_tool, backbone, tmp_path):
    torch.save({f"module.backbone.{name}": value for name, value in backbone.items()}, tmp_path / "wrapped.pth")
    done = call_tool("extract_backbone", "wrapped.pth", "extracted.pth")
    assert done.status == 0, done.err
    assert torch.load(tmp_path / "extracted.pth", weights_only=True)["model"].keys() == backbone.keys()


def test_names_of_torchvision_become_those_of_detlib(call_tool, tmp_path):
    torchvision = pytest.importorskip("torchvision")
    source = torchvision.models.resnet18()
    state = {f"module.encoder_q.{name}": value for name, value in source.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "foreign.pth")
    done = call_tool("extract_backbone", "foreign.pth", "extracted.pth", "--prefix", "encoder_q")
    assert done.status == 0, done.err
    weights = torch.load(tmp_path / "extracted.pth", weights_only=True)["model"]
    assert torch.equal(weights["stem.conv1.weight"], source.conv1.weight)
    assert torch.equal(weights["res5.1.conv2.norm.running_var"], source.layer4[1].bn2.running_var)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrained.pth", "a.pth", "--prefix", "nodes.body"], "they start with encoder_k ("),
        (["pretrained.pth", "a.pth", "--prefix", "encoder_k.0"], "encoder_k only follows the backbone"),
        (["pretrained.pth", "pretrained.pth"], "is the checkpoint itself"),
        (["pretrained.pth", "a.pkl"], "must end with .pth"),
        (["pretraind.pth", "a.pth"], "closest in that folder: pretrained.pth"),
    ],
)
def test_mistakes_are_told_in_one_line(call_tool, pretrained, args, message, tmp_path):
    done = call_tool("extract_backbone", *args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line
    assert not (tmp_path / "a.pth").exists()


def test_vit_of_cae_stays_as_it_is(call_tool, tmp_path):
    vit = CAEViT(img_size=32, patch_size=16, embed_dim=8, depth=1, num_heads=2)
    torch.save({"model": {f"backbone.{name}": value for name, value in vit.state_dict().items()}}, tmp_path / "cae.pth")
    done = call_tool("extract_backbone", "cae.pth", "extracted.pth")
    assert done.status == 0, done.err
    assert torch.load(tmp_path / "extracted.pth", weights_only=True)["model"].keys() == vit.state_dict().keys()
