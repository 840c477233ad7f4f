"""Draw what a model predicts, and what it is taught, on images.

``Visualizer(image_rgb, metadata).draw_instance_predictions(instances).save("drawn.jpg")``
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from enum import Enum, unique
from typing import Any

import numpy as np
import torch

from detlib.data.catalog import Metadata
from detlib.structures import Instances
from detlib.visualization.arrays import common_length, to_array
from detlib.visualization.colors import RGB, class_color, jitter
from detlib.visualization.dataset_dict import annotation_boxes, annotation_field, panoptic_map, semantic_map
from detlib.visualization.draw import Canvas, rotated_box_corners
from detlib.visualization.image_classes import MAX_CLASSES, labelled_class_lines, predicted_class_lines
from detlib.visualization.keypoints import limbs
from detlib.visualization.labels import _create_text_labels
from detlib.visualization.masks import mask_rings, split_masks, to_bitmask
from detlib.visualization.panoptic import _PanopticPrediction
from detlib.visualization.vis_image import VisImage

__all__ = ["ColorMode", "Visualizer"]

OFF_WHITE: RGB = (1.0, 1.0, 240 / 255)
KEYPOINT_COLOR: RGB = (1.0, 0.35, 0.1)
# Without colours in the metadata, stuff class i must not look like thing class i.
STUFF_COLOR_OFFSET = 5


@unique
class ColorMode(Enum):
    """How predictions are coloured; objects have the colour of their class, in shades."""

    IMAGE = 0
    """Colours over the image, which stays visible."""
    SEGMENTATION = 1
    """Nearly opaque colours, so that errors of the masks show."""
    IMAGE_BW = 2
    """As IMAGE, and gray where no object is."""


class Visualizer(Canvas):
    """Draws on a copy of an image; each ``draw_*`` and ``overlay_*`` method returns the :class:`VisImage`.

    Widths of lines and sizes of letters follow the size of the output. Letters are those of
    ``matplotlib.rcParams["font.family"]``.

    Args:
        img_rgb: (H, W, 3) RGB image in [0, 255].
        metadata: of the dataset, for names and colours of classes and the keypoint rules; numbers are shown without it.
        scale: size of the output relative to the image.
        instance_mode: how predictions are coloured.
        font_size_scale: makes letters larger or smaller.
    """

    def __init__(
        self,
        img_rgb: np.ndarray,
        metadata: Metadata | None = None,
        scale: float = 1.0,
        instance_mode: ColorMode = ColorMode.IMAGE,
        font_size_scale: float = 1.0,
    ) -> None:
        super().__init__(img_rgb, scale, font_size_scale)
        self.metadata = Metadata() if metadata is None else metadata
        self.cpu_device = torch.device("cpu")
        self.keypoint_threshold = 0.05
        self._instance_mode = instance_mode

    def draw_instance_predictions(self, predictions: Instances, jittering: bool = True) -> VisImage:
        """Draw detected objects.

        Args:
            predictions: with any of "pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints".
            jittering: whether objects of one class have different shades.
        """
        classes = predictions.pred_classes.tolist() if predictions.has("pred_classes") else [0] * len(predictions)
        return self._draw_instances(predictions, self._class_colors(classes, jittering))

    def _draw_instances(
        self, predictions: Instances, colors: Sequence[RGB], ids: Sequence[int] | None = None
    ) -> VisImage:
        """Draw detected objects in given colours, identities before their names."""
        fields = predictions.to(self.cpu_device).get_fields()
        classes = fields["pred_classes"].tolist() if "pred_classes" in fields else None
        scores = fields["scores"].tolist() if "scores" in fields else None
        masks = split_masks(fields["pred_masks"]) if "pred_masks" in fields else None
        boxes = fields.get("pred_boxes")
        labels = _create_text_labels(classes, scores, self.metadata.get("thing_classes"))
        if ids is not None:
            labels = [f"#{i} {label}".strip() for i, label in zip(ids, labels or [""] * len(ids), strict=True)]
        if self._instance_mode is ColorMode.IMAGE_BW:
            self._gray_outside(self._covered(boxes, masks))
        return self.overlay_instances(
            boxes=boxes,
            labels=labels,
            masks=masks,
            keypoints=fields.get("pred_keypoints"),
            assigned_colors=colors,
            alpha=0.8 if self._instance_mode is ColorMode.SEGMENTATION else 0.45,
        )

    def draw_sem_seg(
        self,
        sem_seg: Any,
        area_threshold: float | None = None,
        alpha: float = 0.8,
        draw_text: bool = True,
        edge_color: Any = OFF_WHITE,
    ) -> VisImage:
        """Draw a map of classes.

        Args:
            sem_seg: (H, W) class ids; ids without a name in ``metadata.stuff_classes``, such as 255, are left out.
            area_threshold: smallest number of pixels of a region that is drawn; None for 10.
            alpha: opacity.
            draw_text: whether to write the names.
            edge_color: of the outlines.
        """
        sem_seg = to_array(sem_seg)
        names = self.metadata.get("stuff_classes")
        ids, areas = np.unique(sem_seg, return_counts=True)
        num_classes = 255 if names is None else len(names)
        classes = [int(i) for i in ids[np.argsort(-areas, kind="stable")] if 0 <= i < num_classes]
        masks = [sem_seg == i for i in classes]
        labels = _create_text_labels(classes, None, names) if draw_text else None
        colors = self._class_colors(classes, jittering=False, kind="stuff")
        return self._draw_segments(masks, labels, colors, alpha, area_threshold, edge_color)

    def draw_panoptic_seg(
        self,
        panoptic_seg: Any,
        segments_info: list[dict[str, Any]] | None,
        area_threshold: float | None = None,
        alpha: float = 0.7,
    ) -> VisImage:
        """Draw the segments of stuff and of things.

        Args:
            panoptic_seg: (H, W) segment ids.
            segments_info: "id", "category_id", "isthing" and perhaps "score" of each segment; None where ids are
                category_id * ``metadata.label_divisor`` + number.
            area_threshold: smallest number of pixels of a region that is drawn; None for 10.
            alpha: opacity.
        """
        prediction = _PanopticPrediction(panoptic_seg, segments_info, self.metadata)
        return self._draw_panoptic(prediction, None, area_threshold, alpha)

    draw_panoptic_seg_predictions = draw_panoptic_seg

    def _draw_panoptic(
        self,
        prediction: _PanopticPrediction,
        thing_colors: Sequence[RGB] | None,
        area_threshold: float | None,
        alpha: float,
    ) -> VisImage:
        """Draw the segments, things in given colours or else in those of their classes."""
        if self._instance_mode is ColorMode.IMAGE_BW:
            self._gray_outside(prediction.non_empty_mask())
        masks, labels, colors = [], [], []
        for kind, segments in (("stuff", prediction.semantic_masks()), ("thing", prediction.instance_masks())):
            part = list(segments)
            masks += [mask for mask, _ in part]
            if kind == "thing" and thing_colors is not None:
                colors += thing_colors
            else:
                colors += self._class_colors([info["category_id"] for _, info in part], kind == "thing", kind)
            names = self.metadata.get(f"{kind}_classes")
            for _, info in part:
                scores = [info["score"]] if "score" in info else None
                labels += _create_text_labels([info["category_id"]], scores, names, [info.get("iscrowd", 0)])
        return self._draw_segments(masks, labels, colors, alpha, area_threshold, OFF_WHITE)

    def draw_classification(
        self, pred_score: Any, pred_label: int | Sequence[int] | None = None, max_classes: int = MAX_CLASSES
    ) -> VisImage:
        """Write the classes of the image with the highest scores in its top left corner, the best first.

        Args:
            pred_score: (C,) scores in [0, 1].
            pred_label: the predicted class, or classes; the others are gray. With None, none is.
            max_classes: how many classes are written, unless more are predicted.
        """
        return self._draw_lines(*predicted_class_lines(pred_score, pred_label, max_classes, self.metadata))

    def draw_image_labels(self, dic: dict[str, Any]) -> VisImage:
        """Write the classes that a sample is labelled with in the top left corner.

        Args:
            dic: with any of "label", "labels", "ignored_labels", and "score" (C,) for soft labels.
        """
        return self._draw_lines(*labelled_class_lines(dic, self.metadata))

    def draw_dataset_dict(self, dic: dict[str, Any]) -> VisImage:
        """Draw the annotations of a sample in the standard dataset format, crowd regions hatched.

        Args:
            dic: with any of "annotations", "sem_seg", "sem_seg_file_name", "pan_seg_file_name" and "segments_info", or
                with classes of the image, as :meth:`draw_image_labels` takes them.
        """
        panoptic, semantic = panoptic_map(dic), semantic_map(dic)
        if panoptic is not None:
            self.draw_panoptic_seg(panoptic, dic.get("segments_info"), alpha=0.5)
        elif semantic is not None:
            self.draw_sem_seg(semantic, alpha=0.5)
        annotations = dic.get("annotations") or []
        classes = annotation_field(annotations, "category_id")
        crowd = [bool(annotation.get("iscrowd", 0)) for annotation in annotations]
        labels = _create_text_labels(classes, None, self.metadata.get("thing_classes"), crowd)
        in_segments = panoptic is not None  # Segments show the names and areas of objects already.
        self._overlay(
            boxes=annotation_boxes(annotations),
            labels=None if in_segments else labels,
            masks=None if in_segments else annotation_field(annotations, "segmentation"),
            keypoints=annotation_field(annotations, "keypoints"),
            colors=self._class_colors(classes or [0] * len(annotations)),
            alpha=0.45,
            crowd=crowd,
        )
        return self.draw_image_labels(dic)

    def overlay_instances(
        self,
        *,
        boxes: Any = None,
        labels: Sequence[str] | None = None,
        masks: Any = None,
        keypoints: Any = None,
        assigned_colors: Sequence[Any] | None = None,
        alpha: float = 0.5,
    ) -> VisImage:
        """Draw objects, the largest first so that it hides no other.

        Args:
            boxes: Boxes or (N, 4) XYXY; rotated boxes or (N, 5) go to :meth:`overlay_rotated_instances`.
            labels: N texts.
            masks: BitMasks, PolygonMasks, (N, H, W) or N masks, each polygons, RLE or (H, W).
            keypoints: Keypoints or (N, K, 3) of x, y and visibility or probability.
            assigned_colors: N colours in any of matplotlib's notations.
            alpha: opacity of the masks.
        """
        masks = None if masks is None else split_masks(masks)
        return self._overlay(to_array(boxes), labels, masks, to_array(keypoints), assigned_colors, alpha)

    def overlay_rotated_instances(
        self, boxes: Any = None, labels: Sequence[str] | None = None, assigned_colors: Sequence[Any] | None = None
    ) -> VisImage:
        """Draw rotated boxes, the largest first.

        Args:
            boxes: rotated boxes or (N, 5): centre x, centre y, width, height, angle in degrees counter-clockwise.
            labels: N texts.
            assigned_colors: N colours.
        """
        boxes = to_array(boxes)
        count = common_length(boxes=boxes, labels=labels, assigned_colors=assigned_colors)
        colors = self._class_colors(range(count)) if assigned_colors is None else assigned_colors
        if count == 0:
            return self.output
        for i in np.argsort(-boxes[:, 2] * boxes[:, 3], kind="stable"):
            self.draw_rotated_box_with_label(boxes[i], alpha=0.9, edge_color=colors[i])
        if labels is not None:
            self._draw_rotated_box_labels(labels, boxes, colors)
        return self.output

    def draw_and_connect_keypoints(self, keypoints: Any) -> VisImage:
        """Draw the keypoints of one object that are above ``keypoint_threshold``, joined as the metadata says.

        Args:
            keypoints: (K, 3) x, y and visibility or probability.
        """
        keypoints = to_array(keypoints).reshape(-1, 3)
        names = self.metadata.get("keypoint_names") or [str(i) for i in range(len(keypoints))]
        if len(names) != len(keypoints):
            raise ValueError(f"got {len(keypoints)} keypoints, but metadata.keypoint_names has {len(names)} names")
        seen = keypoints[:, 2] > self.keypoint_threshold
        points = {names[i]: keypoints[i, :2] for i in np.flatnonzero(seen)}
        for ends, color in limbs(points, self.metadata.get("keypoint_connection_rules") or []):
            self.draw_line(ends[:, 0], ends[:, 1], color)
        radius = 1.2 * self._to_pixels(self._line_width) / self.output.scale
        for xy in points.values():
            self.draw_circle(xy, "white", radius * 1.4)
            self.draw_circle(xy, KEYPOINT_COLOR, radius)
        return self.output

    def _overlay(
        self,
        boxes: Any,
        labels: Sequence[str] | None,
        masks: Sequence[Any] | None,
        keypoints: Any,
        colors: Sequence[Any] | None,
        alpha: float,
        crowd: Sequence[bool] | None = None,
    ) -> VisImage:
        count = common_length(boxes=boxes, labels=labels, masks=masks, keypoints=keypoints, assigned_colors=colors)
        if count == 0:
            return self.output
        if boxes is not None and len(boxes[0]) == 5:
            return self.overlay_rotated_instances(boxes, labels, colors)
        colors = self._class_colors(range(count)) if colors is None else colors
        rings = [None] * count if masks is None else [self._rings(mask) for mask in masks]
        keypoints = [None] * count if keypoints is None else keypoints
        bounds = self._bounds(rings, keypoints) if boxes is None else np.asarray(boxes, dtype=float)
        for i in np.argsort(-np.prod(bounds[:, 2:] - bounds[:, :2], axis=1), kind="stable"):
            is_crowd = crowd is not None and crowd[i]
            if rings[i]:
                self._draw_filled(rings[i], colors[i], None, alpha, hatch="//" if is_crowd else None)
            if boxes is not None:
                self.draw_box(boxes[i], alpha=0.9, edge_color=colors[i], line_style="--" if is_crowd else "-")
            if keypoints[i] is not None:
                self.draw_and_connect_keypoints(keypoints[i])
        if labels is not None:
            self._draw_labels(labels, bounds, colors)
        return self.output

    def _draw_segments(
        self,
        masks: Sequence[np.ndarray],
        labels: Sequence[str] | None,
        colors: Sequence[RGB],
        alpha: float,
        area_threshold: float | None,
        edge_color: Any,
    ) -> VisImage:
        """Draw masks, then the labels of those of which something is shown, each in its mask's thickest part."""
        min_area = 10 if area_threshold is None else area_threshold
        shown = []
        for i, (mask, color) in enumerate(zip(masks, colors, strict=True)):
            if rings := self._rings(mask, min_area):
                self._draw_filled(rings, color, edge_color, alpha)
                shown.append(i)
        if labels is not None and shown:
            self._draw_mask_labels([labels[i] for i in shown], [masks[i] for i in shown], [colors[i] for i in shown])
        return self.output

    def _rings(self, mask: Any, min_area: float = 0) -> list[np.ndarray] | None:
        return None if mask is None else mask_rings(mask, self.output.height, self.output.width, min_area)

    def _bounds(self, rings: Sequence[Any], keypoints: Sequence[Any]) -> np.ndarray:
        """(N, 4) box of each object, from its mask or else its keypoints."""
        bounds = np.zeros((len(rings), 4))
        for i, (outline, instance) in enumerate(zip(rings, keypoints, strict=True)):
            points = np.zeros((0, 2))
            if outline:
                points = np.concatenate(outline)
            elif instance is not None:
                visible = to_array(instance).reshape(-1, 3)
                points = visible[visible[:, 2] > self.keypoint_threshold, :2]
            if len(points):
                bounds[i] = (*points.min(axis=0), *points.max(axis=0))
        return bounds

    def _class_colors(self, classes: Iterable[int], jittering: bool = True, kind: str = "thing") -> list[RGB]:
        colors = self.metadata.get(f"{kind}_colors")
        seen: Counter[int] = Counter()
        chosen = []
        for class_id in classes:
            color = class_color(class_id, colors, offset=STUFF_COLOR_OFFSET if kind == "stuff" else 0)
            chosen.append(jitter(color, seen[class_id]) if jittering else color)
            seen[class_id] += 1
        return chosen

    def _covered(self, boxes: Any, masks: Sequence[Any] | None) -> np.ndarray:
        """(H, W) bool: inside of any mask, or of any box when there are no masks."""
        height, width = self.output.height, self.output.width
        covered = np.zeros((height, width), dtype=bool)
        if masks is not None:
            for mask in masks:
                covered |= to_bitmask(mask, height, width)
        elif boxes is not None:
            boxes = to_array(boxes)
            if boxes.shape[1] == 5:
                return self._covered(None, [[rotated_box_corners(box).reshape(-1)] for box in boxes])
            for x0, y0, x1, y1 in boxes.clip(0).round().astype(int):
                covered[y0:y1, x0:x1] = True
        return covered

    def _gray_outside(self, covered: np.ndarray) -> None:
        gray = self.img.mean(axis=2, keepdims=True)
        self.output.reset_image(np.where(covered[..., None], self.img, gray))
