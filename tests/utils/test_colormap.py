import numpy as np
import pytest

from detlib.utils.colormap import colormap, random_color, random_colors


def test_colors_differ_and_fill_the_range():
    colors = colormap(rgb=True, maximum=1)
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 10 * np.eye(len(colors))
    assert (colors.shape, colors.dtype) == ((80, 3), np.float32)
    assert colors.min() >= 0
    assert colors.max() == 1
    assert distances.min() > 0.02


def test_bgr_and_255_are_the_default():
    np.testing.assert_allclose(colormap(), colormap(rgb=True, maximum=1)[:, ::-1] * 255)


def test_table_can_be_changed_without_harm():
    colormap(rgb=True, maximum=1)[:] = 0
    assert colormap().max() == 255


@pytest.mark.parametrize("n", [0, 3, 80, 100])
def test_random_colors_come_from_the_table_without_early_repeats(n):
    colors = [tuple(color) for color in random_colors(n, rgb=True, maximum=1)]
    table = {tuple(color) for color in colormap(rgb=True, maximum=1)}
    assert len(colors) == n
    assert set(colors) <= table
    assert len(set(colors)) == min(n, 80)


def test_random_color_is_one_of_them():
    assert random_color().shape == (3,)


def test_maximum_is_checked():
    with pytest.raises(ValueError, match="1 or 255"):
        colormap(maximum=256)
