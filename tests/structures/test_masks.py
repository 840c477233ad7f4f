import numpy as np
import pytest
import torch

from detlib.structures import BitMasks, Boxes, PolygonMasks, ROIMasks, polygons_to_bitmask
from detlib.structures.masks import polygon_area, rasterize_polygons_within_box

RECTANGLE = np.array([1.0, 2.0, 4.0, 2.0, 4.0, 6.0, 1.0, 6.0])  # x from 1 to 4, y from 2 to 6.
TRIANGLE = np.array([0.0, 0.0, 4.0, 0.0, 0.0, 4.0])


def rectangle_bitmap(height=8, width=10):
    bitmap = torch.zeros(height, width, dtype=torch.bool)
    bitmap[2:6, 1:4] = True
    return bitmap


def test_polygon_area_of_triangle_and_rectangle():
    assert polygon_area(TRIANGLE[0::2], TRIANGLE[1::2]) == 8
    assert polygon_area(RECTANGLE[0::2], RECTANGLE[1::2]) == 12


def test_rectangle_is_drawn_pixel_by_pixel():
    drawn = polygons_to_bitmask([RECTANGLE], 8, 10)
    assert drawn.dtype == bool
    assert np.array_equal(drawn, rectangle_bitmap().numpy())


def test_no_polygons_draw_nothing():
    assert polygons_to_bitmask([], 3, 4).sum() == 0


def test_polygon_that_fills_its_box_fills_the_grid():
    assert rasterize_polygons_within_box([RECTANGLE], np.array([1.0, 2.0, 4.0, 6.0]), 7).all()


def test_left_half_of_the_box_is_the_left_half_of_the_grid():
    grid = rasterize_polygons_within_box([RECTANGLE], np.array([1.0, 2.0, 7.0, 6.0]), 8)
    assert grid[:, :4].all()
    assert not grid[:, 4:].any()


def test_box_without_size_gives_a_grid():
    assert rasterize_polygons_within_box([RECTANGLE], np.array([2.0, 3.0, 2.0, 3.0]), 4).shape == (4, 4)


def test_bitmasks_are_bool_and_know_the_image_size():
    masks = BitMasks(np.ones((2, 3, 4), dtype=np.uint8))
    assert masks.tensor.dtype == torch.bool
    assert masks.image_size == (3, 4)
    assert len(masks) == 2
    assert [mask.shape for mask in masks] == [(3, 4), (3, 4)]
    with pytest.raises(ValueError, match=r"\(N, H, W\), got \(3, 4\)"):
        BitMasks(torch.ones(3, 4))


def test_bounding_boxes_of_bitmaps_end_after_the_last_pixel():
    masks = BitMasks(torch.stack([rectangle_bitmap(), torch.zeros(8, 10, dtype=torch.bool), torch.ones(8, 10).bool()]))
    assert masks.get_bounding_boxes().tensor.tolist() == [[1, 2, 4, 6], [0, 0, 0, 0], [0, 0, 10, 8]]
    assert masks.nonempty().tolist() == [True, False, True]


def test_bitmasks_from_polygons():
    masks = BitMasks.from_polygon_masks(PolygonMasks([[RECTANGLE], []]), 8, 10)
    assert torch.equal(masks.tensor[0], rectangle_bitmap())
    assert not masks.tensor[1].any()
    assert torch.equal(BitMasks.from_polygon_masks([[RECTANGLE], []], 8, 10).tensor, masks.tensor)


@pytest.mark.parametrize("masks", [BitMasks(rectangle_bitmap()[None]), PolygonMasks([[RECTANGLE]])])
def test_crop_and_resize_shows_the_part_in_the_box(masks):
    crop = masks.crop_and_resize(torch.tensor([[1.0, 2.0, 7.0, 6.0]]), 4)
    assert crop.dtype == torch.bool
    assert crop.tolist() == [[[True, True, False, False]] * 4]


@pytest.mark.parametrize("masks", [BitMasks(rectangle_bitmap()[None]), PolygonMasks([[RECTANGLE]])])
def test_crop_and_resize_needs_a_box_for_each_mask(masks):
    with pytest.raises(ValueError, match="1 masks and 2 boxes"):
        masks.crop_and_resize(torch.zeros(2, 4), 4)


