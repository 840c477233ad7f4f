import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import load_coco_json, shapes
from detlib.data.datasets.shapes_drawing import CLASSES, TEXTURES, draw_scene

SMALL = {"train": 40, "val": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """The dataset with few images."""
    folder = tmp_path_factory.mktemp("shapes") / "drawn"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "NUM_IMAGES", SMALL)
        shapes.draw_shapes(folder)
    return folder


@pytest.fixture(scope="module")
def coco(root):
    return COCO(str(root / "annotations/instances_train.json"))


@pytest.fixture(scope="module")
def truths(root, coco):
    """Of each training image: annotations, segments, segment ids, semantic labels, stuff labels."""
    panoptic = json.loads((root / "annotations/panoptic_train.json").read_text())["annotations"]

    def read(folder, name):
        return np.array(Image.open(root / folder / name)).astype(int)

    return [
        (
            coco.loadAnns(coco.getAnnIds([entry["image_id"]])),
            {segment["id"]: segment for segment in entry["segments_info"]},
            read("panoptic_train", entry["file_name"]) @ [1, 256, 256**2],
            read("sem_seg_train", entry["file_name"]),
            read("panoptic_stuff_train", entry["file_name"]),
        )
        for entry in panoptic
    ]


def test_every_variant_is_registered_with_class_names():
    kinds = ("", "_keypoints", "_panoptic", "_panoptic_separated", "_panoptic_stuffonly", "_sem_seg", "_multi_task")
    for suffix in kinds:
        assert f"shapes_train{suffix}" in DatasetCatalog and f"shapes_val{suffix}" in DatasetCatalog
    assert MetadataCatalog.get("shapes_val").thing_classes == list(CLASSES)
    assert MetadataCatalog.get("shapes_val_keypoints").keypoint_names == ("top", "right", "bottom", "left")
    assert MetadataCatalog.get("shapes_val_sem_seg").stuff_classes == list(TEXTURES + CLASSES)


def test_multi_task_variant_has_the_objects_and_the_label_maps_of_the_same_images():
    both = DatasetCatalog.get("shapes_val_multi_task")
    objects = {sample["file_name"]: sample for sample in DatasetCatalog.get("shapes_val")}
    labels = {sample["file_name"]: sample for sample in DatasetCatalog.get("shapes_val_sem_seg")}
    assert len(both) == 100
    for sample in both:
        assert sample == {**objects[sample["file_name"]], **labels[sample["file_name"]]}
    metadata = MetadataCatalog.get("shapes_val_multi_task")
    assert metadata.thing_classes == list(CLASSES) and metadata.stuff_classes == list(TEXTURES + CLASSES)


def test_importing_draws_nothing(tmp_path):
    environment = {**os.environ, "DETLIB_CACHE": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", "import detlib.data.datasets"], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


def test_two_processes_that_start_at_once_both_succeed_and_draw_the_same_as_a_third(tmp_path, root):
    folder = tmp_path / "shapes"
    code = "import sys; from detlib.data.datasets import shapes; shapes.NUM_IMAGES = eval(sys.argv[2]); "
    command = [sys.executable, "-c", code + "shapes.draw_shapes(sys.argv[1])", str(folder), repr(SMALL)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert sorted(os.listdir(tmp_path)) == ["shapes", "shapes.lock"]
    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert len(files) == 4 * sum(SMALL.values()) + 4
    assert all((folder / path).read_bytes() == (root / path).read_bytes() for path in files)


def test_failure_while_drawing_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(shapes, "draw_scene", fail)
    with pytest.raises(OSError, match="disk full"):
        shapes.draw_shapes(tmp_path / "shapes")
    assert os.listdir(tmp_path) == ["shapes.lock"]


def test_image_does_not_depend_on_how_many_there_are(tmp_path, root, monkeypatch):
    monkeypatch.setattr(shapes, "NUM_IMAGES", {"train": 2, "val": 1})
    shapes.draw_shapes(tmp_path / "shapes")
    name = "train/000002.jpg"
    assert (tmp_path / "shapes" / name).read_bytes() == (root / name).read_bytes()


def test_masks_boxes_and_areas_agree(coco):
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        x, y, width, height = annotation["bbox"]
        assert mask.sum() == mask[y : y + height, x : x + width].sum() == annotation["area"]
        assert mask[y].any() and mask[y + height - 1].any() and mask[:, x].any() and mask[:, x + width - 1].any()


def test_visible_masks_do_not_overlap_and_leave_the_stuff(coco, truths):
    for annotations, _, _, _, stuff_labels in truths:
        count = sum((coco.annToMask(a).astype(int) for a in annotations), np.zeros_like(stuff_labels))
        assert count.max() <= 1
        np.testing.assert_array_equal(count == 0, stuff_labels > 0)


def test_panoptic_segments_are_the_instances(coco, truths):
    for annotations, segments, ids, _, _ in truths:
        assert set(np.unique(ids)) == set(segments)
        for annotation in annotations:
            (segment_id,) = np.unique(ids[coco.annToMask(annotation) > 0])
            for key in ("category_id", "area", "bbox", "iscrowd"):
                assert segments[segment_id][key] == annotation[key]


def test_semantic_labels_are_the_categories_with_crowds_ignored(coco, truths):
    for annotations, _, _, labels, stuff_labels in truths:
        np.testing.assert_array_equal(labels[stuff_labels > 0], stuff_labels[stuff_labels > 0] - 1)
        for annotation in annotations:
            class_index = shapes.THING_IDS.index(annotation["category_id"])
            expected = 255 if annotation["iscrowd"] else len(TEXTURES) + class_index
            assert (labels[coco.annToMask(annotation) > 0] == expected).all()


def test_crowds_are_rle_and_objects_are_polygons(coco):
    kinds = {(annotation["iscrowd"], type(annotation["segmentation"])) for annotation in coco.anns.values()}
    assert kinds == {(0, list), (1, dict)}


def test_there_are_images_without_objects_and_all_classes_and_sizes(coco):
    assert any(not coco.getAnnIds([image_id]) for image_id in coco.imgs)
    assert {annotation["category_id"] for annotation in coco.anns.values()} == set(shapes.THING_IDS)
    sides = [max(annotation["bbox"][2:]) for annotation in coco.anns.values() if not annotation["iscrowd"]]
    assert 8 <= min(sides) < 16 and max(sides) > 100


def test_visible_keypoints_lie_on_their_shape_and_hidden_ones_on_something_in_front():
    for seed in range(30):
        things = draw_scene(np.random.default_rng(seed)).things
        for index, thing in enumerate(things):
            for x, y, visibility in thing.keypoints:
                near = np.s_[max(int(y) - 2, 0) : int(y) + 3, max(int(x) - 2, 0) : int(x) + 3]
                assert thing.mask[near].any() == (visibility == 2) or visibility == 0
                if visibility == 1:
                    assert any(other.mask[near].any() for other in things[index + 1 :])


def test_keypoints_in_the_file_are_read_back_as_points_of_the_shape(root):
    samples = load_coco_json(str(root / "annotations/instances_train.json"), str(root / "train"))
    for instance in (instance for sample in samples for instance in sample["annotations"]):
        points = np.array(instance["keypoints"]).reshape(-1, 3)
        x, y, width, height = instance["bbox"]
        for point_x, point_y, _ in points[points[:, 2] == 2]:
            assert x - 2 <= point_x <= x + width + 2 and y - 2 <= point_y <= y + height + 2
