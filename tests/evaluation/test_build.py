import json
from pathlib import Path

import numpy as np
import pytest
import torch

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.detection_utils import read_image
from detlib.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    ClassificationEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    MultiLabelEvaluator,
    PascalVOCDetectionEvaluator,
    RotatedCOCOEvaluator,
    SemSegEvaluator,
    build_evaluator,
)
from detlib.utils.errors import DatasetError


@pytest.fixture
def coco_json(tmp_path):
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": [], "annotations": [], "categories": [{"id": 1, "name": "car"}]}))
    return str(path)


def test_coco_dataset_gets_the_sigmas_of_the_config(dataset, coco_json):
    cfg = get_cfg()
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.2]
    evaluator = build_evaluator(cfg, dataset([], evaluator_type="coco", json_file=coco_json))
    assert isinstance(evaluator, COCOEvaluator)
    assert evaluator._kpt_oks_sigmas == [0.1, 0.2]


def test_model_of_rotated_boxes_is_evaluated_with_their_overlap(dataset, coco_json):
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    assert isinstance(
        build_evaluator(cfg, dataset([], evaluator_type="coco", json_file=coco_json)), RotatedCOCOEvaluator
    )
    name = dataset([], evaluator_type="rotated_coco", json_file=coco_json)
    assert isinstance(build_evaluator(get_cfg(), name), RotatedCOCOEvaluator)


@pytest.mark.parametrize(
    ("evaluator_type", "kind"),
    [
        ("cityscapes_instance", CityscapesInstanceEvaluator),
        ("cityscapes_sem_seg", CityscapesSemSegEvaluator),
        ("image_classification", ClassificationEvaluator),
        ("multi_label_classification", MultiLabelEvaluator),
        ("pascal_voc", PascalVOCDetectionEvaluator),
        ("lvis", LVISEvaluator),
        ("sem_seg", SemSegEvaluator),
    ],
)
def test_type_of_the_dataset_decides(dataset, coco_json, evaluator_type, kind):
    name = dataset(
        [],
        evaluator_type=evaluator_type,
        json_file=coco_json,
        gt_dir="gt",
        classes=["car"],
        thing_classes=["car"],
        stuff_classes=["road"],
        dirname="voc",
        split="val",
        year=2007,
    )
    assert type(build_evaluator(get_cfg(), name)) is kind


def test_panoptic_cityscapes_is_evaluated_as_instances_labels_and_segments(dataset, coco_json):
    metadata = {"gt_dir": "gt", "thing_classes": ["car"], "stuff_classes": ["road"], "panoptic_json": coco_json}
    every = build_evaluator(get_cfg(), dataset([], evaluator_type="cityscapes_panoptic_seg", **metadata))
    kinds = [CityscapesSemSegEvaluator, CityscapesInstanceEvaluator, COCOPanopticEvaluator]
    assert [type(e) for e in every._evaluators] == kinds


def test_panoptic_dataset_is_evaluated_for_all_that_it_has(dataset, coco_json):
    metadata = {"evaluator_type": "coco_panoptic_seg", "panoptic_json": coco_json, "stuff_classes": ["sky"]}
    only = build_evaluator(get_cfg(), dataset([], **metadata))
    assert isinstance(only, COCOPanopticEvaluator)
    every = build_evaluator(get_cfg(), dataset([], **metadata, json_file=coco_json, sem_seg_root="labels"))
    assert isinstance(every, DatasetEvaluators)
    assert [type(e) for e in every._evaluators] == [SemSegEvaluator, COCOEvaluator, COCOPanopticEvaluator]


def test_boxes_with_label_maps_are_evaluated_for_both(dataset, coco_json):
    metadata = {"evaluator_type": "coco_and_sem_seg", "json_file": coco_json, "stuff_classes": ["sky"]}
    both = build_evaluator(get_cfg(), dataset([], **metadata))
    assert [type(e) for e in both._evaluators] == [COCOEvaluator, SemSegEvaluator]


@pytest.mark.parametrize("evaluator_type", [None, "cocoo"])
def test_unknown_type_lists_the_known_ones(dataset, evaluator_type):
    metadata = {} if evaluator_type is None else {"evaluator_type": evaluator_type}
    with pytest.raises(
        DatasetError, match=rf"evaluator_type {evaluator_type!r}; known are .*coco, .*coco_panoptic_seg"
    ):
        build_evaluator(get_cfg(), dataset([], **metadata))


def ground_truth_as_prediction(sample, metadata, segments):
    """What a panoptic model would return if it knew the answer."""
    labels = torch.from_numpy(read_image(sample["sem_seg_file_name"]).astype(np.int64)).squeeze(-1)
    stem = Path(sample["file_name"]).stem
    channels = read_image(f"{metadata.panoptic_root}/{stem}.png", "RGB").astype(np.int64)
    class_of = {True: metadata.thing_dataset_id_to_contiguous_id, False: metadata.stuff_dataset_id_to_contiguous_id}
    predicted = []
    for segment in segments:
        is_thing = segment["category_id"] in class_of[True]
        class_id = class_of[is_thing][segment["category_id"]]
        predicted.append({"id": segment["id"], "category_id": class_id, "isthing": is_thing})
    return {
        "sem_seg": torch.nn.functional.one_hot(labels, len(metadata.stuff_classes)).movedim(-1, 0),
        "panoptic_seg": (torch.from_numpy(channels @ np.array([1, 256, 256**2])), predicted),
    }


def test_ground_truth_of_the_shapes_is_perfect():
    name = "shapes_val_panoptic_separated"
    samples, metadata = DatasetCatalog.get(name)[:3], MetadataCatalog.get(name)
    annotations = json.loads(Path(metadata.panoptic_json).read_text())["annotations"]
    segments = {annotation["image_id"]: annotation["segments_info"] for annotation in annotations}
    evaluator = build_evaluator(get_cfg(), name)
    evaluator.reset()
    for sample in samples:
        evaluator.process([sample], [ground_truth_as_prediction(sample, metadata, segments[sample["image_id"]])])
    results = evaluator.evaluate()
    assert results.keys() == {"sem_seg", "panoptic_seg"}
    assert results["panoptic_seg"]["PQ_th"] == results["panoptic_seg"]["PQ_st"] == 100
    assert results["sem_seg"]["mIoU"] == results["sem_seg"]["pACC"] == 100
