import pytest
import torch
from torch import nn

from detlib.layers import ShapeSpec
from detlib.modeling.poolers import ROIPooler
from detlib.modeling.roi_extractor import (
    ROI_EXTRACTOR_REGISTRY,
    GenericRoIExtractor,
    SingleRoIExtractor,
    build_roi_extractor,
    shape_of_region,
)
from detlib.structures import Boxes, RotatedBoxes
from detlib.utils.errors import ConfigError, ConfigTypeError, UnknownNameError


def boxes(*xyxy):
    return Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))


def square(side):
    """Around (32, 32)."""
    return [32 - side / 2, 32 - side / 2, 32 + side / 2, 32 + side / 2]


def shapes(*strides, channels=3):
    return [ShapeSpec(channels=channels, stride=stride) for stride in strides]


def levels(*strides, num_images=1):
    """Maps of a 64 x 64 image that are filled with their index, 0 for the finest."""
    return [torch.full((num_images, 3, 64 // s, 64 // s), float(i)) for i, s in enumerate(strides)]


def ramps(*strides, width=128):
    """Maps whose cells hold the x of their centres, in pixels of the image."""
    return [((torch.arange(width / s) + 0.5) * s).expand(1, 1, 8, -1).clone() for s in strides]


def test_boxes_go_to_maps_by_doublings_of_the_finest_scale():
    extractor = SingleRoIExtractor(shapes(4, 8, 16, 32), output_size=1, sampling_ratio=1)
    given = [boxes(*map(square, (8, 111, 112, 223, 224, 447, 448, 5000)))]
    pooled = extractor(levels(4, 8, 16, 32), given)
    assert pooled.shape == (8, 3, 1, 1)
    assert pooled[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_finest_scale_is_about_the_first_map_whatever_its_stride():
    extractor = SingleRoIExtractor(shapes(8, 16), output_size=1, sampling_ratio=1, finest_scale=10)
    assert extractor(levels(8, 16), [boxes(square(19), square(20))])[:, 0, 0, 0].tolist() == [0, 1]


def test_levels_are_those_of_the_formula_and_of_the_pooler_on_p2_to_p5():
    half_sides = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 450 + 1
    given = Boxes(torch.cat([32 - half_sides, 32 + half_sides], dim=1))
    expected = torch.floor(torch.log2(given.area().sqrt() / 56 + 1e-6)).clamp(0, 3)
    extractor = SingleRoIExtractor(shapes(4, 8, 16, 32), output_size=1, sampling_ratio=1)
    pooler = ROIPooler(1, [1 / 4, 1 / 8, 1 / 16, 1 / 32], sampling_ratio=1, pooler_type="ROIAlignV2")
    for pool in (extractor, pooler):
        assert torch.equal(pool(levels(4, 8, 16, 32), [given])[:, 0, 0, 0], expected)


def test_enlarged_boxes_keep_their_centre_and_are_not_clipped():
    extractor = SingleRoIExtractor(shapes(4, channels=1), output_size=2, sampling_ratio=1)
    # (4, 14, 56, 66), whose cells have their centres at 17 and 43.
    enlarged = extractor(ramps(4), [boxes([10, 20, 50, 60])], roi_scale_factor=1.3)
    torch.testing.assert_close(enlarged[0, 0, 0], torch.tensor([17.0, 43.0]))
    # (-10, 0, 30, 40): centres at 0 and 20; at the border the map holds the value of its first cell, 2.
    enlarged = extractor(ramps(4), [boxes([0, 10, 20, 30])], roi_scale_factor=2.0)
    torch.testing.assert_close(enlarged[0, 0, 0], torch.tensor([2.0, 20.0]))


def test_level_is_that_of_the_original_size():
    extractor = SingleRoIExtractor(shapes(4, 8), output_size=1, finest_scale=10)
    assert extractor(levels(4, 8), [boxes([20, 20, 39, 39])], roi_scale_factor=3.0)[0, 0] == 0


@pytest.mark.parametrize("strides", [(4,), (4, 8, 16)])
def test_factor_of_one_changes_nothing(strides):
    torch.manual_seed(0)
    maps = [torch.randn(2, 3, 64 // s, 64 // s) for s in strides]
    given = [boxes([3, 5, 40, 31], [1, 2, 9, 60]), boxes([7, 7, 50, 8])]
    extractor = SingleRoIExtractor(shapes(*strides), output_size=3, finest_scale=8)
    assert torch.equal(extractor(maps, given, roi_scale_factor=1.0), extractor(maps, given))


def test_rotated_boxes_are_enlarged_along_their_own_sides():
    extractor = SingleRoIExtractor(shapes(4, channels=1), 2, sampling_ratio=1, roi_layer="ROIAlignRotated")
    given = RotatedBoxes(torch.tensor([[60.0, 16, 8, 40, 90]]))  # By 90 degrees, its height of 40 lies along x.
    cells = [extractor(ramps(4), [given], roi_scale_factor=f)[0, 0].flatten() for f in (1.0, 1.5)]
    torch.testing.assert_close(cells[0].sort()[0], torch.tensor([50.0, 50, 70, 70]))
    torch.testing.assert_close(cells[1].sort()[0], torch.tensor([45.0, 45, 75, 75]))


@pytest.mark.parametrize("factor", [0, -1.0])
def test_factor_must_be_above_zero(factor):
    with pytest.raises(ValueError, match=r"roi_scale_factor is .* must be above 0"):
        SingleRoIExtractor(shapes(4))(levels(4), [boxes(square(8))], roi_scale_factor=factor)


@pytest.mark.parametrize("factor", [None, 1.3])
def test_no_boxes_give_no_regions_that_still_have_a_gradient(factor):
    maps = [x.requires_grad_() for x in levels(4, 8)]
    pooled = SingleRoIExtractor(shapes(4, 8))(maps, [boxes()], roi_scale_factor=factor)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert all(x.grad.abs().sum() == 0 for x in maps)


def test_regions_keep_the_order_of_boxes_and_images_and_every_map_learns():
    maps = [x + torch.tensor([0.0, 10]).view(2, 1, 1, 1) for x in levels(4, 8, 16, num_images=2)]
    maps = [x.requires_grad_() for x in maps]
    given = [boxes([8, 8, 48, 48], [8, 8, 16, 16]), boxes([8, 8, 28, 28])]
    pooled = SingleRoIExtractor(shapes(4, 8, 16), output_size=2, finest_scale=10)(maps, given)
    assert pooled[:, 0, 0, 0].tolist() == [2, 0, 11]
    pooled.sum().backward()
    assert all(x.grad.sum() == 2 * 2 * 3 for x in maps)


def test_half_precision_maps_give_half_precision_regions():
    maps = [x.half() for x in levels(4, 8)]
    assert SingleRoIExtractor(shapes(4, 8))(maps, [boxes(square(30))], roi_scale_factor=1.3).dtype == torch.float16


def test_shape_of_a_region_is_told():
    extractor = SingleRoIExtractor(shapes(4, 8, channels=5), output_size=[3, 4])
    assert (extractor.out_channels, extractor.output_size) == (5, (3, 4))
    assert shape_of_region(extractor) == ShapeSpec(channels=5, height=3, width=4)


def test_maps_of_different_widths_are_a_config_error():
    with pytest.raises(ConfigError, match=r"IN_FEATURES have \[3, 5\] channels"):
        SingleRoIExtractor([*shapes(4), *shapes(8, channels=5)])


def test_sum_and_concatenation_take_every_map():
    given = [boxes([8, 8, 24, 24])]
    maps = [x + 1 for x in levels(4, 8, 16)]
    summed = GenericRoIExtractor(shapes(4, 8, 16), output_size=2, sampling_ratio=1)
    assert summed(maps, given, roi_scale_factor=1.5)[0].unique().tolist() == [1 + 2 + 3]
    mixed = [*shapes(4), *shapes(8, channels=1)]
    concatenated = GenericRoIExtractor(mixed, output_size=2, aggregation="concat")
    pooled = concatenated([maps[0], maps[1][:, :1]], given)
    assert pooled.shape == (1, 4, 2, 2) and concatenated.out_channels == 4
    assert pooled[0, :, 0, 0].tolist() == [1, 1, 1, 2]


def test_unknown_aggregation_is_a_config_error():
    with pytest.raises(ConfigError, match=r"AGGREGATION .*'mean'; it must be 'sum' or 'concat'"):
        GenericRoIExtractor(shapes(4), aggregation="mean")


def test_extractors_are_built_by_name_and_the_node_wins_over_what_is_offered():
    node = {"NAME": "SingleRoIExtractor", "OUTPUT_SIZE": 5, "FINEST_SCALE": 28}
    extractor = build_roi_extractor(node, shapes(4, 8), output_size=9, roi_layer="ROIPool")
    assert extractor.output_size == (5, 5) and extractor.canonical_box_size == 28
    assert type(extractor.level_poolers[0]).__name__ == "_ROIPool"
    with pytest.raises(UnknownNameError, match="did you mean 'SingleRoIExtractor'"):
        build_roi_extractor({"NAME": "SingleRoiExtractor"}, shapes(4))
    with pytest.raises(ConfigTypeError, match="takes no FEATMAP_STRIDES"):
        build_roi_extractor({**node, "FEATMAP_STRIDES": [4, 8]}, shapes(4))


def test_extractor_that_does_not_tell_its_shape_is_a_config_error():
    class Silent(nn.Module):
        pass

    ROI_EXTRACTOR_REGISTRY.register(Silent)
    try:
        with pytest.raises(ConfigError, match="Silent has no out_channels and no output_size"):
            build_roi_extractor({"NAME": "Silent"}, shapes(4))
    finally:
        del ROI_EXTRACTOR_REGISTRY._obj_map["Silent"]
