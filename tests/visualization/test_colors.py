import pytest

from detlib.visualization.colors import brightness, class_color, jitter, lighten, text_color_on


def test_colour_of_the_dataset_is_used():
    assert class_color(1, [(0, 0, 0), (255, 0, 51)]) == (1.0, 0.0, 0.2)


def test_chosen_colours_differ_and_show_on_dark_images():
    colors = [class_color(i) for i in range(80)]
    assert len(set(colors)) == 80
    assert min(map(brightness, colors)) > 0.37


def test_class_beyond_the_colours_of_the_dataset_has_a_colour():
    assert class_color(5, [(0, 0, 0)]) == class_color(5)


def test_first_object_of_a_class_has_its_colour_and_the_others_shades():
    color = (0.8, 0.3, 0.3)
    assert jitter(color, 0) == pytest.approx(color)
    assert len({jitter(color, i) for i in range(20)}) == 20
    assert jitter(color, 3) == jitter(color, 3)


def test_lighten_goes_to_white_and_to_black():
    assert lighten((0.2, 0.4, 0.6), 0.5) == pytest.approx((0.6, 0.7, 0.8))
    assert lighten("red", -1) == (0, 0, 0)


def test_letters_are_black_on_bright_and_white_on_dark_colours():
    assert text_color_on("yellow") == "black"
    assert text_color_on("navy") == "white"
