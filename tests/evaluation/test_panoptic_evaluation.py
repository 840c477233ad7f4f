import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import MetadataCatalog
from detlib.evaluation import COCOPanopticEvaluator
from detlib.evaluation.panoptic_evaluation import match_segments
from detlib.utils.errors import DatasetError, MissingFileError

CATEGORIES = [
    {"id": 3, "name": "car", "isthing": 1},
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 8, "name": "sky", "isthing": 0},
]
INDEX = {3: 0, 5: 1, 8: 2}
METADATA = {
    "thing_dataset_id_to_contiguous_id": {3: 0, 5: 1},
    "stuff_dataset_id_to_contiguous_id": {8: 2},
    "label_divisor": 1000,
}


def row(*runs):
    """A map of one row from (segment id, length) pairs."""
    return np.concatenate([np.full((1, length), segment_id) for segment_id, length in runs], axis=1)


def segments(**category_of):
    """``segments(s1=3, s2=5)``: segment 1 is of category 3, segment 2 of category 5."""
    return [{"id": int(name[1:]), "category_id": category} for name, category in category_of.items()]


def match(gt_ids, gt_segments, ids, predicted_segments):
    return match_segments(gt_ids, gt_segments, ids, predicted_segments, INDEX)


def counts(matches, category=0):
    return tuple(int(x[category]) for x in (matches.true_positives, matches.false_positives, matches.false_negatives))


def test_segments_match_above_half_of_the_union():
    gt = row((1, 10), (2, 10))
    found = match(gt, segments(s1=3, s2=3), row((7, 8), (9, 12)), segments(s7=3, s9=3))
    assert counts(found) == (2, 0, 0)
    assert found.iou[0] == pytest.approx(8 / 10 + 10 / 12)
    np.testing.assert_allclose(found.qualities()[:, 0], [(0.8 + 10 / 12) / 2, (0.8 + 10 / 12) / 2, 1])


def test_exactly_half_is_no_match():
    found = match(row((1, 4)), segments(s1=3), row((1, 2), (2, 2)), segments(s1=3, s2=8))
    assert counts(found) == (0, 1, 1)
    assert counts(found, 2) == (0, 1, 0)


def test_quality_of_hits_and_misses():
    # Car 1 is found with IoU 1, car 2 is missed, and a car is seen in the sky.
    gt = row((1, 10), (2, 10), (3, 20))
    found = match(gt, segments(s1=3, s2=3, s3=8), row((1, 10), (0, 10), (4, 5), (3, 15)), segments(s1=3, s4=3, s3=8))
    assert counts(found) == (1, 1, 1)
    np.testing.assert_allclose(found.qualities()[:, 0], [1 / 2, 1, 1 / 2])
    np.testing.assert_allclose(found.qualities()[:, 2], [0.75, 0.75, 1])


def test_categories_must_agree():
    found = match(row((1, 4)), segments(s1=3), row((1, 4)), segments(s1=5))
    assert counts(found, 0) == (0, 0, 1)
    assert counts(found, 1) == (0, 1, 0)


def test_void_pixels_do_not_count_in_the_union():
    found = match(row((1, 4), (0, 6)), segments(s1=3), row((1, 10)), segments(s1=3))
    assert counts(found) == (1, 0, 0)
    assert found.iou[0] == 1


@pytest.mark.parametrize(("on_void", "false_positives"), [(5, 1), (6, 0)])
def test_segment_mostly_on_void_is_no_false_positive(on_void, false_positives):
    gt = row((0, on_void), (1, 10 - on_void), (1, 90))
    found = match(gt, segments(s1=8), row((2, 10), (1, 90)), segments(s1=8, s2=3))
    assert counts(found) == (0, false_positives, 0)


def test_crowd_is_neither_found_nor_missed_and_excuses_its_category():
    crowd = [{"id": 1, "category_id": 3, "iscrowd": 1}]
    assert counts(match(row((1, 10)), crowd, row((1, 10)), segments(s1=3))) == (0, 0, 0)
    assert counts(match(row((1, 10)), crowd, row((0, 10)), [])) == (0, 0, 0)
    assert counts(match(row((1, 10)), crowd, row((1, 10)), segments(s1=5)), 1) == (0, 1, 0)


def test_parts_on_void_and_on_a_crowd_add_up():
    crowd = [{"id": 1, "category_id": 3, "iscrowd": 1}, {"id": 2, "category_id": 8}]
    found = match(row((0, 3), (1, 3), (2, 4)), crowd, row((1, 10)), segments(s1=3))
    assert counts(found) == (0, 0, 0)


def test_no_predicted_segment_misses_all():
    found = match(row((1, 10)), segments(s1=3), row((0, 10)), [])
    assert counts(found) == (0, 0, 1)
    np.testing.assert_array_equal(found.qualities()[:, 0], [0, 0, 0])
    assert np.isnan(found.qualities()[:, 1]).all()


def test_ids_up_to_24_bits_are_told_apart():
    big = 256**3 - 1
    found = match(row((1, 4), (big, 4)), segments(**{"s1": 3, f"s{big}": 5}), row((2, 4), (big, 4)), segments(
        **{"s2": 3, f"s{big}": 5}
    ))  # fmt: skip
    assert counts(found, 0) == counts(found, 1) == (1, 0, 0)


def test_predicted_id_without_a_description_is_an_error():
    with pytest.raises(DatasetError, match="segment id 9"):
        match(row((1, 4)), segments(s1=3), row((9, 4)), segments(s1=3))


