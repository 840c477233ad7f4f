import itertools

import numpy as np
import pytest
import torch

from detlib.data.catalog import Metadata
from detlib.structures import BoxMode
from detlib.visualization import Visualizer, readable_scale
from detlib.visualization.image_classes import best_classes

METADATA = Metadata(classes=("cat", "dog", "owl"), class_colors=[(255, 0, 0), (0, 255, 0), (0, 0, 255)])
SCORES = torch.tensor([0.1, 0.7, 0.2])


@pytest.fixture
def visualizer():
    return Visualizer(np.full((100, 120, 3), 128, dtype=np.uint8), METADATA)


def lines(output):
    """Texts from the top to the bottom."""
    return [text.get_text() for text in sorted(output.ax.texts, key=lambda text: text.get_position()[1])]


def backgrounds(output):
    return {text.get_text(): text.get_bbox_patch().get_facecolor()[:3] for text in output.ax.texts}


@pytest.mark.parametrize("scores", [SCORES, SCORES.tolist(), SCORES.numpy(), SCORES.half(), SCORES.bfloat16()])
def test_classes_are_written_by_falling_score(visualizer, scores):
    assert lines(visualizer.draw_classification(scores)) == ["dog 70%", "owl 20%", "cat 10%"]


def test_lines_begin_in_the_top_left_corner_and_do_not_overlap(visualizer):
    output = visualizer.draw_classification(SCORES)
    output.get_image()
    boxes = [text.get_bbox_patch().get_window_extent() for text in output.ax.texts]
    assert (boxes[0].x0, output.height - boxes[0].y1) == (pytest.approx(0, abs=1), pytest.approx(0, abs=1))
    assert all(upper.y0 >= lower.y1 - 0.5 for upper, lower in itertools.pairwise(boxes))


def test_no_more_classes_are_written_than_asked_for_unless_they_are_predicted(visualizer):
    assert lines(visualizer.draw_classification(SCORES, max_classes=1)) == ["dog 70%"]
    predicted = Visualizer(visualizer.img, METADATA).draw_classification(SCORES, [1, 2], max_classes=1)
    assert lines(predicted) == ["dog 70%", "owl 20%"]


@pytest.mark.parametrize("pred_label", [1, [1], torch.tensor(1)])
def test_classes_that_are_not_predicted_are_gray(visualizer, pred_label):
    colors = backgrounds(visualizer.draw_classification(SCORES, pred_label))
    assert colors["dog 70%"] == (0, 1, 0)
    assert colors["owl 20%"] == colors["cat 10%"] == (0.25, 0.25, 0.25)


def test_no_class_may_be_predicted(visualizer):
    assert set(backgrounds(visualizer.draw_classification(SCORES, [])).values()) == {(0.25, 0.25, 0.25)}


def test_classes_without_names_are_numbers(visualizer):
    assert lines(Visualizer(visualizer.img).draw_classification([0.25, 0.75])) == ["1 75%", "0 25%"]


def test_of_equal_scores_the_lower_class_comes_first():
    assert best_classes(torch.tensor([0.2, 0.4, 0.4]), 2) == [1, 2]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ({"label": 1}, ["dog"]),
        ({"label": torch.tensor(0)}, ["cat"]),
        ({"labels": [0, 2]}, ["cat", "owl"]),
        ({"labels": []}, []),
        ({"labels": [0, 2], "ignored_labels": [1, 2]}, ["cat", "dog|ignored", "owl|ignored"]),
        ({"label": 1, "score": torch.tensor([0.0, 0.4, 0.6])}, ["owl 60%", "dog 40%"]),
        ({"label": 7}, ["7"]),
        ({}, []),
    ],
)
def test_labels_of_a_sample_are_written(visualizer, sample, expected):
    assert lines(visualizer.draw_dataset_dict(sample)) == expected


def test_labels_come_with_the_objects_of_a_sample(visualizer):
    annotation = {"bbox": [20, 40, 60, 80], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    output = visualizer.draw_dataset_dict({"annotations": [annotation], "label": 2})
    assert sorted(lines(output)) == ["0", "owl"]


def test_image_without_labels_stays_as_it_is(visualizer):
    np.testing.assert_array_equal(visualizer.draw_dataset_dict({"labels": []}).get_image(), visualizer.img)


def test_letters_shrink_until_the_lines_fit():
    sizes = []
    for width in (400, 90):
        image = np.zeros((200, width, 3), dtype=np.uint8)
        output = Visualizer(image, Metadata(classes=("quite a long name",))).draw_image_labels({"label": 0})
        sizes.append(output.ax.texts[0].get_fontsize())
        box = output.ax.texts[0].get_window_extent(output.canvas.get_renderer())
        assert box.width <= width
    assert sizes[1] < sizes[0]


def test_lines_for_which_there_is_no_room_are_left_out():
    image = np.zeros((32, 32, 3), dtype=np.uint8)
    assert lines(Visualizer(image, METADATA).draw_classification(SCORES))[0] == "dog 70%"
    assert len(Visualizer(image, METADATA).draw_classification(SCORES).ax.texts) < 3


def test_thumbnails_are_enlarged():
    assert readable_scale(32, 32) == 12
    assert readable_scale(480, 640) == 1
