"""Images of different sizes in one tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["ImageList"]


class ImageList:
    """A batch of images, padded at the right and at the bottom to one size.

    Attributes:
        tensor: (N, ..., H, W).
        image_sizes: height and width of each image without its padding.
    """

    def __init__(self, tensor: Tensor, image_sizes: list[tuple[int, int]]) -> None:
        self.tensor = tensor
        self.image_sizes = image_sizes

    def __len__(self) -> int:
        return len(self.image_sizes)

    def __getitem__(self, idx: int) -> Tensor:
        """Image ``idx`` without its padding, (..., h, w)."""
        height, width = self.image_sizes[idx]
        return self.tensor[idx, ..., :height, :width]

    def to(self, *args: Any, **kwargs: Any) -> ImageList:
        """The batch after ``tensor.to`` with these arguments."""
        return ImageList(self.tensor.to(*args, **kwargs), self.image_sizes)

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @staticmethod
    def from_tensors(
        tensors: list[Tensor],
        size_divisibility: int = 0,
        pad_value: float = 0.0,
        padding_constraints: dict[str, int] | None = None,
    ) -> ImageList:
        """Pad images to the size of the largest and put them into one tensor.

        Args:
            tensors: images (..., h, w), equal in all but height and width.
            size_divisibility: height and width of the batch are rounded up to multiples of this; 0 is as 1.
            padding_constraints: "square_size" makes the batch a square of that size, "size_divisibility" replaces the
                argument of that name; backbones state what they need in this form.

        Raises:
            ValueError: there is no image, or images differ in more than height and width or exceed the square.
        """
        if not tensors:
            raise ValueError("an ImageList needs at least one image, got an empty list")
        if any(image.shape[:-2] != tensors[0].shape[:-2] for image in tensors):
            raise ValueError(
                f"images of a batch must be equal in all but height and width, got {[tuple(t.shape) for t in tensors]}"
            )
        sizes = [(image.shape[-2], image.shape[-1]) for image in tensors]
        height, width = _batch_size(sizes, size_divisibility, padding_constraints or {})
        if sizes == [(height, width)]:
            return ImageList(tensors[0][None], sizes)
        if all(size == (height, width) for size in sizes):
            return ImageList(torch.stack(tensors), sizes)
        batch = tensors[0].new_full((len(tensors), *tensors[0].shape[:-2], height, width), pad_value)
        for padded, image, (h, w) in zip(batch, tensors, sizes, strict=True):
            padded[..., :h, :w].copy_(image)
        return ImageList(batch, sizes)


def _batch_size(sizes: list[tuple[int, int]], divisibility: int, constraints: dict[str, int]) -> tuple[int, int]:
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    square = constraints.get("square_size", 0)
    if square > 0:
        if max(height, width) > square:
            raise ValueError(
                f"an image of the batch is larger ({height} x {width} at most) than the square of {square} pixels to "
                "which the backbone pads; resize images to at most that (INPUT.MAX_SIZE_TRAIN, INPUT.MAX_SIZE_TEST)"
            )
        height = width = square
    divisibility = max(1, constraints.get("size_divisibility", divisibility))
    return -(-height // divisibility) * divisibility, -(-width // divisibility) * divisibility
