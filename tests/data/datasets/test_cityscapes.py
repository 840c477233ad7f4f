import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import builtin, cityscapes, cityscapes_panoptic
from detlib.data.datasets.cityscapes import load_cityscapes_instances, load_cityscapes_semantic, main
from detlib.structures import PolygonMasks
from detlib.utils.errors import DatasetError, MissingFileError

HEIGHT, WIDTH = 12, 20


def rectangle(label, x0, y0, x1, y1):
    return {"label": label, "polygon": [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]}


@pytest.fixture
def dirs(tmp_path):
    """One image: road, a car behind a person, a hidden bus, and a group of persons."""
    objects = [
        rectangle("road", 0, 0, 19, 11),
        rectangle("bus", 3, 3, 4, 4),
        rectangle("car", 2, 2, 9, 7),
        rectangle("person", 4, 0, 5, 11),
        rectangle("persongroup", 15, 5, 30, 6),  # Beyond the image.
        rectangle("deleted", 0, 0, 19, 11),
    ]
    ids = np.full((HEIGHT, WIDTH), 7)
    ids[2:8, 2:10], ids[:, 4:6], ids[5:7, 15:] = 26000, 24000, 24
    folders = [tmp_path / "cityscapes" / kind / "train" for kind in ("leftImg8bit", "gtFine")]
    for folder in folders:
        (folder / "ulm").mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folders[0] / "ulm/ulm_000000_000019_leftImg8bit.png")
    start = folders[1] / "ulm"
    Image.fromarray(ids.astype(np.uint16)).save(start / "ulm_000000_000019_gtFine_instanceIds.png")
    label_ids = np.where(ids >= 1000, ids // 1000, ids).astype(np.uint8)
    Image.fromarray(label_ids).save(start / "ulm_000000_000019_gtFine_labelIds.png")
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    (start / "ulm_000000_000019_gtFine_polygons.json").write_text(json.dumps(content))
    return tuple(map(str, folders))


def by_box(sample):
    return sorted(sample["annotations"], key=lambda instance: instance["bbox"])


@pytest.mark.parametrize("from_json", [True, False])
def test_objects_are_what_those_in_front_leave_of_them(dirs, from_json):
    (sample,) = load_cityscapes_instances(*dirs, from_json=from_json)
    assert sample["file_name"].endswith("train/ulm/ulm_000000_000019_leftImg8bit.png")
    assert (sample["image_id"], sample["height"], sample["width"]) == (
        "ulm_000000_000019_leftImg8bit.png",
        HEIGHT,
        WIDTH,
    )
    car, person, group = by_box(sample)
    assert [x["category_id"] for x in (car, person, group)] == [2, 0, 0]
    assert [x["iscrowd"] for x in (car, person, group)] == [0, 0, 1]
    assert [x["bbox"] for x in (car, person, group)] == [[2, 2, 10, 8], [4, 0, 6, 12], [15, 5, 20, 7]]
    # The person hides two of the car's eight columns, and cuts it in two.
    assert len(car["segmentation"]) == 2
    assert PolygonMasks([car["segmentation"], person["segmentation"]]).area().tolist() == [36, 24]


def test_masks_of_both_sources_are_the_same_run_lengths(dirs):
    (drawn,) = load_cityscapes_instances(*dirs, from_json=True, to_polygons=False)
    (stored,) = load_cityscapes_instances(*dirs, from_json=False, to_polygons=False)
    assert by_box(drawn) == by_box(stored)
    assert drawn["annotations"][0]["segmentation"]["size"] == [HEIGHT, WIDTH]


def drawn_alone(objects, dirs):
    """The samples of the image with other objects in its JSON file."""
    content = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    Path(dirs[1], "ulm/ulm_000000_000019_gtFine_polygons.json").write_text(json.dumps(content))
    return load_cityscapes_instances(*dirs)


def test_license_plate_leaves_no_hole_in_its_car(dirs):
    plain = drawn_alone([rectangle("car", 2, 2, 9, 7)], dirs)
    plate = rectangle("license plate", 4, 4, 6, 5)
    assert drawn_alone([rectangle("car", 2, 2, 9, 7), plate], dirs) == plain
    static = rectangle("static", 4, 4, 6, 5)
    (sample,) = drawn_alone([rectangle("car", 2, 2, 9, 7), static], dirs)
    assert PolygonMasks([sample["annotations"][0]["segmentation"]]).area().tolist() == [48 - 6]


def test_objects_that_are_deleted_hidden_or_outside_are_left_out(dirs):
    objects = [
        {**rectangle("car", 2, 2, 9, 7), "deleted": 1},
        {"label": "car", "polygon": [[1, 1], [2, 2]]},
        {"label": "car", "polygon": []},
        rectangle("person", -9, -9, -4, -5),
        rectangle("bus", 3, 3, 4, 4),
        rectangle("truck", 3, 3, 4, 4),
    ]
    (sample,) = drawn_alone(objects, dirs)
    assert [(x["category_id"], x["bbox"]) for x in sample["annotations"]] == [(3, [3, 3, 5, 5])]
    assert drawn_alone([], dirs)[0]["annotations"] == []


def test_many_images_are_read_in_several_processes(dirs, monkeypatch):
    alone = load_cityscapes_instances(*dirs)
    monkeypatch.setattr(cityscapes, "MIN_FILES_FOR_PROCESSES", 1)
    assert load_cityscapes_instances(*dirs) == alone


def test_label_maps_of_train_ids_are_paired(dirs):
    with pytest.raises(MissingFileError, match=r"labelTrainIds\.png does not exist.*prepare_cityscapes\.py"):
        load_cityscapes_semantic(*dirs)
    labels = f"{dirs[1]}/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"
    Image.new("L", (WIDTH, HEIGHT)).save(labels)
    (sample,) = load_cityscapes_semantic(*dirs)
    assert (sample["sem_seg_file_name"], sample["height"], sample["width"]) == (labels, HEIGHT, WIDTH)


def test_classes_are_counted(dirs, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cityscapes", *dirs])
    main()
    assert capsys.readouterr().out.split("\n")[:4] == ["1 images", "person: 2", "rider: 0", "car: 1"]


def test_damaged_and_missing_annotations_are_named(dirs, tmp_path):
    polygons = tmp_path / "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_polygons.json"
    polygons.write_text("{}")
    with pytest.raises(DatasetError, match=r"polygons\.json is not in Cityscapes' format"):
        load_cityscapes_instances(*dirs)
    polygons.unlink()
    with pytest.raises(MissingFileError, match="gtFine_trainvaltest"):
        load_cityscapes_instances(*dirs)
    with pytest.raises(DatasetError, match="has no files"):
        load_cityscapes_instances(dirs[0] + "/ulm", dirs[1])
    with pytest.raises(MissingFileError, match="nowhere"):
        load_cityscapes_instances("nowhere", dirs[1])


@pytest.fixture
def panoptic(dirs, tmp_path):
    """The known panoptic names over a file of two segments."""
    gt = tmp_path / "cityscapes/gtFine"
    (gt / "cityscapes_panoptic_train").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(gt / "cityscapes_panoptic_train/a.png")
    Image.new("L", (WIDTH, HEIGHT)).save(gt / "train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png")
    segments = [{"id": 7, "category_id": 7, "iscrowd": 0}, {"id": 26000, "category_id": 26, "iscrowd": 0}]
    annotation = {"image_id": "ulm_000000_000019", "file_name": "a.png", "segments_info": segments}
    json_file = gt / "cityscapes_panoptic_train.json"
    json_file.write_text(json.dumps({"annotations": [annotation]}))
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    cityscapes_panoptic.register_all_cityscapes_panoptic(str(tmp_path))
    return json_file, annotation


def test_panoptic_segments_have_train_ids(panoptic, dirs):
    (sample,) = DatasetCatalog.get("cityscapes_fine_panoptic_train")
    assert sample["image_id"] == "ulm_000000_000019"
    assert sample["file_name"].endswith("ulm_000000_000019_leftImg8bit.png")
    assert sample["sem_seg_file_name"] == f"{dirs[1]}/ulm/ulm_000000_000019_gtFine_labelTrainIds.png"
    assert sample["pan_seg_file_name"].endswith("cityscapes_panoptic_train/a.png")
    assert [(s["category_id"], s["isthing"]) for s in sample["segments_info"]] == [(0, False), (13, True)]
    metadata = MetadataCatalog.get("cityscapes_fine_panoptic_train")
    assert metadata.evaluator_type == "cityscapes_panoptic_seg"
    assert (metadata.ignore_label, metadata.label_divisor) == (255, 1000)
    assert metadata.stuff_classes[13] == "car"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_id": "ulm_1"}, "named ulm_1_leftImg8bit"),
        ({"file_name": "b.png"}, r"b\.png does not exist"),
        ({"segments_info": [{"id": 1, "category_id": 1}]}, r"category 1 of .*a\.png is unknown"),
    ],
)
def test_panoptic_mistakes_are_named(panoptic, changes, message):
    json_file, annotation = panoptic
    json_file.write_text(json.dumps({"annotations": [{**annotation, **changes}]}))
    with pytest.raises((DatasetError, MissingFileError), match=message):
        DatasetCatalog.get("cityscapes_fine_panoptic_train")


def test_instances_and_labels_are_known_by_name(dirs, tmp_path):
    DatasetCatalog.data.clear()
    MetadataCatalog.data.clear()
    builtin.register_all_cityscapes(str(tmp_path))
    assert len(DatasetCatalog.get("cityscapes_fine_instance_seg_train")) == 1
    metadata = MetadataCatalog.get("cityscapes_fine_sem_seg_val")
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (8, 19)
    assert (metadata.evaluator_type, metadata.ignore_label) == ("cityscapes_sem_seg", 255)
