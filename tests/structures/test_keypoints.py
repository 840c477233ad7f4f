import math

import numpy as np
import pytest
import torch

from detlib.structures import Keypoints, heatmaps_to_keypoints


def test_keypoints_come_from_tensors_arrays_and_lists():
    for source in (torch.zeros(2, 5, 3), np.zeros((2, 5, 3)), [[[0.0, 0.0, 0.0]] * 5] * 2, [np.zeros((5, 3))] * 2):
        keypoints = Keypoints(source)
        assert keypoints.tensor.shape == (2, 5, 3)
        assert keypoints.tensor.dtype == torch.float32
    with pytest.raises(ValueError, match=r"\(N, K, 3\).*got \(2, 5, 2\)"):
        Keypoints(torch.zeros(2, 5, 2))


def test_keypoints_are_chosen_and_joined():
    keypoints = Keypoints(torch.arange(18.0).view(3, 2, 3))
    assert keypoints[1].tensor.shape == (1, 2, 3)
    assert keypoints[torch.tensor([True, False, True])].tensor[1, 0, 0] == 12
    assert len(Keypoints.cat([keypoints, keypoints[:1]])) == 4
    assert keypoints.to("meta").device.type == "meta"


def test_to_heatmap_gives_the_cell_of_each_labelled_keypoint_in_the_box():
    keypoints = Keypoints(
        [[[10.0, 20.0, 2.0], [14.9, 20.0, 1.0], [20.0, 30.0, 2.0], [15.0, 25.0, 0.0], [9.0, 20.0, 2.0]]]
    )
    index, valid = keypoints.to_heatmap(torch.tensor([[10.0, 20.0, 20.0, 30.0]]), 4)
    # Cells are 2.5 pixels wide; the corner at the right bottom belongs to the last one.
    assert index.tolist() == [[0, 1, 15, 0, 0]]
    assert valid.tolist() == [[True, True, True, False, False]]
    assert index.dtype == torch.int64


def test_to_heatmap_of_no_objects():
    index, valid = Keypoints(torch.zeros(0, 5, 3)).to_heatmap(torch.zeros(0, 4), 56)
    assert index.shape == valid.shape == (0, 5)


def test_to_heatmap_needs_a_box_for_each_object():
    with pytest.raises(ValueError, match="2 objects and 1 boxes"):
        Keypoints(torch.zeros(2, 5, 3)).to_heatmap(torch.zeros(1, 4), 56)


def test_peak_of_a_heatmap_of_one_pixel_per_cell_is_its_cell():
    heatmap = torch.zeros(1, 1, 4, 4)
    heatmap[0, 0, 2, 1] = 5.0
    x, y, logit, score = heatmaps_to_keypoints(heatmap, torch.tensor([[10.0, 20.0, 14.0, 24.0]]))[0, 0].tolist()
    assert (x, y, logit) == (11.5, 22.5, 5.0)
    assert score == pytest.approx(math.exp(5) / (math.exp(5) + 15))


def test_position_of_the_peak_is_stretched_with_the_box():
    heatmap = torch.zeros(2, 1, 4, 4)
    heatmap[:, 0, 2, 1] = 5.0
    small, large = heatmaps_to_keypoints(heatmap, torch.tensor([[0.0, 0.0, 3.5, 4.0], [0.0, 0.0, 4.0, 4.0]]))[:, 0]
    assert small[0].item() == pytest.approx(large[0].item() * 3.5 / 4)


def test_no_heatmaps_give_no_keypoints():
    assert heatmaps_to_keypoints(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 4)


def test_boxes_without_size_give_finite_keypoints():
    assert heatmaps_to_keypoints(torch.randn(1, 2, 4, 4), torch.tensor([[3.0, 3.0, 3.0, 3.0]])).isfinite().all()
