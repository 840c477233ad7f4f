import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import register_coco_instances
from detlib.evaluation import COCOEvaluator
from detlib.evaluation.coco_evaluation import COCOevalMaxDets, instances_to_coco_json
from detlib.structures import Boxes, BoxMode, Instances
from detlib.utils.errors import ConfigError, DatasetError

SIZE = (100, 100)
NAMES = {3: "car", 7: "cat"}  # Category ids with gaps: the model's classes are 0 and 1.


@pytest.fixture
def coco_dataset(tmp_path, request):
    """Writes and registers a COCO file: ``coco_dataset(images, annotations)`` returns its name."""
    names = []

    def make(image_ids, annotations, categories=NAMES):
        name = f"{request.node.name}_{len(names)}"
        content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 100, "width": 100} for i in image_ids],
            "categories": [{"id": i, "name": category} for i, category in categories.items()],
            "annotations": [{"id": number + 1, **a} for number, a in enumerate(annotations)],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
        register_coco_instances(name, {}, str(tmp_path / f"{name}.json"), str(tmp_path))
        DatasetCatalog.get(name)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def annotation(image_id, category_id, box_xywh, **more):
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box_xywh,
        "area": box_xywh[2] * box_xywh[3],
        "iscrowd": 0,
        **more,
    }


