import json
import shutil

import numpy as np
import pytest
from PIL import Image

from detlib.data.datasets.cityscapes_panoptic import load_cityscapes_panoptic


def read(path):
    return np.asarray(Image.open(path)).tolist()


@pytest.fixture
def panoptic(tmp_path):
    """A PNG with segments 1 (a thing), 258 and 65536 (stuff), and pixels without any."""
    (tmp_path / "png").mkdir()
    colors = np.array([[[1, 0, 0], [2, 1, 0]], [[0, 0, 1], [0, 0, 0]]], dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "png/a.png")
    segments = [{"id": 1, "category_id": 5}, {"id": 258, "category_id": 9}, {"id": 65536, "category_id": 7}]
    content = {
        "annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": segments}],
        "categories": [{"id": i, "isthing": int(i == 5)} for i in (9, 5, 7)],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return content


OWN = ("--panoptic-json", "panoptic.json", "--panoptic-root", "png", "--output-dir", "stuff")


def test_panoptic_labels_become_stuff_after_one_class_of_things(call_tool, panoptic, tmp_path):
    done = call_tool("prepare_panoptic_fpn", *OWN)
    assert done.status == 0, done.err
    assert read(tmp_path / "stuff/a.png") == [[0, 2], [1, 255]]
    assert "1 label maps -> stuff" in done.out


def test_coco_in_the_folder_of_datasets_is_found(call_tool, panoptic, tmp_path, monkeypatch):
    (tmp_path / "coco/annotations").mkdir(parents=True)
    (tmp_path / "panoptic.json").rename(tmp_path / "coco/annotations/panoptic_val2017_100.json")
    (tmp_path / "png").rename(tmp_path / "coco/panoptic_val2017_100")
    monkeypatch.setenv("DETLIB_DATASETS", str(tmp_path))
    assert call_tool("prepare_panoptic_fpn").status == 0
    assert read(tmp_path / "coco/panoptic_stuff_val2017_100/a.png") == [[0, 2], [1, 255]]


def test_many_files_are_shared_out_to_processes(call_tool, panoptic, tmp_path):
    (entry,) = panoptic["annotations"]
    copies = [{**entry, "file_name": f"{i}.png"} for i in range(100)]
    for copy in copies:
        shutil.copy(tmp_path / "png/a.png", tmp_path / "png" / copy["file_name"])
    (tmp_path / "panoptic.json").write_text(json.dumps({**panoptic, "annotations": copies}))
    assert call_tool("prepare_panoptic_fpn", *OWN).status == 0
    assert len(list((tmp_path / "stuff").iterdir())) == 100
    assert read(tmp_path / "stuff/99.png") == [[0, 2], [1, 255]]
    (tmp_path / "png/50.png").unlink()
    done = call_tool("prepare_panoptic_fpn", *OWN)
    assert done.status == 2
    assert "'png/50.png' does not exist" in done.err


def test_image_without_segments_is_ignored_all_over(call_tool, panoptic, tmp_path):
    panoptic["annotations"][0]["segments_info"] = []
    (tmp_path / "panoptic.json").write_text(json.dumps(panoptic))
    assert call_tool("prepare_panoptic_fpn", *OWN).status == 0
    assert read(tmp_path / "stuff/a.png") == [[255, 255], [255, 255]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": [{"id": 5, "isthing": 1}]}, "a.png: a segment has the category 9, which is not in"),
        ({"categories": [{"id": i, "isthing": 0} for i in range(255)]}, "255 categories of stuff do not fit"),
        ({"categories": [{"id": 5}]}, "panoptic.json is not in COCO's panoptic format (KeyError('isthing'))"),
        (
            {"annotations": [{"file_name": "a.png", "segments_info": [{"id": 1, "category_id": 5}]}]},
            "png/a.png has the segment 258, which its JSON file does not describe",
        ),
        (
            {"annotations": [{"file_name": "b.png", "segments_info": []}]},
            "panoptic PNG file 'png/b.png' does not exist; check the folder",
        ),
    ],
)
def test_panoptic_files_that_do_not_fit_together_are_named(call_tool, panoptic, tmp_path, changes, message):
    (tmp_path / "panoptic.json").write_text(json.dumps({**panoptic, **changes}))
    done = call_tool("prepare_panoptic_fpn", *OWN)
    assert done.status == 2
    assert message in done.err


def test_colored_maps_of_ade20k_are_refused(call_tool, tmp_path):
    folder = tmp_path / "ade/annotations/training"
    folder.mkdir(parents=True)
    Image.fromarray(np.array([[[1, 2, 3]]], dtype=np.uint8)).save(folder / "a.png")
    done = call_tool("prepare_ade20k_sem_seg", "--root", "ade")
    assert done.status == 2
    assert "a.png has the shape (1, 1, 3)" in done.err


