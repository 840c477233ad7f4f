"""From a sample of a dataset to several views of its image, for self-supervised learning."""

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlib.config import CfgNode, build_component, configurable
from detlib.data import transforms as T
from detlib.data.image_reading import image_of
from detlib.data.transforms.augmentation import as_resampling, as_size
from detlib.data.view_masks import VIEW_MASK_REGISTRY
from detlib.data.view_splits import VIEW_SPLIT_REGISTRY
from detlib.utils.errors import ConfigError, DetlibError
from detlib.utils.registry import Registry

__all__ = ["TargetImage", "View", "ViewMapper", "build_views", "image_to_tensor", "without_annotations"]

ANNOTATION_KEYS = frozenset(
    {
        "annotations",
        "sem_seg_file_name",
        "pan_seg_file_name",
        "segments_info",
        "proposal_boxes",
        "proposal_bbox_mode",
        "proposal_objectness_logits",
    }
)
"""Keys of a sample that say where in its image something is, which is not so in its views."""


@dataclass(frozen=True)
class View:
    """What one entry of ``INPUT.VIEWS`` asks for.

    Attributes:
        augmentations: of each of the views.
        count: how many there are.
        split: makes several of each, see VIEW_SPLIT_REGISTRY.
        target: makes the ``target_image`` of a sample.
        mask: draws its ``mask``, see VIEW_MASK_REGISTRY.
    """

    augmentations: T.AugmentationList
    count: int = 1
    split: Callable[[np.ndarray], list[np.ndarray]] | None = None
    target: "TargetImage | None" = None
    mask: Callable[[], np.ndarray] | None = None

    def images(self, image: np.ndarray) -> tuple[list[np.ndarray], T.TransformList]:
        """One view, or what it was split into, of an image (H, W, C), and how it was made."""
        aug_input = T.AugInput(image.copy())  # A transform may write into the image.
        transforms = self.augmentations(aug_input)
        return ([aug_input.image] if self.split is None else self.split(aug_input.image)), transforms


class TargetImage:
    """The crop that a view shows, in another size: what the visual words of CAE are taken from.

    The last resizing of the view is done with this size and interpolation instead; all else is the same.
    """

    def __init__(self, size: int | Sequence[int], interp: int | str = "lanczos") -> None:
        """
        Args:
            size: (height, width), or one number for both.
            interp: a PIL resampling method, or its name.
        """
        self.size, self.interp = as_size(size, "TARGET"), as_resampling(interp, "TARGET")

    def __call__(self, image: np.ndarray, transforms: T.Transform) -> np.ndarray:
        """
        Args:
            image: (H, W, C), as it was before the view was made.
            transforms: that made the view.
        """
        steps = _steps_of(transforms)
        place = max((i for i, step in enumerate(steps) if isinstance(step, T.ResizeTransform)), default=None)
        if place is None:
            raise ConfigError(
                "TARGET is the crop of the view in another size, but nothing in its AUGMENTATIONS resizes; use "
                "RandomResizedCrop"
            )
        resize = steps[place]
        steps[place] = T.ResizeTransform(resize.h, resize.w, *self.size, self.interp)
        for step in steps[place + 1 :]:  # Others may count pixels, of which there are now more or fewer.
            if not isinstance(step, T.HFlipTransform | T.VFlipTransform | T.NoOpTransform):
                raise ConfigError(
                    f"TARGET needs all but flips before the resizing in AUGMENTATIONS, but {type(step).__name__} comes "
                    "after it; change their order"
                )
        return T.TransformList(steps).apply_image(image.copy())


def _steps_of(transform: T.Transform) -> list[T.Transform]:
    if isinstance(transform, T.TransformList):
        return [step for part in transform.transforms for step in _steps_of(part)]
    return [transform]