def detections(*rows, **fields):
    """Instances from rows of (x0, y0, x1, y1, score, class)."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Instances(
        SIZE, pred_boxes=Boxes(table[:, :4]), scores=table[:, 4], pred_classes=table[:, 5].long(), **fields
    )


def evaluate(evaluator, instances_by_image, **kwargs):
    evaluator.reset()
    for image_id, instances in instances_by_image.items():
        evaluator.process([{"image_id": image_id}], [{"instances": instances}])
    return evaluator.evaluate(**kwargs)


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_average_precision_of_one_hit_and_one_miss(coco_dataset, use_fast_impl):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50]), annotation(1, 7, [50, 50, 50, 50])])
    evaluator = COCOEvaluator(name, use_fast_impl=use_fast_impl)
    # The car overlaps by 40 * 50 / (50 * 50) = 0.8: right for 7 of the 10 thresholds 0.5, 0.55, ..., 0.95.
    results = evaluate(evaluator, {1: detections((0, 0, 40, 50, 0.9, 0))})["bbox"]
    assert results["AP-car"] == pytest.approx(70)
    assert results["AP-cat"] == 0
    assert results["AP"] == pytest.approx(35)
    assert results["AP50"] == pytest.approx(50)
    assert results["APm"] == pytest.approx(35)
    assert math.isnan(results["APs"])
    assert list(results)[:6] == ["AP", "AP50", "AP75", "APs", "APm", "APl"]


def test_fast_and_slow_evaluation_agree(coco_dataset):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (40, 2))
    sizes = rng.uniform(5, 40, (40, 2))
    objects = [
        annotation(i % 5, (3, 7)[i % 2], [*corner, *size], iscrowd=int(i % 9 == 0))
        for i, (corner, size) in enumerate(np.concatenate([corners, sizes], 1).reshape(40, 2, 2).tolist())
    ]
    name = coco_dataset(range(5), objects)
    moved = np.concatenate([corners, corners + sizes], 1) + rng.normal(0, 3, (40, 4))
    rows = np.concatenate([moved, rng.uniform(0, 1, (40, 1)), (np.arange(40) % 2)[:, None]], 1)
    predicted = {i: detections(*rows[np.arange(40) % 5 == i].tolist()) for i in range(5)}
    fast, slow = (evaluate(COCOEvaluator(name, use_fast_impl=fast), predicted)["bbox"] for fast in (True, False))
    assert fast == pytest.approx(slow, abs=1e-9, nan_ok=True)
    assert 0 < fast["AP"] < 100


def test_dataset_of_one_class_has_no_metrics_per_class(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])], categories={3: "car"})
    results = evaluate(COCOEvaluator(name), {1: detections((0, 0, 50, 50, 0.9, 0))})
    assert list(results["bbox"]) == ["AP", "AP50", "AP75", "APs", "APm", "APl"]


@pytest.mark.parametrize("fast", [True, False])
def test_no_prediction_gives_zero_where_there_are_objects_and_a_warning(coco_dataset, caplog, fast):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    results = evaluate(COCOEvaluator(name, use_fast_impl=fast), {1: detections()})
    assert results["bbox"]["AP"] == results["bbox"]["APm"] == 0
    assert math.isnan(results["bbox"]["APl"])  # There is no large object.
    assert "predicted nothing" in caplog.text


def test_no_image_is_an_error(coco_dataset):
    with pytest.raises(DatasetError, match="no image"):
        evaluate(COCOEvaluator(coco_dataset([1], [])), {})


def test_class_outside_the_dataset_is_named(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    with pytest.raises(DatasetError, match=r"predicted class 5, but dataset .* has 2 classes, numbered 0 to 1"):
        evaluate(COCOEvaluator(name), {1: detections((0, 0, 50, 50, 0.9, 5))})


def test_image_outside_the_dataset_is_named(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    with pytest.raises(DatasetError, match="image_id 8"):
        evaluate(COCOEvaluator(name), {8: detections((0, 0, 50, 50, 0.9, 0))})


def test_zero_average_precision_of_many_detections_gets_a_hint(coco_dataset, caplog):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    results = evaluate(COCOEvaluator(name), {1: detections((0, 0, 50, 50, 0.9, 1))})
    assert results["bbox"]["AP"] == 0
    assert "car is called cat (1 of 1). So the classes are in another order" in caplog.text


def test_evaluation_may_be_restricted_to_some_images(coco_dataset):
    name = coco_dataset([1, 2], [annotation(i, 3, [0, 0, 50, 50]) for i in (1, 2)])
    predicted = {1: detections((0, 0, 50, 50, 0.9, 0)), 2: detections()}
    assert evaluate(COCOEvaluator(name), predicted, img_ids=[1])["bbox"]["AP-car"] == pytest.approx(100)


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_detections_over_the_limit_do_not_count(coco_dataset, use_fast_impl):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 20, 50]), annotation(1, 3, [50, 0, 20, 50])])
    predicted = {1: detections((0, 0, 20, 50, 0.9, 0), (50, 0, 70, 50, 0.8, 0))}
    results = evaluate(COCOEvaluator(name, max_dets_per_image=1, use_fast_impl=use_fast_impl), predicted)
    # Recall ends at 1/2: precision is 1 at 51 of the 101 recalls 0, 0.01, ..., 1.
    assert results["bbox"]["AP-car"] == pytest.approx(100 * 51 / 101)


def test_summary_for_a_larger_limit_equals_that_of_pycocotools_at_100(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 20, 50]), annotation(1, 7, [50, 0, 20, 50])])
    predicted = {1: detections((0, 0, 18, 50, 0.9, 0), (50, 0, 65, 50, 0.8, 1))}
    usual, larger = (
        evaluate(COCOEvaluator(name, max_dets_per_image=limit), predicted)["bbox"] for limit in (None, 300)
    )
    assert larger == pytest.approx(usual, nan_ok=True)
    assert COCOevalMaxDets.__name__ == "COCOevalMaxDets"


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_masks_are_evaluated_when_predicted(coco_dataset, use_fast_impl):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50], segmentation=[[0, 0, 50, 0, 50, 50, 0, 50]])])
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, :50, :30] = True  # IoU 0.6 with the object: right at 3 of 10 thresholds.
    predicted = {1: detections((0, 0, 50, 50, 0.9, 0), pred_masks=mask)}
    results = evaluate(COCOEvaluator(name, use_fast_impl=use_fast_impl), predicted)
    assert results["bbox"]["AP-car"] == pytest.approx(100)
    assert results["segm"]["AP-car"] == pytest.approx(30)


def keypoint_dataset(coco_dataset):
    points = [10, 10, 2, 40, 10, 2, 25, 40, 2]
    return coco_dataset(
        [1], [annotation(1, 1, [0, 0, 50, 50], keypoints=points, num_keypoints=3)], categories={1: "person"}
    )


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_keypoints_half_a_pixel_off_their_indices_are_exact(coco_dataset, use_fast_impl):
    name = keypoint_dataset(coco_dataset)
    points = torch.tensor([[[10.5, 10.5, 1], [40.5, 10.5, 1], [25.5, 40.5, 1]]])
    predicted = {1: detections((0, 0, 50, 50, 0.9, 0), pred_keypoints=points)}
    evaluator = COCOEvaluator(name, kpt_oks_sigmas=[0.001] * 3, use_fast_impl=use_fast_impl)
    results = evaluate(evaluator, predicted)
    assert results["keypoints"]["AP"] == pytest.approx(100)
    assert list(results["keypoints"]) == ["AP", "AP50", "AP75", "APm", "APl"]


def test_wrong_number_of_sigmas_names_the_config_key(coco_dataset):
    name = keypoint_dataset(coco_dataset)
    predicted = {1: detections((0, 0, 50, 50, 0.9, 0), pred_keypoints=torch.ones(1, 3, 3))}
    with pytest.raises(ConfigError, match=r"3 keypoints each, but there are 17 sigmas.*TEST\.KEYPOINT"):
        evaluate(COCOEvaluator(name), predicted)


def test_task_that_the_model_does_not_predict_is_an_error(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    with pytest.raises(ConfigError, match="'segm' was asked for, but the model predicts no segmentation"):
        evaluate(COCOEvaluator(name, tasks=["segm"]), {1: detections((0, 0, 50, 50, 0.9, 0))})


def test_masks_without_masks_in_the_dataset_are_an_error(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    masks = torch.ones(1, *SIZE, dtype=torch.bool)
    with pytest.raises(DatasetError, match="1 of 1 annotations have no 'segmentation'"):
        evaluate(COCOEvaluator(name), {1: detections((0, 0, 50, 50, 0.9, 0), pred_masks=masks)})


def test_files_are_written_to_the_output_folder_only(coco_dataset, tmp_path):
    name = coco_dataset([1], [annotation(1, 7, [0, 0, 50, 50])])
    folder = tmp_path / "inference"
    evaluate(COCOEvaluator(name, output_dir=str(folder)), {1: detections((0, 0, 50, 50, 0.5, 1))})
    written = json.loads((folder / "coco_instances_results.json").read_text())
    assert written == [{"image_id": 1, "category_id": 7, "bbox": [0, 0, 50, 50], "score": 0.5}]
    saved = torch.load(folder / "instances_predictions.pth", weights_only=True)
    assert saved[0]["instances"][0]["category_id"] == 1  # As the model counts.


def test_test_set_without_annotations_gives_files_and_no_metrics(tmp_path, coco_dataset):
    name = coco_dataset([1], [])
    path = Path(MetadataCatalog.get(name).json_file)
    content = json.loads(path.read_text())
    del content["annotations"]
    path.write_text(json.dumps(content))
    evaluator = COCOEvaluator(name, output_dir=str(tmp_path / "out"))
    assert evaluate(evaluator, {1: detections((0, 0, 50, 50, 0.5, 1))}) == {}
    assert len(json.loads((tmp_path / "out" / "coco_instances_results.json").read_text())) == 1


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_dataset_registered_without_json_and_with_names_as_ids(use_fast_impl):
    name = f"no_json_{use_fast_impl}"
    instance = {"bbox": [0, 0, 50, 50], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 1}
    sample = {"file_name": "a.jpg", "image_id": "a.jpg", "height": 100, "width": 100, "annotations": [instance]}
    DatasetCatalog.register(name, lambda: [sample])
    MetadataCatalog.get(name).thing_classes = ["car", "cat"]
    try:
        evaluator = COCOEvaluator(name, use_fast_impl=use_fast_impl)
        results = evaluate(evaluator, {"a.jpg": detections((0, 0, 50, 50, 0.5, 1))})
        assert results["bbox"]["AP-cat"] == pytest.approx(100)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("use_fast_impl", [True, False])
def test_annotation_with_id_zero_can_be_found(coco_dataset, use_fast_impl):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50], id=0)])
    results = evaluate(COCOEvaluator(name, use_fast_impl=use_fast_impl), {1: detections((0, 0, 50, 50, 0.9, 0))})
    assert results["bbox"]["AP-car"] == pytest.approx(100)


def test_missing_area_and_crowd_flag_are_filled_in(coco_dataset):
    incomplete = {"image_id": 1, "category_id": 3, "bbox": [0, 0, 50, 50]}
    results = evaluate(COCOEvaluator(coco_dataset([1], [incomplete])), {1: detections((0, 0, 50, 50, 0.9, 0))})
    assert results["bbox"]["APm"] == pytest.approx(100)


def test_evaluating_twice_gives_the_same(coco_dataset):
    name = coco_dataset([1], [annotation(1, 3, [0, 0, 50, 50])])
    evaluator = COCOEvaluator(name)
    predicted = {1: detections((0, 0, 40, 50, 0.9, 0))}
    assert evaluate(evaluator, predicted)["bbox"]["AP-car"] == evaluate(evaluator, predicted)["bbox"]["AP-car"]


def test_config_in_place_of_tasks_is_understood(coco_dataset):
    cfg = get_cfg()
    cfg.TEST.KEYPOINT_OKS_SIGMAS = [0.1, 0.2]
    evaluator = COCOEvaluator(coco_dataset([1], []), cfg, False, None)
    assert evaluator._tasks is None
    assert evaluator._kpt_oks_sigmas == [0.1, 0.2]


def test_unknown_task_is_refused(coco_dataset):
    with pytest.raises(ValueError, match="'boxes'"):
        COCOEvaluator(coco_dataset([1], []), tasks=["boxes"])


def test_instances_become_rows_with_boxes_as_corner_and_size():
    rows = instances_to_coco_json(detections((10, 20, 40, 60, 0.5, 2)), "a.jpg")
    assert rows == [{"image_id": "a.jpg", "category_id": 2, "bbox": [10, 20, 30, 40], "score": 0.5}]
    assert instances_to_coco_json(detections(), 1) == []


def test_masks_become_run_lengths_that_json_can_hold():
    mask = torch.zeros(1, *SIZE, dtype=torch.bool)
    mask[0, 2:5, 3:7] = True
    row = instances_to_coco_json(detections((0, 0, 1, 1, 0.5, 0), pred_masks=mask), 1)[0]
    decoded = mask_api.decode(json.loads(json.dumps(row["segmentation"])))
    np.testing.assert_array_equal(decoded, mask[0].numpy())


def test_keypoints_of_the_caller_stay_as_they_are():
    points = torch.ones(1, 2, 3)
    row = instances_to_coco_json(detections((0, 0, 1, 1, 0.5, 0), pred_keypoints=points), 1)[0]
    assert row["keypoints"] == [0.5, 0.5, 1, 0.5, 0.5, 1]
    assert (points == 1).all()
