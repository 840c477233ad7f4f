import numpy as np
import pytest
import torchvision.transforms.functional as TF
from PIL import Image, ImageFilter

from detlib.data import transforms as T

RED, GREEN, BLUE, GRAY = (200, 0, 0), (0, 200, 0), (0, 0, 200), (80, 80, 80)
COLORS = np.array([[RED, GREEN], [BLUE, GRAY]], dtype=np.uint8)


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


def noise(height=6, width=8, channels=3):
    return np.random.RandomState(1).randint(0, 256, (height, width, channels)).astype(np.uint8)


def augmented(augmentation, image):
    return T.apply_augmentations([augmentation], image)[0]


def steps_of(augmentation):
    return augmentation.get_transform(noise()).op.keywords["steps"]


def test_jitter_draws_factors_around_one_and_turns_around_zero():
    jitter = T.ColorJitter(brightness=0.4, contrast=0.2, saturation=3, hue=0.1)
    values = {name: [] for name in ("brightness", "contrast", "saturation", "hue")}
    for _ in range(200):
        for name, value in steps_of(jitter):
            values[name].append(value)
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.8, 1.2),
        ("saturation", 0, 4),
        ("hue", -0.1, 0.1),
    ]:
        margin = (high - low) * 0.05
        assert low <= min(values[name]) < low + margin
        assert high - margin < max(values[name]) <= high


def test_jitter_changes_order_and_leaves_out_what_has_no_strength():
    orders = {tuple(name for name, _ in steps_of(T.ColorJitter(brightness=0.4, hue=0.1))) for _ in range(30)}
    assert orders == {("brightness", "hue"), ("hue", "brightness")}
    np.testing.assert_array_equal(augmented(T.ColorJitter(), COLORS), COLORS)


def test_jitter_with_a_probability_is_applied_as_a_whole_or_not_at_all():
    policy = T.RandomApply(T.ColorJitter(0.4, 0.4, 0.2, 0.1), prob=0.8)
    transforms = [policy(T.AugInput(COLORS)) for _ in range(500)]
    applied = [transform for transform in transforms if not isinstance(transform, T.NoOpTransform)]
    assert 0.75 < len(applied) / 500 < 0.85
    assert {len(transform.op.keywords["steps"]) for transform in applied} == {4}


def test_gray_has_its_probability():
    kept = [isinstance(T.RandomGrayscale(0.66).get_transform(COLORS), T.NoOpTransform) for _ in range(500)]
    assert 0.29 < np.mean(kept) < 0.39


def test_jitter_does_what_torchvision_does():
    image = noise()
    transform = T.ColorJitter(0.4, 0.4, 0.4, 0.2).get_transform(image)
    expected = Image.fromarray(image)
    for name, value in transform.op.keywords["steps"]:
        expected = getattr(TF, f"adjust_{name}")(expected, value)
    np.testing.assert_array_equal(transform.apply_image(image), np.asarray(expected))


@pytest.mark.parametrize("make", [lambda f: T.ColorJitter(0.4, 0.4, 0.4, 0.3, f), lambda f: T.RandomGrayscale(1.0, f)])
def test_order_of_channels_does_not_matter_if_it_is_told(make):
    np.random.seed(3)
    rgb = augmented(make("RGB"), COLORS)
    np.random.seed(3)
    bgr = augmented(make("BGR"), COLORS[:, :, ::-1])
    np.testing.assert_array_equal(rgb, bgr[:, :, ::-1])


def test_gray_is_the_luma_in_three_channels():
    gray = augmented(T.RandomGrayscale(1.0), COLORS)
    lumas = [round(200 * 0.299), round(200 * 0.587), round(200 * 0.114), 80]
    assert gray.reshape(4, 3).tolist() == [[luma] * 3 for luma in lumas]


