"""Draw predictions on the frames of a video, in colours that stay with the objects."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from detlib.data.catalog import Metadata
from detlib.structures import BitMasks, Instances
from detlib.visualization.color_memory import ColorMemory
from detlib.visualization.masks import split_masks, to_bitmask
from detlib.visualization.panoptic import _PanopticPrediction
from detlib.visualization.vis_image import VisImage
from detlib.visualization.visualizer import ColorMode, Visualizer

__all__ = ["VideoVisualizer"]


class VideoVisualizer:
    """Frames are to be drawn one after the other, each by one of the methods; one visualizer is for one video.

    Args:
        metadata: of the dataset, for names and colours of classes.
        instance_mode: how predictions are coloured.
    """

    def __init__(self, metadata: Metadata | None, instance_mode: ColorMode = ColorMode.IMAGE) -> None:
        self.metadata = Metadata() if metadata is None else metadata
        self._instance_mode = instance_mode
        self._memory = ColorMemory(self.metadata.get("thing_colors"))

    def draw_instance_predictions(self, frame: np.ndarray, predictions: Instances) -> VisImage:
        """Draw the objects of the next frame.

        Args:
            frame: (H, W, 3) RGB image in [0, 255].
            predictions: with any of "pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints", and "ID",
                which trackers add; without it objects are recognised by the overlap of their boxes or masks.
        """
        predictions = predictions.to("cpu")
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else [0] * len(predictions)
        ids = [int(i) for i in predictions.ID] if predictions.has("ID") else None
        if ids is not None:
            colors = self._memory.by_identity(ids, classes)
        else:
            colors = self._memory.by_overlap(_boxes_of(predictions), classes)
        return self._on(frame)._draw_instances(predictions, colors, ids)

    def draw_sem_seg(self, frame: np.ndarray, sem_seg: Any, area_threshold: float | None = None) -> VisImage:
        """Draw the map of classes of the next frame.

        Args:
            frame: (H, W, 3) RGB image in [0, 255].
            sem_seg: (H, W) class ids.
            area_threshold: smallest number of pixels of a region that is drawn; None for 10.
        """
        return self._on(frame).draw_sem_seg(sem_seg, area_threshold=area_threshold)

    def draw_panoptic_seg_predictions(
        self,
        frame: np.ndarray,
        panoptic_seg: Any,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw the segments of the next frame.

        Args:
            frame: (H, W, 3) RGB image in [0, 255].
            panoptic_seg: (H, W) segment ids.
            segments_info: see :meth:`Visualizer.draw_panoptic_seg`.
            area_threshold: smallest number of pixels of a region that is drawn; None for 10.
            alpha: opacity.
        """
        prediction = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        things = list(prediction.instance_masks())
        boxes = _boxes_around([mask for mask, _ in things], frame.shape[:2])
        colors = self._memory.by_overlap(boxes, [info["category_id"] for _, info in things])
        return self._on(frame)._draw_panoptic(prediction, colors, area_threshold, alpha)

    def _on(self, frame: np.ndarray) -> Visualizer:
        return Visualizer(frame, self.metadata, instance_mode=self._instance_mode)


def _boxes_of(predictions: Instances) -> torch.Tensor:
    """(N, 4) or (N, 5) boxes, those around the masks or keypoints if there are no others."""
    if predictions.has("pred_boxes"):
        return getattr(predictions.pred_boxes, "tensor", predictions.pred_boxes)
    if predictions.has("pred_masks"):
        return _boxes_around(split_masks(predictions.pred_masks), predictions.image_size)
    if predictions.has("pred_keypoints") and len(predictions) > 0:
        points = torch.as_tensor(getattr(predictions.pred_keypoints, "tensor", predictions.pred_keypoints))[..., :2]
        return torch.cat([points.amin(dim=1), points.amax(dim=1)], dim=1)
    return torch.zeros(len(predictions), 4)


def _boxes_around(masks: Sequence[Any], image_size: tuple[int, int]) -> torch.Tensor:
    """(N, 4) boxes around masks in any format."""
    bitmasks = np.zeros((len(masks), *image_size), dtype=bool)
    for i, mask in enumerate(masks):
        bitmasks[i] = to_bitmask(mask, *image_size)
    return BitMasks(torch.from_numpy(bitmasks)).get_bounding_boxes().tensor
