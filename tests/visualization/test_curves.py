import json

import cv2
import numpy as np

from detlib.visualization.curves import draw_curves, read_metrics


def test_of_iterations_that_a_resumed_training_repeats_the_later_lines_count(tmp_path):
    lines = [{"iteration": i, "loss": loss} for i, loss in [(19, 5.0), (39, 4.0), (59, 3.0), (39, 2.0), (49, 1.0)]]
    path = tmp_path / "metrics.json"
    path.write_text("\n".join(map(json.dumps, lines)) + '\n{"iteration": 69, "lo')  # A kill cut the last line off.
    assert [(line["iteration"], line["loss"]) for line in read_metrics(str(path))] == [(19, 5.0), (39, 2.0), (49, 1.0)]


def test_without_a_file_there_are_no_metrics(tmp_path):
    assert read_metrics(str(tmp_path / "metrics.json")) == []


def test_curves_are_a_picture_with_a_line_for_each_loss():
    lines = [{"iteration": i, "total_loss": 2.0 - i, "lr": 0.1} for i in range(2)]
    picture = cv2.imdecode(np.frombuffer(draw_curves(lines, {1: {"bbox/AP": 3.0}}), np.uint8), cv2.IMREAD_COLOR)
    without_loss = [{"iteration": i, "lr": 0.1} for i in range(2)]
    smaller = cv2.imdecode(np.frombuffer(draw_curves(without_loss, {}), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (640, 960, 3)  # losses and rate in the first row, results in the second
    assert smaller.shape == (320, 960, 3)
    blue = np.abs(picture.astype(int) - (180, 119, 31)).sum(axis=2) < 10  # the first colour of matplotlib
    assert blue[:320, :480].any()


def test_a_single_point_is_not_drawn():
    assert draw_curves([{"iteration": 3, "total_loss": 1.0}], {}) is None
    assert draw_curves([], {}) is None
