import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.modeling import build_model


@pytest.fixture
def colours(tiny_cfg, tmp_path):
    """A config of a tiny classifier for a folder of 12 noisy blue and 12 noisy red images."""
    rng = np.random.default_rng(0)
    for name, channel in (("blue", 2), ("red", 0)):
        (tmp_path / "colours" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
            pixels[..., channel] += 150
            Image.fromarray(pixels).save(tmp_path / "colours" / name / f"{i}.png")
    tiny_cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    tiny_cfg.MODEL.CLASSIFIER.NUM_CLASSES = 2
    tiny_cfg.DATASETS.REGISTER = [
        {"NAME": "colours_of_features", "TYPE": "image_folder", "IMAGES": str(tmp_path / "colours")}
    ]
    tiny_cfg.DATASETS.TRAIN = tiny_cfg.DATASETS.TEST = ("colours_of_features",)
    tiny_cfg.INPUT.FORMAT = "RGB"
    tiny_cfg.INPUT.AUGMENTATIONS_TEST = [{"NAME": "Resize", "SHAPE": [32, 32]}]
    (tmp_path / "colours.yaml").write_text(tiny_cfg.dump())
    yield tmp_path / "colours.yaml"
    if "colours_of_features" in DatasetCatalog:
        DatasetCatalog.remove("colours_of_features")
        MetadataCatalog.remove("colours_of_features")


@pytest.fixture
def weights(colours, tiny_cfg, tmp_path):
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "weights.pth")
    return tmp_path / "weights.pth"


def test_neighbours_and_probe_of_weights_and_of_random_ones(call_tool, colours, weights):
    done = call_tool(
        "evaluate_features", "--config-file", colours, "--weights", weights, "--random", "--knn", "--k", 1, "--linear"
    )
    assert done.status == 0, done.err
    assert f"{weights}: 64 features of 24 training and 24 test images" in done.out
    assert "random weights: 64 features" in done.out
    # Training and test images are the same.
    assert done.out.count("| 1 nearest    | 100.000 |") == 2
    assert done.out.count("| linear probe |") == 2


def test_weights_of_a_detector_fit_a_classifier(call_tool, colours, tiny_cfg, tmp_path):
    tiny_cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
    torch.save({"model": build_model(tiny_cfg).state_dict()}, tmp_path / "detector.pth")
    done = call_tool("evaluate_features", "--config-file", colours, "--weights", tmp_path / "detector.pth", "--knn")
    assert done.status == 0, done.err
    assert "10 nearest" in done.out and "24 nearest" in done.out


def test_weights_of_something_else_are_refused(call_tool, colours, tmp_path):
    torch.save({"model": {"something": torch.zeros(1)}}, tmp_path / "other.pth")
    done = call_tool("evaluate_features", "--config-file", colours, "--weights", tmp_path / "other.pth", "--knn")
    assert done.status == 2
    assert "fit the part backbone of this model" in done.err


def test_picture_is_drawn_and_says_what_t_sne_needs(call_tool, colours, tmp_path, monkeypatch):
    monkeypatch.setattr("detlib.evaluation.feature_evaluation.importlib.util.find_spec", lambda name: None)
    done = call_tool("evaluate_features", "--config-file", colours, "--random", "--plot", "pca.png")
    assert done.status == 0, done.err
    assert "pip install scikit-learn" in done.out
    with Image.open(tmp_path / "pca.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((31, 119, 180), (255, 127, 14)):  # the first two of matplotlib's tab10
        assert (pixels == colour).all(axis=1).sum() > 100


def test_some_images_are_enough(call_tool, colours):
    done = call_tool("evaluate_features", "--config-file", colours, "--random", "--knn", "--k", 1, "--limit", 10)
    assert "64 features of 10 training and 10 test images" in done.out, done.err


def test_without_augmentations_images_are_cropped_to_224_pixels(call_tool, colours):
    args = ("--config-file", colours, "--random", "--knn", "--k", 1, "--limit", 2, "INPUT.AUGMENTATIONS_TEST=[]")
    done = call_tool("evaluate_features", *args)
    assert "resized to 256 pixels and cropped to 224" in done.out, done.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--random"], "add --knn, --linear or --plot"),
        (["--knn"], "there are no weights; add --weights FILE"),
        (["--random", "--knn", "--k", 0], "must be 1 or more"),
        (["--random", "--knn", "--feature", "p3"], "does not give 'p3'"),
        (["--random", "--plot", "pca.jpeg2"], "change its suffix"),
        (["--random", "--knn", "DATASETS.TEST=[]"], "DATASETS.TEST is empty"),
        (["--weights", "missing.pth", "--knn"], "missing.pth does not exist"),
    ],
)
def test_mistakes_are_told_in_one_line(call_tool, colours, args, message):
    done = call_tool("evaluate_features", "--config-file", colours, *args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_images_with_objects_instead_of_a_class_are_refused(call_tool, config_file):
    done = call_tool("evaluate_features", "--config-file", config_file, "--random", "--knn", "--limit", 2)
    assert done.status == 2
    assert "no label; name datasets of image classification" in done.err
