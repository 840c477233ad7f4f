import pytest
import torch

from detlib.data import Metadata
from detlib.evaluation.prediction_record import describe_record, to_record
from detlib.structures import Boxes, Instances

METADATA = Metadata(
    thing_classes=["person", "car"],
    thing_dataset_id_to_contiguous_id={1: 0, 3: 1},
    stuff_classes=["sky", "road"],
    classes=("cat", "dog", "owl"),
)
SCORES = torch.tensor([0.1, 0.7, 0.2])


def record_of(outputs, metadata=METADATA):
    return to_record(outputs, metadata, "a.jpg", 1, height=2, width=5)


def detections(classes):
    return Instances(
        (2, 5),
        pred_boxes=Boxes(torch.tensor([[0.0, 0.0, 4.0, 2.0]]).repeat(len(classes), 1)),
        scores=torch.full((len(classes),), 0.5),
        pred_classes=torch.tensor(classes, dtype=torch.long),
    )


def test_objects_have_names_and_ids_of_the_dataset():
    record = record_of({"instances": detections([1])})
    found = {"image_id": 1, "category_id": 3, "category_name": "car", "bbox": [0, 0, 4, 2], "score": 0.5}
    assert record == {"file_name": "a.jpg", "image_id": 1, "height": 2, "width": 5, "instances": [found]}


def test_objects_are_counted_by_class():
    assert describe_record(record_of({"instances": detections([1, 0, 1])})) == "3 objects (2 car, 1 person)"
    assert describe_record(record_of({"instances": detections([0])})) == "1 object (1 person)"
    assert describe_record(record_of({"instances": detections([])})) == "0 objects"
    assert describe_record(record_of({})) == "0 objects"


def test_classes_of_pixels_have_areas():
    labels = torch.tensor([[0, 1, 1, 1, 1], [0, 1, 1, 1, 1]])
    record = record_of({"sem_seg": torch.nn.functional.one_hot(labels, 2).movedim(-1, 0)})
    assert record["stuff"] == [
        {"category_id": 1, "category_name": "road", "area": 8},
        {"category_id": 0, "category_name": "sky", "area": 2},
    ]
    assert describe_record(record) == "80 % road, 20 % sky"


def test_best_classes_of_the_image_have_scores():
    record = record_of({"pred_score": SCORES, "pred_label": 1})
    assert record.keys() == {"file_name", "image_id", "height", "width", "pred_label", "classes"}
    assert record["pred_label"] == 1
    assert record["classes"][0] == {"category_id": 1, "category_name": "dog", "score": pytest.approx(0.7)}
    assert [entry["category_name"] for entry in record["classes"]] == ["dog", "owl", "cat"]
    assert describe_record(record) == "dog 70 % (owl 20 %, cat 10 %)"


def test_several_classes_may_be_predicted_or_none():
    assert describe_record(record_of({"pred_score": SCORES, "pred_label": [1, 2]})) == "dog 70 %, owl 20 % (cat 10 %)"
    none = describe_record(record_of({"pred_score": SCORES, "pred_label": []}))
    assert none == "no class (dog 70 %, owl 20 %, cat 10 %)"


def test_five_classes_are_recorded_or_as_many_as_are_predicted():
    scores = torch.linspace(1, 0, 8)
    assert len(record_of({"pred_score": scores, "pred_label": 0})["classes"]) == 5
    assert len(record_of({"pred_score": scores, "pred_label": list(range(7))})["classes"]) == 7


def test_scores_without_a_label_and_without_names_are_recorded():
    record = record_of({"pred_score": SCORES.bfloat16()}, Metadata())
    assert record["pred_label"] == 1
    assert record["classes"][0]["category_name"] == "1"
