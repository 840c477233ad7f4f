import numpy as np
import pytest

from detlib.data.view_masks import RandomBlocks, RandomSquares
from detlib.utils.errors import ConfigError


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def test_squares_hide_22_of_36_of_32_pixels_which_are_1408_of_2304_patches():
    # SimMIM: 192 pixels are 6 x 6 squares of 32, which are 8 x 8 patches of 4 pixels; ceil(36 * 0.6) = 22.
    mask = RandomSquares()()
    assert mask.shape == (48, 48) and mask.dtype == bool
    assert mask.sum() == 22 * 64 == 1408
    squares = mask.reshape(6, 8, 6, 8).mean(axis=(1, 3))
    assert sorted(squares.ravel().tolist()) == [0] * 14 + [1] * 22


def test_squares_are_drawn_anew_and_each_as_often():
    draw = RandomSquares(grid_size=4, square_size=2, ratio=0.5)
    counts = sum(draw()[::2, ::2].astype(int) for _ in range(2000))
    assert (abs(counts / 2000 - 0.5) < 0.05).all()


@pytest.mark.parametrize(
    ("side", "ratio", "num_hidden"),
    [(10, 0.07, 7), (6, 0.6, 22), (8, 0.6, 39), (2, 1.0, 4)],  # 100 * 0.07 = 7.000000000000001
)
def test_number_of_squares_is_rounded_up_but_not_for_the_error_of_a_float(side, ratio, num_hidden):
    assert RandomSquares(side, 1, ratio)().sum() == num_hidden


def test_blocks_hide_exactly_75_of_196():
    draw = RandomBlocks()
    masks = [draw() for _ in range(50)]
    assert {(mask.shape, mask.dtype.name, int(mask.sum())) for mask in masks} == {((14, 14), "bool", 75)}
    assert len({mask.tobytes() for mask in masks}) == 50


def test_blocks_are_rectangles_of_the_allowed_area_and_proportions():
    draw, empty = RandomBlocks(), np.zeros((14, 14), dtype=bool)
    blocks = [draw._draw_block(empty, 75) for _ in range(500)]
    sides = np.array([[s.stop - s.start for s in block] for block in blocks if block])
    areas, ratios = sides.prod(axis=1), sides[:, 0] / sides[:, 1]
    assert 12 <= areas.min() < 20 and 65 < areas.max() <= 75  # Sides are rounded: 16 may become 3 x 4.
    assert 0.2 < ratios.min() < 0.4 and 2.5 < ratios.max() < 4.5  # 0.3 to 1 / 0.3 = 3.3, and rounded.
    assert abs(np.log(ratios).mean()) < 0.1


def test_most_hidden_patches_are_in_blocks():
    # Of 75 patches drawn one by one, 38 % of the neighbours would be hidden; in blocks most are.
    masks = [RandomBlocks()() for _ in range(20)]
    both = sum((mask[:, 1:] & mask[:, :-1]).sum() for mask in masks)
    assert both / sum(mask[:, :-1].sum() for mask in masks) > 0.7


@pytest.mark.parametrize("num_hidden", [1, 98, 195])
def test_any_number_of_patches_can_be_hidden(num_hidden):
    assert RandomBlocks(num_hidden=num_hidden)().sum() == num_hidden


def test_patches_are_hidden_one_by_one_where_no_block_fits(monkeypatch):
    draw = RandomBlocks(grid_size=4, num_hidden=5)
    monkeypatch.setattr(draw, "_draw_block", lambda mask, missing: None)
    assert draw().sum() == 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomSquares(48, 7), "SQUARE_SIZE must divide GRID_SIZE; they are 7 and 48"),
        (lambda: RandomSquares(ratio=60.0), r"RATIO must be in \(0, 1\], got 60"),
        (lambda: RandomBlocks(grid_size=4, num_hidden=16), "above 0 and below 16, as .* 4 x 4 patches; got 16"),
        (lambda: RandomBlocks(num_hidden=0), "NUM_HIDDEN must be above 0"),
        (lambda: RandomBlocks(min_area=0), "MIN_AREA must be 1 or more"),
        (lambda: RandomBlocks(min_aspect_ratio=2.0), r"MIN_ASPECT_RATIO in \(0, 1\]; got 16 and 2"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
