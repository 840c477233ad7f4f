import shutil
from pathlib import Path

import pytest
import torch

from detlib import model_zoo
from detlib.checkpoint import DetectionCheckpointer
from detlib.model_zoo.weights import WEIGHTS
from detlib.modeling import build_model
from detlib.utils.errors import UnknownNameError

R50 = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"


@pytest.fixture
def tiny_zoo(tiny_cfg, tmp_path, monkeypatch):
    """A zoo of one config, the tiny RetinaNet, with weights; returns their file."""
    model = build_model(tiny_cfg)
    DetectionCheckpointer(model, str(tmp_path)).save("weights")
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny.yaml").write_text(tiny_cfg.dump())
    monkeypatch.setattr("detlib.model_zoo.model_zoo.CONFIG_FOLDERS", (tmp_path / "absent", folder))
    monkeypatch.setattr("detlib.model_zoo.model_zoo.WEIGHTS_PREFIX", f"{tmp_path}/")
    monkeypatch.setattr("detlib.model_zoo.model_zoo.WEIGHTS", {"tiny": "weights.pth"})
    (tmp_path / "tiny").mkdir()
    return Path(shutil.move(tmp_path / "weights.pth", tmp_path / "tiny" / "weights.pth"))


def test_checkpoint_url_is_the_published_one():
    expected = "https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/retinanet_R_50_FPN_1x/190397773/"
    assert model_zoo.get_checkpoint_url(R50) == expected + "model_final_bfca0b.pkl"


def test_config_without_published_weights_is_an_error_that_names_a_near_one_with_weights():
    expected = r"no weights .*_1x_giou\.yaml'.*'COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x\.yaml'.*MODEL\.WEIGHTS"
    with pytest.raises(UnknownNameError, match=expected):
        model_zoo.get_checkpoint_url("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou.yaml")


def test_address_of_a_misspelt_config_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"no config .*Did you mean 'Misc/semantic_R_50_FPN_1x\.yaml'"):
        model_zoo.get_checkpoint_url("Misc/semantic_R50_FPN_1x.yaml")


def test_config_of_another_kind_is_an_error_that_lists_the_folders():
    with pytest.raises(UnknownNameError, match=r"There are .*COCO-Keypoints, .*Misc"):
        model_zoo.get_config_file("zzz")


def test_every_config_with_weights_exists():
    assert all(Path(model_zoo.get_config_file(f"{name}.yaml")).is_file() for name in WEIGHTS)


def test_config_file_is_found_in_the_clone_or_the_package():
    path = Path(model_zoo.get_config_file(R50))
    assert path.is_file() and path.as_posix().endswith(f"configs/{R50}")


def test_misspelt_config_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'COCO-Detection/retinanet_R_50_FPN_1x\.yaml'"):
        model_zoo.get_config_file("COCO-Detection/retinanet_R50_FPN_1x.yaml")


def test_config_starts_from_imagenet_unless_trained_weights_are_asked_for():
    assert model_zoo.get_config(R50).MODEL.WEIGHTS == "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
    assert model_zoo.get_checkpoint_url(R50) == model_zoo.get_config(R50, trained=True).MODEL.WEIGHTS


def test_trained_model_has_the_weights_of_the_file(tiny_zoo):
    model = model_zoo.get("tiny.yaml", trained=True, device="cpu")
    expected = torch.load(tiny_zoo, weights_only=True)["model"]
    assert model.state_dict().keys() == expected.keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected[name])


def test_untrained_model_is_built_on_the_given_device(tiny_zoo):
    assert model_zoo.get("tiny.yaml", device="cpu").device.type == "cpu"
