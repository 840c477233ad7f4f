"""What is given to be drawn, in whichever form, as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

__all__ = ["common_length", "to_array"]


def to_array(values: Any) -> np.ndarray | None:
    """An array of numbers, tensors or anything with a ``.tensor`` (Boxes, RotatedBoxes, Keypoints)."""
    values = getattr(values, "tensor", values)
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        # NumPy has no bfloat16.
        values = values.float().numpy() if values.dtype == torch.bfloat16 else values.numpy()
    return None if values is None else np.asarray(values)


def common_length(**fields: Sequence[Any] | None) -> int:
    """The length that all fields have which are given; 0 if none is."""
    lengths = {name: len(values) for name, values in fields.items() if values is not None}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"got fields of different lengths, expected one entry per object in each: {lengths}")
    return max(lengths.values(), default=0)
