import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import ViewMapper
from detlib.data import transforms as T
from detlib.data.view_mapper import TargetImage
from detlib.utils.errors import ConfigError, UnknownNameError

CROP = {"NAME": "RandomResizedCrop", "SIZE": 8}
SMALL_CROP = {"NAME": "RandomResizedCrop", "SIZE": 4}


@pytest.fixture(autouse=True)
def seed():
    np.random.seed(0)


@pytest.fixture
def cfg(tiny_cfg):
    """Two views of 8 pixels."""
    tiny_cfg.INPUT.VIEWS = [{"COUNT": 2, "AUGMENTATIONS": [CROP]}]
    return tiny_cfg


def noise(height, width):
    return np.random.RandomState(1).randint(0, 256, (height, width, 3)).astype(np.uint8)


def mapper_of(cfg, *views):
    cfg.INPUT.VIEWS = list(views)
    return ViewMapper(cfg)


# What the mapper makes of a sample.


def test_views_come_in_the_order_of_the_entries_each_of_its_size(cfg):
    entries = {"COUNT": 2, "AUGMENTATIONS": [CROP]}, {"COUNT": 3, "AUGMENTATIONS": [SMALL_CROP]}
    views = mapper_of(cfg, *entries)({"image": noise(20, 30)})["views"]
    assert [tuple(view.shape) for view in views] == [(3, 8, 8)] * 2 + [(3, 4, 4)] * 3
    assert {view.dtype for view in views} == {torch.uint8}


def test_views_of_a_sample_differ(cfg):
    first, second = mapper_of(cfg, {"COUNT": 2, "AUGMENTATIONS": [CROP]})({"image": noise(20, 30)})["views"]
    assert not torch.equal(first, second)


def test_one_view_is_the_default(cfg):
    assert len(mapper_of(cfg, {"AUGMENTATIONS": [CROP]})({"image": noise(9, 9)})["views"]) == 1


def test_every_view_starts_from_the_image_as_it_was(cfg):
    class Blacken(T.Augmentation):
        def get_transform(self, image):
            image[:] = 0  # Worse than any augmentation should be.
            return T.NoOpTransform()

    mapper = mapper_of(cfg, {"AUGMENTATIONS": []}, {"AUGMENTATIONS": []})
    mapper.views[0].augmentations.augs.append(Blacken())
    image = noise(6, 7)
    first, second = mapper({"image": image})["views"]
    assert first.max() == 0
    np.testing.assert_array_equal(second.permute(1, 2, 0).numpy(), image[:, :, ::-1])  # INPUT.FORMAT is BGR.


def test_image_is_read_once(cfg, image_file, monkeypatch):
    opened = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda *args: opened.append(args) or original(*args))
    mapper_of(cfg, {"COUNT": 8, "AUGMENTATIONS": [CROP]})({"file_name": image_file("a.png", 20, 30)})
    assert len(opened) == 1


def test_annotations_are_dropped_unread_and_other_keys_stay(cfg, image_file):
    sample = {
        "file_name": image_file("a.png", 20, 30),
        "height": 20,
        "width": 30,
        "image_id": 7,
        "label": 3,
        "sample_idx": 4,
        "annotations": "not even a list",
        "sem_seg_file_name": "missing.png",
        "pan_seg_file_name": "missing.png",
        "segments_info": None,
    }
    before = dict(sample)
    mapped = ViewMapper(cfg)(sample)
    assert sorted(mapped) == ["file_name", "height", "image_id", "label", "sample_idx", "views", "width"]
    assert (mapped["label"], mapped["sample_idx"]) == (3, 4)
    assert sample == before


def test_channels_are_in_the_order_of_the_config(cfg):
    red = np.zeros((4, 4, 3), dtype=np.uint8)
    red[:, :, 0] = 255
    for image_format, channel in (("RGB", 0), ("BGR", 2)):
        cfg.INPUT.FORMAT = image_format
        (view,) = mapper_of(cfg, {"AUGMENTATIONS": []})({"image": red})["views"]
        assert view[channel].min() == 255 and view.sum() == 16 * 255


GRAY = np.arange(20, 260, 10, dtype=np.uint8).reshape(4, 6)  # of 4 x 6 pixels
COLORS = np.stack([GRAY, GRAY // 2, GRAY // 4], axis=2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.fromarray(GRAY), np.stack([GRAY] * 3, axis=2)),
        (Image.fromarray(GRAY.astype(np.uint16) * 257), np.stack([GRAY] * 3, axis=2)),  # 257 * 255 = 65535
        (Image.fromarray(np.dstack([COLORS, GRAY])), COLORS),  # The last is how opaque a pixel is.
        (Image.fromarray(GRAY).convert("P"), np.stack([GRAY] * 3, axis=2)),
    ],
    ids=["gray", "16 bits", "RGBA", "palette"],
)
def test_views_of_any_kind_of_file_have_three_colors_of_one_byte(cfg, tmp_path, image, expected):
    cfg.INPUT.FORMAT = "RGB"
    image.save(tmp_path / "a.png")
    (view,) = mapper_of(cfg, {"AUGMENTATIONS": []})({"file_name": str(tmp_path / "a.png")})["views"]
    assert view.dtype == torch.uint8
    np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), expected)


