import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_api

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.datasets import load_sem_seg
from detlib.evaluation import SemSegEvaluator
from detlib.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detlib.utils.errors import ConfigError, DatasetError

NAMES = ["sky", "road", "tree"]


@pytest.fixture
def label_maps(tmp_path, dataset):
    """Registers label maps: ``label_maps(array, ...)`` returns the dataset's name; files are 0.jpg, 1.jpg, ..."""

    def make(*maps, **metadata):
        samples = []
        for i, labels in enumerate(maps):
            path = tmp_path / f"{i}.png"
            Image.fromarray(np.array(labels, dtype=np.uint8)).save(path)
            samples.append({"file_name": f"{i}.jpg", "sem_seg_file_name": str(path)})
        return dataset(samples, **{"stuff_classes": NAMES, "ignore_label": 255, **metadata})

    return make


def scores(labels, num_classes=3):
    """Scores (N, H, W) whose best class is the given one."""
    return torch.nn.functional.one_hot(torch.tensor(labels), num_classes).movedim(-1, 0).float()


def evaluate(name, *maps, **kwargs):
    evaluator = SemSegEvaluator(name, **kwargs)
    for i, labels in enumerate(maps):
        evaluator.process([{"file_name": f"{i}.jpg"}], [{"sem_seg": scores(labels)}])
    return evaluator.evaluate()["sem_seg"]


def test_iou_and_accuracy_of_a_small_map(label_maps):
    name = label_maps([[0, 0, 0, 1, 1, 2]])
    results = evaluate(name, [[0, 0, 1, 1, 1, 1]])
    # sky: 2 of 3 found, union 3; road: 2 of 2 found, union 4; tree: 0 of 1, union 1.
    assert results["IoU-sky"] == pytest.approx(100 * 2 / 3)
    assert results["IoU-road"] == pytest.approx(50)
    assert results["IoU-tree"] == 0
    assert results["mIoU"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)
    assert results["fwIoU"] == pytest.approx(100 * (3 * 2 / 3 + 2 * 1 / 2) / 6)
    assert (results["ACC-sky"], results["ACC-road"]) == (pytest.approx(200 / 3), 100)
    assert results["mACC"] == pytest.approx(100 * (2 / 3 + 1) / 3)
    assert results["pACC"] == pytest.approx(100 * 4 / 6)


def test_pixels_of_all_images_are_counted_together(label_maps):
    name = label_maps([[0, 0, 0]], [[0]])
    assert evaluate(name, [[0, 0, 0]], [[1]])["IoU-sky"] == 75


def test_ignored_pixels_do_not_count(label_maps):
    results = evaluate(label_maps([[0, 0, 255, 255]]), [[0, 0, 1, 0]])
    assert results["mIoU"] == results["pACC"] == results["IoU-sky"] == results["BoundaryIoU-sky"] == 100


def test_classes_absent_from_the_ground_truth_are_left_out(label_maps):
    results = evaluate(label_maps([[0, 0, 1, 1]]), [[0, 0, 1, 2]])
    assert all(math.isnan(results[f"{metric}-tree"]) for metric in ("IoU", "ACC", "BoundaryIoU", "min(IoU, B-Iou)"))
    assert results["mIoU"] == pytest.approx(75)
    assert results["mACC"] == pytest.approx(75)


def test_only_ignored_pixels_give_nan_and_no_error(label_maps):
    results = evaluate(label_maps([[255, 255]]), [[0, 1]])
    assert all(math.isnan(results[metric]) for metric in ("mIoU", "fwIoU", "mACC", "pACC"))


def half_sky(column, size=100):
    """Sky to the left of a column, road to its right."""
    labels = np.ones((size, size), dtype=np.int64)
    labels[:, :column] = 0
    return labels


def reference_boundary(mask, distance):
    """Pixels of a mask that are within the distance from a pixel outside of it or of the image."""
    padded = np.pad(mask, distance)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * distance + 1,) * 2)
    return mask & ~windows.all(axis=(2, 3))


def test_boundary_iou_agrees_with_that_of_binary_masks(label_maps):
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 3, (4, 5)), np.ones((12, 14), dtype=np.int64))
    predicted = np.roll(labels, (2, 3), axis=(0, 1))
    results = evaluate(label_maps(labels), predicted)
    distance = round(0.02 * math.hypot(*labels.shape))
    assert distance == 2
    for i, name in enumerate(NAMES):
        a, b = (reference_boundary(x == i, distance) for x in (labels, predicted))
        assert results[f"BoundaryIoU-{name}"] == pytest.approx(100 * (a & b).sum() / (a | b).sum())
        assert (
            0
            < results[f"BoundaryIoU-{name}"]
            < results[f"IoU-{name}"]
            == pytest.approx(100 * ((labels == i) & (predicted == i)).sum() / ((labels == i) | (predicted == i)).sum())
        )
        assert results[f"min(IoU, B-Iou)-{name}"] == results[f"BoundaryIoU-{name}"]


def test_shifted_boundary_costs_more_boundary_iou_than_iou(label_maps):
    results = evaluate(label_maps(half_sky(50)), half_sky(53))
    assert results["IoU-sky"] == pytest.approx(100 * 50 / 53)
    # Width 3: the frame of sky is the rows and columns at the border, and columns 47 to 49, or 50 to 52.
    frame, shared = 100 * 50 - 94 * 44, 100 * 50 - 94 * 47
    assert results["BoundaryIoU-sky"] == pytest.approx(100 * shared / (frame + (100 * 53 - 94 * 47) - shared))


