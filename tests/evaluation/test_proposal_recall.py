import json
import math

import numpy as np
import pytest
import torch

from detlib.data.preparation import load_proposals_into_dataset
from detlib.evaluation import COCOEvaluator
from detlib.evaluation.coco_api import load_ground_truth
from detlib.evaluation.proposal_recall import evaluate_box_proposals, save_box_proposals
from detlib.structures import Boxes, BoxMode, Instances


@pytest.fixture
def ground_truth(tmp_path):
    """Makes a COCO file: ``ground_truth({image_id: [(x, y, w, h), ...]})`` returns its path."""

    def make(boxes_by_image, iscrowd=0):
        boxes = [(image_id, box) for image_id, boxes in boxes_by_image.items() for box in boxes]
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 500, "width": 500} for i in boxes_by_image],
            "categories": [{"id": 1, "name": "car"}],
            "annotations": [
                {"id": n + 1, "image_id": i, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": iscrowd}
                for n, (i, box) in enumerate(boxes)
            ],
        }
        path = tmp_path / "coco.json"
        path.write_text(json.dumps(content))
        return str(path)

    return make


def proposals(*rows):
    """From rows of (x0, y0, x1, y1, logit)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Instances((500, 500), proposal_boxes=Boxes(table[:, :4]), objectness_logits=table[:, 4])


def recall(path, proposals_by_image, **kwargs):
    predictions = [{"image_id": i, "proposals": p} for i, p in proposals_by_image.items()]
    return evaluate_box_proposals(predictions, load_ground_truth(path), **kwargs)


def test_recall_counts_objects_that_overlap_enough(ground_truth):
    path = ground_truth({1: [[0, 0, 100, 100], [200, 200, 100, 100]]})
    # IoU 1 with the first, 70 * 100 / 10000 = 0.7 with the second: found up to the thresholds 0.95 and 0.7.
    result = recall(path, {1: proposals((0, 0, 100, 100, 1), (200, 200, 270, 300, 0))})
    np.testing.assert_allclose(result["recalls"], [1] * 5 + [0.5] * 5)
    assert result["ar"] == pytest.approx(0.75)
    assert result["num_pos"] == 2


def test_one_proposal_finds_one_object_only(ground_truth):
    path = ground_truth({1: [[0, 0, 100, 100], [0, 0, 100, 90]]})
    result = recall(path, {1: proposals((0, 0, 100, 100, 1))}, thresholds=[0.5])
    assert result["recalls"].tolist() == [0.5]
    np.testing.assert_allclose(result["gt_overlaps"], [0, 1])


def test_limit_takes_the_best_proposals(ground_truth):
    path = ground_truth({1: [[0, 0, 100, 100]]})
    both = {1: proposals((0, 0, 100, 100, -1), (300, 300, 400, 400, 2))}
    assert recall(path, both, limit=1)["ar"] == 0
    assert recall(path, both, limit=2)["ar"] == 1


def test_areas_select_objects(ground_truth):
    path = ground_truth({1: [[0, 0, 20, 20], [200, 200, 100, 100]]})
    found = {1: proposals((0, 0, 20, 20, 1))}
    assert recall(path, found, area="small")["ar"] == 1
    assert recall(path, found, area="large")["ar"] == 0
    assert math.isnan(recall(path, found, area="medium")["ar"])
    with pytest.raises(ValueError, match="'tiny'"):
        recall(path, found, area="tiny")


def test_objects_of_images_without_proposals_are_missed(ground_truth):
    path = ground_truth({1: [[0, 0, 100, 100]], 2: [[0, 0, 100, 100]]})
    assert recall(path, {1: proposals((0, 0, 100, 100, 1)), 2: proposals()})["ar"] == 0.5


def test_crowds_do_not_count(ground_truth):
    assert recall(ground_truth({1: [[0, 0, 100, 100]]}, iscrowd=1), {1: proposals()})["num_pos"] == 0


def test_evaluator_reports_recalls_and_writes_a_file_that_training_reads(ground_truth, dataset, tmp_path):
    name = dataset([], json_file=ground_truth({"a": [[0, 0, 100, 100]]}), thing_classes=["car"])
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    evaluator.process([{"image_id": "a"}], [{"proposals": proposals((1, 1, 9, 9, 0.5), (0, 0, 100, 100, 3))}])
    results = evaluator.evaluate()
    assert list(results) == ["box_proposals"]
    assert list(results["box_proposals"]) == [f"AR{s}@{n}" for n in (100, 1000) for s in ("", "s", "m", "l")]
    assert results["box_proposals"]["AR@100"] == results["box_proposals"]["ARl@1000"] == 100
    sample = {"image_id": "a"}
    load_proposals_into_dataset([sample], str(tmp_path / "out" / "box_proposals.pkl"))
    assert sample["proposal_boxes"].tolist() == [[0, 0, 100, 100], [1, 1, 9, 9]]
    assert sample["proposal_bbox_mode"] == BoxMode.XYXY_ABS


def test_evaluator_without_proposals_has_zero_recall(ground_truth, dataset):
    evaluator = COCOEvaluator(dataset([], json_file=ground_truth({1: [[0, 0, 100, 100]]})))
    evaluator.process([{"image_id": 1}], [{"proposals": proposals()}])
    assert evaluator.evaluate()["box_proposals"]["AR@1000"] == 0


def test_saved_file_has_a_list_entry_per_image(tmp_path):
    predictions = [{"image_id": i, "proposals": proposals()} for i in (1, 2)]
    save_box_proposals(predictions, str(tmp_path))
    samples = load_proposals_into_dataset([{"image_id": 2}], str(tmp_path / "box_proposals.pkl"))
    assert samples[0]["proposal_boxes"].shape == (0, 4)