def test_views_are_upright(cfg, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # The camera was turned by 90 degrees.
    Image.fromarray(COLORS).save(tmp_path / "a.png", exif=exif)
    cfg.INPUT.FORMAT = "RGB"
    (view,) = mapper_of(cfg, {"AUGMENTATIONS": []})({"file_name": str(tmp_path / "a.png")})["views"]
    np.testing.assert_array_equal(view.permute(1, 2, 0).numpy(), np.rot90(COLORS, -1))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 5)])
def test_images_smaller_than_a_crop_are_enlarged(cfg, size):
    jitter = {"NAME": "ColorJitter", "BRIGHTNESS": 0.8, "CONTRAST": 0.8, "SATURATION": 0.8, "HUE": 0.2}
    crop = {"NAME": "RandomResizedCrop", "SIZE": 8, "SCALE": [0.05, 0.14]}
    entry = {"COUNT": 4, "AUGMENTATIONS": [crop, jitter, {"NAME": "GaussianBlur"}, {"NAME": "RandomFlip"}]}
    views = mapper_of(cfg, entry)({"image": noise(*size)})["views"]
    assert [tuple(view.shape) for view in views] == [(3, 8, 8)] * 4


def test_split_makes_several_views_of_each(cfg):
    entry = {"COUNT": 2, "AUGMENTATIONS": [CROP], "SPLIT": {"NAME": "QuarterTurns"}}
    views = mapper_of(cfg, entry)({"image": noise(20, 30)})["views"]
    assert len(views) == 8
    for start in (0, 4):
        for turns in range(4):
            assert torch.equal(views[start + turns], torch.rot90(views[start], turns, (-2, -1)))
    assert not torch.equal(views[0], views[4])


def test_patches_of_the_recipe_have_64_pixels_for_any_image(cfg):
    # RelativeLoc: shorter side 292, crop of 255, gray, 3 x 3 cells of 85, a patch of 64 in each.
    augmentations = [
        {"NAME": "ResizeShortestEdge", "SHORT_EDGE_LENGTH": 292},
        {"NAME": "RandomCrop", "CROP_TYPE": "absolute", "CROP_SIZE": [255, 255]},
        {"NAME": "RandomGrayscale", "PROB": 0.66},
    ]
    entry = {"COUNT": 1, "AUGMENTATIONS": augmentations, "SPLIT": {"NAME": "GridPatches", "PATCH_SIZE": 64}}
    mapper = mapper_of(cfg, entry)
    for size in ((60, 90), (400, 300)):
        assert [tuple(view.shape) for view in mapper({"image": noise(*size)})["views"]] == [(3, 64, 64)] * 9


def test_mask_is_drawn_for_each_sample(cfg):
    mask = {"NAME": "RandomBlocks", "GRID_SIZE": 14, "NUM_HIDDEN": 75}
    mapper = mapper_of(cfg, {"AUGMENTATIONS": [CROP], "MASK": mask})
    masks = [mapper({"image": noise(20, 30)})["mask"] for _ in range(2)]
    assert [(mask.dtype, tuple(mask.shape), mask.sum().item()) for mask in masks] == [(torch.bool, (14, 14), 75)] * 2
    assert not torch.equal(*masks)


# The target image.


def test_target_image_is_the_same_crop_and_flip_in_another_size(cfg):
    cfg.INPUT.FORMAT = "RGB"
    augmentations = [{"NAME": "RandomFlip"}, {"NAME": "RandomResizedCrop", "SIZE": 24, "INTERP": "bicubic"}]
    mapper = mapper_of(cfg, {"AUGMENTATIONS": augmentations, "TARGET": {"SIZE": 12, "INTERP": "lanczos"}})
    rows, columns = np.mgrid[:64, :64] * 4
    image = np.stack([rows, columns, rows], axis=2).astype(np.uint8)  # Smooth, and unlike its mirror image.
    for _ in range(6):
        sample = mapper({"image": image})
        target = sample["target_image"]
        assert target.shape == (3, 12, 12) and target.dtype == torch.uint8
        shrunk = sample["views"][0].float().reshape(3, 12, 2, 12, 2).mean(dim=(2, 4))
        assert (target.float() - shrunk).abs().max() < 4  # Of values from 0 to 252.


@pytest.mark.parametrize("augmentations", [[CROP, {"NAME": "RandomFlip"}], [{"NAME": "RandomFlip"}, CROP]])
def test_target_image_of_the_size_and_interpolation_of_the_view_is_the_view(cfg, augmentations):
    mapper = mapper_of(cfg, {"AUGMENTATIONS": augmentations, "TARGET": {"SIZE": 8, "INTERP": "bilinear"}})
    for _ in range(6):
        sample = mapper({"image": noise(20, 30)})
        assert torch.equal(sample["target_image"], sample["views"][0])


