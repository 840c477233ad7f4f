"""The check of datasets finds what the loader and the mapper refuse, all of it at once, and what passes them."""

import copy
import json
import os

import numpy as np
import pytest
from PIL import Image

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, DatasetMapper, MetadataCatalog, get_detection_dataset_dicts
from detlib.data.check import KINDS, check_datasets
from detlib.data.datasets.coco import register_coco_instances
from detlib.data.datasets.image_folder import register_image_folder, register_images
from detlib.data.datasets.lvis import register_lvis_instances
from detlib.data.datasets.sem_seg import register_sem_seg, register_sem_seg_folders
from detlib.utils.errors import DetlibError, UnknownNameError

POLYGON = [1, 1, 4, 1, 4, 3, 1, 3]
CONTENT = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 8} for i in (1, 2)],
    "annotations": [
        {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": [x, 1, 3, 2]}
        | {"segmentation": [POLYGON], "keypoints": [1, 1, 2, 3, 2, 1], "iscrowd": 0}
        for id_, image_id, category_id, x in ((11, 1, 1, 1), (12, 1, 2, 2), (13, 2, 1, 1))
    ],
    "categories": [
        {"id": 1, "name": "cat", "keypoints": ["left_ear", "right_ear"]},
        {"id": 2, "name": "dog"},
    ],
}


def write_image(path, seed, height=6, width=8, **options):
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def names():
    """Names of datasets, which are forgotten after the test."""
    known = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - known:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def coco(tmp_path, names):
    """Writes and registers a dataset: ``coco("cells", change)``; ``change(content, folder)`` is to spoil it."""

    def make(name="cells", change=lambda content, folder: None):
        for number in (1, 2):
            write_image(tmp_path / f"{number}.png", number)
        content = copy.deepcopy(CONTENT)
        change(content, tmp_path)
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
        return name

    return make


def config(train, test=(), parts=False):
    """Of a training on datasets; with masks and keypoints, if they are parts of it."""
    cfg = get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (train,) if isinstance(train, str) else train, test
    cfg.MODEL.MASK_ON = cfg.MODEL.KEYPOINT_ON = parts
    cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE = 0
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (6,)
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def kinds(report, severities=("error", "warning")):
    return {finding.kind for finding in report.findings if finding.severity in severities}


def training_stops(cfg):
    """Whether the loader or the mapper refuses something."""
    try:
        mapper = DatasetMapper(cfg, True) if get_detection_dataset_dicts(cfg.DATASETS.TRAIN) else None
        for sample in get_detection_dataset_dicts(cfg.DATASETS.TRAIN):
            mapper(sample)
    except (DetlibError, ValueError):  # The second is of a transform.
        return True
    return False


def of_annotation(**values):
    return lambda content, folder: content["annotations"][1].update(values)


def of_image(**values):
    return lambda content, folder: content["images"][1].update(values)


def without(key):
    return lambda content, folder: content["annotations"][1].pop(key)


