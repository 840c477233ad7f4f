"""Augmentations are random policies; each yields a deterministic :class:`Transform` that is applied to all data."""

import functools
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from fvcore.transforms.transform import Transform, TransformList
from PIL import Image

__all__ = [
    "AugInput",
    "Augmentation",
    "AugmentationList",
    "StandardAugInput",
    "TransformGen",
    "apply_augmentations",
    "apply_transform_gens",
]


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray):
        raise TypeError(f"augmentations take an image as numpy array (H, W) or (H, W, C), got {type(image).__name__}")
    if image.ndim not in (2, 3):
        raise ValueError(f"an image has the shape (H, W) or (H, W, C), got {image.shape}")
    if image.dtype != np.uint8 and not np.issubdtype(image.dtype, np.floating):
        raise TypeError(f"an image is uint8 in [0, 255] or floating point, got {image.dtype}; convert it first")


class Augmentation:
    """A policy that looks at its input and decides on a transform.

    A subclass defines ``get_transform`` with arguments named after the attributes of :class:`AugInput` that it wants
    to see, e.g. ``get_transform(self, image, boxes)``. An only argument with any other name is the image.
    """

    input_args: tuple[str, ...] | None = None
    """Attributes of the input to hand to ``get_transform``; None: found from its signature."""

    def __init__(self) -> None:
        super().__init__()

    def _init(self, params: dict[str, Any] | None = None) -> None:
        """Set attributes from ``locals()`` of a subclass's ``__init__``; projects call this."""
        for key, value in (params or {}).items():
            if key != "self" and not key.startswith("_"):
                setattr(self, key, value)

    def get_transform(self, *args: Any) -> Transform:
        """Return the transform to apply to this input; the only place where numbers are drawn."""
        raise NotImplementedError(f"{type(self).__name__} must define get_transform")

    def __call__(self, aug_input: "AugInput") -> Transform:
        """Transform the input in place and return the transform, to be applied to more data or inverted."""
        transform = self.get_transform(*self._arguments(aug_input))
        if not isinstance(transform, Transform):
            raise TypeError(f"{type(self).__name__}.get_transform must return a Transform, got {transform!r}")
        aug_input.transform(transform)
        return transform

    def _arguments(self, aug_input: "AugInput") -> list[Any]:
        names = self.input_args
        if names is None:
            names = self._names_in_signature
            if len(names) == 1 and not hasattr(aug_input, names[0]):
                names = ("image",)  # Old projects write get_transform(self, img).
        missing = [name for name in names if not hasattr(aug_input, name)]
        if missing:
            raise AttributeError(
                f"{type(self).__name__} needs {', '.join(names)}, but the {type(aug_input).__name__} has no "
                f"{', '.join(missing)}; set it on the input before augmenting"
            )
        return [getattr(aug_input, name) for name in names]

    @functools.cached_property  # Reading it takes as long as transforming a small image.
    def _names_in_signature(self) -> tuple[str, ...]:
        parameters = inspect.signature(self.get_transform).parameters.values()
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError(
                f"{type(self).__name__}.get_transform takes *args or **kwargs, so its inputs are unknown; name its "
                "arguments, or list them in the class attribute input_args"
            )
        return tuple(p.name for p in parameters if p.default is p.empty)

    def _rand_range(self, low: float = 1.0, high: float | None = None, size: Any = None) -> Any:
        """Draw uniformly from [low, high), or from [0, low) without high."""
        if high is None:
            low, high = 0, low
        return np.random.uniform(low, high, size)

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self).__init__).parameters if name != "self"]
        arguments = ", ".join(f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))
        return f"{type(self).__name__}({arguments})"

    __str__ = __repr__


class _Always(Augmentation):
    """An augmentation that returns one fixed transform."""

    input_args = ()

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        self.transform = transform

    def get_transform(self) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return repr(self.transform)


def as_augmentation(augmentation: Augmentation | Transform) -> Augmentation:
    """Make an augmentation of a plain transform; leave augmentations as they are."""
    if isinstance(augmentation, Augmentation):
        return augmentation
    if isinstance(augmentation, Transform):
        return _Always(augmentation)
    raise TypeError(f"expected an Augmentation or a Transform, got {augmentation!r}")


def as_size(size: int | Sequence[int], owner: str) -> tuple[int, int]:
    """Return (height, width) of a size that may be one number for both."""
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{owner}: a size is one number of pixels or (height, width), got {size!r}")
    return sides


def as_resampling(interp: int | str, owner: str) -> Image.Resampling:
    """Return a resampling method of PIL that may be given by its name, such as "bicubic"."""
    try:
        return Image.Resampling[interp.upper()] if isinstance(interp, str) else Image.Resampling(interp)
    except (KeyError, ValueError):
        known = ", ".join(f"{method.name.lower()} ({method.value})" for method in Image.Resampling)
        raise ValueError(f"{owner}: interp is {interp!r}; known: {known}") from None


class AugmentationList(Augmentation):
    """Augmentations applied one after the other; each sees what the former made."""

    def __init__(self, augs: Sequence[Augmentation | Transform]) -> None:
        super().__init__()
        self.augs = [as_augmentation(aug) for aug in augs]

    def __call__(self, aug_input: "AugInput") -> TransformList:
        return TransformList([aug(aug_input) for aug in self.augs])

    def __repr__(self) -> str:
        return f"AugmentationList({self.augs!r})"

    __str__ = __repr__


class AugInput:
    """What augmentations look at and change together: an image, optionally its boxes and its semantic labels.

    Subclasses may hold more; they then override :meth:`transform` so that everything stays in step.
    """

    def __init__(
        self, image: np.ndarray, *, boxes: np.ndarray | None = None, sem_seg: np.ndarray | None = None
    ) -> None:
        """
        Args:
            image: (H, W) or (H, W, C), uint8 in [0, 255] or floating point.
            boxes: (N, 4), absolute x0, y0, x1, y1.
            sem_seg: (H, W) class of every pixel.
        """
        _check_image(image)
        self.image = image
        self.boxes = boxes
        self.sem_seg = sem_seg

    def transform(self, tfm: Transform) -> None:
        """Apply a transform to everything held, in place."""
        self.image = tfm.apply_image(self.image)
        if self.boxes is not None:
            self.boxes = tfm.apply_box(self.boxes)
        if self.sem_seg is not None:
            self.sem_seg = tfm.apply_segmentation(self.sem_seg)

    def apply_augmentations(self, augmentations: Sequence[Augmentation | Transform]) -> TransformList:
        """Augment in place and return what was done."""
        return AugmentationList(augmentations)(self)


def apply_augmentations(
    augmentations: Sequence[Augmentation | Transform], inputs: AugInput | np.ndarray
) -> tuple[AugInput | np.ndarray, TransformList]:
    """Augment an image or an :class:`AugInput` and return it with what was done.

    >>> image, transform = apply_augmentations([T.RandomFlip()], image)
    >>> boxes = transform.apply_box(boxes)
    """
    if not isinstance(inputs, np.ndarray):
        return inputs, AugmentationList(augmentations)(inputs)
    aug_input = AugInput(inputs)
    transform = AugmentationList(augmentations)(aug_input)
    return aug_input.image, transform


TransformGen = Augmentation
StandardAugInput = AugInput
apply_transform_gens = apply_augmentations
