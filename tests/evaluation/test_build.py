import json

import pytest

from detlib.config import get_cfg
from detlib.evaluation import (
    CityscapesInstanceEvaluator,
    CityscapesSemSegEvaluator,
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
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


@pytest.mark.parametrize("evaluator_type", [None, "cocoo"])
def test_unknown_type_lists_the_known_ones(dataset, evaluator_type):
    metadata = {} if evaluator_type is None else {"evaluator_type": evaluator_type}
    with pytest.raises(DatasetError, match=rf"evaluator_type {evaluator_type!r}; known are .*coco, coco_panoptic_seg"):
        build_evaluator(get_cfg(), dataset([], **metadata))