@pytest.mark.parametrize("augmentation", [T.RandomGrayscale(0.0), T.RandomErasing(0.0)])
def test_probability_of_zero_keeps_the_image(augmentation):
    assert isinstance(augmentation.get_transform(COLORS), T.NoOpTransform)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_blur_is_that_of_pillow_in_each_channel(channels):
    image = noise(channels=channels)
    blurred = augmented(T.GaussianBlur(1.5), image)
    assert blurred.shape == image.shape
    for i in range(channels):
        plane = Image.fromarray(image[:, :, i]).filter(ImageFilter.GaussianBlur(1.5))
        np.testing.assert_array_equal(blurred[:, :, i], np.asarray(plane))


def test_blur_draws_its_strength():
    strengths = [T.GaussianBlur((0.1, 2)).get_transform(COLORS).op.keywords["sigma"] for _ in range(100)]
    assert 0.1 <= min(strengths) < 0.2 and 1.9 < max(strengths) <= 2


def test_solarize_inverts_values_from_the_threshold_on():
    image = np.array([[[0, 127, 128], [129, 200, 255]]], dtype=np.uint8)
    assert augmented(T.Solarize(), image).tolist() == [[[0, 127, 127], [126, 55, 0]]]
    assert augmented(T.Solarize(), image).dtype == np.uint8
    assert augmented(T.Solarize(0), image).tolist() == (255 - image).tolist()


def test_erasing_paints_a_window_of_the_drawn_area():
    image = np.full((100, 100, 3), 50, dtype=np.uint8)
    erased = augmented(T.RandomErasing(1.0, scale=(0.2, 0.2), ratio=(1, 1), value=(1, 2, 3)), image)
    rows, columns = np.nonzero((erased != 50).all(axis=2))
    assert (rows.max() - rows.min() + 1, columns.max() - columns.min() + 1) == (45, 45)  # sqrt(0.2) = 0.447
    assert len(rows) == 45**2
    assert erased[rows[0], columns[0]].tolist() == [1, 2, 3]
    assert (image == 50).all()


def test_erasing_with_noise_paints_the_same_noise_again():
    image = np.zeros((20, 20, 3), dtype=np.uint8)
    transform = T.RandomErasing(1.0, value="random").get_transform(image)
    first = transform.apply_image(image)
    assert len(np.unique(first)) > 10
    np.testing.assert_array_equal(first, transform.apply_image(image))


@pytest.mark.parametrize(
    "augmentation",
    [T.ColorJitter(0.4, 0.4, 0.4, 0.1), T.RandomGrayscale(1.0), T.GaussianBlur(), T.Solarize(), T.RandomErasing(1.0)],
    ids=lambda augmentation: type(augmentation).__name__,
)
def test_boxes_and_labels_stay_in_place(augmentation):
    aug_input = T.AugInput(noise(), boxes=np.array([[1.0, 2, 3, 4]]), sem_seg=np.full((6, 8), 3, np.uint8))
    augmentation(aug_input)
    assert aug_input.boxes.tolist() == [[1, 2, 3, 4]]
    assert (aug_input.sem_seg == 3).all()
    assert aug_input.image.shape == (6, 8, 3) and aug_input.image.dtype == np.uint8


@pytest.mark.parametrize("augmentation", [T.ColorJitter(hue=0.1), T.RandomGrayscale()])
@pytest.mark.parametrize("image", [noise(channels=1), noise().astype(np.float32)])
def test_image_without_colors_of_one_byte_is_refused(augmentation, image):
    with pytest.raises(ValueError, match=rf"{type(augmentation).__name__} needs a uint8 image \(H, W, 3\)"):
        augmentation.get_transform(image)


def test_blur_refuses_floats():
    with pytest.raises(ValueError, match="GaussianBlur needs a uint8 image, got float32"):
        T.GaussianBlur().get_transform(noise().astype(np.float32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: T.ColorJitter(brightness=-0.1), "strengths"),
        (lambda: T.ColorJitter(hue=0.6), "hue at most 0.5"),
        (lambda: T.ColorJitter(image_format="L"), r"image_format \(INPUT.FORMAT\) must be RGB or BGR, got 'L'"),
        (lambda: T.GaussianBlur((2, 1)), "sigma must be"),
        (lambda: T.RandomErasing(value="noise"), "'random', got 'noise'"),
        (lambda: T.RandomErasing(scale=(0, 1)), "scale must be"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
