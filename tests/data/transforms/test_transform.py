import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from detlib.data import transforms as T
from detlib.data.transforms.transform import LabelPreservingExtentTransform


def noise(height, width, channels=3, dtype=np.uint8):
    values = np.random.RandomState(0).randint(0, 256, (height, width, channels))
    return values.astype(dtype)


def test_resize_scales_coordinates_of_both_axes():
    coords = T.ResizeTransform(10, 20, 30, 10).apply_coords(np.array([[20.0, 10.0], [1.0, 1.0]]))
    assert coords.tolist() == [[10, 30], [0.5, 3]]


def test_resize_of_floats_agrees_with_torch():
    image = noise(8, 12, dtype=np.float32)
    resized = T.ResizeTransform(8, 12, 5, 20).apply_image(image)
    expected = F.interpolate(torch.from_numpy(image).permute(2, 0, 1)[None], (5, 20), mode="bilinear")
    np.testing.assert_allclose(resized, expected[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_resize_treats_channels_alike_for_any_number_of_them(channels):
    image = noise(8, 12, channels)
    resized = T.ResizeTransform(8, 12, 5, 20).apply_image(image)
    assert resized.shape == (5, 20, channels)
    for i in range(channels):
        np.testing.assert_array_equal(resized[:, :, i], T.ResizeTransform(8, 12, 5, 20).apply_image(image[:, :, i]))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, bool])
def test_labels_of_any_dtype_keep_their_values_when_resized(dtype):
    labels = np.array([[0, 1], [1, 0]]).astype(dtype)
    resized = T.ResizeTransform(2, 2, 4, 4).apply_segmentation(labels)
    assert resized.dtype == dtype
    np.testing.assert_array_equal(resized, labels.repeat(2, axis=0).repeat(2, axis=1))


def test_inverse_of_resize_restores_coordinates():
    resize = T.ResizeTransform(10, 20, 30, 10)
    points = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(resize.inverse().apply_coords(resize.apply_coords(points.copy())), points)


def test_resize_refuses_an_image_of_another_size():
    with pytest.raises(ValueError, match=r"10 x 20 .*got \(20, 10\)"):
        T.ResizeTransform(10, 20, 5, 10).apply_image(noise(20, 10))


def test_quarter_turn_is_counter_clockwise():
    image = noise(3, 5)
    rotation = T.RotationTransform(3, 5, 90)
    np.testing.assert_array_equal(rotation.apply_image(image), np.rot90(image))
    # The top right corner comes to the top left one.
    np.testing.assert_allclose(rotation.apply_coords(np.array([[5.0, 0.0], [0.0, 0.0]])), [[0, 0], [0, 5]], atol=1e-9)


def test_rotation_without_expansion_keeps_the_size_and_its_center():
    rotation = T.RotationTransform(40, 60, 20, expand=False, center=(10, 12))
    assert rotation.apply_image(noise(40, 60)).shape == (40, 60, 3)
    np.testing.assert_allclose(rotation.apply_coords(np.array([[10.0, 12.0]])), [[10, 12]])
    with pytest.raises(NotImplementedError):
        rotation.inverse()


def test_inverse_of_rotation_restores_coordinates_up_to_a_pixel():
    rotation = T.RotationTransform(40, 60, 30)
    points = np.array([[3.0, 4.0], [50.0, 30.0]])
    np.testing.assert_allclose(rotation.inverse().apply_coords(rotation.apply_coords(points)), points, atol=1)


def test_rotation_keeps_an_only_channel():
    assert T.RotationTransform(40, 60, 20, expand=False).apply_image(noise(40, 60, 1)).shape == (40, 60, 1)


def test_rotation_of_no_points_gives_no_points():
    assert T.RotationTransform(40, 60, 20).apply_coords(np.zeros((0, 2))).shape == (0, 2)


def test_rotated_labels_are_not_blended():
    labels = np.where(np.arange(20) < 10, 0, 200).astype(np.uint8)[None].repeat(20, axis=0)
    assert set(np.unique(T.RotationTransform(20, 20, 30).apply_segmentation(labels))) == {0, 200}