def test_ade20k_labels_begin_at_0_and_unlabelled_pixels_are_255(call_tool, tmp_path):
    for split in ("training", "validation"):
        folder = tmp_path / "ade/annotations" / split
        folder.mkdir(parents=True)
        Image.fromarray(np.array([[0, 1, 150]], dtype=np.uint8)).save(folder / "a.png")
    assert call_tool("prepare_ade20k_sem_seg", "--root", "ade").status == 0
    assert read(tmp_path / "ade/annotations_detectron2/validation/a.png") == [[255, 0, 149]]


def test_cityscapes_gets_train_ids_and_panoptic_labels(call_tool, tmp_path):
    images, gt = tmp_path / "city/leftImg8bit/val", tmp_path / "city/gtFine"
    for folder in (images / "ulm", gt / "val/ulm"):
        folder.mkdir(parents=True)
    Image.new("RGB", (3, 1)).save(images / "ulm/ulm_0_1_leftImg8bit.png")
    ids = np.array([[7, 26001, 4]], dtype=np.uint16)
    Image.fromarray(ids).save(gt / "val/ulm/ulm_0_1_gtFine_instanceIds.png")
    Image.fromarray(np.array([[7, 26, 4]], dtype=np.uint8)).save(gt / "val/ulm/ulm_0_1_gtFine_labelIds.png")
    done = call_tool("prepare_cityscapes", "--root", "city", "--splits", "val")
    assert done.status == 0, done.err
    assert read(gt / "val/ulm/ulm_0_1_gtFine_labelTrainIds.png") == [[0, 13, 255]]
    assert read(gt / "cityscapes_panoptic_val/ulm_0_1_gtFine_panoptic.png") == [[[7, 0, 0], [145, 101, 0], [0, 0, 0]]]
    meta = {"thing_dataset_id_to_contiguous_id": {26: 13}, "stuff_dataset_id_to_contiguous_id": {7: 0}}
    folder = str(gt / "cityscapes_panoptic_val")
    (sample,) = load_cityscapes_panoptic(str(images), folder, f"{folder}.json", meta)
    assert [(s["id"], s["category_id"], s["area"], s["bbox"]) for s in sample["segments_info"]] == [
        (7, 0, 1, [0, 0, 1, 1]),
        (26001, 13, 1, [1, 0, 1, 1]),
    ]


def test_lvis_is_reduced_to_the_classes_of_coco(call_tool, tmp_path):
    (tmp_path / "synsets.json").write_text(json.dumps({"cat": {"coco_cat_id": 17, "synset": "cat.n.01"}}))
    content = {
        "images": [{"id": 1, "neg_category_ids": [3, 4]}, {"id": 2}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3}, {"id": 2, "image_id": 1, "category_id": 4}],
        "categories": [{"id": 3, "synset": "cat.n.01"}, {"id": 4, "synset": "cab.n.03"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert call_tool("prepare_cocofied_lvis", "--synsets", "synsets.json", "a.json").status == 0
    result = json.loads((tmp_path / "a_cocofied.json").read_text())
    assert [(a["id"], a["category_id"]) for a in result["annotations"]] == [(1, 17)]
    assert [image["neg_category_ids"] for image in result["images"]] == [[17], []]
    assert len(result["categories"]) == 80
    (cat,) = [category for category in result["categories"] if category["id"] == 17]
    assert (cat["image_count"], cat["instance_count"], cat["frequency"]) == (1, 1, "r")


def test_file_that_is_not_of_lvis_is_named(call_tool, tmp_path):
    (tmp_path / "synsets.json").write_text("{}")
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1}]}))
    done = call_tool("prepare_cocofied_lvis", "--synsets", "synsets.json", "coco.json")
    assert done.status == 2
    assert "coco.json is not in LVIS's format: KeyError('synset')" in done.err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (("prepare_panoptic_fpn",), "set DETLIB_DATASETS"),
        (("prepare_panoptic_fpn", *OWN[:2]), "own data needs"),
        (("prepare_panoptic_fpn", *OWN), "'panoptic.json' does not exist"),
        (("prepare_ade20k_sem_seg",), "holds no *.png"),
        (("prepare_cityscapes",), "there is no folder"),
        (("prepare_cocofied_lvis", "--synsets", "no.json"), "'no.json' does not exist"),
    ],
)
def test_missing_files_are_told_in_one_line(call_tool, tmp_path, monkeypatch, call, message):
    monkeypatch.setenv("DETLIB_DATASETS", str(tmp_path))
    done = call_tool(*call)
    assert done.status == 2
    (line,) = done.err.strip().splitlines()
    assert message in line
