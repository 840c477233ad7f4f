import numpy as np
import pytest
import torch

from detlib.config import build_component
from detlib.data.view_splits import VIEW_SPLIT_REGISTRY, GridPatches, QuarterTurns
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def coordinates(height, width):
    """(H, W, 2): each pixel holds its row and column."""
    return np.stack(np.mgrid[:height, :width], axis=2)


def corners(patches):
    return [tuple(patch[0, 0].tolist()) for patch in patches]


def test_patches_are_that_of_the_middle_and_then_the_others_row_by_row():
    patches = GridPatches()(coordinates(255, 255))
    assert [patch.shape for patch in patches] == [(64, 64, 2)] * 9
    cells = [(y // 85, x // 85) for y, x in corners(patches)]
    assert cells == [(1, 1), (0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_patches_move_by_all_of_the_21_pixels_and_lie_within_their_cells():
    # 255 // 3 = 85, 85 - 64 = 21.
    places = np.array([corners(GridPatches()(coordinates(255, 255))) for _ in range(200)]) % 85
    for axis in (0, 1):
        assert sorted(set(places[..., axis].ravel().tolist())) == list(range(21))


def test_patches_of_a_sample_move_independently():
    places = np.array(corners(GridPatches()(coordinates(255, 255)))) % 85
    assert len(np.unique(places, axis=0)) > 5


def test_patches_never_touch():
    # A cell of 5 and a patch of 4: it has one place, and a pixel is left free before the next cell.
    assert corners(GridPatches(4)(coordinates(15, 15)))[1:4] == [(0, 0), (0, 5), (0, 10)]


def test_cells_of_an_image_that_is_not_square_have_its_proportions():
    patches = GridPatches(4)(coordinates(15, 31))  # Cells of 5 x 10.
    assert [(y // 5, x // 10) for y, x in corners(patches)][:4] == [(1, 1), (0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("size", [(14, 15), (15, 14), (12, 12)])
def test_image_too_small_for_its_patches_says_which_size_is_needed(size):
    with pytest.raises(DatasetError, match=rf"an image of {size[0]} x {size[1]} .* PATCH_SIZE, 4; crop images to 15"):
        GridPatches(4)(coordinates(*size))


def test_patch_without_pixels_is_refused():
    with pytest.raises(ConfigError, match="PATCH_SIZE must be a number of pixels, got 0"):
        GridPatches(0)


def test_quarter_turns_are_counter_clockwise_and_exact():
    image = np.array([[[1], [2]], [[3], [4]]])
    turned = [view[:, :, 0].tolist() for view in QuarterTurns()(image)]
    assert turned == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]


def test_quarter_turns_are_those_of_rot90():
    image = np.random.randint(0, 256, (5, 5, 3))
    chw = torch.from_numpy(image).permute(2, 0, 1)
    for turns, view in enumerate(QuarterTurns()(image)):
        expected = torch.rot90(chw, turns, (-2, -1))
        assert torch.equal(torch.from_numpy(view.copy()).permute(2, 0, 1), expected)


def test_quarter_turn_of_the_last_turn_is_the_image_again():
    image = coordinates(3, 3)
    np.testing.assert_array_equal(QuarterTurns()(QuarterTurns()(image)[3])[1], image)


def test_quarter_turns_need_a_square():
    with pytest.raises(DatasetError, match=r"square images, got 4 x 6 \(height x width\); crop them .*INPUT.VIEWS"):
        QuarterTurns()(coordinates(4, 6))


def test_splits_are_built_by_name():
    assert build_component(VIEW_SPLIT_REGISTRY, {"NAME": "GridPatches", "PATCH_SIZE": 8}).patch_size == 8
    assert isinstance(build_component(VIEW_SPLIT_REGISTRY, {"NAME": "QuarterTurns"}), QuarterTurns)
