import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image

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


def noise(height, width):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(50, 80), (3, 200), (200, 3), (1, 1)])
@pytest.mark.parametrize(("size", "shape"), [(8, (8, 8)), ((6, 9), (6, 9))])
def test_resized_crop_has_a_fixed_size_for_any_image(height, width, size, shape):
    for _ in range(5):
        image, _ = T.apply_augmentations([T.RandomResizedCrop(size)], black(height, width))
        assert image.shape == (*shape, 3)


def test_windows_of_resized_crop_are_within_the_ranges_of_area_and_ratio():
    policy = T.RandomResizedCrop(8, scale=(0.1, 0.5), ratio=(0.5, 2))
    crops = [policy.get_transform(black(400, 600)).transforms[0] for _ in range(200)]
    areas = np.array([crop.w * crop.h for crop in crops]) / (400 * 600)
    ratios = np.array([crop.w / crop.h for crop in crops])
    assert 0.099 < areas.min() < 0.15 and 0.4 < areas.max() < 0.501
    assert 0.49 < ratios.min() < 0.6 and 1.7 < ratios.max() < 2.02
    assert abs(np.log(ratios).mean()) < 0.1  # As many tall ones as wide ones.
    assert all(crop.x0 + crop.w <= 600 and crop.y0 + crop.h <= 400 for crop in crops)


def test_area_of_a_window_is_uniform_and_its_ratio_is_of_width_over_height():
    policy = T.RandomResizedCrop(8, scale=(0.1, 0.5), ratio=(1, 2))
    crops = [policy.get_transform(black(400, 600)).transforms[0] for _ in range(400)]
    # 0.3 in the mean; were the logarithm uniform, 0.4 / log(5) = 0.249.
    assert np.mean([crop.w * crop.h for crop in crops]) / (400 * 600) == pytest.approx(0.3, abs=0.025)
    assert all(crop.w >= crop.h for crop in crops)


def test_window_may_be_anywhere():
    policy = T.RandomResizedCrop(8, scale=(0.25, 0.25), ratio=(1, 1))
    crops = [policy.get_transform(black(4, 4)).transforms[0] for _ in range(100)]
    assert {(crop.x0, crop.y0) for crop in crops} == {(x, y) for x in (0, 1, 2) for y in (0, 1, 2)}


def test_image_too_long_for_any_window_is_cropped_in_the_middle():
    (crop, _) = T.RandomResizedCrop(8, scale=(1, 1), ratio=(1, 2)).get_transform(black(10, 100)).transforms
    assert (crop.x0, crop.y0, crop.w, crop.h) == (40, 0, 20, 10)


def test_ten_windows_are_tried_before_the_middle_is_taken():
    # 90 % of 100 x 100 pixels fit for ratios below 1.122 (which are rounded to 100 pixels) and above its inverse: for
    # 0.115 / 0.288 = 40 % of those drawn. That none of ten fits has a probability of 0.6 ** 10 = 0.6 %.
    policy = T.RandomResizedCrop(8, scale=(0.9, 0.9))
    crops = [policy.get_transform(black(100, 100)).transforms[0] for _ in range(2000)]
    assert 4 <= sum((crop.w, crop.h) == (100, 100) for crop in crops) <= 24


@pytest.mark.parametrize("interp", [Image.Resampling.BICUBIC, 3, "bicubic", "lanczos", "NEAREST"])
def test_resized_crop_interpolates_as_told(interp):
    image = noise(20, 20)
    resized, _ = T.apply_augmentations([T.RandomResizedCrop(9, scale=(1, 1), ratio=(1, 1), interp=interp)], image)
    method = Image.Resampling[interp.upper()] if isinstance(interp, str) else interp
    np.testing.assert_array_equal(resized, np.asarray(Image.fromarray(image).resize((9, 9), method)))


def test_resized_crop_moves_boxes_masks_and_polygons_alike():
    mask = np.zeros((40, 60), dtype=np.uint8)
    mask[10:30, 20:50] = 1
    policy = T.RandomResizedCrop((80, 120), scale=(0.9, 0.9), ratio=(1.5, 1.5))
    transform = policy.get_transform(black(40, 60))
    rows, columns = np.nonzero(transform.apply_segmentation(mask))
    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(transform.apply_box(np.array([[20.0, 10, 50, 30]]))[0], box, atol=1)
    (polygon,) = transform.apply_polygons([np.array([[20.0, 10], [50, 10], [50, 30], [20, 30]])])
    np.testing.assert_allclose([*polygon.min(axis=0), *polygon.max(axis=0)], box, atol=1)


@pytest.mark.parametrize(("height", "width"), [(6, 9), (7, 8), (5, 5), (3, 9), (2, 3)])
def test_center_crop_agrees_with_torchvision(height, width):
    image = noise(height, width)
    cropped, _ = T.apply_augmentations([T.CenterCrop((4, 5))], image)
    expected = TF.center_crop(torch.from_numpy(image).permute(2, 0, 1), [4, 5])
    np.testing.assert_array_equal(cropped, expected.permute(1, 2, 0).numpy())


def test_center_crop_pads_labels_with_their_own_value():
    aug_input = T.AugInput(black(2, 2), sem_seg=np.zeros((2, 2), np.uint8), boxes=np.array([[0.0, 0, 2, 2]]))
    T.CenterCrop(4, pad_value=9)(aug_input)
    assert aug_input.image[:, :, 0].tolist() == [[9] * 4, [9, 0, 0, 9], [9, 0, 0, 9], [9] * 4]
    assert aug_input.sem_seg[0].tolist() == [255] * 4
    assert aug_input.boxes.tolist() == [[1, 1, 3, 3]]


def test_padded_crop_reaches_every_place_and_keeps_the_size():
    policy = T.RandomPaddedCrop(3, padding=1, pad_value=7)
    image = np.arange(9, dtype=np.uint8).reshape(3, 3) + 10
    crops = [policy.get_transform(image).apply_image(image) for _ in range(100)]
    assert {crop.shape for crop in crops} == {(3, 3)}
    assert {crop[1, 1] for crop in crops} == set(range(10, 19))
    corner = next(crop for crop in crops if crop[1, 1] == 10)
    assert corner.tolist() == [[7, 7, 7], [7, 10, 11], [7, 13, 14]]


def test_padded_crop_is_undone_by_its_inverse():
    transform = T.RandomPaddedCrop(32, padding=4).get_transform(black(32, 32))
    points = np.array([[3.0, 4.0]])
    np.testing.assert_allclose(transform.inverse().apply_coords(transform.apply_coords(points.copy())), points)


def test_image_too_small_for_a_padded_crop_is_refused():
    with pytest.raises(ValueError, match=r"28 x 40 .*too small for the size \(32, 32\)"):
        T.RandomPaddedCrop(32, padding=4).get_transform(black(20, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.RandomResizedCrop((1, 2, 3)), r"RandomResizedCrop: a size .*got \(1, 2, 3\)"),
        (lambda: T.CenterCrop(0), "CenterCrop: a size .*got 0"),
        (lambda: T.RandomPaddedCrop(2.5, 1), "RandomPaddedCrop: a size .*got 2.5"),
        (lambda: T.RandomResizedCrop(8, scale=(0, 1)), "scale must be"),
        (lambda: T.RandomResizedCrop(8, ratio=(2, 1)), r"ratio must be .*got \(2, 1\)"),
    ],
)
def test_sizes_and_ranges_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
