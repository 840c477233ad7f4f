import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from detlib.structures import BitMasks, PolygonMasks
from detlib.visualization.masks import interior_point, mask_rings, split_masks, to_bitmask


def signed_area(ring):
    x, y = ring.T
    return (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


@pytest.fixture
def square():
    """(6, 8), set in rows 1 to 3 and columns 2 to 5."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:6] = True
    return mask


def test_all_formats_of_one_mask_give_the_same_bits(square):
    compressed = coco_mask.encode(np.asfortranarray(square, dtype=np.uint8))
    # Counted down the columns: two columns and one row of zeros, then three rows of ones in each of four columns.
    uncompressed = {"size": [6, 8], "counts": [13, 3, 3, 3, 3, 3, 3, 3, 14]}
    polygon = [[2, 1, 6, 1, 6, 4, 2, 4]]
    for mask in (square, torch.from_numpy(square), square.astype(np.uint8), compressed, uncompressed, polygon):
        np.testing.assert_array_equal(to_bitmask(mask, 6, 8), square)


def test_probabilities_are_cut_at_one_half():
    assert to_bitmask(np.array([[0.4, 0.6]]), 1, 2).tolist() == [[False, True]]


def test_no_polygons_are_an_empty_mask():
    assert not to_bitmask([], 6, 8).any()


def test_mask_of_another_size_than_the_image_is_an_error(square):
    with pytest.raises(ValueError, match=r"\(6, 8\), expected that of the image, \(8, 6\)"):
        to_bitmask(square, 8, 6)


def test_split_masks_takes_each_container(square):
    assert len(split_masks(BitMasks(torch.from_numpy(square)[None]))) == 1
    assert len(split_masks(PolygonMasks([[np.array([2.0, 1, 6, 1, 6, 4])], [np.array([0.0, 0, 1, 0, 1, 1])]]))) == 2
    assert len(split_masks(torch.zeros(3, 4, 5))) == 3
    assert split_masks(torch.zeros(0, 4, 5)) == []


def test_outline_runs_along_the_edges_of_the_pixels(square):
    (ring,) = mask_rings(square, 6, 8)
    assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([2, 1], [6, 4])


def test_outline_of_a_mask_that_fills_the_image_is_its_border():
    (ring,) = mask_rings(np.ones((6, 8), dtype=bool), 6, 8)
    assert (ring.min(axis=0).tolist(), ring.max(axis=0).tolist()) == ([0, 0], [8, 6])


def test_hole_runs_in_the_opposite_direction():
    mask = np.zeros((9, 9), dtype=bool)
    mask[1:8, 1:8] = True
    mask[4, 4] = False
    outer, hole = mask_rings(mask, 9, 9)
    assert signed_area(outer) * signed_area(hole) < 0


def test_parts_below_min_area_are_left_out(square):
    square[5, 0] = True
    assert len(mask_rings(square, 6, 8)) == 2
    assert len(mask_rings(square, 6, 8, min_area=10)) == 1


def test_polygons_of_opposite_directions_are_aligned_so_that_their_overlap_is_no_hole():
    clockwise, counter_clockwise = [0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 2, 6, 6, 6, 6, 2]
    first, second = mask_rings([clockwise, counter_clockwise], 8, 8)
    assert signed_area(first) == signed_area(second) == 16


def test_empty_mask_has_no_outline_and_no_interior():
    assert mask_rings(np.zeros((4, 4), dtype=bool), 4, 4) == []
    assert interior_point(np.zeros((4, 4), dtype=bool)) is None


def test_interior_point_is_in_the_thickest_part():
    mask = np.zeros((20, 40), dtype=bool)
    mask[9:11, 0:29] = True  # A thin bar, and a square of 9 with its middle in the pixel (34, 10).
    mask[6:15, 30:39] = True
    assert interior_point(mask) == (34.5, 10.5)


@pytest.mark.parametrize("size", [1, 5, 100, 1000])
def test_interior_point_of_a_ring_is_on_the_ring(size):
    mask = np.zeros((3 * size, 3 * size), dtype=bool)
    mask[: 3 * size] = True
    mask[size : 2 * size, size : 2 * size] = False
    x, y = interior_point(mask)
    assert mask[int(y), int(x)]
