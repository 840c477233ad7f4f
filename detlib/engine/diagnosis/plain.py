"""Batches as tensors, numbers and containers alone, so that files of them are read without running code."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor

from detlib.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from detlib.utils.errors import CheckpointError

__all__ = ["from_plain", "to_plain"]

# A class and the attribute that it is made from; its name marks it in the plain form.
_ATTRIBUTES = {
    Boxes: "tensor",
    RotatedBoxes: "tensor",
    BitMasks: "tensor",
    Keypoints: "tensor",
    PolygonMasks: "polygons",
}
_CLASSES = {cls.__name__: cls for cls in _ATTRIBUTES}
_MARK = "__class__"


def to_plain(value: Any) -> Any:
    """Other objects become their description, which :func:`from_plain` refuses by name."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value] if isinstance(value, list) else tuple(map(to_plain, value))
    if isinstance(value, Instances):
        return {_MARK: "Instances", "image_size": tuple(value.image_size), "fields": to_plain(value.get_fields())}
    if type(value) in _ATTRIBUTES:
        return {_MARK: type(value).__name__, "content": to_plain(getattr(value, _ATTRIBUTES[type(value)]))}
    return {_MARK: f"{type(value).__module__}.{type(value).__qualname__}", "repr": repr(value)}


def from_plain(value: Any) -> Any:
    """What :func:`to_plain` was given.

    Raises:
        CheckpointError: it was given an object of a class that it does not know.
    """
    if isinstance(value, Mapping):
        name = value.get(_MARK)
        if name is None:
            return {key: from_plain(item) for key, item in value.items()}
        if name == "Instances":
            return Instances(value["image_size"], **from_plain(value["fields"]))
        if name not in _CLASSES:
            raise CheckpointError(
                f"the batch has an object of the class {name}, which no dump can hold, so that the step cannot be made "
                "again from it; its random states and weights can still be read"
            )
        return _CLASSES[name](from_plain(value["content"]))
    if isinstance(value, (list, tuple)):
        return type(value)(map(from_plain, value))
    return value
