"""Predictions averaged over resized and flipped copies of each image, which is slower and often a little better.

Shapes: R objects of one image, K classes or keypoints, masks and heatmaps of M x M cells, an image of H x W.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detlib.config import CfgNode, configurable
from detlib.data import transforms as T
from detlib.data.detection_utils import create_keypoint_hflip_indices, read_image
from detlib.data.rotated_annotations import uses_rotated_boxes
from detlib.layers import batched_nms
from detlib.modeling.meta_arch import GeneralizedRCNN
from detlib.modeling.postprocessing import detector_postprocess
from detlib.structures import Boxes, Instances
from detlib.structures.keypoints import heatmaps_to_keypoints
from detlib.utils.errors import ConfigError

__all__ = [
    "DatasetMapperTTA",
    "GeneralizedRCNNWithTTA",
    "SemanticSegmentorWithTTA",
    "with_test_time_augmentation",
]

Sample = dict[str, Any]


def with_test_time_augmentation(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Wrap a model so that it predicts as ``cfg.TEST.AUG`` says.

    Raises:
        ConfigError: there is no such wrapper for the model.
    """
    model = _unwrapped(model)
    if hasattr(model, "sem_seg_head") and not hasattr(model, "roi_heads"):
        return SemanticSegmentorWithTTA(cfg, model)
    return GeneralizedRCNNWithTTA(cfg, model)


class DatasetMapperTTA:
    """From one sample to its augmented copies: for each size the image resized, and flipped as well if wanted."""

    @configurable
    def __init__(self, min_sizes: list[int], max_size: int, flip: bool) -> None:
        """
        Args:
            min_sizes: of the shorter side, one for each copy.
            max_size: limit of the longer side.
            flip: also make a copy of each size that is mirrored left to right.
        """
        self.min_sizes = min_sizes
        self.max_size = max_size
        self.flip = flip

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"min_sizes": cfg.TEST.AUG.MIN_SIZES, "max_size": cfg.TEST.AUG.MAX_SIZE, "flip": cfg.TEST.AUG.FLIP}

    def __call__(self, dataset_dict: Sample) -> list[Sample]:
        """
        Args:
            dataset_dict: with ``image`` (C, H', W'), and ``height`` and ``width`` if the image was resized before. It
                is not changed.

        Returns:
            Copies with another ``image``, and in ``transforms`` the way to it from the image of (height, width).
        """
        image = dataset_dict["image"].permute(1, 2, 0).cpu().numpy()  # (H', W', C)
        size = _size_of(dataset_dict)
        before = [] if size == image.shape[:2] else [T.ResizeTransform(*size, *image.shape[:2])]
        samples = []
        for min_size in self.min_sizes:
            resize = T.ResizeShortestEdge(min_size, self.max_size).get_transform(image)
            resized = resize.apply_image(image)
            samples.append(_augmented(dataset_dict, resized, [*before, resize]))
            if self.flip:
                flip = T.HFlipTransform(resized.shape[1])
                samples.append(_augmented(dataset_dict, flip.apply_image(resized), [*before, resize, flip]))
        return samples


