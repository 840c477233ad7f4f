import math

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.evaluation import CityscapesInstanceEvaluator, CityscapesSemSegEvaluator
from detlib.evaluation.cityscapes_api import LABELS, MEAN_SIZES
from detlib.structures import Instances
from detlib.utils.errors import DatasetError, MissingFileError

THINGS = list(MEAN_SIZES)
STUFF = list(LABELS)
ROAD, SIDEWALK, PERSON, RIDER, CAR = 7, 8, 24, 25, 26
VOID, CARAVAN = 0, 29
SIZE = (40, 100)
FILE = "leftImg8bit/val/ulm/ulm_000000_000019_leftImg8bit.png"


def region(x0, x1, rows=SIZE[0]):
    """Mask of the columns x0 to x1 - 1 in the upper rows."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[:rows, x0:x1] = True
    return mask


@pytest.fixture
def cityscapes(tmp_path, dataset):
    """Registers one image: ``cityscapes((mask, instance id), ...)`` returns the dataset's name; the rest is road."""

    def make(*regions):
        ids = np.full(SIZE, ROAD, dtype=np.uint16)
        for mask, instance_id in regions:
            ids[mask] = instance_id
        (tmp_path / "ulm").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png")
        return dataset([], gt_dir=str(tmp_path), thing_classes=THINGS, stuff_classes=STUFF)

    return make


def instances(*rows):
    """From rows of (mask, score, class name)."""
    masks = np.stack([row[0] for row in rows]) if rows else np.zeros((0, *SIZE), dtype=bool)
    return Instances(
        SIZE,
        pred_masks=torch.from_numpy(masks),
        scores=torch.tensor([row[1] for row in rows], dtype=torch.float32),
        pred_classes=torch.tensor([THINGS.index(row[2]) for row in rows], dtype=torch.int64),
    )


def evaluate_instances(name, *rows):
    evaluator = CityscapesInstanceEvaluator(name)
    evaluator.process([{"file_name": FILE}], [{"instances": instances(*rows)}])
    return evaluator.evaluate()["segm"]


def test_average_precision_over_thresholds_and_classes(cityscapes):
    name = cityscapes((region(0, 50), CAR * 1000), (region(50, 60), PERSON * 1000))
    # The car overlaps by 36 / 50 = 0.72: right at 5 of 10 thresholds; below them it is an error. The person is missed.
    results = evaluate_instances(name, (region(0, 36), 0.9, "car"))
    assert list(results)[:2] == ["AP", "AP50"]
    assert (results["AP-car"], results["AP50-car"]) == pytest.approx((50, 100))
    assert results["AP-person"] == 0
    assert (results["AP"], results["AP50"]) == pytest.approx((25, 50))
    assert math.isnan(results["AP-train"])


def test_area_is_taken_by_the_trapezoidal_rule(cityscapes):
    name = cityscapes((region(0, 40), CAR * 1000), (region(40, 80), CAR * 1000 + 1))
    rows = [(region(0, 40), 0.9, "car"), (region(80, 100), 0.8, "car"), (region(40, 80), 0.7, "car")]
    # (recall, precision): (0, 1), (1/2, 1), (1/2, 1/2), (1, 2/3).
    assert evaluate_instances(name, *rows)["AP-car"] == pytest.approx(100 * (1 / 2 + 1 / 2 * (1 / 2 + 2 / 3) / 2))


def test_equal_scores_are_one_point_of_the_curve(cityscapes):
    name = cityscapes((region(0, 40), CAR * 1000))
    rows = [(region(80, 100), 0.5, "car"), (region(0, 40), 0.5, "car")]
    assert evaluate_instances(name, *rows)["AP-car"] == pytest.approx(100 * (1 + 1 / 2) / 2)


def test_of_two_on_one_instance_the_worse_score_is_an_error(cityscapes):
    name = cityscapes((region(0, 50), CAR * 1000))
    rows = [(region(0, 50), 0.5, "car"), (region(0, 40), 0.9, "car")]
    # At 0.5 the second is right and the first a duplicate: points (0, 1), (1, 1), (1, 1/2).
    assert evaluate_instances(name, *rows)["AP50-car"] == pytest.approx(100)


@pytest.mark.parametrize(
    ("instance_id", "expected"), [(ROAD, 75), (CAR, 100), (VOID, 100), (CARAVAN, 100), (CARAVAN * 1000, 75)]
)
def test_void_and_groups_excuse_what_is_found_there(cityscapes, instance_id, expected):
    name = cityscapes((region(0, 40), CAR * 1000), (region(40, 60), instance_id))
    rows = [(region(40, 60), 0.9, "car"), (region(0, 40), 0.8, "car")]
    # As an error, it makes the points (0, 1), (0, 0), (1, 1/2): the trapezoid is (0 + 1/2) / 2.
    expected = expected if expected == 100 else 25
    assert evaluate_instances(name, *rows)["AP-car"] == pytest.approx(expected)


def test_instances_below_100_pixels_need_not_be_found(cityscapes):
    name = cityscapes((region(0, 9, rows=11), CAR * 1000), (region(50, 60, rows=10), PERSON * 1000))
    results = evaluate_instances(name, (region(0, 9, rows=11), 0.9, "car"))
    assert math.isnan(results["AP-car"])
    assert results["AP-person"] == 0


def test_nothing_found_gives_zero_and_nothing_to_find_nan(cityscapes):
    assert evaluate_instances(cityscapes((region(0, 50), CAR * 1000)))["AP"] == 0
    assert math.isnan(evaluate_instances(cityscapes())["AP"])


