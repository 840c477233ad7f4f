import pytest
import torch

from detlib.layers import ROIAlign, ROIAlignRotated, roi_align_rotated
from detlib.layers.roi_align_rotated import _weighted_sums


def features(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_bins_of_one_cell_each_return_the_cells():
    x = features(2, 3, 4, 5)
    pooled = ROIAlignRotated((2, 3), spatial_scale=1.0, sampling_ratio=1)(x, torch.tensor([[1.0, 2.5, 2, 3, 2, 0]]))
    torch.testing.assert_close(pooled, x[1:, :, 1:3, 1:4])


def test_quarter_turn_reads_the_width_upwards():
    x = features(1, 1, 4, 4)
    pooled = roi_align_rotated(x, torch.tensor([[0.0, 2, 2, 4, 4, 90]]), 4, 1.0, 1)
    # The first row of the result goes along the left side of the map, from below.
    torch.testing.assert_close(pooled[0, 0], x[0, 0].T.flip(1))
    turned_back = roi_align_rotated(pooled, torch.tensor([[0.0, 2, 2, 4, 4, -90]]), 4, 1.0, 1)
    torch.testing.assert_close(turned_back, x)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
def test_angle_0_is_ordinary_roi_align(sampling_ratio):
    x = features(2, 3, 9, 11)
    xyxy = torch.tensor([[0.0, 4, 3, 30, 21], [1, -8, 10, 20, 17], [1, 20, 5, 60, 50]])
    centers, sizes = (xyxy[:, 1:3] + xyxy[:, 3:]) / 2, xyxy[:, 3:] - xyxy[:, 1:3]
    rotated = torch.cat([xyxy[:, :1], centers, sizes, torch.zeros(3, 1)], dim=1)
    expected = ROIAlign((4, 5), 0.25, sampling_ratio)(x, xyxy)
    torch.testing.assert_close(ROIAlignRotated((4, 5), 0.25, sampling_ratio)(x, rotated), expected)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_full_turn_changes_nothing_and_half_a_turn_flips_both_axes(sampling_ratio):
    x = features(1, 2, 12, 12)
    roi = torch.tensor([[0.0, 6, 6, 5, 7, 20]])
    turn = torch.tensor([0.0, 0, 0, 0, 0, 180])
    pool = ROIAlignRotated((3, 4), 1.0, sampling_ratio)
    torch.testing.assert_close(pool(x, roi + 2 * turn), pool(x, roi))
    torch.testing.assert_close(pool(x, roi + turn), pool(x, roi).flip(2, 3))


def test_mean_along_a_slope_is_the_value_at_the_center():
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    slope = (2 * (x + 0.5) + 3 * (y + 0.5))[None, None]
    rois = torch.tensor([[0.0, 10, 9, 6, 4, 33], [0, 8, 10, 7.3, 2.2, -100]])
    pooled = roi_align_rotated(slope, rois, 1, 1.0, 0)
    torch.testing.assert_close(pooled.flatten(), torch.tensor([2 * 10.0 + 3 * 9, 2 * 8 + 3 * 10]))


def test_samples_outside_the_map_are_zero():
    pooled = roi_align_rotated(torch.ones(1, 1, 4, 4), torch.tensor([[0.0, 2, 2, 12, 12, 45]]), 4, 1.0, 1)
    # Samples are 1.5 and 4.5 pixels from the center along each diagonal: only the inner four are in the map.
    assert pooled[0, 0].tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_is_that_of_the_weighted_sum(sampling_ratio):
    x = features(2, 2, 5, 6).double().requires_grad_()
    rois = torch.tensor([[0.0, 3, 2, 4, 2, 30], [1, 2, 2, 9, 3, -60], [1, 5, 4, 1, 1, 0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: roi_align_rotated(x, rois, (2, 3), 1.0, sampling_ratio), x)


def test_adaptive_sampling_takes_about_one_sample_per_cell():
    x = features(1, 1, 8, 8)
    roi = torch.tensor([[0.0, 4, 4, 8, 6, 0]])  # bins of 4 x 3 cells
    pooled = roi_align_rotated(x, roi, 2, 1.0, 0)
    expected = x[:, :, 1:7].unfold(2, 3, 3).unfold(3, 4, 4).mean(dim=(-1, -2))
    torch.testing.assert_close(pooled, expected)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_no_regions_give_no_output_and_a_gradient_of_zero(sampling_ratio):
    x = features(1, 3, 4, 4).requires_grad_()
    pooled = roi_align_rotated(x, torch.zeros(0, 6), (2, 3), 1.0, sampling_ratio)
    assert pooled.shape == (0, 3, 2, 3)
    pooled.sum().backward()
    assert x.grad.abs().max() == 0


def test_region_without_area_gives_finite_values():
    pooled = roi_align_rotated(features(1, 1, 4, 4), torch.tensor([[0.0, 2, 2, 0, 3, 30]]), 2, 1.0, 0)
    assert pooled.abs().max() == 0


def test_half_precision_is_pooled_in_float32():
    # Samples lie half-way between cells, at 2048.5 and 2049.5, which float16 lacks.
    x, roi = features(1, 1, 4, 3000), torch.tensor([[0.0, 2049.5, 2, 2, 2, 0]])
    pooled = roi_align_rotated(x.half(), roi, 2, 1.0, 1)
    assert pooled.dtype == torch.float16
    between = (x[..., 2048:2050] + x[..., 2049:2051])[:, :, 1:3] / 2
    torch.testing.assert_close(pooled.float(), between, atol=1e-3, rtol=0)


def test_sums_without_embedding_bag_are_the_same():
    cells, index = features(6, 3), torch.tensor([[0, 1, 2, 3], [5, 5, 0, 1], [2, 2, 2, 2]])
    weight, bins = features(3, 4), torch.tensor([0, 0, 2])

    class CellsOnMPS(torch.Tensor):
        device = torch.device("mps")

    expected = _weighted_sums(cells, index, weight, bins, 4)
    assert expected[[1, 3]].abs().max() == 0
    found = _weighted_sums(cells.as_subclass(CellsOnMPS), index, weight, bins, 4).as_subclass(torch.Tensor)
    torch.testing.assert_close(found, expected)


def test_rois_of_five_numbers_are_refused():
    with pytest.raises(ValueError, match=r"\(R, 6\).* got \(1, 5\)"):
        roi_align_rotated(features(1, 1, 2, 2), torch.zeros(1, 5), 2, 1.0, 1)