class GeneralizedRCNNWithTTA(nn.Module):
    """A :class:`GeneralizedRCNN` that predicts boxes, masks and keypoints from augmented copies of each image.

    The boxes found in all copies compete in one suppression. Masks and the heatmaps of keypoints are then predicted for
    the boxes that are left, in every copy, and averaged.
    """

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[Sample], list[Sample]] | None = None,
        batch_size: int = 3,
    ) -> None:
        """
        Args:
            cfg: of the model.
            model: alone or in DistributedDataParallel.
            tta_mapper: by default, :class:`DatasetMapperTTA` as ``cfg.TEST.AUG`` says. Of the transforms in its
                results, those of ``Resize*``, ``HFlip`` and ``VFlip`` can be undone on masks and keypoints.
            batch_size: copies to run at once.

        Raises:
            ConfigError: the model takes given proposals, or predicts what cannot be averaged.
        """
        super().__init__()
        model = _unwrapped(model)
        _check_rcnn(cfg, model)
        self.cfg = cfg.clone()
        self.model = model
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def __call__(self, batched_inputs: list[Sample]) -> list[dict[str, Instances]]:
        """Call :meth:`forward`; here for subclasses that override it."""
        return super().__call__(batched_inputs)

    @torch.no_grad()
    def forward(self, batched_inputs: list[Sample]) -> list[dict[str, Instances]]:
        """As :meth:`GeneralizedRCNN.forward` in inference; a sample without ``image`` is read from ``file_name``."""
        return [self._inference_one_image(_with_image(sample, self.cfg)) for sample in batched_inputs]

    def _inference_one_image(self, sample: Sample) -> dict[str, Instances]:
        size = _size_of(sample)
        copies = self.tta_mapper(sample)
        with _switched_off(self.model.roi_heads, "mask_on", "keypoint_on"):
            detections = self._merge_detections(copies, size)
        self._add_masks_and_keypoints(detections, copies)
        return {"instances": detector_postprocess(detections, *size)}

    def _predict(self, copies: list[Sample], given: list[Instances] | None = None) -> Iterator[Instances]:
        """What the model finds in each copy, in its coordinates; or masks and keypoints of given boxes."""
        for start in range(0, len(copies), self.batch_size):
            batch = slice(start, start + self.batch_size)
            given_in_batch = None if given is None else given[batch]
            yield from self.model.inference(copies[batch], given_in_batch, do_postprocess=False)

    def _merge_detections(self, copies: list[Sample], size: tuple[int, int]) -> Instances:
        """The best detections of all copies, in the image of (height, width)."""
        found = []
        for copy, instances in zip(copies, self._predict(copies), strict=True):
            boxes = _transformed(instances.pred_boxes, copy["transforms"].inverse())
            found.append(
                Instances(size, pred_boxes=boxes, scores=instances.scores, pred_classes=instances.pred_classes)
            )
        merged = Instances.cat(found)
        merged.pred_boxes.clip(size)
        keep = batched_nms(
            merged.pred_boxes.tensor, merged.scores, merged.pred_classes, self.cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST
        )
        limit = self.cfg.TEST.DETECTIONS_PER_IMAGE
        return merged[keep if limit < 0 else keep[:limit]]

    def _add_masks_and_keypoints(self, detections: Instances, copies: list[Sample]) -> None:
        """Set ``pred_masks``, (R, 1, M, M), and ``pred_keypoints``, (R, K, 3), as far as there are heads for them."""
        heads = self.model.roi_heads
        mask_on, keypoint_on = getattr(heads, "mask_on", False), getattr(heads, "keypoint_on", False)
        if not mask_on and not keypoint_on:
            return
        boxes = detections.pred_boxes
        if len(detections) == 0:
            if mask_on:
                detections.pred_masks = boxes.tensor.new_zeros(0, 1, 1, 1)
            if keypoint_on:
                detections.pred_keypoints = boxes.tensor.new_zeros(0, heads.keypoint_head.num_keypoints, 3)
            return
        given = [
            Instances(
                copy["image"].shape[-2:],
                pred_boxes=_transformed(boxes, copy["transforms"]),
                pred_classes=detections.pred_classes,
            )
            for copy in copies
        ]
        masks, heatmaps = 0, 0
        for copy, instances in zip(copies, self._predict(copies, given), strict=True):
            flips = _flips(copy["transforms"])
            if mask_on:
                masks = masks + instances.pred_masks.float().flip(flips)
            if keypoint_on:
                heatmaps = heatmaps + self._unflipped(instances.pred_keypoint_heatmaps.float(), flips)
        if mask_on:
            detections.pred_masks = masks / len(copies)
        if keypoint_on:
            detections.pred_keypoint_heatmaps = heatmaps / len(copies)
            keypoints = heatmaps_to_keypoints(detections.pred_keypoint_heatmaps, boxes.tensor)
            detections.pred_keypoints = keypoints[:, :, [0, 1, 3]]  # The score, not the logit

    def _unflipped(self, heatmaps: Tensor, flips: list[int]) -> Tensor:
        """(R, K, M, M) heatmaps mirrored back; then what was the left eye in the copy is the right one."""
        if -1 in flips:
            datasets = self.cfg.DATASETS.TEST or self.cfg.DATASETS.TRAIN
            heatmaps = heatmaps[:, create_keypoint_hflip_indices(datasets)]
        return heatmaps.flip(flips)


