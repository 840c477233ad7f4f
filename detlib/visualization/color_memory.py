"""Colours of objects that stay the same from frame to frame."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from detlib.structures import Boxes, RotatedBoxes, pairwise_iou
from detlib.structures.rotated_boxes import pairwise_iou as pairwise_iou_rotated
from detlib.visualization.colors import RGB, class_color, jitter

__all__ = ["ColorMemory"]

# Lowest overlap of the boxes of one object in two frames.
MIN_OVERLAP = 0.5
# An object that is not seen is remembered for this long.
NUM_FRAMES_REMEMBERED = 8


@dataclass
class _Known:
    box: Tensor
    class_id: int
    color: RGB
    missing: int = 0


class ColorMemory:
    """Gives objects shades of the colour of their class, and the same shade in later frames.

    Objects are recognised by their identity where there is one; else by their class and the overlap of their boxes.

    Args:
        thing_colors: RGB in [0, 255] of each class, as in ``metadata.thing_colors``.
    """

    def __init__(self, thing_colors: Sequence[Sequence[int]] | None = None) -> None:
        self._thing_colors = thing_colors
        self._num_seen: Counter[int] = Counter()
        self._by_id: dict[int, RGB] = {}
        self._known: list[_Known] = []

    def by_identity(self, ids: Sequence[int], classes: Sequence[int]) -> list[RGB]:
        """One colour for each object.

        Args:
            ids: N identities, as trackers give them.
            classes: N class ids.
        """
        for identity, class_id in zip(ids, classes, strict=True):
            if identity not in self._by_id:
                self._by_id[identity] = self._new_color(class_id)
        return [self._by_id[identity] for identity in ids]

    def by_overlap(self, boxes: Tensor, classes: Sequence[int]) -> list[RGB]:
        """One colour for each object; call it once for each frame.

        Args:
            boxes: (N, 4) XYXY or (N, 5) rotated boxes.
            classes: N class ids.
        """
        matches = self._match(boxes, classes)
        seen = [
            _Known(box, class_id, self._known[matches[i]].color if i in matches else self._new_color(class_id))
            for i, (box, class_id) in enumerate(zip(boxes, classes, strict=True))
        ]
        found = set(matches.values())
        missing = [
            _Known(known.box, known.class_id, known.color, known.missing + 1)
            for j, known in enumerate(self._known)
            if j not in found and known.missing < NUM_FRAMES_REMEMBERED
        ]
        self._known = seen + missing
        return [known.color for known in seen]

    def _match(self, boxes: Tensor, classes: Sequence[int]) -> dict[int, int]:
        """Object -> known object, those with most overlap first."""
        if not self._known or len(boxes) == 0:
            return {}
        known = boxes.new_tensor([known.box.tolist() for known in self._known])
        if boxes.shape[1] == 5:
            overlaps = pairwise_iou_rotated(RotatedBoxes(boxes), RotatedBoxes(known))
        else:
            overlaps = pairwise_iou(Boxes(boxes), Boxes(known))
        matches: dict[int, int] = {}
        for flat in overlaps.flatten().argsort(descending=True, stable=True).tolist():
            i, j = divmod(flat, len(known))
            if overlaps[i, j] < MIN_OVERLAP:
                break
            if i not in matches and j not in matches.values() and classes[i] == self._known[j].class_id:
                matches[i] = j
        return matches

    def _new_color(self, class_id: int) -> RGB:
        color = jitter(class_color(class_id, self._thing_colors), self._num_seen[class_id])
        self._num_seen[class_id] += 1
        return color