@pytest.fixture
def panoptic_dataset(tmp_path, dataset):
    """Registers one image, "a.jpg" with the id 17: ``panoptic_dataset(ids, segments)`` returns the dataset's name."""

    def make(ids, gt_segments):
        channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
        Image.fromarray(channels).save(tmp_path / "a.png")
        annotation = {"image_id": 17, "file_name": "a.png", "segments_info": gt_segments}
        content = {"annotations": [annotation], "categories": CATEGORIES}
        (tmp_path / "panoptic.json").write_text(json.dumps(content))
        paths = {"panoptic_json": str(tmp_path / "panoptic.json"), "panoptic_root": str(tmp_path)}
        return dataset([], **paths, **METADATA)

    return make


def evaluate(evaluator, ids, predicted_segments):
    evaluator.reset()
    output = {"panoptic_seg": (torch.from_numpy(ids), predicted_segments)}
    evaluator.process([{"image_id": 17, "file_name": "images/a.jpg"}], [output])
    return evaluator.evaluate()["panoptic_seg"]


CARS_AND_SKY = (row((1, 10), (300, 10), (70000, 20)), segments(s1=3, s300=3, s70000=8))


def test_ground_truth_as_prediction_is_perfect(panoptic_dataset):
    ids, gt_segments = CARS_AND_SKY
    results = evaluate(COCOPanopticEvaluator(panoptic_dataset(ids, gt_segments)), ids, gt_segments)
    overall = [f"{metric}{suffix}" for suffix in ("", "_th", "_st") for metric in ("PQ", "SQ", "RQ")]
    assert list(results)[:9] == overall
    assert all(results[name] == 100 for name in overall)
    assert math.isnan(results["PQ-cat"])


def test_classes_of_the_model_become_categories_of_the_dataset(panoptic_dataset):
    evaluator = COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY))
    predicted = [
        {"id": 1, "category_id": 0, "isthing": True, "score": 0.9, "instance_id": 0},
        {"id": 2, "category_id": 2, "isthing": False, "area": 20},
    ]
    results = evaluate(evaluator, row((1, 10), (0, 10), (2, 20)), predicted)
    assert results["PQ-sky"] == 100
    assert results["PQ-car"] == pytest.approx(100 / 1.5)  # One hit, one miss.
    assert results["PQ"] == results["PQ_th"] / 2 + 50


def test_classes_may_be_known_only_after_loading(panoptic_dataset):
    name = panoptic_dataset(*CARS_AND_SKY)
    metadata = MetadataCatalog.get(name)
    classes = metadata.thing_dataset_id_to_contiguous_id
    del metadata.thing_dataset_id_to_contiguous_id
    evaluator = COCOPanopticEvaluator(name)
    metadata.thing_dataset_id_to_contiguous_id = classes
    assert evaluate(evaluator, row((1, 10), (0, 30)), [{"id": 1, "category_id": 0, "isthing": True}])["PQ_th"] > 0


def test_ids_may_hold_category_and_number(panoptic_dataset):
    evaluator = COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY))
    assert evaluate(evaluator, row((0, 10), (1, 10), (2000, 20)), None)["PQ"] == 100
    assert evaluate(evaluator, row((0, 10), (-1, 10), (2000, 20)), None)["RQ_th"] == pytest.approx(100 / 1.5)


def test_nothing_predicted_gives_zero(panoptic_dataset):
    results = evaluate(COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY)), row((0, 40)), [])
    assert results["PQ"] == results["SQ_th"] == results["RQ_st"] == 0


def test_files_are_written_to_the_output_folder_only(panoptic_dataset, tmp_path):
    ids, gt_segments = CARS_AND_SKY
    name = panoptic_dataset(ids, gt_segments)
    before = sorted(tmp_path.rglob("*"))
    evaluate(COCOPanopticEvaluator(name), ids, gt_segments)
    assert sorted(tmp_path.rglob("*")) == before
    evaluate(COCOPanopticEvaluator(name, str(tmp_path / "out")), ids, gt_segments)
    content = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert content["annotations"] == [{"image_id": 17, "file_name": "a.png", "segments_info": gt_segments}]
    written = Image.open(tmp_path / "out" / "predictions" / "a.png")
    np.testing.assert_array_equal(np.array(written), np.array(Image.open(tmp_path / "a.png")))


@pytest.mark.parametrize(
    ("segment", "message"),
    [
        ({"id": 1, "category_id": 2, "isthing": True}, "thing category 2"),
        ({"id": 1, "category_id": 4}, "predicted category 4"),
    ],
)
def test_unknown_category_is_named(panoptic_dataset, segment, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY)), row((1, 40)), [segment])


def test_size_of_another_image_is_an_error(panoptic_dataset):
    with pytest.raises(DatasetError, match=r"\(1, 30\) pixels"):
        evaluate(COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY)), row((1, 30)), segments(s1=3))


def test_model_without_panoptic_output_has_no_results(panoptic_dataset, caplog):
    evaluator = COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY))
    evaluator.process([{"image_id": 17, "file_name": "a.jpg"}], [{"sem_seg": torch.zeros(1, 1, 1)}])
    assert evaluator.evaluate() is None
    assert "no 'panoptic_seg'" in caplog.text


def test_no_image_is_an_error(panoptic_dataset):
    with pytest.raises(DatasetError, match="on no image"):
        COCOPanopticEvaluator(panoptic_dataset(*CARS_AND_SKY)).evaluate()


def test_dataset_without_panoptic_file_is_refused(dataset):
    with pytest.raises(DatasetError, match="panoptic_json"):
        COCOPanopticEvaluator(dataset([]))
    with pytest.raises(MissingFileError, match=r"nowhere\.json"):
        COCOPanopticEvaluator(dataset([], panoptic_json="nowhere.json"))
