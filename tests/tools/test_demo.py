import json

import cv2
import numpy as np
import pytest
from PIL import Image

from detlib.checkpoint import DetectionCheckpointer
from detlib.data import DatasetCatalog, Metadata
from detlib.modeling import build_model


@pytest.fixture
def demo(call_tool, config_file, tiny_cfg, tmp_path):
    """Calls demo.py with a model of random weights, of which everything that it finds is kept."""
    DetectionCheckpointer(build_model(tiny_cfg), save_dir=str(tmp_path)).save("random")

    def call(*args, threshold=0.0):
        weights = f"MODEL.WEIGHTS={tmp_path / 'random.pth'}"
        options = ("--config-file", config_file, "--confidence-threshold", threshold)
        return call_tool("demo", *options, *args, "--opts", weights)

    return call


@pytest.fixture
def photos(tmp_path):
    """Two images of one name in different folders, and a file that is no image."""
    for folder, (height, width) in {"a": (48, 64), "b": (400, 300)}.items():
        (tmp_path / folder).mkdir()
        Image.new("RGB", (width, height), "gray").save(tmp_path / folder / "photo.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    return tmp_path


def test_help_shows_examples(call_tool):
    done = call_tool("demo", "--help")
    assert done.status == 0
    assert "--zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml --input" in done.out


def test_images_and_folders_become_pictures_of_different_names(demo, photos):
    done = demo("--input", "a", "b/photo.png", "--output", "drawn")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (photos / "drawn").iterdir()) == ["photo.png", "photo_2.png"]
    assert "[1/2] a/photo.png: " in done.out and " -> drawn/photo.png" in done.out
    assert Image.open(photos / "drawn" / "photo_2.png").size == (300, 400)


def test_small_images_become_larger_pictures(demo, photos):
    demo("--input", "a/photo.png", "--output", "drawn.png")
    assert Image.open(photos / "drawn.png").size == (64 * 8, 48 * 8)


def test_output_defaults_to_predictions(demo, photos):
    demo("--input", "*/photo.png", "--limit", 1)
    assert [path.name for path in (photos / "predictions").iterdir()] == ["photo.png"]


def test_json_has_objects_in_coco_format_with_names_and_ids_of_the_dataset(demo, photos):
    done = demo("--input", "a/photo.png", "--json", "found.json")
    (record,) = json.loads((photos / "found.json").read_text())
    assert (record["file_name"], record["image_id"], record["height"], record["width"]) == ("a/photo.png", 1, 48, 64)
    found = record["instances"][0]
    assert len(found["bbox"]) == 4 and 0 <= found["score"] <= 1
    ids = {1: "circle", 2: "square", 4: "triangle", 5: "star", 7: "cross", 8: "ring"}
    assert all(ids[found["category_id"]] == found["category_name"] for found in record["instances"])
    assert not (photos / "predictions").exists()
    assert "-> found.json" in done.out


def test_nothing_is_found_above_the_threshold(demo, photos):
    done = demo("--input", "a/photo.png", "--json", "found.json", threshold=1.0)
    assert "a/photo.png: 0 objects" in done.out
    assert json.loads((photos / "found.json").read_text())[0]["instances"] == []


@pytest.fixture
def classify(call_tool, tiny_cfg, thumbnails, tmp_path):
    """Calls demo.py with a classifier of random weights, for cats and dogs."""
    tiny_cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    tiny_cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    tiny_cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    tiny_cfg.MODEL.CLASSIFIER.NUM_CLASSES = 2
    tiny_cfg.DATASETS.TEST = (thumbnails,)
    (tmp_path / "classifier.yaml").write_text(tiny_cfg.dump())
    DetectionCheckpointer(build_model(tiny_cfg), save_dir=str(tmp_path)).save("random")

    def call(*args):
        weights = f"MODEL.WEIGHTS={tmp_path / 'random.pth'}"
        return call_tool("demo", "--config-file", "classifier.yaml", *args, "--opts", weights)

    return call


def test_classifier_writes_the_best_classes_on_images_in_memory(classify, thumbnails, tmp_path):
    done = classify("--dataset", thumbnails, "--output", "drawn", "--json", "found.json")
    assert done.status == 0, done.err
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["image_0.png", "image_1.png"]
    drawn = np.asarray(Image.open(tmp_path / "drawn" / "image_0.png"))
    assert drawn.shape == (384, 384, 3)
    assert (drawn[:12, :12] != 128).any() and (drawn[200:] == 128).all()
    record = json.loads((tmp_path / "found.json").read_text())[0]
    best, other = record["classes"]
    assert (record["file_name"], record["pred_label"]) == ("image_0", best["category_id"])
    assert {best["category_name"], other["category_name"]} == {"cat", "dog"}
    assert best["score"] + other["score"] == pytest.approx(1)
    line = f"image_0: {best['category_name']} {100 * best['score']:.0f} % ({other['category_name']} "
    assert line in done.out
    assert "classes of 2 images -> found.json" in done.out


