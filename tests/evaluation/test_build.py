import json

import pytest

from detlib.config import get_cfg
from detlib.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluators,
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
