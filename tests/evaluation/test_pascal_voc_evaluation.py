import math

import numpy as np
import pytest
import torch

from detlib.evaluation import PascalVOCDetectionEvaluator
from detlib.evaluation.pascal_voc_evaluation import parse_rec, voc_ap, voc_eval
from detlib.structures import Boxes, Instances
from detlib.utils.errors import DatasetError, MissingFileError

NAMES = ("car", "cat")


def xml(*objects):
    """From rows of (name, difficult, (xmin, ymin, xmax, ymax))."""
    parts = [
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        "<bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>".format(*box)
        for name, difficult, box in objects
    ]
    return f"<annotation>{''.join(parts)}</annotation>"


@pytest.fixture
def voc_dataset(tmp_path, dataset):
    """Registers images: ``voc_dataset({image_id: objects}, year=2012)`` returns the name."""

    def make(objects_by_image, year=2012):
        for folder in ("Annotations", "ImageSets/Main"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        for image_id, objects in objects_by_image.items():
            (tmp_path / "Annotations" / f"{image_id}.xml").write_text(xml(*objects))
        (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("".join(f"{i}\n" for i in objects_by_image))
        return dataset([], dirname=str(tmp_path), split="val", year=year, thing_classes=NAMES)

    return make


def detections(*rows):
    """From rows of (x0, y0, x1, y1, score, class), which count from 0."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Instances((200, 200), pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long())


def evaluate(name, instances_by_image):
    evaluator = PascalVOCDetectionEvaluator(name)
    for image_id, instances in instances_by_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate()["bbox"]


def test_box_of_the_loader_is_exact(voc_dataset):
    # Pixels 1 to 100 of VOC are 0 to 100 in continuous coordinates.
    name = voc_dataset({"a": [("car", 0, (1, 1, 100, 100))]})
    results = evaluate(name, {"a": detections((0, 0, 100, 100, 0.9, 0))})
    assert results["AP"] == results["AP50"] == results["AP75"] == results["AP-car"] == pytest.approx(100)
    assert math.isnan(results["AP-cat"])


def test_average_precision_is_over_thresholds_and_classes(voc_dataset):
    name = voc_dataset({"a": [("car", 0, (1, 1, 100, 100)), ("cat", 0, (1, 1, 50, 50))]})
    results = evaluate(name, {"a": detections((0, 0, 100, 72, 0.9, 0))})  # IoU 0.72: right at 5 of 10 thresholds.
    assert results["AP-car"] == pytest.approx(50)
    assert results["AP-cat"] == 0
    assert (results["AP"], results["AP50"], results["AP75"]) == pytest.approx((25, 50, 0))


def test_iou_equal_to_the_threshold_is_not_enough(voc_dataset):
    name = voc_dataset({"a": [("car", 0, (1, 1, 100, 100))]})
    assert evaluate(name, {"a": detections((0, 0, 100, 50, 0.9, 0))})["AP50"] == 0


CAR_AND_TWO_ERRORS = {"a": detections((0, 0, 9, 9, 0.9, 0), (0, 0, 100, 100, 0.8, 0), (0, 0, 100, 99, 0.7, 0))}


@pytest.mark.parametrize(("year", "expected"), [(2007, 100 * 6 / 11 * 0.5), (2012, 25)])
def test_metrics_of_2007_and_2012(voc_dataset, year, expected):
    # Two cars; the second of three detections is right, the third a duplicate: recall 1/2, precision 1/2.
    name = voc_dataset({"a": [("car", 0, (1, 1, 100, 100))], "b": [("car", 0, (1, 1, 9, 9))]}, year)
    assert evaluate(name, CAR_AND_TWO_ERRORS)["AP50"] == pytest.approx(expected)


def test_difficult_objects_are_neither_needed_nor_wrong(voc_dataset):
    name = voc_dataset({"a": [("car", 1, (1, 1, 100, 100)), ("car", 0, (120, 120, 160, 160))]})
    found = {"a": detections((0, 0, 100, 100, 0.9, 0), (0, 0, 99, 99, 0.8, 0), (119, 119, 160, 160, 0.7, 0))}
    assert evaluate(name, found)["AP50"] == pytest.approx(100)


def test_only_difficult_objects_give_nan(voc_dataset):
    name = voc_dataset({"a": [("car", 1, (1, 1, 100, 100))]})
    assert math.isnan(evaluate(name, {"a": detections((0, 0, 100, 100, 0.9, 0))})["AP"])


def test_no_detection_gives_zero(voc_dataset):
    name = voc_dataset({"a": [("car", 0, (1, 1, 100, 100))]})
    assert evaluate(name, {"a": detections()})["AP"] == 0


def test_scores_are_ranked_over_all_images(voc_dataset):
    name = voc_dataset({i: [("car", 0, (1, 1, 100, 100))] for i in ("a", "b")})
    # Right, wrong, right: precision 1 up to recall 1/2, 2/3 up to 1. Less than 0.001 lies between the scores.
    found = {
        "a": detections((0, 0, 100, 100, 0.9002, 0), (150, 150, 160, 160, 0.9001, 0)),
        "b": detections((0, 0, 100, 100, 0.9, 0)),
    }
    assert evaluate(name, found)["AP50"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))


def test_files_in_voc_format_give_recall_precision_and_average(voc_dataset, tmp_path):
    voc_dataset({"a": [("car", 0, (1, 1, 100, 100))], "b": [("car", 0, (1, 1, 50, 50))]})
    (tmp_path / "det_car.txt").write_text("a 0.9 1 1 100 100\nb 0.8 90 90 99 99\n")
    paths = (
        str(tmp_path / "det_{}.txt"),
        str(tmp_path / "Annotations/{}.xml"),
        str(tmp_path / "ImageSets/Main/val.txt"),
    )
    recall, precision, average = voc_eval(*paths, "car")
    np.testing.assert_allclose(recall, [0.5, 0.5])
    np.testing.assert_allclose(precision, [1, 0.5])
    assert average == pytest.approx(0.5)
    assert voc_eval(*paths, "car", use_07_metric=True)[2] == pytest.approx(6 / 11)
    (tmp_path / "det_car.txt").write_text("")
    assert voc_eval(*paths, "car")[2] == 0


def test_area_and_eleven_points_of_a_curve():
    recall, precision = np.array([0.25, 0.45, 0.45, 0.65]), np.array([1, 1, 2 / 3, 0.75])
    assert voc_ap(recall, precision) == pytest.approx(0.45 + 0.2 * 0.75)
    # Precision 1 at recalls 0 to 0.4, 0.75 at 0.5 and 0.6.
    assert voc_ap(recall, precision, use_07_metric=True) == pytest.approx((5 + 2 * 0.75) / 11)
    assert voc_ap(np.zeros(0), np.zeros(0)) == 0


def test_annotation_becomes_a_list_of_objects(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text(xml(("car", 1, (1, 2.6, 3, 4))))
    assert parse_rec(str(path)) == [
        {"name": "car", "pose": "Left", "truncated": 1, "difficult": 1, "bbox": [1, 2, 3, 4]}
    ]


def test_entities_are_refused(tmp_path):
    path = tmp_path / "a.xml"
    path.write_text('<!DOCTYPE a [<!ENTITY x "car"><!ENTITY y "&x;&x;">]><annotation>&y;</annotation>')
    with pytest.raises(DatasetError, match="DOCTYPE"):
        parse_rec(str(path))


@pytest.mark.parametrize("content", ["<annotation>", "<annotation><object><name>a</name></object></annotation>"])
def test_damaged_annotation_is_named(tmp_path, content):
    path = tmp_path / "broken.xml"
    path.write_text(content)
    with pytest.raises(DatasetError, match=r"broken\.xml (is not an annotation|cannot be read)"):
        parse_rec(str(path))
    with pytest.raises(MissingFileError, match=r"none\.xml"):
        parse_rec(str(tmp_path / "none.xml"))


def test_unknown_images_classes_and_metadata_are_named(voc_dataset, dataset):
    name = voc_dataset({"a": []})
    with pytest.raises(DatasetError, match="1 images that are not in the image set, such as 'z'"):
        evaluate(name, {"z": detections((0, 0, 9, 9, 0.5, 0))})
    with pytest.raises(DatasetError, match="predicted class 2"):
        evaluate(name, {"a": detections((0, 0, 9, 9, 0.5, 2))})
    with pytest.raises(DatasetError, match="lacks dirname, split, year"):
        PascalVOCDetectionEvaluator(dataset([], thing_classes=["car"]))
