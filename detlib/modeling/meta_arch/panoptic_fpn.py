"""Panoptic FPN: Mask R-CNN and a semantic head on one pyramid (https://arxiv.org/abs/1901.02446).

Shapes: N images of H x W pixels, K semantic classes, of which 0 stands for all things; M detected instances.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.rcnn import GeneralizedRCNN
from detlib.modeling.meta_arch.semantic_seg import batch_targets, build_sem_seg_head, resize_to_output
from detlib.modeling.preprocessing import instances_of
from detlib.structures import Instances

__all__ = ["PanopticFPN", "combine_semantic_and_instance_outputs"]

PanopticSeg = tuple[Tensor, list[dict[str, Any]]]


@META_ARCH_REGISTRY.register()
class PanopticFPN(GeneralizedRCNN):
    """Instances of things and a class of stuff for each pixel, also joined in one map."""

    num_stuff_classes_key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        sem_seg_head: nn.Module,
        combine_overlap_thresh: float = 0.5,
        combine_stuff_area_thresh: float = 4096,
        combine_instances_score_thresh: float = 0.5,
        combine_enabled: bool = True,
        instance_loss_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            sem_seg_head: see SEM_SEG_HEADS_REGISTRY.
            combine_overlap_thresh: see :func:`combine_semantic_and_instance_outputs`; likewise the next two.
            combine_enabled: whether predictions have a ``panoptic_seg``.
            instance_loss_weight: factor on the losses of the ROI heads.
            kwargs: of :class:`GeneralizedRCNN`.
        """
        super().__init__(**kwargs)
        self.sem_seg_head = sem_seg_head
        size_divisibility = getattr(sem_seg_head, "size_divisibility", 0)
        self.preprocessor.size_divisibility = max(self.preprocessor.size_divisibility, size_divisibility)
        self.combine_overlap_thresh = combine_overlap_thresh
        self.combine_stuff_area_thresh = combine_stuff_area_thresh
        self.combine_instances_score_thresh = combine_instances_score_thresh
        self.combine_enabled = combine_enabled
        self.instance_loss_weight = instance_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        arguments = super().from_config(cfg)
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        return {
            **arguments,
            "sem_seg_head": build_sem_seg_head(cfg, arguments["backbone"].output_shape()),
            "combine_overlap_thresh": combine.OVERLAP_THRESH,
            "combine_stuff_area_thresh": combine.STUFF_AREA_LIMIT,
            "combine_instances_score_thresh": combine.INSTANCES_CONFIDENCE_THRESH,
            "combine_enabled": combine.ENABLED,
            "instance_loss_weight": cfg.MODEL.PANOPTIC_FPN.INSTANCE_LOSS_WEIGHT,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: as for :class:`GeneralizedRCNN`, and when training ``sem_seg``, the (H, W) class of each
                pixel: 0 for all things, 1 to K - 1 for stuff, or the head's ``ignore_value``.

        Returns:
            The losses by name when training. Else for each image a dict of ``instances`` as of GeneralizedRCNN,
            ``sem_seg``, the (K, height, width) logits, and ``panoptic_seg``, the result of
            :func:`combine_semantic_and_instance_outputs`.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = instances_of(batched_inputs, self.device)
        targets = batch_targets(batched_inputs, images, self.sem_seg_head)
        features = self.backbone(images.tensor)
        _, sem_seg_losses = self.sem_seg_head(features, targets)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        detector_losses = {name: loss * self.instance_loss_weight for name, loss in detector_losses.items()}
        return {**sem_seg_losses, **proposal_losses, **detector_losses}

    def inference(
        self, batched_inputs: list[dict[str, Any]], do_postprocess: bool = True
    ) -> list[dict[str, Any]] | tuple[list[Instances], Tensor]:
        """Predictions of a batch.

        Args:
            batched_inputs: as for :meth:`forward`.
            do_postprocess: bring predictions to the size wanted, and join them.

        Returns:
            What :meth:`forward` gives, or without post-processing the Instances of each image in the coordinates of the
            network's input, and the (N, K, H, W) logits of the padded batch.
        """
        if self.training:
            raise RuntimeError("inference() predicts; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        logits, _ = self.sem_seg_head(features, None)
        proposals, _ = self._propose(batched_inputs, images, features)
        instances, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return instances, logits
        results = self._postprocess(instances, batched_inputs, images.image_sizes)
        for result, sem_seg in zip(results, resize_to_output(logits, batched_inputs, images.image_sizes)):
            result["sem_seg"] = sem_seg
            if self.combine_enabled:
                result["panoptic_seg"] = combine_semantic_and_instance_outputs(
                    result["instances"],
                    sem_seg.argmax(dim=0),
                    self.combine_overlap_thresh,
                    self.combine_stuff_area_thresh,
                    self.combine_instances_score_thresh,
                )
        return results


@torch.no_grad()
def combine_semantic_and_instance_outputs(
    instance_results: Instances,
    semantic_results: Tensor,
    overlap_threshold: float,
    stuff_area_thresh: float,
    instances_score_thresh: float,
) -> PanopticSeg:
    """Join instances and stuff so that every pixel belongs to one segment at most.

    Instances come first, the best before the others, each with the pixels that are still free; stuff gets the rest
    ("Panoptic Segmentation", https://arxiv.org/abs/1801.00868, sec. 7).

    Args:
        instance_results: with ``pred_masks`` (M, H, W) bool, ``scores`` and ``pred_classes``.
        semantic_results: (H, W) classes, 0 for things.
        overlap_threshold: an instance is left out if a larger share of its mask is taken.
        stuff_area_thresh: stuff with fewer free pixels is left out.
        instances_score_thresh: instances with a lower score are left out.

    Returns:
        (H, W) int32 map of segment ids, 0 where there is no segment; and for each id from 1 on a dict with ``id``,
        ``isthing`` and ``category_id``; things have ``score`` and ``instance_id``, their place in the input, stuff has
        ``area``.
    """
    instance_map, things = _place_instances(instance_results, overlap_threshold, instances_score_thresh)
    free_stuff = semantic_results.long() * (instance_map == 0)  # things' pixels join class 0, which is no stuff
    areas = torch.bincount(free_stuff.flatten())
    present = areas >= max(stuff_area_thresh, 1)
    present[0] = False
    id_of_class = torch.where(present, present.cumsum(dim=0) + len(things), 0)
    stuff = [
        {"id": segment_id, "isthing": False, "category_id": category_id, "area": area}
        for category_id, (segment_id, area) in enumerate(torch.stack([id_of_class, areas], dim=1).tolist())
        if segment_id > 0
    ]
    return torch.where(instance_map == 0, id_of_class[free_stuff], instance_map).to(torch.int32), things + stuff


def _place_instances(
    instances: Instances, overlap_threshold: float, score_thresh: float
) -> tuple[Tensor, list[dict[str, Any]]]:
    """The (H, W) map of the instances' ids, and the entry of each id."""
    order = instances.scores.argsort(descending=True, stable=True)
    order = order[instances.scores[order] >= score_thresh]
    masks = instances.pred_masks[order].bool()  # (M, H, W), best first
    places = torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device)  # 1 + index in ``order``, 0 is free
    # Each instance depends on what the better ones took; the device is not waited for.
    is_kept = []
    for place, mask in enumerate(masks, start=1):
        area, taken = mask.sum(), (mask & (places > 0)).sum()
        keep = (area > 0) & (taken <= overlap_threshold * area)
        places = torch.where(mask & (places == 0) & keep, place, places)
        is_kept.append(keep)
    kept = torch.stack(is_kept) if is_kept else order.new_zeros(0, dtype=torch.bool)
    ids = torch.cat([places.new_zeros(1), torch.where(kept, kept.cumsum(dim=0), 0)])
    order = order[kept]
    columns = (order, instances.scores[order], instances.pred_classes[order])
    entries = [
        {"id": i, "isthing": True, "score": score, "category_id": category_id, "instance_id": instance_id}
        for i, (instance_id, score, category_id) in enumerate(zip(*(x.tolist() for x in columns)), start=1)
    ]
    return ids[places], entries
