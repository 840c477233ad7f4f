import numpy as np
import pytest

from detlib.data import transforms as T

IMAGE = np.array([[[10, 20, 30], [50, 60, 70]]], dtype=np.uint8)  # mean 40


def augmented(augmentation):
    return T.apply_augmentations([augmentation], IMAGE)[0].tolist()


def test_brightness_scales_all_values():
    assert augmented(T.RandomBrightness(2, 2)) == [[[20, 40, 60], [100, 120, 140]]]


def test_brightness_is_cut_off_at_white():
    assert augmented(T.RandomBrightness(5, 5)) == [[[50, 100, 150], [250, 255, 255]]]


def test_contrast_scales_differences_to_the_mean():
    assert augmented(T.RandomContrast(0, 0)) == [[[40, 40, 40], [40, 40, 40]]]
    assert augmented(T.RandomContrast(0.5, 0.5)) == [[[25, 30, 35], [45, 50, 55]]]


def test_saturation_zero_is_gray():
    gray = augmented(T.RandomSaturation(0, 0))[0][0]
    assert gray == [int(0.299 * 10 + 0.587 * 20 + 0.114 * 30)] * 3


@pytest.mark.parametrize("policy", [T.RandomBrightness, T.RandomContrast, T.RandomSaturation])
def test_intensity_one_keeps_the_image(policy):
    assert augmented(policy(1, 1)) == IMAGE.tolist()


@pytest.mark.parametrize("policy", [T.RandomSaturation(1, 1), T.RandomLighting(1)])
def test_gray_image_is_refused_where_colors_are_needed(policy):
    with pytest.raises(ValueError, match=r"RGB.*\(4, 4, 1\)"):
        policy.get_transform(np.zeros((4, 4, 1), np.uint8))


def test_lighting_shifts_all_pixels_by_the_same_color():
    np.random.seed(0)
    image = np.full((3, 4, 3), 100.0)
    shift = T.apply_augmentations([T.RandomLighting(25.5)], image)[0] - image
    assert (shift == shift[0, 0]).all()
    assert 0 < np.abs(shift).max() < 25


def test_lighting_of_scale_zero_keeps_the_image():
    assert augmented(T.RandomLighting(0)) == IMAGE.tolist()