def test_perfect_prediction_is_perfect_beside_ignored_pixels(label_maps):
    labels = half_sky(40)
    labels[:, 40:70] = 255
    results = evaluate(label_maps(labels), half_sky(40))
    assert results["BoundaryIoU-sky"] == results["BoundaryIoU-road"] == 100


def test_files_are_written_to_the_output_folder_only(label_maps, tmp_path):
    name = label_maps([[0, 0, 2]], stuff_dataset_id_to_contiguous_id={7: 0, 8: 1, 11: 2})
    results = evaluate(name, [[0, 0, 2]], output_dir=str(tmp_path / "out"))
    rows = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert [(row["file_name"], row["category_id"]) for row in rows] == [("0.jpg", 7), ("0.jpg", 11)]
    np.testing.assert_array_equal(mask_api.decode(rows[0]["segmentation"]), [[1, 1, 0]])
    saved = torch.load(tmp_path / "out" / "sem_seg_evaluation.pth", weights_only=True)
    assert saved["mIoU"] == results["mIoU"]
    before = sorted(tmp_path.iterdir())
    evaluate(name, [[0, 0, 2]])
    assert sorted(tmp_path.iterdir()) == before


def test_own_function_may_load_the_label_maps(label_maps):
    name = label_maps([[0, 0]])
    assert evaluate(name, [[1, 1]], sem_seg_loading_fn=lambda file, dtype: np.ones((1, 2), dtype))["IoU-road"] == 100


def test_label_map_is_read_in_the_given_type(tmp_path):
    Image.fromarray(np.array([[3, 4]], dtype=np.uint8)).save(tmp_path / "a.png")
    labels = load_image_into_numpy_array(str(tmp_path / "a.png"), dtype="int64")
    assert labels.dtype == np.int64
    assert labels.tolist() == [[3, 4]]


def test_folders_of_images_and_label_maps_work(tmp_path, dataset):
    for folder, extension in (("images", "jpg"), ("labels", "png")):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.ones((2, 2), dtype=np.uint8)).save(tmp_path / folder / f"a.{extension}")
    samples = load_sem_seg(str(tmp_path / "labels"), str(tmp_path / "images"))
    evaluator = SemSegEvaluator(dataset(samples, stuff_classes=NAMES))
    evaluator.process(samples, [{"sem_seg": scores([[1, 1], [1, 0]])}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 75


def test_labels_may_come_from_panoptic_segments(tmp_path, dataset):
    ids = np.array([[1, 1, 2, 0]], dtype=np.uint8)
    Image.fromarray(np.stack([ids, ids * 0, ids * 0], axis=2)).save(tmp_path / "a.png")
    segments = [{"id": 1, "sem_seg_label": 2}, {"id": 2, "sem_seg_label": 0}]
    sample = {"file_name": "a.jpg", "pan_seg_file_name": str(tmp_path / "a.png"), "segments_info": segments}
    evaluator = SemSegEvaluator(dataset([sample], stuff_classes=NAMES, ignore_label=255))
    evaluator.process([sample], [{"sem_seg": scores([[2, 2, 2, 2]])}])
    results = evaluator.evaluate()["sem_seg"]
    assert (results["IoU-tree"], results["IoU-sky"]) == pytest.approx((200 / 3, 0))


def test_classes_may_be_known_only_after_loading(label_maps):
    name = label_maps([[0, 1]])
    metadata = MetadataCatalog.get(name)
    load = DatasetCatalog.pop(name)
    del metadata.stuff_classes
    DatasetCatalog.register(name, lambda: metadata.set(stuff_classes=NAMES) and load())
    assert evaluate(name, [[0, 1]])["mIoU"] == 100


@pytest.mark.parametrize(
    ("labels", "predicted", "message"),
    [
        ([[0, 9]], [[0, 0]], r"has the label 9, but .* has 3 classes"),
        ([[0, 0]], [[0]], r"prediction for 0.jpg is \(1, 1\) pixels large and its label map \(1, 2\)"),
    ],
)
def test_wrong_labels_and_sizes_are_named(label_maps, labels, predicted, message):
    with pytest.raises(DatasetError, match=message):
        evaluate(label_maps(labels), predicted)


def test_class_that_the_dataset_lacks_is_named(label_maps):
    evaluator = SemSegEvaluator(label_maps([[0, 0]]))
    with pytest.raises(DatasetError, match=r"predicted class 4, but .* has 3 classes"):
        evaluator.process([{"file_name": "0.jpg"}], [{"sem_seg": scores([[4, 0]], 5)}])


def test_image_of_another_dataset_is_named(label_maps):
    with pytest.raises(DatasetError, match=r"other\.jpg has no label map"):
        SemSegEvaluator(label_maps([[0]])).process([{"file_name": "other.jpg"}], [{"sem_seg": scores([[0]])}])


def test_deprecated_arguments_still_count(label_maps):
    name = label_maps([[0, 2]])
    with pytest.warns(DeprecationWarning, match="ignore_label"):
        assert evaluate(name, [[0, 1]], ignore_label=2)["pACC"] == 100
    with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match="num_classes is 5"):
        SemSegEvaluator(name, num_classes=5)


def test_dataset_without_names_of_classes_is_refused(dataset):
    with pytest.raises(DatasetError, match="stuff_classes"):
        SemSegEvaluator(dataset([]))


def test_model_without_label_maps_has_no_results(label_maps, caplog):
    evaluator = SemSegEvaluator(label_maps([[0]]))
    evaluator.process([{"file_name": "0.jpg"}], [{}])
    assert evaluator.evaluate() is None
    assert "no 'sem_seg'" in caplog.text


def test_no_image_is_an_error(label_maps):
    with pytest.raises(DatasetError, match="on no image"):
        SemSegEvaluator(label_maps([[0]])).evaluate()
