import numpy as np
import pytest

from detlib.data import transforms as T
from detlib.utils.errors import ConfigError, ConfigTypeError, UnknownNameError


def test_every_public_augmentation_and_transform_has_its_name_in_the_registry():
    kinds = [getattr(T, name) for name in T.__all__]
    kinds = {kind for kind in kinds if isinstance(kind, type) and issubclass(kind, (T.Augmentation, T.Transform))}
    kinds -= {T.Augmentation, T.Transform}
    assert len(kinds) >= 30
    assert all(T.AUGMENTATION_REGISTRY.get(kind.__name__) is kind for kind in kinds)


def test_parts_become_augmentations_in_their_order():
    crop, flip = T.build_augmentations([{"NAME": "RandomResizedCrop", "SIZE": [4, 6]}, {"NAME": "RandomFlip"}])
    assert (type(crop), crop.size, crop.scale) == (T.RandomResizedCrop, (4, 6), (0.08, 1.0))
    assert type(flip) is T.RandomFlip


def test_transform_is_applied_as_it_is():
    augmentations = T.build_augmentations([{"NAME": "CropTransform", "X0": 1, "Y0": 0, "W": 2, "H": 2}])
    image, _ = T.apply_augmentations(augmentations, np.arange(12.0).reshape(3, 4))
    assert image.tolist() == [[1, 2], [5, 6]]


def test_augmentation_inside_of_another_is_built_too():
    parts = [{"NAME": "ColorJitter", "HUE": 0.1}, {"NAME": "Solarize", "THRESHOLD": 100}]
    (apply,) = T.build_augmentations(
        [{"NAME": "RandomApply", "PROB": 1, "TFM_OR_AUG": {"NAME": "AugmentationList", "AUGS": parts}}], "BGR"
    )
    jitter, solarize = apply.aug.augs
    assert (apply.prob, jitter.hue, solarize.threshold) == (1.0, 0.1, 100.0)
    assert jitter.image_format == "BGR"


def test_format_of_the_images_goes_to_what_takes_it():
    jitter, gray = T.build_augmentations(
        [{"NAME": "ColorJitter"}, {"NAME": "RandomGrayscale", "IMAGE_FORMAT": "RGB"}], "BGR"
    )
    assert (jitter.image_format, gray.image_format) == ("BGR", "RGB")


def test_augmentation_of_ones_own_is_found(monkeypatch):
    monkeypatch.setattr(T.AUGMENTATION_REGISTRY, "_obj_map", dict(T.AUGMENTATION_REGISTRY._obj_map))

    @T.AUGMENTATION_REGISTRY.register()
    class Darken(T.Augmentation):
        def __init__(self, by: float):
            self.by = by

        def get_transform(self, image):
            return T.ColorTransform(lambda image: image * (1 - self.by))

    image, _ = T.apply_augmentations(T.build_augmentations([{"NAME": "Darken", "BY": 0.5}]), np.full((1, 1), 8.0))
    assert image.tolist() == [[4]]


@pytest.mark.parametrize("name", ["RandomSaturation", "RandomLighting"])
def test_augmentation_for_rgb_only_is_refused_for_bgr(name):
    arguments = {"RandomSaturation": {"INTENSITY_MIN": 1, "INTENSITY_MAX": 1}, "RandomLighting": {"SCALE": 0.1}}
    part = {"NAME": name, **arguments[name]}
    assert len(T.build_augmentations([part], "RGB")) == 1
    with pytest.raises(ConfigError, match=rf"{name} takes the channels as red, green, blue, but INPUT.FORMAT is BGR"):
        T.build_augmentations([part], "BGR")


@pytest.mark.parametrize(
    ("part", "error", "message"),
    [
        ({"NAME": "RandomFlp"}, UnknownNameError, "did you mean 'RandomFlip'"),
        ({"NAME": "CenterCrop", "SIZES": 3}, ConfigTypeError, "CenterCrop takes no SIZES; did you mean SIZE"),
        ({"NAME": "CenterCrop"}, ConfigTypeError, "CenterCrop needs SIZE"),
        ({"NAME": "ColorJitter", "HUE": 1}, ConfigError, r"augmentations\[0\]: .*hue at most 0.5"),
        ({"SIZE": 3}, ConfigError, "AUGMENTATION needs a NAME"),
        ({"NAME": "Resize", "SHAPE": 8, "INTERP": "cubic"}, ConfigError, r"interp is 'cubic'; known: .*bicubic"),
        ("RandomFlip", ConfigError, r"an augmentation is \{NAME: ..., ...\}, got 'RandomFlip'"),
    ],
)
def test_part_with_a_mistake_says_which(part, error, message):
    with pytest.raises(error, match=message):
        T.build_augmentations([part])