def test_classifier_draws_image_files(classify, photos):
    done = classify("--input", "a", "b", "--output", "drawn")
    assert done.status == 0, done.err
    assert "[2/2] b/photo.png: " in done.out and " % (" in done.out


def test_dataset_is_drawn_up_to_the_limit(demo, tmp_path):
    done = demo("--dataset", "shapes_val", "--limit", 2, "--output", "drawn")
    assert "[2/2]" in done.out
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_video_becomes_a_video_with_an_entry_per_frame(demo, tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "in.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (64, 48))
    for value in range(0, 250, 50):
        writer.write(np.full((48, 64, 3), value, dtype=np.uint8))
    writer.release()
    done = demo("--video-input", "in.avi", "--output", "out.avi", "--json", "found.json", "--limit", 3, threshold=0.9)
    assert "3 frames -> out.avi" in done.out
    video = cv2.VideoCapture(str(tmp_path / "out.avi"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 3
    assert video.get(cv2.CAP_PROP_FPS) == 5.0
    assert [record["image_id"] for record in json.loads((tmp_path / "found.json").read_text())] == [1, 2, 3]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--input", "missing.jpg"], "--input missing.jpg does not exist"),
        (["--input", "*.gif"], r"--input *.gif does not exist"),
        (["--input", "c"], "--input c has no image"),
        (["--input", "by_class"], 'for those of its folders, write "by_class/**/*.jpg"'),
        (["--input", "a", "b", "--output", "one.png"], "--output one.png is one file, but there are 2 images"),
        (["--input", "a/photo.png", "--output", "a"], "would overwrite it"),
        (["--input", "a/notes.txt"], "is not an image"),
        (["--input", "a", "--limit", "0"], "--limit is 0"),
        (["--dataset", "shapes_vall"], "did you mean 'shapes_val'"),
        (["--dataset", "empty"], "dataset 'empty' has no images"),
        (["--video-input", "missing.mp4"], "--video-input missing.mp4 does not exist"),
        (["--video-input", "a/notes.txt"], "cannot open the video a/notes.txt"),
    ],
)
def test_mistakes_are_told_in_one_line(demo, photos, monkeypatch, args, message):
    (photos / "c").mkdir()
    (photos / "by_class" / "cat").mkdir(parents=True)
    monkeypatch.setitem(DatasetCatalog.data, "empty", list)
    done = demo(*args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_config_without_weights_is_told_in_one_line(call_tool, config_file, photos):
    done = call_tool("demo", "--config-file", config_file, "--input", "a/photo.png", "--opts", "MODEL.WEIGHTS=")
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "--opts MODEL.WEIGHTS=FILE" in done.err


def test_unknown_zoo_name_suggests_the_right_one(call_tool, photos):
    done = call_tool("demo", "--zoo", "COCO-Detection/retinanet_R_50_FPN_3.yaml", "--input", "a/photo.png")
    assert done.status == 2
    assert "Did you mean 'COCO-Detection/retinanet_R_50_FPN_3x.yaml'" in done.err


def test_zoo_takes_config_and_weights_by_name(call_tool, photos, monkeypatch):
    asked = []

    class Predictor:
        metadata = Metadata()

        def __init__(self, cfg):
            asked.append((cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.WEIGHTS, cfg.MODEL.RETINANET.SCORE_THRESH_TEST))

        def __call__(self, image):
            return {}

    monkeypatch.setattr("detlib.engine.DefaultPredictor", Predictor)
    done = call_tool("demo", "--zoo", "COCO-Detection/retinanet_R_50_FPN_3x.yaml", "--input", "a/photo.png")
    assert done.status == 0, done.err
    ((architecture, weights, threshold),) = asked
    assert (architecture, threshold) == ("RetinaNet", 0.5)
    assert weights.endswith("COCO-Detection/retinanet_R_50_FPN_3x/190397829/model_final_5bd44e.pkl")


def test_weights_that_cannot_be_downloaded_are_told_in_one_line(call_tool, photos, monkeypatch):
    from urllib.error import URLError

    def refuse(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", refuse)
    monkeypatch.setenv("FVCORE_CACHE", str(photos / "cache"))
    args = ("--zoo", "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "--input", "a/photo.png")
    done = call_tool("demo", *args, "--opts", "MODEL.DEVICE=cpu")
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "cannot download https://" in line and "Without a network" in line
