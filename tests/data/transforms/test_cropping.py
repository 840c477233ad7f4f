import numpy as np
import pytest

from detlib.data import transforms as T


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def black(height, width):
    return np.zeros((height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("crop_type", "crop_size", "expected"),
    [
        ("relative", (0.5, 0.25), (20, 15)),
        ("absolute", (30, 100), (30, 60)),
        ("absolute_range", (10, 10), (10, 10)),
        ("relative_range", (1.0, 1.0), (40, 60)),
    ],
)
def test_crop_size_follows_from_its_type(crop_type, crop_size, expected):
    crop = T.RandomCrop(crop_type, crop_size)
    assert crop.get_crop_size((40, 60)) == expected
    assert crop.get_transform(black(40, 60)).apply_image(black(40, 60)).shape[:2] == expected


def test_relative_range_is_drawn_between_its_ends():
    sizes = np.array([T.RandomCrop("relative_range", (0.5, 0.9)).get_crop_size((100, 100)) for _ in range(200)])
    assert (sizes.min(axis=0) >= (50, 90)).all()
    assert (sizes.max(axis=0) <= (100, 100)).all()
    assert len(np.unique(sizes[:, 0])) > 20


def test_crop_moves_everywhere():
    crops = [T.RandomCrop("absolute", (1, 1)).get_transform(black(2, 3)) for _ in range(100)]
    assert {(c.x0, c.y0) for c in crops} == {(x, y) for x in range(3) for y in range(2)}


@pytest.mark.parametrize(
    ("crop_type", "crop_size"),
    [("relativ", (0.5, 0.5)), ("relative", (50, 50)), ("absolute_range", (20, 10)), ("absolute", (10,))],
)
def test_crop_arguments_that_do_not_fit_are_refused(crop_type, crop_size):
    with pytest.raises(ValueError, match="RandomCrop"):
        T.RandomCrop(crop_type, crop_size)


def test_category_constraint_avoids_windows_of_one_class():
    labels = np.zeros((10, 10), dtype=np.uint8)
    labels[:, 5:] = 1
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (10, 4), single_category_max_area=0.8)
    shares = [(crop.get_transform(black(10, 10), labels).apply_segmentation(labels)).mean() for _ in range(30)]
    assert np.mean([0.2 <= share <= 0.8 for share in shares]) > 0.9  # Ten tries fail now and then.


def test_category_constraint_does_not_count_ignored_pixels():
    labels = np.full((4, 4), 255, dtype=np.uint8)
    labels[0, 0] = 1
    crop = T.RandomCrop_CategoryAreaConstraint("relative", (1.0, 1.0), 0.99, ignored_category=255)
    assert not crop._is_varied(labels)
    labels[0, 1] = 2
    assert crop._is_varied(labels)


def test_category_constraint_without_labels_is_refused():
    with pytest.raises(ValueError, match="sem_seg"):
        T.RandomCrop_CategoryAreaConstraint("relative", (0.5, 0.5), 0.75)(T.AugInput(black(4, 4)))


def test_fixed_size_crop_pads_small_images_at_the_right_and_bottom():
    aug_input = T.AugInput(black(2, 3), sem_seg=np.zeros((2, 3), np.uint8))
    T.FixedSizeCrop((4, 4), pad_value=9)(aug_input)
    assert aug_input.image[:, :, 0].tolist() == [[0, 0, 0, 9], [0, 0, 0, 9], [9] * 4, [9] * 4]
    assert aug_input.sem_seg[3].tolist() == [255] * 4


def test_fixed_size_crop_without_padding_leaves_small_images_small():
    image, _ = T.apply_augmentations([T.FixedSizeCrop((4, 4), pad=False)], black(2, 30))
    assert image.shape == (2, 4, 3)


def test_fixed_size_crop_is_undone_by_its_inverse():
    _, transform = T.apply_augmentations([T.FixedSizeCrop((4, 10))], black(8, 6))
    points = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points.copy())), points)


def test_extent_without_zoom_and_shift_is_the_image():
    image = np.random.randint(0, 256, (6, 8, 3)).astype(np.uint8)
    result, _ = T.apply_augmentations([T.RandomExtent((1, 1), (0, 0))], image)
    np.testing.assert_array_equal(result, image)


def test_extent_scales_the_size_and_keeps_object_sizes():
    transform = T.RandomExtent((0.5, 0.5), (0, 0)).get_transform(black(20, 40))
    assert transform.output_size == (10, 20)
    assert transform.apply_box(np.array([[10.0, 5.0, 14.0, 7.0]])).tolist() == [[0, 0, 4, 2]]


def iou_with(window, box):
    start, end = np.maximum(window[:2], box[:2]), np.minimum(window[2:], box[2:])
    intersection = np.clip(end - start, 0, None).prod()
    return intersection / ((window[2:] - window[:2]).prod() + (box[2:] - box[:2]).prod() - intersection)


def test_min_iou_crop_overlaps_every_box_enough():
    boxes = np.array([[10.0, 10, 60, 60], [30, 30, 90, 90]])
    policy = T.MinIoURandomCrop(min_ious=(0.3,))
    num_crops = 0
    for _ in range(50):
        crop = policy.get_transform(black(100, 100), boxes)
        if isinstance(crop, T.CropTransform) and policy.mode == 0.3:
            num_crops += 1
            window = np.array([crop.x0, crop.y0, crop.x0 + crop.w, crop.y0 + crop.h])
            assert min(iou_with(window, box) for box in boxes) >= 0.3
            assert (crop.h + 1) / crop.w >= 0.5 and crop.h / (crop.w + 1) <= 2
    assert num_crops > 5


def test_min_iou_crop_takes_images_without_objects():
    for boxes in (None, np.zeros((0, 4))):
        transform = T.MinIoURandomCrop().get_transform(black(50, 50), boxes)
        assert isinstance(transform, (T.NoOpTransform, T.CropTransform))