def test_target_image_has_its_own_interpolation():
    image, crop = noise(20, 30), T.CropTransform(3, 4, 10, 12)
    steps = T.TransformList([crop, T.ResizeTransform(12, 10, 8, 8, Image.Resampling.BICUBIC)])
    expected = Image.fromarray(image[4:16, 3:13]).resize((5, 5), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(TargetImage(5)(image, steps), np.asarray(expected))


@pytest.mark.parametrize(
    ("augmentations", "message"),
    [
        ([{"NAME": "RandomFlip"}], "nothing in its AUGMENTATIONS resizes; use RandomResizedCrop"),
        (
            [{"NAME": "Resize", "SHAPE": 12}, {"NAME": "CenterCrop", "SIZE": 8}],
            "all but flips before the resizing in AUGMENTATIONS, but CropTransform comes after it",
        ),
    ],
)
def test_target_image_needs_a_resizing_with_nothing_but_flips_after_it(cfg, augmentations, message):
    mapper = mapper_of(cfg, {"AUGMENTATIONS": augmentations, "TARGET": {"SIZE": 4}})
    with pytest.raises(ConfigError, match=message):
        mapper({"image": noise(20, 30)})


# Mistakes in the config.


@pytest.mark.parametrize(
    ("views", "error", "message"),
    [
        (["RandomFlip"], ConfigError, r"INPUT.VIEWS\[0\] is 'RandomFlip'; expected \{COUNT: 2, AUGMENTATIONS"),
        ([{"COUNTS": 2, "AUGMENTATIONS": []}], ConfigError, r"VIEWS\[0\] has the unknown key 'COUNTS'; .*'COUNT'\?"),
        ([{"COUNT": 2}], ConfigError, r"VIEWS\[0\].AUGMENTATIONS is missing; it must be a list"),
        ([{"AUGMENTATIONS": "Flip"}], ConfigError, r"VIEWS\[0\].AUGMENTATIONS is 'Flip'; it must be a list"),
        ([{"COUNT": 0, "AUGMENTATIONS": []}], ConfigError, r"VIEWS\[0\].COUNT is 0; it must be a whole number, 1"),
        ([{"COUNT": 1.5, "AUGMENTATIONS": []}], ConfigError, r"COUNT is 1.5; it must be"),
        ([{"COUNT": True, "AUGMENTATIONS": []}], ConfigError, r"COUNT is True; it must be"),
        (
            [{"AUGMENTATIONS": [CROP]}, {"AUGMENTATIONS": [CROP, {"NAME": "RandomFlp"}]}],
            UnknownNameError,
            r"INPUT.VIEWS\[1\].AUGMENTATIONS\[1\]: .*did you mean 'RandomFlip'",
        ),
        (
            [{"AUGMENTATIONS": [], "SPLIT": {"NAME": "GridPatch"}}],
            UnknownNameError,
            r"INPUT.VIEWS\[0\].SPLIT: .*did you mean 'GridPatches'",
        ),
        ([{"AUGMENTATIONS": [], "SPLIT": "QuarterTurns"}], ConfigError, r"must be a node, as \{NAME: QuarterTurns\}"),
        (
            [{"AUGMENTATIONS": [], "MASK": {"NAME": "RandomBlocks", "NUM_HIDDEN": 0}}],
            ConfigError,
            r"INPUT.VIEWS\[0\].MASK: NUM_HIDDEN must be above 0",
        ),
        (
            [{"AUGMENTATIONS": [], "COUNT": 2, "MASK": {"NAME": "RandomBlocks"}}],
            ConfigError,
            r"VIEWS\[0\] has MASK, which belongs to one view, but its COUNT is 2",
        ),
        (
            [{"AUGMENTATIONS": [], "TARGET": {"SIZE": 4}}] * 2,
            ConfigError,
            "has TARGET in the entries 0, 1, but a sample has one target_image",
        ),
        ([{"AUGMENTATIONS": [], "TARGET": 112}], ConfigError, r"VIEWS\[0\].TARGET is 112; expected \{SIZE: 112"),
        ([{"AUGMENTATIONS": [], "TARGET": {"INTERP": 1}}], ConfigError, r"VIEWS\[0\].TARGET needs SIZE"),
        (
            [{"AUGMENTATIONS": [], "TARGET": {"SIZE": 4, "INTERPOLATION": 1}}],
            ConfigError,
            r"VIEWS\[0\].TARGET has the unknown key 'INTERPOLATION'; did you mean 'INTERP'",
        ),
        (
            [{"AUGMENTATIONS": [], "TARGET": {"SIZE": 4, "INTERP": "cubic"}}],
            ConfigError,
            r"VIEWS\[0\].TARGET: .*interp is 'cubic'; known: .*bicubic \(3\)",
        ),
        ([{"AUGMENTATIONS": [], "TARGET": {"SIZE": -4}}], ConfigError, r"VIEWS\[0\].TARGET: .* got -4"),
    ],
)
def test_mistake_in_the_config_is_named_in_one_line(tiny_cfg, views, error, message):
    tiny_cfg.INPUT.VIEWS = views
    with pytest.raises(error, match=message) as raised:
        ViewMapper(tiny_cfg)
    assert "\n" not in str(raised.value)
