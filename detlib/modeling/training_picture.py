"""A picture of what a detector sees while it trains, for subclasses that draw by themselves.

Models of detlib do not: the trainer's hook VisualizePredictions does.
"""

from typing import Any

import torch
from torch import Tensor

from detlib.utils.events import get_event_storage

__all__ = ["put_training_picture"]


def put_training_picture(sample: dict[str, Any], pred_boxes: Tensor, input_format: str | None, name: str) -> None:
    """Put a picture of an image into the event storage: ground truth on the left, predicted boxes on the right.

    Args:
        sample: of the batch, with ``image`` and ``instances``.
        pred_boxes: (R, 4), XYXY, in the coordinates of the network's input.
        input_format: channel order of the image; anything but "BGR" is drawn as it is.
        name: of the picture.
    """
    from torchvision.utils import draw_bounding_boxes

    image = sample["image"].to("cpu").clamp(0, 255).to(torch.uint8)
    gt_boxes = sample["instances"].gt_boxes.tensor
    sides = [
        draw_bounding_boxes(image, boxes.detach().cpu(), width=2) if len(boxes) else image
        for boxes in (gt_boxes, pred_boxes)
    ]
    picture = torch.cat(sides, dim=-1).numpy()
    if input_format == "BGR":
        picture = picture[::-1].copy()
    get_event_storage().put_image(f"left: ground truth; right: {name}", picture)
