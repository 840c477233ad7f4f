import json

import numpy as np
import pytest
from PIL import Image

from detlib.data import DatasetCatalog


def test_help_shows_examples(call_tool):
    done = call_tool("visualize_data", "--help")
    assert done.status == 0
    assert "--source annotation --dataset shapes_val" in done.out


def test_samples_of_the_loader_are_drawn_up_to_the_limit(call_tool, config_file, tmp_path):
    done = call_tool("visualize_data", "--config-file", config_file, "--limit", 3, "MODEL.MASK_ON", "True")
    assert done.status == 0, done.err
    names = sorted(path.name for path in (tmp_path / "visualized").iterdir())
    assert [name[:5] for name in names] == ["0001_", "0002_", "0003_"]
    assert "3 images -> visualized" in done.out


def test_pictures_have_the_size_that_the_model_is_fed(call_tool, config_file, tmp_path):
    call_tool("visualize_data", "--config-file", config_file, "--limit", 1, "--scale", 1)
    (picture,) = (tmp_path / "visualized").iterdir()
    assert min(Image.open(picture).size) == 64  # INPUT.MIN_SIZE_TRAIN


@pytest.mark.parametrize("dataset", ["shapes_val", "shapes_val_keypoints", "shapes_val_panoptic", "shapes_val_sem_seg"])
def test_annotations_of_all_kinds_are_drawn_without_a_config(call_tool, tmp_path, dataset):
    args = ("--source", "annotation", "--dataset", dataset, "--limit", 2, "--output-dir", "drawn", "--scale", 1)
    assert call_tool("visualize_data", *args).status == 0
    original = DatasetCatalog.get(dataset)[0]["file_name"]
    picture = tmp_path / "drawn" / original.rsplit("/", 1)[1]
    assert Image.open(picture).size == Image.open(original).size


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no dataset is named"),
        (["--dataset", "shapes_vall"], "did you mean 'shapes_val'"),
        (["--source", "annotation", "--dataset", "empty"], "dataset 'empty' has no images"),
        (["--config-file", "missing.yaml"], "missing.yaml"),
        (["--dataset", "shapes_val", "--limit", "0"], "--limit is 0"),
        (["--dataset", "shapes_val", "INPUT.FORMATT", "RGB"], "did you mean INPUT.FORMAT"),
        (
            ["DATASETS.TRAIN=['lost']", "DATASETS.REGISTER=[{NAME: lost, TYPE: coco, JSON: no.json, IMAGES: .}]"],
            "no.json",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(call_tool, monkeypatch, args, message):
    monkeypatch.setitem(DatasetCatalog.data, "empty", list)
    done = call_tool("visualize_data", *args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_image_that_is_not_there_is_named(call_tool, tmp_path):
    images = [{"id": 1, "file_name": "gone.jpg", "height": 8, "width": 8}]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    (tmp_path / "data.json").write_text(json.dumps(content))
    register = "DATASETS.REGISTER=[{NAME: incomplete, TYPE: coco, JSON: data.json, IMAGES: .}]"
    done = call_tool("visualize_data", "--source", "annotation", register, "DATASETS.TRAIN=['incomplete']")
    assert done.status == 2
    assert "gone.jpg does not exist" in done.err


@pytest.mark.parametrize("source", ["annotation", "dataloader"])
def test_images_in_memory_are_drawn_with_their_labels(call_tool, thumbnails, tmp_path, source):
    done = call_tool("visualize_data", "--source", source, "--dataset", thumbnails, "--limit", 2, "INPUT.FORMAT=RGB")
    assert done.status == 0, done.err
    pictures = sorted((tmp_path / "visualized").iterdir())
    assert all(path.name.endswith(("image_0.png", "image_1.png")) for path in pictures)
    drawn = np.asarray(Image.open(pictures[0]))
    assert (drawn[:12, :12] != 128).any() and (drawn[200:] == 128).all()


def test_images_of_one_name_in_two_folders_become_two_pictures(call_tool, tmp_path):
    for name in ("elm", "oak"):
        (tmp_path / "leaves" / name).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / "leaves" / name / "1.png")
    register = "DATASETS.REGISTER=[{NAME: leaves_of_one_name, TYPE: image_folder, IMAGES: leaves}]"
    call_tool("visualize_data", "--source", "annotation", "DATASETS.TRAIN=[leaves_of_one_name]", register)
    assert sorted(path.name for path in (tmp_path / "visualized").iterdir()) == ["0002_1.png", "1.png"]


def test_views_are_drawn_side_by_side_with_mask_and_target(call_tool, thumbnails, tmp_path):
    steps = "[{NAME: Solarize}, {NAME: Resize, SHAPE: 32}]"
    parts = "MASK: {NAME: RandomBlocks, GRID_SIZE: 8, NUM_HIDDEN: 30}, TARGET: {SIZE: 16}"
    views = f"INPUT.VIEWS=[{{AUGMENTATIONS: {steps}, {parts}}}, {{AUGMENTATIONS: []}}]"
    options = ("INPUT.FORMAT=RGB", views, "SOLVER.IMS_PER_BATCH=4096")
    done = call_tool("visualize_data", "--dataset", thumbnails, "--limit", 1, "--scale", 1, *options)
    assert done.status == 0, done.err
    (path,) = (tmp_path / "visualized").iterdir()
    drawn = np.asarray(Image.open(path).convert("L")).astype(int)
    assert drawn.shape == (68, 68)  # 2 x 2 pictures of 32, and 4 pixels between them.
    assert (drawn[:32, 34] == 255).all() and (drawn[34] == 255).all()
    assert (drawn[20:32, :32] == 127).all()  # The first view: 255 - 128. A label is written above.
    assert (drawn[20:32, 36:] == 128).all()  # The second view.
    hidden = drawn[36:, :32] == 128
    assert hidden.sum() == 30 * 16 and (drawn[36:, :32][~hidden] == 127).all()  # 30 patches of 4 x 4.
    assert (drawn[36:52, 36:52] == 127).all() and (drawn[53:, 36:] == 255).all()  # The target, of 16 pixels.
