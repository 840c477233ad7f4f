import numpy as np
import pytest

from detlib.utils.visualizer import Visualizer
from detlib.visualization.draw import Canvas, rotated_box_corners

RED, BLACK = [255, 0, 0], [0, 0, 0]


@pytest.fixture
def canvas():
    return Canvas(np.zeros((100, 120, 3), dtype=np.uint8))


def drawn(canvas):
    """(H, W) bool: the pixels that are not black."""
    return canvas.get_output().get_image().any(axis=2)


def bounds(mask):
    ys, xs = np.nonzero(mask)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def test_box_is_an_outline_on_its_edges(canvas):
    canvas.draw_box((20, 30, 80, 90), alpha=1, edge_color="r")
    mask = drawn(canvas)
    assert np.abs(np.array(bounds(mask)) - (20, 30, 80, 90)).max() <= 2
    assert not mask[40:80, 30:70].any()


def test_coordinates_are_those_of_the_image_at_any_scale():
    canvas = Canvas(np.zeros((100, 120, 3), dtype=np.uint8), scale=3)
    canvas.draw_box((20, 30, 80, 90), alpha=1, edge_color="r")
    assert np.abs(np.array(bounds(drawn(canvas))) - (60, 90, 240, 270)).max() <= 3


def test_lines_are_wider_and_letters_larger_on_large_images():
    small, large = (Canvas(np.zeros((side, side, 3), dtype=np.uint8)) for side in (300, 4000))
    assert large._line_width > 5 * small._line_width
    assert large._default_font_size > 5 * small._default_font_size
    assert small._default_font_size * 100 / 72 >= 11  # Pixels: legible.


def test_binary_mask_fills_its_pixels_and_leaves_its_hole():
    canvas = Canvas(np.zeros((60, 60, 3), dtype=np.uint8))
    mask = np.zeros((60, 60), dtype=bool)
    mask[10:50, 10:50] = True
    mask[20:40, 20:40] = False
    canvas.draw_binary_mask(mask, "r", alpha=1)
    image = canvas.get_output().get_image()
    assert image[15, 30].tolist() == RED
    assert image[30, 30].tolist() == BLACK


def test_parts_of_a_mask_below_the_threshold_are_not_drawn(canvas):
    mask = np.zeros((100, 120), dtype=bool)
    mask[10:12, 10:12] = True
    canvas.draw_binary_mask(mask, "r", alpha=1, area_threshold=10)
    assert not drawn(canvas).any()
    canvas.draw_binary_mask(mask, "r", alpha=1, area_threshold=0)
    assert drawn(canvas).any()


def test_empty_masks_draw_nothing(canvas):
    empty = np.zeros((100, 120))
    canvas.draw_binary_mask(empty.astype(bool), text="nothing")
    canvas.draw_soft_mask(empty, text="nothing")
    assert not drawn(canvas).any()


def test_mask_of_another_size_is_an_error(canvas):
    with pytest.raises(ValueError, match=r"\(120, 100\), expected that of the image, \(100, 120\)"):
        canvas.draw_binary_mask(np.zeros((120, 100), dtype=bool))


def test_soft_mask_is_as_opaque_as_it_says(canvas):
    soft = np.zeros((100, 120))
    soft[:50], soft[50:] = 1.0, 0.5
    canvas.draw_soft_mask(soft, "r", alpha=0.8)
    image = canvas.get_output().get_image()
    assert image[20, 60, 0] == pytest.approx(0.8 * 255, abs=2)
    assert image[80, 60, 0] == pytest.approx(0.4 * 255, abs=2)


def test_polygon_circle_and_line_are_where_they_should_be(canvas):
    canvas.draw_polygon([(10, 10), (30, 10), (30, 30), (10, 30)], "r", alpha=1)
    canvas.draw_circle((60, 50), "r", radius=5)
    canvas.draw_line([80, 110], [90, 90], "r", linewidth=3)
    image = canvas.get_output().get_image()
    for x, y in ((20, 20), (60, 50), (95, 90)):
        assert image[y, x].tolist() == RED
    assert image[50, 70].tolist() == BLACK


def test_text_is_taken_as_it_is():
    one, other = (Canvas(np.zeros((100, 120, 3), dtype=np.uint8)) for _ in range(2))
    one.draw_text("$x_1$ broken $", (60, 50))  # As a formula, it would be an error.
    other.draw_text("", (60, 50))
    assert drawn(one).sum() > drawn(other).sum()


def test_dark_text_is_lightened(canvas):
    canvas.draw_text("text", (60, 50), color="black")
    assert drawn(canvas).any()


def test_labels_of_small_objects_have_smaller_letters(canvas):
    assert canvas._label_font_size(10, 1) < canvas._label_font_size(1000, 1)
    assert canvas._label_font_size(1000, 100) < canvas._label_font_size(1000, 1)


def test_rotated_box_turns_counter_clockwise():
    corners = rotated_box_corners((50, 50, 20, 10, 0))
    np.testing.assert_allclose(corners, [(40, 45), (60, 45), (60, 55), (40, 55)])
    # A quarter to the left: the upper left corner goes to the lower left.
    np.testing.assert_allclose(rotated_box_corners((50, 50, 20, 10, 90)), [(45, 60), (45, 40), (55, 40), (55, 60)])


def test_rotated_box_is_drawn_with_its_label(canvas):
    output = canvas.draw_rotated_box_with_label((60, 50, 40, 20, 90), label="plane")
    assert [text.get_text() for text in output.ax.texts] == ["plane"]
    mask = drawn(canvas)
    assert mask[50, 48:52].any() and mask[50, 68:72].any()  # It stands upright, from x = 50 to 70.
    assert not mask[50, 55:65].any()


def test_methods_return_the_output_for_chaining(canvas):
    assert canvas.draw_box((1, 1, 5, 5)).get_image().shape == (100, 120, 3)
    assert issubclass(Visualizer, Canvas)
