import json
import math

import numpy as np
import pytest
import torch

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_coco_instances
from detlib.evaluation import COCOEvaluator, RotatedCOCOEvaluator, build_evaluator
from detlib.evaluation.coco_api import load_ground_truth
from detlib.evaluation.proposal_recall import evaluate_box_proposals
from detlib.evaluation.rotated_coco_evaluation import RotatedCOCOeval
from detlib.structures import Boxes, BoxMode, Instances, RotatedBoxes
from detlib.utils.errors import ConfigError, DatasetError

TILTED = [50, 50, 40, 20, 30]


@pytest.fixture
def dataset(tmp_path, request):
    """Registers a COCO file of boxes: ``dataset({image_id: [box, ...]})`` returns its name."""
    name = request.node.name

    def make(boxes_by_image, **fields):
        annotations = [
            {"image_id": i, "category_id": 5, "bbox": box, **fields}
            for i, boxes in boxes_by_image.items()
            for box in boxes
        ]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in boxes_by_image],
            "categories": [{"id": 5, "name": "ship"}],
            "annotations": [{"id": number + 1, **a} for number, a in enumerate(annotations)],
        }
        (tmp_path / "ships.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / "ships.json"), str(tmp_path))
        return name

    yield make
    DatasetCatalog.data.pop(name, None)
    MetadataCatalog.data.pop(name, None)


def detections(*boxes, scores=None):
    scores = torch.linspace(0.9, 0.5, len(boxes)) if scores is None else torch.tensor(scores)
    classes = torch.zeros(len(boxes), dtype=torch.int64)
    return Instances(
        (100, 100), pred_boxes=RotatedBoxes(torch.tensor(boxes).float()), scores=scores, pred_classes=classes
    )


def evaluate(evaluator, instances_by_image):
    for image_id, instances in instances_by_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_box_at_the_true_angle_is_found_and_another_is_not(dataset):
    evaluator = RotatedCOCOEvaluator(dataset({1: [TILTED]}))
    assert evaluate(evaluator, {1: detections([50, 50, 40, 20, 210])})["AP"] == pytest.approx(100)
    evaluator.reset()
    # Crossed: 20 * 20 of 800 + 800 - 400.
    assert evaluate(evaluator, {1: detections([50, 50, 40, 20, 120])})["AP"] == 0


def test_average_precision_counts_thresholds_of_the_rotated_overlap(dataset):
    # 16 of the 20 pixels of height: an overlap of 0.8, right for 7 of the 10 thresholds 0.5, 0.55, ..., 0.95.
    results = evaluate(RotatedCOCOEvaluator(dataset({1: [TILTED]})), {1: detections([50, 50, 40, 16.001, 30])})
    assert results["AP"] == results["APs"] == pytest.approx(70)  # 800 pixels are small.
    assert results["AP50"] == pytest.approx(100)
    assert math.isnan(results["APl"])


def test_upright_boxes_give_the_numbers_of_the_coco_evaluator(dataset):
    rng = np.random.default_rng(0)
    corners, sizes = rng.uniform(0, 60, (30, 2)), rng.uniform(5, 40, (30, 2))
    xywh = np.concatenate([corners, sizes], axis=1)
    name = dataset({i: xywh[i::3].tolist() for i in range(3)})
    xyxy = torch.from_numpy(np.concatenate([corners, corners + sizes], axis=1) + rng.normal(0, 3, (30, 4))).float()
    scores = rng.uniform(0, 1, 30).astype(np.float32)
    xywha = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / 2, xyxy[:, 2:] - xyxy[:, :2], torch.zeros(30, 1)], dim=1)

    def predicted(boxes):
        classes = torch.zeros(10, dtype=torch.int64)
        return {
            i: Instances(
                (100, 100), pred_boxes=boxes[i::3], scores=torch.from_numpy(scores[i::3]), pred_classes=classes
            )
            for i in range(3)
        }

    expected = evaluate(COCOEvaluator(name), predicted(Boxes(xyxy)))
    assert 5 < expected["AP"] < 95
    for boxes in (RotatedBoxes(xywha), Boxes(xyxy)):
        assert evaluate(RotatedCOCOEvaluator(name), predicted(boxes)) == pytest.approx(expected, nan_ok=True)


def test_overlap_with_a_crowd_is_the_share_within_it(dataset):
    coco = load_ground_truth(MetadataCatalog.get(dataset({1: [TILTED]})).json_file, rotated=True)
    evaluation = RotatedCOCOeval(coco, coco, "bbox")
    # Across the middle of the right side, which is 20 pixels from the center: half of 20 x 10 pixels is within.
    x, y = 50 + 20 * math.cos(math.radians(30)), 50 - 20 * math.sin(math.radians(30))
    detection, square = [[x, y, 20, 10, 30]], [50, 50, 40, 40, 30]
    overlaps = evaluation.compute_iou_dt_gt(detection, [square, square], [1, 0])
    np.testing.assert_allclose(overlaps, [[0.5, 100 / (1600 + 200 - 100)]])


