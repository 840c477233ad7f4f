import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detlib.data.datasets.mask_outlines import mask_to_polygons, mask_to_rle


def parse(*rows):
    return np.array([[pixel == "#" for pixel in row] for row in rows])


def fill(polygons, shape):
    if not polygons:
        return np.zeros(shape, dtype=np.uint8)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *shape)))


def test_block_has_its_four_corners():
    assert mask_to_polygons(parse("....", ".##.", ".##.")) == [[3, 1, 3, 3, 1, 3, 1, 1]]


def test_pixels_that_touch_at_a_corner_are_apart():
    assert len(mask_to_polygons(parse("#.", ".#"))) == 2


def test_hole_is_kept_by_a_cut():
    mask = parse("###", "#.#", "###")
    polygons = mask_to_polygons(mask)
    assert len(polygons) == 2
    np.testing.assert_array_equal(fill(polygons, mask.shape), mask)


def test_empty_mask_has_no_polygon():
    assert mask_to_polygons(np.zeros((3, 4), dtype=bool)) == []


@pytest.mark.parametrize("seed", range(20))
def test_polygons_and_rle_of_noise_give_it_back(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(x) for x in rng.integers(1, 14, 2))
    mask = rng.random((height, width)) < rng.random()
    np.testing.assert_array_equal(fill(mask_to_polygons(mask), mask.shape), mask)
    rle = mask_to_rle(mask)
    np.testing.assert_array_equal(coco_mask.decode(coco_mask.frPyObjects(rle, height, width)), mask)


def test_rle_counts_down_the_columns_starting_with_background():
    assert mask_to_rle(parse("#.", "##")) == {"counts": [0, 2, 1, 1], "size": [2, 2]}
