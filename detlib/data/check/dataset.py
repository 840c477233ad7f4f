"""A dataset as the checks look at it: its samples, its objects as columns, and what was found in it so far."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from detlib.config import CfgNode
from detlib.data.catalog import Metadata, MetadataCatalog
from detlib.data.check.findings import Finding
from detlib.structures import BoxMode

__all__ = ["CheckedDataset", "Objects", "Settings"]


@dataclass(frozen=True)
class Settings:
    """What the training asks of its data, and how thoroughly to look.

    Attributes:
        quick: look at the headers of images only.
        num_workers: processes that read images.
        timeout: seconds after which one that gives nothing counts as hanging.
    """

    image_format: str = "BGR"
    uses_annotations: bool = True
    uses_masks: bool = False
    uses_keypoints: bool = False
    mask_format: str = "polygon"
    filter_empty: bool = True
    min_keypoints: int = 0
    ignored_label: int = 255
    quick: bool = False
    num_workers: int = 0
    timeout: float = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, quick: bool = False) -> "Settings":
        return cls(
            image_format=cfg.INPUT.FORMAT,
            uses_annotations=not cfg.INPUT.VIEWS,  # These are learned from without annotations.
            uses_masks=cfg.MODEL.MASK_ON,
            uses_keypoints=cfg.MODEL.KEYPOINT_ON,
            mask_format=cfg.INPUT.MASK_FORMAT,
            filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            min_keypoints=cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0,
            ignored_label=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            quick=quick,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            timeout=cfg.DATALOADER.TIMEOUT,
        )


@dataclass
class Objects:
    """The annotations of all images, N of them, in columns.

    Attributes:
        annotations: as samples have them.
        images: (N,) the place of the sample of each.
        boxes_xyxy: (N, 4); NaN where a box is none.
        is_rotated, is_crowd: (N,) bool.
        class_ids: (N,); -1 where there is none.
    """

    annotations: list[dict[str, Any]]
    images: np.ndarray
    boxes_xyxy: np.ndarray
    is_rotated: np.ndarray
    is_crowd: np.ndarray
    class_ids: np.ndarray

    @classmethod
    def of(cls, samples: Sequence[dict[str, Any]]) -> "Objects":
        annotations = [a for sample in samples for a in sample.get("annotations", ())]
        counts = [len(sample.get("annotations", ())) for sample in samples]
        modes = np.array([_as_whole_number(a.get("bbox_mode")) for a in annotations], dtype=np.int64)
        return cls(
            annotations=annotations,
            images=np.repeat(np.arange(len(samples)), counts),
            boxes_xyxy=_boxes_xyxy(annotations, modes),
            is_rotated=modes == BoxMode.XYWHA_ABS,
            is_crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            class_ids=np.array([_as_whole_number(a.get("category_id")) for a in annotations], dtype=np.int64),
        )

    def __len__(self) -> int:
        return len(self.annotations)


def _as_whole_number(value: Any) -> int:
    return int(value) if isinstance(value, int | np.integer) else -1


def _boxes_xyxy(annotations: list[dict[str, Any]], modes: np.ndarray) -> np.ndarray:
    """(N, 4), all boxes of a mode at once, as there may be a million of them."""
    boxes = np.full((len(annotations), 4), np.nan)
    for mode, size in ((BoxMode.XYXY_ABS, 4), (BoxMode.XYWH_ABS, 4), (BoxMode.XYWHA_ABS, 5)):
        own = np.flatnonzero(modes == mode)
        given = [annotations[i].get("bbox") for i in own]
        try:
            array = np.array(given, dtype=np.float64).reshape(len(given), size)
        except (TypeError, ValueError):  # One of them is no box.
            array = np.array([_as_box(box, size) for box in given])
        boxes[own] = BoxMode.convert(array, mode, BoxMode.XYXY_ABS)
    return boxes


def _as_box(box: Any, size: int) -> np.ndarray:
    try:
        return np.array(box, dtype=np.float64).reshape(size)
    except (TypeError, ValueError):
        return np.full(size, np.nan)


@dataclass
class CheckedDataset:
    """Attributes:
    samples: as the loader gives them; of a file that it refuses, those of the entries that are right.
    class_names: of the objects, the label, or the pixels; empty if they are not known.
    keypoint_names: None if they are not known.
    is_train, is_test: what it is used for.
    objects: of the samples, which are complete when it is first asked for.
    """

    name: str
    samples: list[dict[str, Any]] = field(default_factory=list)
    class_names: list[str] = field(default_factory=list)
    keypoint_names: Sequence[str] | None = None
    is_train: bool = True
    is_test: bool = False
    findings: list[Finding] = field(default_factory=list)

    @cached_property
    def objects(self) -> Objects:
        return Objects.of(self.samples)

    @property
    def metadata(self) -> Metadata:
        return MetadataCatalog.get(self.name)

    @property
    def roles(self) -> list[str]:
        return ["train"] * self.is_train + ["test"] * self.is_test

    def report(self, kind: str, message: str, *, severity: str | None = None, **where: Any) -> None:
        """Note something about the dataset as a whole, or about a place in it, see Finding."""
        self.findings.append(Finding.of(kind, self.name, message, severity=severity, **where))

    def report_image(self, kind: str, index: int, message: str, severity: str | None = None) -> None:
        """Note something about the image of a sample."""
        sample = self.samples[index]
        self.report(kind, message, severity=severity, file=sample.get("file_name"), image_id=sample.get("image_id"))

    def report_object(self, kind: str, index: int, message: str, severity: str | None = None) -> None:
        """Note something about an object, which goes by the id of its annotation, or else by its place in the image."""
        image = int(self.objects.images[index])
        annotation_id = self.objects.annotations[index].get("id")
        if annotation_id is None:
            first = int(np.searchsorted(self.objects.images, image))
            annotation_id = f"number {index - first + 1} of the image"
        sample = self.samples[image]
        where = {"file": sample.get("file_name"), "image_id": sample.get("image_id"), "annotation_id": annotation_id}
        self.report(kind, message, severity=severity, **where)