class SemanticSegmentorWithTTA(nn.Module):
    """A model of semantic segmentation that averages its probabilities over augmented copies of each image."""

    def __init__(
        self,
        cfg: CfgNode,
        model: nn.Module,
        tta_mapper: Callable[[Sample], list[Sample]] | None = None,
        batch_size: int = 1,
    ) -> None:
        """
        Args:
            cfg: of the model.
            model: returns ``sem_seg`` in the size wanted; alone or in DistributedDataParallel.
            tta_mapper: by default, :class:`DatasetMapperTTA` as ``cfg.TEST.AUG`` says. Its results may be resized and
                flipped, not cropped.
            batch_size: copies to run at once.
        """
        super().__init__()
        self.cfg = cfg.clone()
        self.model = _unwrapped(model)
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    @torch.no_grad()
    def forward(self, batched_inputs: list[Sample]) -> list[dict[str, Tensor]]:
        """
        Args:
            batched_inputs: as the model takes them; a sample without ``image`` is read from ``file_name``.

        Returns:
            For each image a dict whose ``sem_seg`` is (K, height, width), probabilities.
        """
        return [{"sem_seg": self._probabilities(_with_image(sample, self.cfg))} for sample in batched_inputs]

    def _probabilities(self, sample: Sample) -> Tensor:
        copies = self.tta_mapper(sample)
        total = 0  # A running sum: the results of all copies of a large image at once would fill the memory.
        for start in range(0, len(copies), self.batch_size):
            batch = copies[start : start + self.batch_size]
            for copy, output in zip(batch, self.model(batch), strict=True):
                probabilities = output["sem_seg"].float().softmax(dim=0)
                total = total + probabilities.flip(_flips(copy["transforms"]))
        return total / len(copies)


def _unwrapped(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _check_rcnn(cfg: CfgNode, model: nn.Module) -> None:
    name = type(model).__name__
    hint = "set TEST.AUG.ENABLED: False, or wrap the model in a class of your own"
    if not isinstance(model, GeneralizedRCNN) or hasattr(model, "sem_seg_head"):
        raise ConfigError(
            f"test-time augmentation is there for GeneralizedRCNN and SemanticSegmentor, not for {name}; {hint}."
        )
    if model.proposal_generator is None:
        raise ConfigError(
            f"test-time augmentation needs a proposal generator, as given proposals are not resized; {hint}."
        )
    if uses_rotated_boxes(cfg):
        raise ConfigError(f"test-time augmentation merges upright boxes, but those of {name} are rotated; {hint}.")


def _with_image(sample: Sample, cfg: CfgNode) -> Sample:
    """The sample with ``image``, ``height`` and ``width``."""
    sample = dict(sample)
    if "image" not in sample:
        image = read_image(sample["file_name"], cfg.INPUT.FORMAT)
        sample["image"] = _to_tensor(image)
    sample["height"], sample["width"] = _size_of(sample)
    return sample


def _size_of(sample: Sample) -> tuple[int, int]:
    height, width = sample["image"].shape[-2:]
    return sample.get("height", height), sample.get("width", width)


def _augmented(sample: Sample, image: np.ndarray, transforms: list[T.Transform]) -> Sample:
    return {**sample, "image": _to_tensor(image), "transforms": T.TransformList(transforms)}


def _to_tensor(image: np.ndarray) -> Tensor:
    """From (H, W, C) to (C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _transformed(boxes: Boxes, transforms: T.TransformList) -> Boxes:
    boxes_xyxy = transforms.apply_box(boxes.tensor.float().cpu().numpy())
    return Boxes(torch.from_numpy(boxes_xyxy).to(boxes.tensor))


def _flips(transforms: T.TransformList) -> list[int]:
    """Dimensions along which the image was mirrored, from the last: -1 for left to right, -2 for top to bottom."""
    kinds = {-1: T.HFlipTransform, -2: T.VFlipTransform}
    return [dim for dim, kind in kinds.items() if sum(isinstance(t, kind) for t in transforms.transforms) % 2]


@contextmanager
def _switched_off(module: nn.Module, *switches: str) -> Iterator[None]:
    """A block in which those of the module's attributes that are true are False."""
    before = {name: getattr(module, name) for name in switches if getattr(module, name, False)}
    for name in before:
        setattr(module, name, False)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
