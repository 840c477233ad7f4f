"""Predicted masks, drawn into the image."""

import torch
from torch import Tensor

__all__ = ["paste_masks_in_image"]

# Pixels pasted at once on an accelerator; with temporaries about 1 GiB.
_MAX_PIXELS_PER_CHUNK = 2**27


def paste_masks_in_image(masks: Tensor, boxes: Tensor, image_shape: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Resize each mask to its box and put it at the place of the box.

    Args:
        masks: (N, M, M), probabilities.
        boxes: (N, 4), XYXY in pixels of the image, or Boxes.
        image_shape: height and width of the image.
        threshold: pixels of at least this probability belong to the object; if negative, no decision is made.

    Returns:
        (N, height, width), bool; if the threshold is negative uint8, the probability times 255.
    """
    boxes_xyxy = getattr(boxes, "tensor", boxes)
    if masks.dim() != 3 or masks.shape[1] != masks.shape[2] or len(masks) != len(boxes_xyxy):
        raise ValueError(
            f"pasting needs N square masks (N, M, M) and N boxes, got {tuple(masks.shape)} and {len(boxes_xyxy)} boxes"
        )
    height, width = image_shape
    pasted = torch.zeros(
        (len(masks), height, width), dtype=torch.bool if threshold >= 0 else torch.uint8, device=masks.device
    )
    # On a CPU work is what costs: each mask touches only its region. Elsewhere each call costs: whole images at once.
    regions = (
        _mask_regions(boxes_xyxy, height, width) if masks.device.type == "cpu" else _chunks(len(masks), *image_shape)
    )
    for chosen, rows, columns in regions:
        soft = _resample(masks[chosen], boxes_xyxy[chosen], rows, columns)
        pasted[chosen, rows, columns] = soft >= threshold if threshold >= 0 else (soft * 255).to(torch.uint8)
    return pasted


def _paste_masks_tensor_shape(
    masks: Tensor, boxes: Tensor, image_shape: tuple[Tensor, Tensor], threshold: float = 0.5
) -> Tensor:
    """As :func:`paste_masks_in_image`, for sizes that are tensors; older export code calls it."""
    return paste_masks_in_image(masks, boxes, (int(image_shape[0]), int(image_shape[1])), threshold)


def _mask_regions(boxes_xyxy: Tensor, height: int, width: int) -> list[tuple[slice, slice, slice]]:
    """For each mask its number, rows and columns, with a margin of a pixel."""
    low = (boxes_xyxy[:, :2].floor() - 1).clamp(min=0).long().tolist()
    limit = boxes_xyxy.new_tensor([width, height])
    high = torch.minimum(boxes_xyxy[:, 2:].ceil() + 1, limit).long().tolist()
    corners = zip(low, high, strict=True)
    return [
        (slice(i, i + 1), slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))
        for i, ((x0, y0), (x1, y1)) in enumerate(corners)
    ]


def _chunks(count: int, height: int, width: int) -> list[tuple[slice, slice, slice]]:
    size = max(1, _MAX_PIXELS_PER_CHUNK // max(1, height * width))
    return [(slice(i, i + size), slice(0, height), slice(0, width)) for i in range(0, count, size)]


def _resample(masks: Tensor, boxes_xyxy: Tensor, rows: slice, columns: slice) -> Tensor:
    """Bilinear values of masks at the centers of pixels, (N, rows, columns); 0 beyond the masks.

    Bilinear interpolation is linear in each axis, hence a product of three matrices.
    """
    with torch.autocast(masks.device.type, enabled=False):
        size, boxes_xyxy = masks.shape[-1], boxes_xyxy.float()
        by_row = _bilinear_weights(boxes_xyxy[:, 1], boxes_xyxy[:, 3], rows, size)
        by_column = _bilinear_weights(boxes_xyxy[:, 0], boxes_xyxy[:, 2], columns, size)
        return by_row @ masks.float() @ by_column.transpose(1, 2)


def _bilinear_weights(low: Tensor, high: Tensor, pixels: slice, size: int) -> Tensor:
    """How much each cell of a mask from ``low`` to ``high`` counts at each pixel, (N, pixels, size)."""
    centers = torch.arange(pixels.start, pixels.stop, device=low.device, dtype=low.dtype) + 0.5
    length = (high - low).clamp(min=1e-6)
    position = (centers - low[:, None]) * (size / length)[:, None] - 0.5
    cells = torch.arange(size, device=low.device, dtype=low.dtype)
    return (1 - (position[..., None] - cells).abs_()).clamp_(min=0)