@pytest.mark.parametrize("masks", [BitMasks(torch.zeros(0, 8, 10)), PolygonMasks([])])
def test_no_masks_work_everywhere(masks):
    assert len(masks) == 0
    assert len(masks[torch.zeros(0, dtype=torch.bool)]) == 0
    assert len(masks.get_bounding_boxes()) == 0
    assert masks.nonempty().shape == (0,)
    assert masks.crop_and_resize(torch.zeros(0, 4), 14).shape == (0, 14, 14)
    assert len(type(masks).cat([masks, masks])) == 0


def test_no_polygons_make_no_bitmaps():
    assert BitMasks.from_polygon_masks([], 8, 10).tensor.shape == (0, 8, 10)


def test_bitmasks_are_chosen_by_number_slice_numbers_and_mask():
    masks = BitMasks(torch.eye(3)[:, :, None])
    assert masks[1].tensor.flatten().tolist() == [False, True, False]
    assert len(masks[1:]) == 2
    assert masks[torch.tensor([2])].tensor.flatten().tolist() == [False, False, True]
    assert len(masks[torch.tensor([True, False, True])]) == 2
    assert masks.to("meta").device.type == "meta"


def test_polygons_become_float64_arrays_of_their_own():
    source = torch.tensor([0, 0, 4, 0, 0, 4])
    masks = PolygonMasks([[source, TRIANGLE]])
    assert [p.dtype for p in masks.polygons[0]] == [np.float64] * 2
    masks.polygons[0][1][:] = 0
    assert TRIANGLE.max() == 4


def test_area_and_boxes_of_polygons():
    masks = PolygonMasks([[RECTANGLE, TRIANGLE + 4], [TRIANGLE], []])
    assert masks.area().tolist() == [20, 8, 0]
    assert masks.get_bounding_boxes().tensor.tolist() == [[1, 2, 8, 8], [0, 0, 4, 4], [0, 0, 0, 0]]
    assert masks.nonempty().tolist() == [True, True, False]


def test_polygons_are_chosen_by_number_slice_numbers_and_mask():
    masks = PolygonMasks([[TRIANGLE], [TRIANGLE * 2], [TRIANGLE * 3]])
    for item, areas in [
        (1, [32]),
        (slice(1, None), [32, 72]),
        ([2, 0], [72, 8]),
        (torch.tensor([2, 0]), [72, 8]),
        (torch.tensor([True, False, True]), [8, 72]),
    ]:
        assert masks[item].area().tolist() == areas
    assert [len(polygons) for polygons in masks] == [1, 1, 1]
    assert PolygonMasks.cat([masks, masks[:1]]).area().tolist() == [8, 32, 72, 8]
    assert masks.to("cuda") is masks


@pytest.mark.parametrize(
    ("polygons", "message"),
    [
        (TRIANGLE, "list with a list of arrays per object, got ndarray"),
        ([TRIANGLE], "object 0: expected a list of polygons, got ndarray"),
        ([[TRIANGLE], [np.zeros(4)]], r"object 1: .* got one of shape \(4,\)"),
        ([[np.zeros(7)]], r"shape \(7,\)"),
        ([[np.zeros((3, 2))]], r"shape \(3, 2\)"),
    ],
)
def test_malformed_polygons_name_the_object(polygons, message):
    with pytest.raises(ValueError, match=message):
        PolygonMasks(polygons)


def test_roi_masks_are_drawn_into_their_boxes():
    masks = ROIMasks(torch.ones(2, 4, 4))
    boxes = Boxes([[1.0, 2.0, 4.0, 6.0], [0.0, 0.0, 10.0, 8.0]])
    bitmaps = masks.to_bitmasks(boxes, 8, 10)
    assert torch.equal(bitmaps.tensor[0], rectangle_bitmap())
    assert bitmaps.tensor[1].all()
    assert len(masks[0]) == len(masks[torch.tensor([1])]) == 1
    assert masks.to("meta").device.type == "meta"


def test_roi_masks_without_boxes_say_what_to_call():
    with pytest.raises(NotImplementedError, match="to_bitmasks"):
        BitMasks.from_roi_masks(ROIMasks(torch.ones(1, 4, 4)), 8, 10)