def test_extent_cuts_and_shifts_coordinates():
    image = noise(10, 10)
    extent = T.ExtentTransform((2, 3, 8, 7), output_size=(4, 6))
    np.testing.assert_array_equal(extent.apply_image(image), image[3:7, 2:8])
    np.testing.assert_allclose(extent.apply_coords(np.array([[2.0, 3.0], [8.0, 7.0]])), [[0, 0], [6, 4]])


def test_extent_fills_what_is_outside_in_any_dtype():
    extent = T.ExtentTransform((-2, 0, 2, 2), output_size=(2, 4), fill=7)
    for image in (np.ones((2, 2, 3), np.uint8), np.ones((2, 2), np.uint8), np.ones((2, 2, 5), np.float32)):
        result = extent.apply_image(image)
        assert result.dtype == image.dtype
        assert (result[:, :2] == 7).all()
        assert (result[:, 2:] == 1).all()


def test_label_preserving_extent_does_not_blend_labels():
    labels = np.array([[0, 200], [0, 200]], dtype=np.uint8)
    extent = LabelPreservingExtentTransform((0, 0, 2, 2), output_size=(7, 7))
    assert set(np.unique(extent.apply_segmentation(labels))) == {0, 200}


def test_color_transform_changes_the_image_alone():
    invert = T.ColorTransform(lambda image: 255 - image)
    assert invert.apply_image(np.array([[[0, 100, 255]]], dtype=np.uint8)).tolist() == [[[255, 155, 0]]]
    assert invert.apply_coords(np.array([[1.0, 2.0]])).tolist() == [[1, 2]]
    assert invert.apply_segmentation(np.array([[3]])).tolist() == [[3]]
    assert isinstance(invert.inverse(), T.NoOpTransform)


def test_pil_color_transform_calls_its_function_with_a_pil_image():
    image = noise(4, 6)
    expected = np.asarray(ImageOps.solarize(Image.fromarray(image)))
    np.testing.assert_array_equal(T.PILColorTransform(ImageOps.solarize).apply_image(image), expected)


def test_color_transform_without_function_is_refused():
    with pytest.raises(TypeError):
        T.ColorTransform(0.5)


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        (T.NoOpTransform(), [30, 20, 10, 4, 25]),
        (T.HFlipTransform(100), [70, 20, 10, 4, -25]),
        (T.VFlipTransform(50), [30, 30, 10, 4, 155]),  # upside down: -25, and half a turn
        (T.CropTransform(10, 5, 60, 40), [20, 15, 10, 4, 25]),
        (T.PadTransform(1, 2, 3, 4), [31, 22, 10, 4, 25]),
        (T.ResizeTransform(50, 100, 100, 200), [60, 40, 20, 8, 25]),
        (T.RotationTransform(50, 100, 90), [20, 70, 10, 4, 115]),  # counter-clockwise, into 50 x 100
        (T.ExtentTransform((10, 0, 60, 50), output_size=(100, 100)), [40, 40, 20, 8, 25]),
        (T.TransformList([T.HFlipTransform(100), T.CropTransform(10, 5, 60, 40)]), [60, 15, 10, 4, -25]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_rotated_boxes_follow_the_image(transform, expected):
    boxes = np.array([[30.0, 20.0, 10.0, 4.0, 25.0]])
    np.testing.assert_allclose(transform.apply_rotated_box(boxes), [expected])
    assert boxes.tolist() == [[30, 20, 10, 4, 25]]


def test_uneven_resize_keeps_the_lengths_of_the_sides_of_rotated_boxes():
    turned = np.array([[10.0, 10.0, 8.0, 4.0, 90.0], [10.0, 10.0, 2.0, 4.0, 45.0]])
    resized = T.ResizeTransform(20, 20, 20, 60).apply_rotated_box(turned)
    # (2, 2) / sqrt(2) and (4, 4) / sqrt(2) become (6, 2) / sqrt(2) and (12, 4) / sqrt(2).
    np.testing.assert_allclose(resized, [[30, 10, 8, 12, 90], [30, 10, 20**0.5, 80**0.5, 71.56505118]])


def test_no_rotated_boxes_stay_none():
    assert T.ResizeTransform(20, 20, 40, 60).apply_rotated_box(np.zeros((0, 5))).shape == (0, 5)
    assert T.RotationTransform(20, 20, 30).apply_rotated_box(np.zeros((0, 5))).shape == (0, 5)
