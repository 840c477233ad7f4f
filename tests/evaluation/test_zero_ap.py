import logging

import pytest
import torch

from detlib.evaluation import COCOEvaluator
from detlib.structures import Boxes, BoxMode, Instances

CLASSES = ["circle", "square", "star"]
# Three objects on each of four images of 200 x 100 pixels.
BOXES = torch.tensor([[40.0, 30, 90, 50], [100, 55, 120, 95], [130, 5, 190, 25]])


@pytest.fixture
def explain(dataset, caplog):
    """What is logged for detections that are made from the objects: ``explain(change=..., classes=...)``."""

    def run(change=lambda boxes: boxes, classes=(0, 1, 2), images=range(4), objects=BOXES, use=None):
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i} for i, box in enumerate(objects.tolist())
        ]
        samples = [
            {"file_name": f"{i}.png", "image_id": i, "height": 100, "width": 200, "annotations": annotations}
            for i in images
        ]
        name = dataset(samples, thing_classes=CLASSES)
        evaluator = COCOEvaluator(name)
        boxes = change(BOXES)
        instances = Instances(
            (100, 200),
            pred_boxes=Boxes(boxes),
            scores=torch.linspace(0.9, 0.8, len(boxes)),
            pred_classes=torch.tensor(list(classes))[: len(boxes)],
        )
        for i in images:
            evaluator.process([{"image_id": i}], [{"instances": instances}])
        with caplog.at_level(logging.WARNING, "detlib"):
            result = evaluator.evaluate()["bbox"]["AP50"]
        # An earlier test may have let lesser messages through.
        warnings = "\n".join(r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING)
        assert (result >= 0.1) == (warnings == "")
        return warnings

    return run


def test_good_detections_are_not_explained(explain):
    assert explain() == ""


def test_classes_in_the_order_of_another_dataset(explain, dataset):
    dataset([], thing_classes=["square", "circle", "star"])
    other = dataset([], thing_classes=["square", "star", "circle"])
    text = explain(classes=(2, 0, 1))
    assert "Boxes of 12 of 12 objects are found, whatever their class, but only 0 with the right one" in text
    assert "circle is called star (4 of 4)" in text
    assert "classes are in another order than in training" in text
    assert f"With the classes of the dataset {other!r} (square, star, circle), 12 would be right" in text


def test_classes_that_are_category_ids(explain):
    text = explain(change=lambda boxes: boxes[:2], classes=(1, 2))
    assert "Each is 1 place later than it should be" in text


def test_no_detection(explain):
    assert "predicted nothing on any image: all scores are below the threshold" in explain(lambda boxes: boxes[:0])


def test_no_objects_make_the_metric_undefined(explain):
    assert "AP50 of bbox is nan. The ground truth has no objects" in explain(objects=BOXES[:0])


def test_detections_of_classes_without_objects(explain):
    text = explain(classes=(2, 2, 2), objects=BOXES[:2])
    assert "12 of 12 detections are of classes without objects, such as star (12); objects are circle, square" in text


def far_off(boxes):
    """Corners that were x, y, width, height."""
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def centered(boxes):
    return torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda boxes: boxes / torch.tensor([200, 100, 200, 100]), "multiplied by the image's size"),
        (lambda boxes: boxes[:, [1, 0, 3, 2]], "with x and y swapped"),
        (far_off, "read as x, y, width, height"),
        (centered, "read as center, width, height"),
        (lambda boxes: boxes * 3, "multiplied by 0.333"),
        (lambda boxes: boxes + 25, "shifted by -25, -25 pixels"),
    ],
    ids=["relative", "swapped", "xywh", "center", "scale", "shift"],
)
def test_boxes_of_another_kind(explain, change, what):
    text = explain(change)
    assert f"The boxes fit 0 of 12 objects, whatever their class, but 12 when {what}" in text


def test_boxes_without_any_order_are_a_matter_of_training(explain):
    text = explain(lambda boxes: torch.tensor([[0.0, 90, 3, 99], [195, 0, 200, 90], [60, 60, 62, 62]]))
    assert "Neither classes nor boxes look mistaken" in text


def test_one_class_for_all_is_a_matter_of_training(explain):
    text = explain(lambda boxes: boxes[1:], classes=(0, 0))
    assert "only 0 with the right one: most are called circle, so that the classes have not been learnt yet" in text


def test_boxes_of_low_scores_count_for_nothing_as_some_fit_by_chance(explain):
    wrong = torch.tensor([[0.0, 90, 3, 99]]).expand(9, 4)
    text = explain(lambda boxes: torch.cat([wrong, boxes]), classes=[*[0] * 9, 2, 0, 1])
    assert "Neither classes nor boxes look mistaken" in text
