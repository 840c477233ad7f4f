import pytest
import torch
from torch import nn
from torch.nn import functional as F

from detlib.layers import ASPP, DeformConv, ModulatedDeformConv, ROIAlign


def test_roi_align_averages_samples_between_the_centers_of_cells():
    features = torch.arange(16.0).view(1, 1, 4, 4)  # x + 4 y
    pooled = ROIAlign((2, 2), spatial_scale=0.5, sampling_ratio=2)(features, torch.tensor([[0.0, 0.0, 0.0, 4.0, 4.0]]))
    # Relative to the first center samples are at -0.25 (moved to 0), 0.25, 0.75 and 1.25: means 0.125 and 1.
    torch.testing.assert_close(pooled[0, 0], torch.tensor([[0.625, 1.5], [4.125, 5.0]]))


def test_roi_align_of_constant_map_is_that_constant():
    rois = torch.tensor([[1.0, 3.0, 2.0, 20.0, 17.0]])
    pooled = ROIAlign(3, spatial_scale=0.25, sampling_ratio=0)(torch.full((2, 1, 8, 8), 7.0), rois)
    torch.testing.assert_close(pooled, torch.full((1, 1, 3, 3), 7.0))


def test_roi_align_of_no_boxes_has_no_rows():
    assert ROIAlign((2, 3), 1.0, 0)(torch.zeros(1, 4, 8, 8), torch.zeros(0, 5)).shape == (0, 4, 2, 3)


def test_roi_align_in_half_precision_does_not_round_boxes():
    features = torch.arange(4096.0).div(4096).expand(1, 1, 4, 4096)  # A ramp, so that a shift of the box shows.
    rois = torch.tensor([[0.0, 2001.0, 0.0, 2002.0, 4.0]])
    layer = ROIAlign(1, spatial_scale=1.0, sampling_ratio=2)
    half = layer(features.half(), rois)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), layer(features.half().float(), rois), atol=1e-4, rtol=0)


def test_roi_align_names_the_shape_of_rois():
    with pytest.raises(ValueError, match=r"\(R, 5\).*got \(1, 4\)"):
        ROIAlign(1, 1.0, 0)(torch.zeros(1, 1, 2, 2), torch.zeros(1, 4))


def test_deform_conv_without_offset_is_convolution():
    conv = DeformConv(4, 6, kernel_size=3, stride=2, padding=2, dilation=2, groups=2)
    x = torch.randn(2, 4, 7, 7)
    expected = F.conv2d(x, conv.weight, stride=2, padding=2, dilation=2, groups=2)
    torch.testing.assert_close(conv(x, torch.zeros(2, 18, *expected.shape[2:])), expected, atol=1e-5, rtol=1e-4)


def test_deform_conv_samples_at_the_offset():
    conv = DeformConv(1, 1, kernel_size=1)
    nn.init.ones_(conv.weight)
    x = torch.arange(9.0).view(1, 1, 3, 3)
    offset = torch.tensor([1.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 3, 3)  # One row down, half a column right.
    assert conv(x, offset)[0, 0, 0].tolist() == [3.5, 4.5, 2.5]  # Zeros lie beyond the border.


def test_modulated_deform_conv_weighs_samples_and_adds_bias():
    conv = ModulatedDeformConv(1, 1, kernel_size=1, activation=F.relu)
    nn.init.ones_(conv.weight)
    nn.init.constant_(conv.bias, -2.0)
    out = conv(torch.full((1, 1, 1, 2), 4.0), torch.zeros(1, 2, 1, 2), torch.tensor([1.0, 0.25]).view(1, 1, 1, 2))
    assert out.flatten().tolist() == [2.0, 0.0]


def test_deform_conv_keys_are_those_of_checkpoints():
    assert list(DeformConv(2, 2, 3, norm=nn.BatchNorm2d(2)).state_dict())[:3] == ["weight", "norm.weight", "norm.bias"]
    assert list(ModulatedDeformConv(2, 2, 3).state_dict()) == ["weight", "bias"]
    assert ModulatedDeformConv(2, 2, 3, bias=False).bias is None


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("window", [None, (4, 6)])
def test_aspp_keeps_the_size_of_the_map(separable, window):
    aspp = ASPP(
        4,
        8,
        [2, 4, 6],
        norm="BN",
        activation=F.relu,
        pool_kernel_size=window,
        dropout=0.1,
        use_depthwise_separable_conv=separable,
    )
    assert len(aspp.convs) == 5
    assert aspp.project.in_channels == 40
    assert aspp(torch.randn(2, 4, 8, 12)).shape == (2, 8, 8, 12)


def test_aspp_refuses_maps_that_its_pool_does_not_divide():
    aspp = ASPP(4, 8, [2], norm="", activation=F.relu, pool_kernel_size=(4, 6))
    with pytest.raises(ValueError, match=r"8 x 13.*\(4, 6\)"):
        aspp(torch.randn(2, 4, 8, 13))
