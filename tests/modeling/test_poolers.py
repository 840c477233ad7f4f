import pytest
import torch

from detlib.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detlib.structures import Boxes
from detlib.utils.errors import ConfigError


def boxes(*xyxy):
    return Boxes(torch.tensor(xyxy, dtype=torch.float32).reshape(-1, 4))


def pyramid(num_images=1, channels=2):
    """Maps of strides 4, 8 and 16 of a 64 x 64 image, filled with 0, 1 and 2."""
    return [torch.full((num_images, channels, 64 // s, 64 // s), float(i)) for i, s in enumerate((4, 8, 16))]


def pooler(scales=(1 / 4, 1 / 8, 1 / 16), pooler_type="ROIAlignV2", **kwargs):
    return ROIPooler(2, list(scales), sampling_ratio=2, pooler_type=pooler_type, **kwargs)


def test_a_box_of_canonical_size_gets_the_canonical_level_and_one_of_twice_the_side_the_next():
    given = [boxes([0, 0, 224, 224], [0, 0, 223, 223], [0, 0, 448, 448], [0, 0, 112, 112])]
    assert assign_boxes_to_levels(given, 2, 5, 224, 4).tolist() == [2, 1, 3, 1]


def test_levels_beyond_the_pyramid_are_those_at_its_ends():
    given = [boxes([0, 0, 4, 4], [9, 5, 5, 6]), boxes([0, 0, 5000, 5000])]
    assert assign_boxes_to_levels(given, 2, 5, 224, 4).tolist() == [0, 0, 3]


def test_regions_stay_in_the_order_of_the_boxes_whatever_their_levels():
    given = [boxes([8, 8, 56, 56], [8, 8, 16, 16]), boxes([8, 8, 30, 30])]
    pooled = pooler(canonical_box_size=32)(pyramid(num_images=2), given)
    assert pooled.shape == (3, 2, 2, 2)
    assert pooled[:, 0, 0, 0].tolist() == [2, 0, 1]


def test_each_region_is_pooled_from_its_own_image():
    maps = [torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 16, 16).clone()]
    given = [boxes([8, 8, 16, 16]), boxes(), boxes([8, 8, 16, 16], [0, 0, 32, 32])]
    assert pooler(scales=[1 / 4])(maps, given)[:, 0, 0, 0].tolist() == [0, 2, 2]


@pytest.mark.parametrize("scales", [[1 / 4], [1 / 4, 1 / 8, 1 / 16]])
def test_no_boxes_give_no_regions_with_a_gradient_of_zero(scales):
    maps = [x.requires_grad_() for x in pyramid()[: len(scales)]]
    pooled = pooler(scales=scales)(maps, [boxes()])
    assert pooled.shape == (0, 2, 2, 2)
    pooled.sum().backward()
    assert all(x.grad.abs().sum() == 0 for x in maps)


def test_v1_is_off_by_half_a_cell():
    ramp = [torch.arange(16.0).expand(1, 1, 16, 16).clone()]
    given = [boxes([16, 16, 32, 32])]
    aligned = pooler(scales=[1 / 4])(ramp, given)
    shifted = pooler(scales=[1 / 4], pooler_type="ROIAlign")(ramp, given)
    torch.testing.assert_close(shifted - aligned, torch.full_like(aligned, 0.5))


@pytest.mark.parametrize("pooler_type", ["ROIAlignV2", "ROIAlign", "ROIPool"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_regions_have_the_type_of_the_maps(pooler_type, dtype):
    maps = [torch.arange(256.0).view(1, 1, 16, 16)]
    pool = pooler(scales=[1 / 4], pooler_type=pooler_type)
    regions = pool([maps[0].to(dtype)], [boxes((0, 0, 60, 60))])
    assert regions.dtype == dtype
    torch.testing.assert_close(regions.float(), pool(maps, [boxes((0, 0, 60, 60))]), rtol=0.01, atol=0)


@pytest.mark.parametrize("scales", [[1 / 4, 1 / 16], [1 / 3], [1 / 8, 1 / 4]])
def test_strides_that_do_not_double_are_a_config_error(scales):
    with pytest.raises(ConfigError, match="stride"):
        pooler(scales=scales)


def test_unknown_type_is_a_config_error_that_lists_the_known():
    with pytest.raises(ConfigError, match=r"POOLER_TYPE is 'RoIAlign'.*ROIAlignV2"):
        pooler(pooler_type="RoIAlign")


def test_wrong_numbers_of_maps_or_images_are_told():
    with pytest.raises(ValueError, match="built for 3 feature maps, got 2"):
        pooler()(pyramid()[:2], [boxes()])
    with pytest.raises(ValueError, match="of 1 images, the boxes of 2"):
        pooler()(pyramid(), [boxes(), boxes()])
