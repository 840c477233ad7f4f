import json
import math

import pytest
import torch

from detlib.evaluation import LVISEvaluator
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError, DatasetError

CATEGORIES = [
    {"id": 1, "name": "car", "frequency": "f"},
    {"id": 2, "name": "cat", "frequency": "c"},
    {"id": 3, "name": "quokka", "frequency": "r"},
]


@pytest.fixture
def lvis_dataset(tmp_path, dataset):
    """Registers an LVIS file: ``lvis_dataset(images, annotations)`` returns its name."""

    def make(images, annotations, **metadata):
        content = {
            "images": [{"height": 200, "width": 200, "not_exhaustive_category_ids": [], **image} for image in images],
            "annotations": [{"id": n + 1, **annotation} for n, annotation in enumerate(annotations)],
            "categories": CATEGORIES,
        }
        path = tmp_path / "lvis.json"
        path.write_text(json.dumps(content))
        return dataset([], json_file=str(path), **metadata)

    return make


def image(image_id, negative=(), **more):
    return {"id": image_id, "neg_category_ids": list(negative), **more}


def thing(image_id, category_id, x, y, width, height):
    """A rectangle."""
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, width, height],
        "area": width * height,
        "segmentation": [corners],
    }


def detections(*rows, **fields):
    """From rows of (x0, y0, x1, y1, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Instances(
        (200, 200), pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long(), **fields
    )


def evaluate(name, instances_by_image, **kwargs):
    evaluator = LVISEvaluator(name, **kwargs)
    for image_id, instances in instances_by_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()


def test_average_precision_by_frequency_and_area(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 100, 100), thing(1, 2, 120, 120, 20, 20)])
    # The car overlaps by 0.72: right at 5 of 10 thresholds. The cat is missed.
    results = evaluate(name, {1: detections((0, 0, 100, 72, 0.9, 0))})["bbox"]
    assert list(results) == ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
    assert (results["AP"], results["AP50"], results["AP75"]) == pytest.approx((25, 50, 0))
    assert (results["APs"], results["APl"], results["APc"], results["APf"]) == pytest.approx((0, 50, 0, 50))
    assert math.isnan(results["APm"])
    assert math.isnan(results["APr"])


BOTH_CARS = {1: detections((0, 0, 50, 50, 0.8, 0)), 2: detections((0, 0, 50, 50, 0.9, 0))}


@pytest.mark.parametrize(("negative", "expected"), [((1,), 50), ((), 100)])
def test_image_counts_for_classes_that_were_checked_in_it(lvis_dataset, negative, expected):
    name = lvis_dataset([image(1), image(2, negative)], [thing(1, 1, 0, 0, 50, 50)])
    assert evaluate(name, BOTH_CARS)["bbox"]["AP"] == pytest.approx(expected)


@pytest.mark.parametrize(("not_exhaustive", "expected"), [([], 50), ([1], 100)])
def test_extra_detections_are_no_errors_where_objects_are_unannotated(lvis_dataset, not_exhaustive, expected):
    name = lvis_dataset([image(1, not_exhaustive_category_ids=not_exhaustive)], [thing(1, 1, 0, 0, 50, 50)])
    found = {1: detections((100, 100, 150, 150, 0.9, 0), (0, 0, 50, 50, 0.8, 0))}
    assert evaluate(name, found)["bbox"]["AP"] == pytest.approx(expected)


def test_limit_is_over_all_classes_of_an_image(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50), thing(1, 2, 100, 100, 50, 50)])
    found = {1: detections((0, 0, 50, 50, 0.8, 0), (100, 100, 150, 150, 0.9, 1))}
    results = evaluate(name, found, max_dets_per_image=1)["bbox"]
    assert (results["APf"], results["APc"]) == pytest.approx((0, 100))
    assert evaluate(name, found)["bbox"]["AP"] == pytest.approx(100)


def test_second_detection_of_an_object_is_an_error(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50), thing(1, 1, 100, 100, 50, 50)])
    found = {1: detections((0, 0, 50, 50, 0.9, 0), (0, 0, 50, 49, 0.8, 0), (100, 100, 150, 150, 0.7, 0))}
    # Precision 1 at the recalls 0, 0.01, ..., 0.5, then 2/3.
    assert evaluate(name, found)["bbox"]["AP"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_object_is_given_to_the_detection_that_scores_best(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 100, 100)])
    found = {1: detections((0, 0, 100, 60, 0.9, 0), (0, 0, 100, 100, 0.8, 0))}
    # At 0.5, 0.55 and 0.6 the first is right; above, only the second is, with precision 1/2.
    assert evaluate(name, found)["bbox"]["AP"] == pytest.approx(30 + 70 / 2)


def test_masks_are_evaluated_when_predicted(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50)])
    masks = torch.zeros(1, 200, 200, dtype=torch.bool)
    masks[0, :50, :30] = True  # IoU 0.6: right at 3 of 10 thresholds.
    results = evaluate(name, {1: detections((0, 0, 50, 50, 0.9, 0), pred_masks=masks)})
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP"] == pytest.approx(30)
    assert math.isnan(results["segm"]["APs"])


def test_no_detection_gives_zero(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50)])
    assert evaluate(name, {1: detections()})["bbox"]["AP"] == 0


def test_category_ids_of_the_metadata_are_used(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 3, 0, 0, 50, 50)], thing_dataset_id_to_contiguous_id={3: 0, 2: 1, 1: 2})
    assert evaluate(name, {1: detections((0, 0, 50, 50, 0.9, 0))})["bbox"]["APr"] == pytest.approx(100)


def test_files_are_written_to_the_output_folder_only(lvis_dataset, tmp_path):
    name = lvis_dataset([image(1)], [thing(1, 2, 0, 0, 50, 50)])
    before = sorted(tmp_path.iterdir())
    found = {1: detections((0, 0, 50, 50, 0.5, 1))}
    evaluate(name, found)
    assert sorted(tmp_path.iterdir()) == before
    evaluate(name, found, output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 2, "bbox": [0, 0, 50, 50], "score": 0.5}]
    assert (tmp_path / "out" / "instances_predictions.pth").exists()


def test_test_set_without_annotations_has_no_results(lvis_dataset):
    assert evaluate(lvis_dataset([{"id": 1}], []), {1: detections((0, 0, 50, 50, 0.5, 1))}) == {}


def test_proposals_are_evaluated_by_recall(lvis_dataset):
    evaluator = LVISEvaluator(lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50)]))
    box = Boxes(torch.tensor([[0.0, 0.0, 50.0, 50.0]]))
    proposals = Instances((200, 200), proposal_boxes=box, objectness_logits=torch.zeros(1))
    evaluator.process([{"image_id": 1}], [{"proposals": proposals}])
    assert evaluator.evaluate()["box_proposals"]["ARm@100"] == 100


def test_coco_file_is_refused(lvis_dataset):
    with pytest.raises(DatasetError, match="neg_category_ids"):
        LVISEvaluator(lvis_dataset([{"id": 1}], [thing(1, 1, 0, 0, 50, 50)]))


def test_what_cannot_be_compared_is_named(lvis_dataset):
    name = lvis_dataset([image(1)], [thing(1, 1, 0, 0, 50, 50)])
    with pytest.raises(DatasetError, match="image_id 8"):
        evaluate(name, {8: detections((0, 0, 50, 50, 0.9, 0))})
    with pytest.raises(ConfigError, match="'segm'"):
        evaluate(name, {1: detections((0, 0, 50, 50, 0.9, 0))}, tasks=["segm"])
    with pytest.raises(ValueError, match="keypoints"):
        LVISEvaluator(name, tasks=["keypoints"])
    with pytest.raises(DatasetError, match="on no image"):
        LVISEvaluator(name).evaluate()