class ViewMapper:
    """Read the image of a sample once, and augment it anew for each view. Annotations are dropped."""

    @configurable
    def __init__(self, *, views: Sequence[View], image_format: str) -> None:
        """
        Args:
            views: in the order in which they come.
            image_format: see detection_utils.read_image.
        """
        self.views = list(views)
        self.image_format = image_format

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"views": build_views(cfg), "image_format": cfg.INPUT.FORMAT}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn one sample into model input.

        Args:
            dataset_dict: of the form that DatasetCatalog gives; it is not changed.

        Returns:
            Its other keys, such as "label" and "sample_idx", and "views", a list of tensors (C, H, W) uint8; where
            ``INPUT.VIEWS`` asks for them, "target_image", likewise, and "mask" (h, w) bool, true where a patch is
            hidden.
        """
        image = image_of(dataset_dict, self.image_format)
        sample = without_annotations(dataset_dict)
        sample.pop("image", None)
        sample["views"] = []
        for view in self.views:
            for _ in range(view.count):
                images, transforms = view.images(image)
                sample["views"] += map(image_to_tensor, images)
            if view.target is not None:
                sample["target_image"] = image_to_tensor(view.target(image, transforms))
            if view.mask is not None:
                sample["mask"] = torch.from_numpy(view.mask())
        return sample


def image_to_tensor(image: np.ndarray) -> Tensor:
    """From (H, W, C) to (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def without_annotations(dataset_dict: dict[str, Any]) -> dict[str, Any]:
    """A sample without what is said of places in its image."""
    return {key: value for key, value in dataset_dict.items() if key not in ANNOTATION_KEYS}


def build_views(cfg: CfgNode) -> list[View]:
    """Build what ``INPUT.VIEWS`` lists.

    Raises:
        ConfigError: an entry has an unknown key, or a wrong value; it says which.
        UnknownNameError: there is no augmentation, split or mask of a name.
    """
    entries = cfg.INPUT.VIEWS
    for key, makes in (("TARGET", "target_image"), ("MASK", "mask")):
        having = [str(i) for i, entry in enumerate(entries) if isinstance(entry, Mapping) and key in entry]
        if len(having) > 1:
            raise ConfigError(
                f"INPUT.VIEWS has {key} in the entries {', '.join(having)}, but a sample has one {makes}; leave it in "
                "one of them"
            )
    return [_build_view(entry, cfg.INPUT.FORMAT, f"INPUT.VIEWS[{index}]") for index, entry in enumerate(entries)]


def _build_view(entry: Any, image_format: str, where: str) -> View:
    _check_keys(entry, {"COUNT", "AUGMENTATIONS", "SPLIT", "TARGET", "MASK"}, where, "{COUNT: 2, AUGMENTATIONS: [...]}")
    if not isinstance(entry.get("AUGMENTATIONS"), list | tuple):
        came = f"is {entry['AUGMENTATIONS']!r}" if "AUGMENTATIONS" in entry else "is missing"
        raise ConfigError(f"{where}.AUGMENTATIONS {came}; it must be a list, [{{NAME: RandomResizedCrop, SIZE: 224}}]")
    count = entry.get("COUNT", 1)
    if type(count) is not int or count < 1:
        raise ConfigError(f"{where}.COUNT is {count!r}; it must be a whole number, 1 or more")
    for key in ("TARGET", "MASK"):
        if key in entry and count > 1:
            raise ConfigError(f"{where} has {key}, which belongs to one view, but its COUNT is {count}; set it to 1")
    return View(
        T.AugmentationList(T.build_augmentations(entry["AUGMENTATIONS"], image_format, f"{where}.AUGMENTATIONS")),
        count,
        split=_build_part(VIEW_SPLIT_REGISTRY, entry.get("SPLIT"), f"{where}.SPLIT"),
        target=_build_target(entry.get("TARGET"), f"{where}.TARGET"),
        mask=_build_part(VIEW_MASK_REGISTRY, entry.get("MASK"), f"{where}.MASK"),
    )


def _build_part(registry: Registry, node: Any, where: str) -> Any:
    if node is None:
        return None
    try:
        return build_component(registry, node)
    except DetlibError as error:
        raise type(error)(f"{where}: {error}") from None


def _build_target(node: Any, where: str) -> TargetImage | None:
    if node is None:
        return None
    _check_keys(node, {"SIZE", "INTERP"}, where, "{SIZE: 112, INTERP: lanczos}")
    if "SIZE" not in node:
        raise ConfigError(f"{where} needs SIZE, in pixels, as in {{SIZE: 112, INTERP: lanczos}}")
    try:
        return TargetImage(**{key.lower(): value for key, value in node.items()})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _check_keys(node: Any, known: Collection[str], where: str, example: str) -> None:
    if not isinstance(node, Mapping):
        raise ConfigError(f"{where} is {node!r}; expected {example}")
    for key in node:
        if key not in known:
            close = difflib.get_close_matches(str(key).upper(), known, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{where} has the unknown key {key!r}; {hint}Known: {', '.join(sorted(known))}")
