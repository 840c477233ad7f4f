"""From the images of a batch to the tensor that a backbone takes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.structures import ImageList
from detlib.utils.errors import DatasetError

__all__ = ["ImagePreprocessor", "instances_of", "output_size_of"]


class ImagePreprocessor(nn.Module):
    """Move images to the model's device, normalise each channel and pad them into one batch."""

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 0,
        padding_constraints: dict[str, int] | None = None,
    ) -> None:
        """
        Args:
            pixel_mean: of each channel, in the order of ``INPUT.FORMAT``.
            pixel_std: likewise.
            size_divisibility: the padded height and width are multiples of it; 0 for any.
            padding_constraints: as :meth:`ImageList.from_tensors` takes them.
        """
        super().__init__()
        # Not in the state_dict, as checkpoints of the field have no such keys.
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility
        self.padding_constraints = padding_constraints

    @property
    def device(self) -> torch.device:
        """Where the batch will be."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """
        Args:
            batched_inputs: each with an ``image`` of shape (C, H, W), uint8 or float, of any size.
        """
        images = [self._normalize(sample) for sample in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility, padding_constraints=self.padding_constraints)

    def _normalize(self, sample: dict[str, Any]) -> Tensor:
        image, channels = sample["image"], len(self.pixel_mean)
        if image.dim() != 3 or image.shape[0] != channels:
            raise DatasetError(
                f"the image of {_name(sample)} has the shape {tuple(image.shape)}; ({channels}, H, W) is expected, as "
                f"MODEL.PIXEL_MEAN has {channels} values. Set INPUT.FORMAT and MODEL.PIXEL_MEAN alike."
            )
        return (image.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std


def instances_of(batched_inputs: list[dict[str, Any]], device: torch.device) -> list:
    """The ground truth of a training batch, on ``device``."""
    for sample in batched_inputs:
        if "instances" not in sample:
            raise DatasetError(
                f"training needs 'instances', but {_name(sample)} has only {', '.join(sorted(sample))}. "
                f"Build the loader with DatasetMapper(cfg, is_train=True), or call model.eval() to predict."
            )
    return [sample["instances"].to(device) for sample in batched_inputs]


def output_size_of(sample: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in which predictions are wanted; by default those of the network's input."""
    return sample.get("height", image_size[0]), sample.get("width", image_size[1])


def _name(sample: dict[str, Any]) -> str:
    return repr(sample["file_name"]) if "file_name" in sample else "a sample"
