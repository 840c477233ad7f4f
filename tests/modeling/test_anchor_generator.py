import pytest
import torch

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling.anchor_generator import DefaultAnchorGenerator, RotatedAnchorGenerator, build_anchor_generator
from detlib.structures import RotatedBoxes
from detlib.utils.errors import ConfigError


def generator(**kwargs):
    defaults = {"sizes": [[4.0]], "aspect_ratios": [[1.0]], "strides": [4], "offset": 0.0}
    return DefaultAnchorGenerator(**{**defaults, **kwargs})


def test_aspect_ratio_is_height_over_width_at_the_same_area():
    anchors = generator().generate_cell_anchors(sizes=[4.0], aspect_ratios=[0.25, 1.0, 4.0])
    expected = torch.tensor([[-4.0, -1.0, 4.0, 1.0], [-2.0, -2.0, 2.0, 2.0], [-1.0, -4.0, 1.0, 4.0]])
    torch.testing.assert_close(anchors, expected)


def test_sizes_vary_slower_than_aspect_ratios():
    anchors = generator().generate_cell_anchors(sizes=[2.0, 4.0], aspect_ratios=[1.0, 4.0])
    widths = anchors[:, 2] - anchors[:, 0]
    torch.testing.assert_close(widths, torch.tensor([2.0, 1.0, 4.0, 2.0]))


def test_cells_are_visited_row_by_row():
    (anchors,) = generator()([torch.zeros(1, 8, 2, 3)])
    centers = torch.tensor([[0.0, 0], [4, 0], [8, 0], [0, 4], [4, 4], [8, 4]])
    torch.testing.assert_close(anchors.get_centers(), centers)


def test_offset_of_half_a_stride_puts_anchors_at_cell_centers():
    (anchors,) = generator(offset=0.5)([torch.zeros(1, 8, 1, 1)])
    torch.testing.assert_close(anchors.get_centers(), torch.tensor([[2.0, 2.0]]))


def test_one_list_serves_all_feature_maps():
    assert generator(sizes=[[4.0, 8.0]], strides=[4, 8, 16]).num_anchors == [2, 2, 2]


def test_plain_list_of_sizes_serves_all_feature_maps():
    assert generator(sizes=[4.0, 8.0], aspect_ratios=[0.5, 1.0, 2.0], strides=[4, 8]).num_anchors == [6, 6]


def test_anchors_are_not_in_the_state_dict():
    assert generator().state_dict() == {}


def test_too_few_size_lists_name_the_key():
    with pytest.raises(ConfigError, match=r"ANCHOR_GENERATOR.SIZES has 2 lists for 3 feature maps"):
        generator(sizes=[[4.0], [8.0]], strides=[4, 8, 16])


def test_offset_of_one_is_refused():
    with pytest.raises(ConfigError, match="OFFSET"):
        generator(offset=1.0)


def rotated_generator(**kwargs):
    defaults = {"sizes": [[4.0]], "aspect_ratios": [[1.0]], "angles": [[0.0]], "strides": [4], "offset": 0.0}
    return RotatedAnchorGenerator(**{**defaults, **kwargs})


def test_rotated_anchors_vary_angle_before_ratio_before_size():
    anchors = rotated_generator().generate_cell_anchors(
        sizes=[2.0, 4.0], aspect_ratios=[1.0, 4.0], angles=[-90.0, 30.0]
    )
    expected = [[2.0, 2.0], [2.0, 2.0], [1.0, 4.0], [1.0, 4.0], [4.0, 4.0], [4.0, 4.0], [2.0, 8.0], [2.0, 8.0]]
    torch.testing.assert_close(anchors[:, :2], torch.zeros(8, 2))
    torch.testing.assert_close(anchors[:, 2:4], torch.tensor(expected))
    torch.testing.assert_close(anchors[:, 4], torch.tensor([-90.0, 30.0] * 4))


def test_rotated_anchors_have_their_centers_at_the_cells():
    (anchors,) = rotated_generator(angles=[0.0, 45.0], offset=0.5)([torch.zeros(1, 8, 1, 2)])
    assert isinstance(anchors, RotatedBoxes)
    expected = [[2.0, 2, 4, 4, 0], [2, 2, 4, 4, 45], [6, 2, 4, 4, 0], [6, 2, 4, 4, 45]]
    torch.testing.assert_close(anchors.tensor, torch.tensor(expected))


def test_rotated_anchors_are_built_from_the_config():
    cfg = get_cfg()
    cfg.MODEL.ANCHOR_GENERATOR.NAME = "RotatedAnchorGenerator"
    anchor_generator = build_anchor_generator(cfg, [ShapeSpec(stride=16)])
    assert isinstance(anchor_generator, RotatedAnchorGenerator)
    assert anchor_generator.num_anchors == anchor_generator.num_cell_anchors == [5 * 3 * 3]
    assert anchor_generator.box_dim == 5
    assert anchor_generator.state_dict() == {}


def test_too_few_angle_lists_name_the_key():
    with pytest.raises(ConfigError, match=r"ANCHOR_GENERATOR.ANGLES has 2 lists for 3 feature maps"):
        rotated_generator(angles=[[0.0], [90.0]], strides=[4, 8, 16])