def test_mask_without_a_pixel_does_not_count(cityscapes):
    name = cityscapes((region(0, 40), CAR * 1000))
    rows = [(region(0, 0), 0.9, "car"), (region(0, 40), 0.8, "car")]
    assert evaluate_instances(name, *rows)["AP-car"] == pytest.approx(100)


def evaluate_labels(name, *regions):
    """Predicted labels: road but for (mask, class name) in turn."""
    labels = np.full(SIZE, STUFF.index("road"))
    for mask, class_name in regions:
        labels[mask] = STUFF.index(class_name)
    scores = torch.nn.functional.one_hot(torch.from_numpy(labels), len(STUFF)).movedim(-1, 0)
    evaluator = CityscapesSemSegEvaluator(name)
    evaluator.process([{"file_name": FILE}], [{"sem_seg": scores}])
    return evaluator.evaluate()["sem_seg"]


def test_iou_of_classes_and_categories(cityscapes):
    # Truth: 20 columns of sidewalk, 20 of car, 40 of road, 20 void. Predicted: 10 and 10 of the first two are right.
    name = cityscapes((region(0, 20), SIDEWALK), (region(20, 40), CAR * 1000), (region(80, 100), VOID))
    results = evaluate_labels(name, (region(0, 10), "sidewalk"), (region(20, 30), "car"), (region(90, 100), "sky"))
    assert (results["IoU-sidewalk"], results["IoU-car"]) == pytest.approx((50, 50))
    assert results["IoU-road"] == pytest.approx(100 * 40 / 60)  # Two times 10 columns too much.
    assert results["IoU"] == pytest.approx(
        100 * (1 / 2 + 1 / 2 + 2 / 3) / 3
    )  # The sky is on void: no class of the image.
    # Road and sidewalk are one category: 60 of 70 columns. Of vehicles, 10 of 20 are found.
    assert results["IoU_sup"] == pytest.approx(100 * (60 / 70 + 1 / 2) / 2)


def test_instances_weigh_the_same_in_the_instance_iou(cityscapes):
    # A large person is found, a small one is not, and a rider is taken for a person.
    regions = [(region(0, 40), PERSON * 1000), (region(40, 50), PERSON * 1000 + 1), (region(50, 60), RIDER * 1000)]
    results = evaluate_labels(cityscapes(*regions), (region(0, 40), "person"), (region(50, 60), "person"))
    person, rider, errors = MEAN_SIZES["person"], MEAN_SIZES["rider"], 10 * SIZE[0]
    assert results["iIoU"] == pytest.approx(100 * (person / (2 * person + errors) + 0) / 2)
    assert results["iIoU_sup"] == pytest.approx(100 * (person + rider) / (2 * person + rider))
    assert results["IoU-person"] == pytest.approx(100 * 40 / 60)


def test_perfect_labels_are_perfect(cityscapes):
    name = cityscapes((region(0, 20), SIDEWALK), (region(20, 40), CAR * 1000), (region(40, 60), CAR))
    results = evaluate_labels(name, (region(0, 20), "sidewalk"), (region(20, 60), "car"))
    assert [results[key] for key in ("IoU", "iIoU", "IoU_sup", "iIoU_sup")] == pytest.approx([100] * 4)


def test_classes_may_be_in_another_order(cityscapes, dataset, tmp_path):
    cityscapes((region(0, 50), SIDEWALK))
    name = dataset([], gt_dir=str(tmp_path), stuff_classes=["sidewalk", "road"])
    evaluator = CityscapesSemSegEvaluator(name)
    scores = torch.from_numpy(np.stack([region(0, 50), region(50, 100)])).float()
    evaluator.process([{"file_name": FILE}], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"] == pytest.approx(
        {"IoU": 100, "iIoU": math.nan, "IoU_sup": 100, "iIoU_sup": math.nan, "IoU-sidewalk": 100, "IoU-road": 100},
        nan_ok=True,
    )


@pytest.mark.parametrize("kind", [CityscapesInstanceEvaluator, CityscapesSemSegEvaluator])
def test_outputs_and_images_that_are_missing(cityscapes, kind, caplog):
    evaluator = kind(cityscapes())
    with pytest.raises(DatasetError, match="on no image"):
        evaluator.evaluate()
    evaluator.process([{"file_name": FILE}], [{}])
    assert evaluator.evaluate() is None
    assert "returns no" in caplog.text


def test_wrong_files_sizes_and_classes_are_named(cityscapes, dataset, tmp_path):
    evaluator = CityscapesSemSegEvaluator(cityscapes())
    for file_name, error, message in (
        ("cat.jpg", DatasetError, "cat.jpg is no image of Cityscapes"),
        ("bonn_1_2_leftImg8bit.png", MissingFileError, "bonn_1_2_gtFine_instanceIds.png"),
        (FILE, DatasetError, r"is \(1, 1\) pixels large"),
    ):
        with pytest.raises(error, match=message):
            evaluator.process([{"file_name": file_name}], [{"sem_seg": torch.zeros(19, 1, 1)}])
    with pytest.raises(DatasetError, match="'sofa', which is no class of the benchmark"):
        CityscapesSemSegEvaluator(dataset([], gt_dir=str(tmp_path), stuff_classes=["sofa"]))
    with pytest.raises(DatasetError, match="lacks gt_dir, thing_classes"):
        CityscapesInstanceEvaluator(dataset([]))
