import numpy as np

from detlib.visualization.labels import _create_text_labels, place_labels


def place(sizes, boxes, image_wh=(100, 100)):
    return place_labels(np.array(sizes, float), np.array(boxes, float).reshape(-1, 4), image_wh).tolist()


def test_labels_say_name_and_score_of_what_is_known():
    assert _create_text_labels([1, 0], [0.974, 0.5], ["cat", "dog"]) == ["dog 97%", "cat 50%"]
    assert _create_text_labels([1], None, ["cat", "dog"]) == ["dog"]
    assert _create_text_labels(None, [0.5], None) == ["50%"]
    assert _create_text_labels(None, None, ["cat"]) is None


def test_class_without_a_name_is_shown_as_its_number():
    assert _create_text_labels([7], [1.0], ["cat"]) == ["7 100%"]
    assert _create_text_labels([0], None, None) == ["0"]


def test_crowd_regions_are_marked():
    assert _create_text_labels([0, 0], None, ["cat"], [1, 0]) == ["cat|crowd", "cat"]


def test_no_objects_have_no_labels():
    assert _create_text_labels([], [], ["cat"]) == []
    assert place(np.zeros((0, 2)), []) == []


def test_label_goes_above_its_box():
    assert place([(20, 10)], [(30, 40, 80, 90)]) == [[30, 30]]


def test_label_goes_inside_a_box_that_touches_the_upper_edge():
    assert place([(20, 10)], [(30, 0, 80, 90)]) == [[30, 0]]


def test_label_stays_inside_the_image():
    ((x, y),) = place([(20, 10)], [(95, 95, 100, 100)])
    assert 0 <= x <= 80 and 0 <= y <= 90


def test_labels_of_the_same_box_do_not_overlap():
    (x0, y0), (x1, y1) = place([(20, 10), (20, 10)], [(30, 40, 80, 90)] * 2)
    assert abs(x0 - x1) >= 20 or abs(y0 - y1) >= 10


def test_label_does_not_hide_a_small_object():
    ((x, y),) = place([(20, 10)], [(50, 0, 58, 8)])  # No room above.
    assert not (x < 58 and x + 20 > 50 and y < 8)


def test_label_of_a_point_is_centred_on_it():
    assert place([(20, 10)], [(50, 50, 50, 50)]) == [[40, 45]]


def test_label_larger_than_the_image_starts_at_its_corner():
    assert place([(300, 10)], [(50, 50, 60, 60)])[0][0] == 0
