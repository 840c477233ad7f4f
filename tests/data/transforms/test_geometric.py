import numpy as np
import pytest
from PIL import Image

from detlib.data import transforms as T


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def black(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "expected"), [(100, 200, (50, 100)), (200, 100, (100, 50))])
def test_shortest_edge_gets_the_length_asked_for(height, width, expected):
    resize = T.ResizeShortestEdge(50).get_transform(black(height, width))
    assert (resize.new_h, resize.new_w) == expected


def test_longest_edge_is_limited():
    assert T.ResizeShortestEdge.get_output_shape(100, 400, 50, 120) == (30, 120)


def test_very_long_image_keeps_a_pixel():
    assert T.ResizeShortestEdge.get_output_shape(1, 5000, 800, 1333) == (1, 1333)


def test_range_of_lengths_is_drawn_with_both_ends():
    resize = T.ResizeShortestEdge((10, 12), sample_style="range")
    assert {resize.get_transform(black(20, 20)).new_h for _ in range(50)} == {10, 11, 12}


def test_choice_of_lengths_draws_only_these():
    resize = T.ResizeShortestEdge((10, 30, 50), sample_style="choice")
    assert {resize.get_transform(black(20, 20)).new_h for _ in range(50)} == {10, 30, 50}


def test_length_zero_keeps_the_image():
    assert isinstance(T.ResizeShortestEdge(0, sample_style="choice").get_transform(black(4, 4)), T.NoOpTransform)


def test_wrong_lengths_and_styles_name_the_argument():
    with pytest.raises(ValueError, match=r"MIN_SIZE_TRAIN_SAMPLING"):
        T.ResizeShortestEdge((10, 20, 30), sample_style="range")
    with pytest.raises(ValueError, match="sample_style must be one of range, choice, got 'chioce'"):
        T.ResizeShortestEdge((10, 20), sample_style="chioce")


def test_flip_happens_with_its_probability():
    flips = [T.RandomFlip(0.25).get_transform(black(2, 4)) for _ in range(2000)]
    assert 0.2 < np.mean([isinstance(flip, T.HFlipTransform) for flip in flips]) < 0.3


def test_vertical_flip_mirrors_rows():
    transform = T.RandomFlip(1.0, horizontal=False, vertical=True).get_transform(black(3, 4))
    assert transform.apply_coords(np.array([[1.0, 1.0]])).tolist() == [[1, 2]]


@pytest.mark.parametrize("both", [True, False])
def test_flip_needs_exactly_one_direction(both):
    with pytest.raises(ValueError, match="one RandomFlip for each direction"):
        T.RandomFlip(horizontal=both, vertical=both)


def test_resize_takes_one_number_for_both_sides():
    resize = T.Resize(7).get_transform(black(3, 4))
    assert (resize.new_h, resize.new_w) == (7, 7)


def test_resize_scale_fits_into_the_scaled_target():
    resize = T.ResizeScale(0.5, 0.5, target_height=100, target_width=100).get_transform(black(50, 200))
    assert (resize.new_h, resize.new_w) == (12, 50)  # 12.5 is rounded to even.


def test_random_resize_draws_among_its_shapes():
    shapes = [(3, 4), (5, 6)]
    resizes = [T.RandomResize(shapes).get_transform(black(2, 2)) for _ in range(30)]
    assert {(r.new_h, r.new_w) for r in resizes} == set(shapes)


def test_rotation_draws_within_its_range_and_a_center():
    rotation = T.RandomRotation((10, 20), expand=False, center=((0.2, 0.3), (0.2, 0.3))).get_transform(black(10, 20))
    assert 10 <= rotation.angle <= 20
    np.testing.assert_allclose(rotation.center, (4, 3))


def test_small_rotation_about_the_middle_keeps_the_size():
    # DeepCluster turns by up to 2 degrees either way.
    policy = T.RandomRotation((-2, 2), expand=False)
    rotations = [policy.get_transform(black(10, 20)) for _ in range(100)]
    angles = [rotation.angle for rotation in rotations]
    assert -2 <= min(angles) < -1.8 and 1.8 < max(angles) <= 2
    assert {tuple(rotation.center) for rotation in rotations} == {(10, 5)}
    assert rotations[0].apply_image(black(10, 20)).shape == (10, 20, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda interp: T.Resize(4, interp),
        lambda interp: T.ResizeShortestEdge(4, interp=interp),
        lambda interp: T.ResizeScale(1, 1, 4, 4, interp),
        lambda interp: T.RandomResize([(4, 4)], interp),
    ],
)
def test_resizing_interpolates_as_told_by_number_or_name(make):
    image = np.random.RandomState(1).randint(0, 256, (9, 9, 3)).astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BICUBIC))
    for interp in (Image.Resampling.BICUBIC, 3, "bicubic"):
        np.testing.assert_array_equal(T.apply_augmentations([make(interp)], image)[0], expected)


@pytest.mark.parametrize("interp", ["cubic", 9])
def test_unknown_interpolation_lists_the_known(interp):
    with pytest.raises(ValueError, match=rf"Resize: interp is {interp!r}; known: nearest \(0\), .*bicubic \(3\)"):
        T.Resize(4, interp)


def test_shorter_side_of_292_and_crop_of_255_keep_the_proportions_and_reach_every_place():
    # RelativeLoc: 300 x 400 becomes 292 x 389, of which 255 x 255 remain.
    resize = T.ResizeShortestEdge(292)
    resized, _ = T.apply_augmentations([resize], black(300, 400))
    assert resized.shape == (292, 389, 3)
    crops = [T.RandomCrop("absolute", (255, 255)).get_transform(resized) for _ in range(500)]
    assert {(crop.w, crop.h) for crop in crops} == {(255, 255)}
    assert min(crop.x0 for crop in crops) < 5 and 129 < max(crop.x0 for crop in crops) <= 389 - 255
    assert {crop.y0 for crop in crops} == set(range(292 - 255 + 1))


def test_rotation_chooses_among_angles_and_centers():
    policy = T.RandomRotation([90, 180], center=[[0.0, 0.0], [1.0, 1.0]], sample_style="choice", expand=False)
    rotations = [policy.get_transform(black(10, 20)) for _ in range(40)]
    assert {(r.angle, *r.center) for r in rotations} == {(a, *c) for a in (90, 180) for c in ((0, 0), (20, 10))}


def test_rotation_by_nothing_does_nothing():
    assert isinstance(T.RandomRotation(360.0).get_transform(black(2, 2)), T.NoOpTransform)


def test_random_apply_calls_the_augmentation_or_leaves_all_as_it_is():
    image = black(4, 4)
    image[:, 0] = 255
    always, never = (T.AugInput(image.copy()) for _ in range(2))
    T.RandomApply(T.RandomFlip(1.0), prob=1.0)(always)
    T.RandomApply(T.HFlipTransform(4), prob=0.0)(never)
    assert always.image[:, 3].min() == 255
    np.testing.assert_array_equal(never.image, image)


def test_random_apply_refuses_what_is_no_probability():
    with pytest.raises(ValueError, match="prob"):
        T.RandomApply(T.NoOpTransform(), prob=50)


def test_same_seed_gives_the_same_transform():
    policy = T.AugmentationList([T.ResizeShortestEdge((10, 500)), T.RandomRotation((-90, 90))])

    def draw():
        np.random.seed(3)
        return policy(T.AugInput(black(10, 20))).apply_coords(np.array([[1.0, 2.0]]))

    np.testing.assert_array_equal(draw(), draw())
