"""Augmentations by name, as ``INPUT.AUGMENTATIONS_TRAIN`` and ``INPUT.AUGMENTATIONS_TEST`` list them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fvcore.transforms.transform import Transform

from detlib.config import build_component
from detlib.data.transforms.augmentation import Augmentation, as_augmentation
from detlib.data.transforms.color import RandomLighting, RandomSaturation
from detlib.utils.errors import ConfigError, DetlibError
from detlib.utils.registry import Registry

__all__ = ["AUGMENTATION_REGISTRY", "build_augmentations"]

AUGMENTATION_REGISTRY = Registry("AUGMENTATION")
"""Augmentations and transforms that a config can name. Those of ``detlib.data.transforms`` are in it; add your own with

>>> @AUGMENTATION_REGISTRY.register()
... class Posterize(T.Augmentation): ...

An argument named ``image_format`` is given ``INPUT.FORMAT``.
"""

_RGB_ONLY = (RandomLighting, RandomSaturation)


def build_augmentations(
    parts: Sequence[Any], image_format: str = "RGB", where: str = "augmentations"
) -> list[Augmentation]:
    """Build what a list of ``{NAME: X, ...}`` names, keys being arguments in upper case::

        - {NAME: RandomResizedCrop, SIZE: 224}
        - {NAME: RandomApply, PROB: 0.8, TFM_OR_AUG: {NAME: ColorJitter, BRIGHTNESS: 0.4, CONTRAST: 0.4}}

    Args:
        image_format: of the images that they will get, such as "BGR".
        where: what errors call the list.

    Raises:
        UnknownNameError: there is no augmentation of that name.
        ConfigError: it has no such argument, or not with that value, or is for images of another format.
    """
    augmentations = []
    for index, part in enumerate(parts):
        try:
            augmentations.append(as_augmentation(_build(part, image_format)))
        except DetlibError as error:
            raise type(error)(f"{where}[{index}]: {error}") from None
        except (TypeError, ValueError) as error:  # Of a constructor, about the values.
            raise ConfigError(f"{where}[{index}]: {error}") from error
    return augmentations


def _build(part: Any, image_format: str) -> Augmentation | Transform:
    if not isinstance(part, Mapping):
        raise ConfigError(f"an augmentation is {{NAME: ..., ...}}, got {part!r}")
    part = {key: _build_inner(value, image_format) for key, value in part.items()}
    built = build_component(AUGMENTATION_REGISTRY, part, image_format=image_format)
    if isinstance(built, _RGB_ONLY) and image_format != "RGB":
        raise ConfigError(
            f"{part['NAME']} takes the channels as red, green, blue, but INPUT.FORMAT is {image_format}; set "
            "INPUT.FORMAT: RGB, or use ColorJitter"
        )
    return built


def _build_inner(value: Any, image_format: str) -> Any:
    """Augmentations inside of others, alone or in a list; other values stay as they are."""
    if isinstance(value, Mapping):
        return _build(value, image_format)
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return [_build(item, image_format) for item in value]
    return value