def truncate(content, folder):
    os.truncate(folder / "2.png", (folder / "2.png").stat().st_size // 2)


RLE = {"size": [6, 8], "counts": [40, 8]}
MISTAKES = {
    "nan": (of_annotation(bbox=[1, float("nan"), 2, 2]), "box-invalid"),
    "three_numbers": (of_annotation(bbox=[1, 1, 2]), "box-invalid"),
    "no_width": (of_annotation(bbox=[1, 1, 0, 2]), "box-flat"),
    "beyond": (of_annotation(bbox=[5, 1, 6, 2]), "box-over-edge"),
    "outside": (of_annotation(bbox=[9, 1, 2, 2]), "box-outside"),
    "twice": (of_annotation(bbox=[1, 1, 3, 2], category_id=1), "box-repeated"),
    "other_image": (of_annotation(image_id=3), "unknown-image"),
    "other_category": (of_annotation(category_id=3), "unknown-category"),
    "same_annotation_id": (of_annotation(id=11), "repeated-id"),
    "same_image_id": (of_image(id=1), "repeated-id"),
    "same_category_id": (lambda content, folder: content["categories"][1].update(id=1), "repeated-id"),
    "same_category_name": (
        lambda content, folder: content["categories"][1].update(name="cat"),
        "category-name-repeated",
    ),
    "no_box": (without("bbox"), "bad-entry"),
    "text_for_height": (of_image(height="6"), "bad-entry"),
    "marked_ignore": (of_annotation(ignore=1), "bad-entry"),
    "leaves_the_folder": (of_image(file_name="../2.png"), "bad-entry"),
    "polygon_of_text": (of_annotation(segmentation=[["a"] * 6]), "bad-entry"),
    "odd_polygon": (of_annotation(segmentation=[POLYGON, [1, 1, 2, 2, 3, 3, 4]]), "mask-polygon"),
    "two_points": (of_annotation(segmentation=[[1, 1, 2, 2]]), "mask-polygon"),
    "rle_of_fewer_pixels": (of_annotation(segmentation={**RLE, "counts": [40, 7]}), "bad-entry"),
    "rle_of_other_size": (of_annotation(segmentation={"size": [8, 6], "counts": [40, 8]}), "mask-size"),
    "rle": (of_annotation(segmentation=RLE), None),
    "no_mask": (without("segmentation"), "mask-missing"),
    "no_keypoints": (without("keypoints"), "keypoints-missing"),
    "seven_values": (of_annotation(keypoints=[1] * 7), "bad-entry"),
    "one_keypoint": (of_annotation(keypoints=[1, 1, 2]), "keypoints-count"),
    "no_keypoint_names": (lambda content, folder: content["categories"][0].pop("keypoints"), "keypoints-missing"),
    "keypoint_outside": (of_annotation(keypoints=[1, 1, 2, 30, 2, 1]), "keypoints-outside"),
    "no_file": (of_image(file_name="3.png"), "image-missing"),
    "cut_off": (truncate, "image-unreadable"),
    "text_file": (lambda content, folder: (folder / "2.png").write_text("hello"), "image-unreadable"),
    "other_size": (of_image(height=7), "image-size"),
    "no_objects": (lambda content, folder: content["annotations"].clear(), "no-usable-images"),
    "no_categories": (lambda content, folder: content.pop("categories"), "not-loadable"),
    "none": (lambda content, folder: None, None),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_errors_are_what_stops_a_training(coco, case):
    change, kind = MISTAKES[case]
    cfg = config(coco(change=change), parts=True)
    report = check_datasets(cfg)
    assert kind is None or kind in kinds(report)
    assert kind is not None or not kinds(report)
    assert (report.count("error") > 0) == training_stops(cfg), report.text()


def test_file_cut_off_is_told_as_the_loader_tells_it(coco, tmp_path):
    name = coco()
    (tmp_path / "cells.json").write_text("{")
    (finding,) = check_datasets(config(name)).findings
    assert finding.kind == "not-loadable" and "is not valid JSON" in finding.message


def test_all_mistakes_of_a_file_are_found_with_their_places(coco):
    def change(content, folder):
        for case in ("no_file", "other_category", "three_numbers"):
            MISTAKES[case][0](content, folder)
        content["annotations"][0]["image_id"] = 7
        content["images"].append({"id": 3})

    report = check_datasets(config(coco(change=change)))
    places = {(f.kind, f.image_id, f.annotation_id) for f in report.findings if f.severity == "error"}
    assert places == {
        ("image-missing", 2, None),
        ("unknown-category", 1, 12),
        ("box-invalid", 1, 12),
        ("unknown-image", 7, 11),
        ("bad-entry", 3, None),
    }
    assert all(f.remedy and f.file for f in report.findings if f.severity == "error")
    assert "images[2] (id 3) lacks file_name" in report.text()


def test_boxes_given_as_corners_are_recognised(coco):
    def change(content, folder):
        for annotation in content["annotations"]:
            annotation["bbox"] = [5, 1, 8, 5]

    assert "box-corners" in kinds(check_datasets(config(coco(change=change))))


def test_gap_in_category_ids_and_classes_without_objects_are_told(coco):
    def change(content, folder):
        content["categories"].append({"id": 5, "name": "cow"})

    report = check_datasets(config(coco(change=change)))
    (gap,) = [finding for finding in report.findings if finding.kind == "category-gap"]
    (unused,) = [finding for finding in report.findings if finding.kind == "category-unused"]
    assert gap.severity == "note" and "1 to 5 without 3, 4" in gap.message
    assert unused.severity == "warning" and unused.message == "'cow'"
    assert report.datasets[0].class_counts == {"cat": 2, "dog": 1, "cow": 0}


def test_same_bytes_to_train_and_to_test_are_a_leak(coco, tmp_path):
    train = coco()
    (tmp_path / "3.png").write_bytes((tmp_path / "1.png").read_bytes())
    test = coco("cells_test", lambda content, folder: content["images"][1].update(file_name="3.png"))
    report = check_datasets(config(train, (test,)))
    leaks = [finding for finding in report.findings if finding.kind == "image-leak"]
    assert [(finding.dataset, finding.image_id) for finding in leaks] == [("cells_test", 1)]
    assert "the same file as image 1" in leaks[0].message
    assert [(f.kind, f.image_id) for f in report.findings if f.dataset == "cells_test"] == [
        ("image-repeated", 2),
        ("image-leak", 1),
    ]


def test_two_datasets_to_train_on_may_share_images(coco):
    assert not check_datasets(config((coco(), coco("more_cells")))).findings


def test_dataset_to_train_and_to_test_is_only_noted(coco):
    name = coco()
    report = check_datasets(config(name, (name,)))
    assert [(finding.kind, finding.severity) for finding in report.findings] == [("image-leak", "note")]


@pytest.mark.parametrize(("orientation", "severity"), [(6, "note"), (3, "warning")])
def test_turned_images_are_told(coco, orientation, severity):
    def change(content, folder):
        exif = Image.Exif()
        exif[0x0112] = orientation
        height, width = (8, 6) if orientation == 6 else (6, 8)
        write_image(folder / "2.png", 2, height, width, exif=exif)

    cfg = config(coco(change=change))
    (finding,) = check_datasets(cfg).findings
    assert (finding.kind, finding.severity, finding.image_id) == ("image-turned", severity, 2)
    assert check_datasets(cfg, quick=True).findings == [finding]


def test_size_before_turning_is_an_error_that_says_so(coco):
    def change(content, folder):
        exif = Image.Exif()
        exif[0x0112] = 6
        write_image(folder / "2.png", 2, 6, 8, exif=exif)

    (finding,) = [f for f in check_datasets(config(coco(change=change))).findings if f.severity == "error"]
    assert finding.kind == "image-size" and "turned by 90 degrees" in finding.message


def test_quick_check_reads_headers_only(coco):
    cfg = config(coco(change=truncate))
    report = check_datasets(cfg, quick=True)
    assert not report.findings and "--quick" in report.left_out
    cfg = config(coco("other", of_image(height=7)))
    assert kinds(check_datasets(cfg, quick=True)) == {"image-size"}


def test_workers_find_the_same(coco, monkeypatch):
    cfg = config(coco(change=truncate))
    alone = check_datasets(cfg).findings
    cfg.DATALOADER.NUM_WORKERS = 1
    monkeypatch.setattr("detlib.data.check.images.MIN_IMAGES_PER_WORKER", 1)
    assert check_datasets(cfg).findings == alone != []


def test_crowd_regions_are_no_objects(coco):
    def change(content, folder):
        content["annotations"][2].update(iscrowd=1, keypoints=[1, 1, 2])
        del content["annotations"][2]["segmentation"]

    report = check_datasets(config(coco(change=change), parts=True))
    assert not kinds(report)
    (finding,) = report.findings
    assert finding.kind == "image-without-objects" and "crowd" in finding.message


def test_masks_and_keypoints_that_are_not_used_stop_nothing(coco):
    cfg = config(coco(change=of_annotation(segmentation={"size": [8, 6], "counts": [40, 8]}, keypoints=[1, 1, 2])))
    report = check_datasets(cfg)
    assert kinds(report, ["error"]) == set()
    assert kinds(report) == {"mask-size", "keypoints-count"}


def test_lines_of_a_list_are_all_read(tmp_path, names):
    write_image(tmp_path / "cat/1.png", 1)
    (tmp_path / "list.txt").write_text("cat/1.png 0\ncat/2.png 1\ncat/1.png 5\nnothing\n\n../3.png 0\n")
    register_image_folder("listed", tmp_path, tmp_path / "list.txt", ["cat", "dog"])
    report = check_datasets(config("listed"))
    assert sorted(f.kind for f in report.findings) == ["bad-entry"] * 3 + ["category-unused", "image-missing"]
    assert report.datasets[0].class_counts == {"cat": 1, "dog": 0}


def test_folders_of_classes_tell_empty_ones_and_files_left_out(tmp_path, names):
    write_image(tmp_path / "cat/1.png", 1)
    write_image(tmp_path / "cat/2.webp", 2)
    write_image(tmp_path / "3.png", 3)
    (tmp_path / "dog").mkdir()
    (tmp_path / "README.txt").write_text("no image")
    register_image_folder("leaves", tmp_path)
    report = check_datasets(config("leaves"))
    found = {(finding.kind, os.path.basename(finding.file or "")) for finding in report.findings}
    assert found == {("category-unused", ""), ("file-left-out", "2.webp"), ("file-left-out", "3.png")}


def test_one_image_with_two_labels_is_told_with_both(tmp_path, names):
    write_image(tmp_path / "cat/1.png", 1)
    write_image(tmp_path / "dog/2.png", 1)
    register_image_folder("leaves", tmp_path)
    (finding,) = check_datasets(config("leaves")).findings
    assert finding.kind == "image-repeated" and "labelled dog here and cat there" in finding.message


@pytest.mark.parametrize(
    ("label_map", "kind"),
    [
        (np.zeros((6, 8), np.uint8), None),
        (np.full((6, 8), 2, np.uint8), "labels-outside"),
        (np.full((6, 8), 255, np.uint8), "labels-ignored"),
        (np.zeros((8, 6), np.uint8), "labels-size"),
        (np.random.RandomState(0).randint(0, 255, (6, 8, 3), np.uint8), "labels-unreadable"),
    ],
)
def test_label_maps_are_looked_into(tmp_path, names, label_map, kind):
    write_image(tmp_path / "images/1.jpg", 1)
    (tmp_path / "labels").mkdir()
    Image.fromarray(label_map).save(tmp_path / "labels/1.png")
    register_sem_seg_folders("roads", str(tmp_path / "images"), str(tmp_path / "labels"), ["road", "other"])
    assert kinds(check_datasets(config("roads"))) == ({kind} if kind else set())


def test_images_without_labels_are_only_opened(tmp_path, names):
    write_image(tmp_path / "1.png", 1)
    register_images("photos", tmp_path)
    report = check_datasets(config("photos"))
    assert not report.findings
    assert (report.datasets[0].num_images, report.datasets[0].class_counts) == (1, {})


def test_samples_of_a_loader_of_ones_own_are_checked(dataset):
    box = {"bbox": [1, 2, float("inf"), 4], "bbox_mode": 0, "category_id": 0}
    dataset((6, 8), (6, 8), annotations=[[box], [{**box, "bbox": [1, 2, 3, 4], "category_id": 2}]])
    report = check_datasets(config("tiny"))
    assert {(f.kind, f.image_id) for f in report.findings if f.severity == "error"} == {
        ("box-invalid", 0),
        ("class-outside", 1),
    }
    assert "annotation 'number 1 of the image'" in report.text()


def test_samples_that_nobody_foresaw_do_not_break_the_check(names):
    DatasetCatalog.register("odd", lambda: [{"file_name": "gone.png", "annotations": [{"keypoints": ["a"] * 3}]}])
    DatasetCatalog.register("stream", lambda: iter(()))
    DatasetCatalog.register("broken", lambda: 1 / 0)
    report = check_datasets(config(("odd", "stream", "broken"), parts=True))
    assert {(f.dataset, f.kind) for f in report.findings} >= {
        ("odd", "image-missing"),
        ("odd", "not-checked"),
        ("stream", "not-checked"),
        ("broken", "not-loadable"),
    }


def test_embedded_dataset_has_no_mistakes():
    cfg = config("shapes_val", ("shapes_val_panoptic_separated", "shapes_val_sem_seg"))
    report = check_datasets(cfg, quick=True)
    assert kinds(report, ["error"]) == {"image-leak"}  # These are the same images.
    assert kinds(report, ["warning"]) == set()


def test_unknown_dataset_is_no_finding():
    with pytest.raises(UnknownNameError, match="did you mean 'shapes_val'"):
        check_datasets(config("shapes_vall"))


def test_every_kind_has_a_severity_a_title_and_a_remedy():
    assert all(k.severity in ("error", "warning", "note") and k.title and k.remedy for k in KINDS.values())


def test_entries_of_label_maps_are_all_looked_at(tmp_path, names):
    entry = {"id": 1, "file_name": "1.png", "sem_seg_file_name": "1.png", "height": 6, "width": 8}
    images = [entry, {"id": 2, "file_name": "2.png"}, {**entry, "id": 3, "height": "6"}]
    (tmp_path / "roads.json").write_text(json.dumps({"images": images, "categories": [{"id": 0, "name": "road"}]}))
    register_sem_seg("roads", str(tmp_path / "roads.json"), str(tmp_path), str(tmp_path))
    report = check_datasets(config("roads"))
    assert [(finding.kind, finding.image_id) for finding in report.findings] == [("bad-entry", 2), ("bad-entry", 3)]


def test_lvis_is_read_with_its_own_paths(tmp_path, names):
    write_image(tmp_path / "train/1.png", 1)
    content = copy.deepcopy(CONTENT)
    content["annotations"].pop()
    content["images"] = [
        {"id": 1, "coco_url": "http://x/train/1.png", "height": 6, "width": 8},
        {"id": 2, "height": 6, "width": 8},
    ]
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    register_lvis_instances("lvis_of_mine", {}, str(tmp_path / "lvis.json"), str(tmp_path))
    (finding,) = check_datasets(config("lvis_of_mine")).findings
    assert (finding.kind, finding.image_id) == ("bad-entry", 2)
