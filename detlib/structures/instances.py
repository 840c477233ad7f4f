"""What is known about the objects of one image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detlib.utils.errors import UnknownNameError

__all__ = ["Instances"]


class Instances:
    """Fields of equal length, each with one entry per object of an image.

    Fields are attributes: ``instances.gt_boxes = Boxes(...)``. A field is a tensor, an array, a list, or an object with
    ``len`` and indexing, such as :class:`Boxes`. Names that begin with an underscore are plain attributes.
    """

    def __init__(self, image_size: tuple[int, int], **kwargs: Any) -> None:
        """Start with the given fields, or with none.

        Args:
            image_size: height and width of the image that coordinates refer to.
        """
        self._image_size = image_size
        self._fields: dict[str, Any] = {}
        for name, value in kwargs.items():
            self.set(name, value)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self._image_size

    def __setattr__(self, name: str, val: Any) -> None:
        if name.startswith("_"):
            super().__setattr__(name, val)
        else:
            self.set(name, val)

    def __getattr__(self, name: str) -> Any:
        fields = self.__dict__.get("_fields", {})  # Not there yet while being copied or unpickled.
        if name not in fields:
            raise AttributeError(_unknown_field(name, fields))
        return fields[name]

    def set(self, name: str, value: Any) -> None:
        """Add a field or replace it.

        Raises:
            ValueError: its length differs from that of the other fields.
        """
        if hasattr(type(self), name):
            raise AttributeError(f"Instances cannot have a field {name!r}: the class itself has something of that name")
        for other, existing in self._fields.items():
            if other != name and len(existing) != len(value):
                raise ValueError(
                    f"field {name!r} has length {len(value)}, but {other!r} has length {len(existing)}; "
                    "each field needs one entry per object"
                )
        self._fields[name] = value

    def has(self, name: str) -> bool:
        """Whether there is a field of this name."""
        return name in self._fields

    def get(self, name: str) -> Any:
        """The field of this name; :class:`UnknownNameError`, a KeyError, if there is none."""
        if name not in self._fields:
            raise UnknownNameError(_unknown_field(name, self._fields))
        return self._fields[name]

    def remove(self, name: str) -> None:
        """Delete the field of this name."""
        self.get(name)
        del self._fields[name]

    def get_fields(self) -> dict[str, Any]:
        """All fields by name. Do not change the dict."""
        return self._fields

    def to(self, *args: Any, **kwargs: Any) -> Instances:
        """A copy in which ``to`` was called on every field that has it."""
        return self._map(lambda value: value.to(*args, **kwargs) if hasattr(value, "to") else value)

    def __getitem__(self, item: int | slice | Tensor) -> Instances:
        """Choose objects by a number, a slice, numbers or a mask; the result is Instances in each case."""
        index = self._as_slice_or_numbers(item)
        return self._map(lambda value: _select(value, index))

    def _as_slice_or_numbers(self, item: Any) -> slice | Tensor:
        if isinstance(item, slice):
            return item
        if isinstance(item, (int, np.integer)):
            if not -len(self) <= item < len(self):
                raise IndexError(f"there is no object {item} in Instances of length {len(self)}")
            start = int(item) % len(self)
            return slice(start, start + 1)
        index = torch.as_tensor(item)
        if index.dtype == torch.bool:
            if index.shape != (len(self),):
                raise IndexError(f"the mask has shape {tuple(index.shape)}, but there are {len(self)} objects")
            return index.nonzero()[:, 0]  # Once here, not once in every field.
        return index.reshape(-1).long()

    def _map(self, function: Callable[[Any], Any]) -> Instances:
        mapped = Instances(self._image_size)
        mapped._fields = {name: function(value) for name, value in self._fields.items()}
        return mapped

    def __len__(self) -> int:
        """Number of objects; 0 if there is no field."""
        return next((len(value) for value in self._fields.values()), 0)

    def __iter__(self) -> Iterator[Instances]:
        """Objects one by one, as Instances of length 1."""
        for i in range(len(self)):
            yield self[i]

    @staticmethod
    def cat(instance_lists: list[Instances]) -> Instances:
        """All objects of a list of Instances of the same image, with the same fields.

        Raises:
            ValueError: the list is empty, or image sizes or names of fields differ.
        """
        if not instance_lists:
            raise ValueError("Instances.cat needs at least one Instances to know the image size")
        first = instance_lists[0]
        for other in instance_lists[1:]:
            if other.image_size != first.image_size:
                raise ValueError(f"cannot join objects of images of size {first.image_size} and {other.image_size}")
            if other._fields.keys() != first._fields.keys():
                raise ValueError(
                    f"cannot join Instances with fields {_names(first._fields)} and {_names(other._fields)}"
                )
        if len(instance_lists) == 1:
            return first
        joined = Instances(first.image_size)
        for name in first._fields:
            joined.set(name, _concatenate(name, [instances._fields[name] for instances in instance_lists]))
        return joined

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"Instances(num_instances={len(self)}, image_size={self._image_size}, fields=[{fields}])"


def _names(fields: dict[str, Any]) -> str:
    return ", ".join(fields) or "(none)"


def _unknown_field(name: str, fields: dict[str, Any]) -> str:
    return f"Instances have no field {name!r}; the fields are: {_names(fields)}"


def _select(value: Any, index: slice | Tensor) -> Any:
    if isinstance(index, Tensor) and isinstance(value, (list, tuple)):
        return type(value)(value[i] for i in index.tolist())
    if isinstance(index, Tensor) and isinstance(value, np.ndarray):
        return value[index.cpu().numpy()]
    return value[index]


def _concatenate(name: str, values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(values, dim=0)
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, (list, tuple)):
        return type(first)(chain.from_iterable(values))
    if hasattr(type(first), "cat"):
        return type(first).cat(values)
    raise ValueError(f"cannot join field {name!r}: {type(first).__name__} has no 'cat'")
