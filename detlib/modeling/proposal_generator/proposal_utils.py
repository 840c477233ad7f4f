"""Which of many scored boxes become proposals.

Shapes: N images, L feature maps, R boxes of one map in one image, D numbers of a box (4, or 5 if rotated).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from detlib.layers import batched_nms
from detlib.structures import Boxes, Instances
from detlib.utils.errors import NonFiniteError

__all__ = [
    "add_ground_truth_to_proposals",
    "add_ground_truth_to_proposals_single_image",
    "find_top_rpn_proposals",
]

# An object for sure: the logit of a probability of 1 - 1e-10.
_GT_LOGIT = math.log((1.0 - 1e-10) / 1e-10)


@torch.no_grad()
def find_top_rpn_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
) -> list[Instances]:
    """The best boxes of each image: of every feature map the best, then NMS within each map, then the best of all maps.

    Args:
        proposals: of each feature map, (N, R, 4) boxes XYXY.
        pred_objectness_logits: of each feature map, (N, R).
        image_sizes: height and width of each image; boxes are clipped to it.
        nms_thresh: IoU above which the worse of two boxes is dropped.
        pre_nms_topk: how many boxes of each map enter the NMS.
        post_nms_topk: how many to keep of each image.
        min_box_size: boxes with a side of at most that many pixels are dropped.
        training: raise an error if a box or logit is not finite, instead of dropping it.

    Returns:
        For each image, Instances with ``proposal_boxes`` and ``objectness_logits``, best first.

    Raises:
        NonFiniteError: when training.
    """
    limits = (nms_thresh, pre_nms_topk, post_nms_topk, min_box_size)
    return find_top_proposals(
        proposals, pred_objectness_logits, image_sizes, *limits, training, box_type=Boxes, nms=batched_nms
    )


def find_top_proposals(
    proposals: list[Tensor],
    pred_objectness_logits: list[Tensor],
    image_sizes: list[tuple[int, int]],
    nms_thresh: float,
    pre_nms_topk: int,
    post_nms_topk: int,
    min_box_size: float,
    training: bool,
    *,
    box_type: type,
    nms: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> list[Instances]:
    """As :func:`find_top_rpn_proposals`, for boxes of any type.

    Args:
        proposals: of each feature map, (N, R, D).
        box_type: made from (R, D); has ``clip`` and ``nonempty``.
        nms: takes boxes, scores, their feature maps and a threshold, and returns the kept, best first.
    """
    boxes, logits, levels = _best_of_each_level(proposals, pred_objectness_logits, pre_nms_topk)
    finite = boxes.isfinite().all(dim=-1) & logits.isfinite()  # (N, S), S boxes of all levels
    if training and not bool(finite.all()):  # One look for the whole batch, as each makes the device wait.
        raise NonFiniteError(
            "the proposal generator predicts boxes or scores that are not finite, so the training has diverged. Most "
            "often SOLVER.BASE_LR is too high for SOLVER.IMS_PER_BATCH (scale both alike), the warm-up is too short, "
            "or boxes in the data have no area; SOLVER.CLIP_GRADIENTS.ENABLED: True may help too."
        )
    results = []
    for i, image_size in enumerate(image_sizes):
        image_boxes = box_type(boxes[i])
        image_boxes.clip(image_size)
        candidates = (finite[i] & image_boxes.nonempty(min_box_size)).nonzero()[:, 0]
        image_boxes, image_logits = image_boxes[candidates], logits[i, candidates]
        keep = nms(image_boxes.tensor, image_logits, levels[candidates], nms_thresh)[:post_nms_topk]
        results.append(Instances(image_size, proposal_boxes=image_boxes[keep], objectness_logits=image_logits[keep]))
    return results


def _best_of_each_level(
    proposals: list[Tensor], pred_objectness_logits: list[Tensor], topk: int
) -> tuple[Tensor, Tensor, Tensor]:
    """(N, S, D) boxes, (N, S) logits and (S,) numbers of the feature maps, S being what all maps give together."""
    boxes, logits, levels = [], [], []
    for level, (level_boxes, level_logits) in enumerate(zip(proposals, pred_objectness_logits, strict=True)):
        best_logits, best = level_logits.topk(min(int(topk), level_logits.shape[1]), dim=1)  # (N, S of this level)
        boxes.append(level_boxes.gather(1, best[:, :, None].expand(-1, -1, level_boxes.shape[-1])))
        logits.append(best_logits)
        levels.append(torch.full_like(best[0], level))
    return torch.cat(boxes, dim=1), torch.cat(logits, dim=1), torch.cat(levels)


def add_ground_truth_to_proposals(gt: list[Instances] | list[Boxes], proposals: list[Instances]) -> list[Instances]:
    """Append to the proposals of each image its true boxes, so that there is something to learn from at the start.

    Args:
        gt: of each image, the true boxes, or Instances with ``gt_boxes``.
        proposals: of each image, Instances with ``proposal_boxes`` and ``objectness_logits``. They are not changed.
    """
    if len(gt) != len(proposals):
        raise ValueError(f"got the ground truth of {len(gt)} images and the proposals of {len(proposals)}")
    return [add_ground_truth_to_proposals_single_image(*image) for image in zip(gt, proposals)]


def add_ground_truth_to_proposals_single_image(gt: Instances | Boxes, proposals: Instances) -> Instances:
    """As :func:`add_ground_truth_to_proposals`, for one image.

    Raises:
        ValueError: the proposals have another field, which the ground truth lacks.
    """
    gt_boxes = gt.gt_boxes if isinstance(gt, Instances) else gt
    known = dict(gt.get_fields()) if isinstance(gt, Instances) else {"gt_boxes": gt}
    known["proposal_boxes"] = gt_boxes
    known["objectness_logits"] = torch.full((len(gt_boxes),), _GT_LOGIT, device=gt_boxes.device)
    missing = sorted(set(proposals.get_fields()) - set(known))
    if missing:
        raise ValueError(
            f"proposals with the fields {', '.join(missing)} cannot take in a ground truth without them; it has "
            f"{', '.join(sorted(known))}. Add them to the ground truth, or set "
            f"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT: False"
        )
    true_proposals = Instances(proposals.image_size)
    for name in proposals.get_fields():
        true_proposals.set(name, known[name])
    return Instances.cat([proposals, true_proposals])