def test_crowd_is_no_object_to_find(dataset):
    evaluator = RotatedCOCOEvaluator(dataset({1: [[50, 50, 40, 40, 30]]}, iscrowd=1))
    assert math.isnan(evaluate(evaluator, {1: detections([50, 50, 10, 10, 0])})["AP"])


def test_only_the_best_detections_up_to_the_limit_count(dataset):
    name = dataset({1: [TILTED, [20, 80, 10, 10, 45]]})
    predicted = {1: detections(TILTED, [20, 80, 10, 10, 45], scores=[0.1, 0.9])}
    limited = evaluate(RotatedCOCOEvaluator(name, max_dets_per_image=1), predicted)
    assert evaluate(RotatedCOCOEvaluator(name), predicted)["AP"] == pytest.approx(100)
    assert limited["AP"] == pytest.approx(100 * 51 / 101)  # of the 101 recalls 0, 0.01, ..., 1


@pytest.mark.parametrize("predicted", [{}, {2: [[1, 1, 2, 2, 0]]}], ids=["nothing at all", "on another image"])
def test_image_without_predictions_misses_its_objects(dataset, predicted):
    evaluator = RotatedCOCOEvaluator(dataset({1: [TILTED], 2: []}))
    ap = evaluate(evaluator, {i: detections(*predicted.get(i, [])) for i in (1, 2)})["AP"]
    assert ap == 0


def test_results_are_written_with_five_numbers(dataset, tmp_path):
    evaluator = RotatedCOCOEvaluator(dataset({1: [TILTED]}), output_dir=str(tmp_path / "out"))
    evaluate(evaluator, {1: detections(TILTED, scores=[0.5])})
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 5, "bbox": TILTED, "score": 0.5}]


def test_dataset_without_a_file_is_converted():
    annotation = {"bbox": TILTED, "bbox_mode": BoxMode.XYWHA_ABS, "category_id": 0}
    sample = {"file_name": "1.jpg", "image_id": 1, "height": 100, "width": 100, "annotations": [annotation]}
    DatasetCatalog.register("ships_in_memory", lambda: [sample])
    try:
        MetadataCatalog.get("ships_in_memory").thing_classes = ["ship"]
        results = evaluate(RotatedCOCOEvaluator("ships_in_memory"), {1: detections(TILTED)})
        assert results["AP"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove("ships_in_memory")
        MetadataCatalog.remove("ships_in_memory")


def test_evaluator_of_upright_boxes_takes_the_box_around_a_rotated_object(dataset):
    name = dataset({1: [[50, 50, 40, 20, 90]]})
    upright = Instances((100, 100), pred_boxes=Boxes([[40.0, 30.0, 60.0, 70.0]]), scores=torch.ones(1))
    upright.pred_classes = torch.zeros(1, dtype=torch.int64)
    assert evaluate(COCOEvaluator(name), {1: upright})["AP"] == pytest.approx(100)


def test_evaluator_of_upright_boxes_refuses_rotated_predictions(dataset):
    with pytest.raises(ConfigError, match="use RotatedCOCOEvaluator"):
        evaluate(COCOEvaluator(dataset({1: [TILTED]})), {1: detections(TILTED)})


def test_masks_are_no_task_of_rotated_boxes(dataset):
    with pytest.raises(ValueError, match="'segm'"):
        RotatedCOCOEvaluator(dataset({1: [TILTED]}), tasks=["segm"])


def test_boxes_of_four_and_five_numbers_are_told_apart():
    assert RotatedCOCOeval.is_rotated([TILTED, TILTED])
    assert not RotatedCOCOeval.is_rotated([TILTED, TILTED[:4]])
    assert not RotatedCOCOeval.is_rotated([])
    assert RotatedCOCOeval.boxlist_to_tensor([[0, 0, 4, 2]], 5).tolist() == [[2, 1, 4, 2, 0]]
    assert RotatedCOCOeval.boxlist_to_tensor([], 5).shape == (0, 5)
    with pytest.raises(DatasetError, match=r"4 numbers each, got \[5\]"):
        RotatedCOCOeval.boxlist_to_tensor([TILTED], 4)


def test_config_with_rotated_anchors_gets_the_evaluator_of_rotated_boxes(dataset):
    cfg, name = get_cfg(), dataset({1: [TILTED]})
    assert not isinstance(build_evaluator(cfg, name), RotatedCOCOEvaluator)
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    assert isinstance(build_evaluator(cfg, name), RotatedCOCOEvaluator)


def test_recall_of_rotated_proposals(dataset):
    name = dataset({1: [TILTED, [80, 20, 10, 10, 0]], 2: []})
    coco = load_ground_truth(MetadataCatalog.get(name).json_file, rotated=True)
    proposals = Instances(
        (100, 100), proposal_boxes=RotatedBoxes([[50, 50, 40, 20, 210.0]]), objectness_logits=torch.zeros(1)
    )
    nothing = Instances((100, 100), proposal_boxes=RotatedBoxes(torch.zeros(0, 5)), objectness_logits=torch.zeros(0))
    predictions = [{"image_id": 1, "proposals": proposals}, {"image_id": 2, "proposals": nothing}]
    assert evaluate_box_proposals(predictions, coco)["ar"] == pytest.approx(0.5)
