"""The last layer of Fast R-CNN: a class and a box for each region (https://arxiv.org/abs/1504.08083).

Shapes: R regions in all images together (R_i in image i), K classes, class K being the background; B is K, or 1 where
one box serves all classes.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec, batched_nms
from detlib.modeling.box_regression import Box2BoxTransform, box_loss, box_regression_loss
from detlib.modeling.loss import build_loss, check_losses
from detlib.modeling.loss.classification import CrossEntropyLoss
from detlib.structures import Boxes, Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import log_scalar

__all__ = ["FastRCNNOutputLayers", "fast_rcnn_inference"]


class FastRCNNOutputLayers(nn.Module):
    """Two linear layers, their losses, and the detections that follow from them."""

    @configurable
    def __init__(
        self,
        input_shape: ShapeSpec,
        *,
        box2box_transform: Box2BoxTransform,
        num_classes: int,
        test_score_thresh: float = 0.0,
        test_nms_thresh: float = 0.5,
        test_topk_per_image: int = 100,
        cls_agnostic_bbox_reg: bool = False,
        smooth_l1_beta: float = 0.0,
        box_reg_loss_type: str = "smooth_l1",
        loss_weight: float | dict[str, float] = 1.0,
        use_fed_loss: bool = False,
        use_sigmoid_ce: bool = False,
        get_fed_loss_cls_weights: Callable[[], Tensor] | None = None,
        fed_loss_num_classes: int = 50,
        loss_cls: nn.Module | None = None,
        loss_bbox: nn.Module | None = None,
    ) -> None:
        """
        Args:
            input_shape: of the features of one region.
            box2box_transform: between proposals and boxes.
            num_classes: K, without the background.
            test_score_thresh: detections must score more.
            test_nms_thresh: IoU above which the worse of two detections of one class is dropped.
            test_topk_per_image: how many detections to keep; all if negative.
            cls_agnostic_bbox_reg: predict one box per region rather than one for each class.
            smooth_l1_beta: where L2 turns into L1; 0 is L1.
            box_reg_loss_type: smooth_l1, giou, diou or ciou.
            loss_weight: factor on all losses, or on those named: ``loss_cls``, ``loss_box_reg``.
            use_fed_loss: count, for each batch, only the classes in it and a sample of others (federated loss, from the
                authors' LVIS 2020 entry); for data in which not every object of every class is labelled.
            use_sigmoid_ce: a binary decision for each class rather than one choice among all.
            get_fed_loss_cls_weights: gives the (K,) odds with which other classes are drawn.
            fed_loss_num_classes: how many classes count in a batch.
            loss_cls: takes (R, K + 1) logits and R labels, where K is the background; one with ``use_sigmoid`` takes
                (R, K) logits. By default the cross-entropy, or what the options above say.
            loss_bbox: see :func:`box_regression_loss`; by default that of ``box_reg_loss_type``.
        """
        super().__init__()
        if use_sigmoid_ce and loss_cls is not None:
            raise ConfigError("MODEL.ROI_BOX_HEAD has both USE_SIGMOID_CE and LOSS_CLS; leave one of them out")
        if use_fed_loss and not use_sigmoid_ce:
            raise ConfigError(
                "MODEL.ROI_BOX_HEAD.USE_FED_LOSS leaves classes out, which softmax cannot; add USE_SIGMOID_CE: True"
            )
        self.num_classes = num_classes
        width = input_shape.channels * (input_shape.width or 1) * (input_shape.height or 1)
        # A sigmoid needs no score for the background, but saved weights have one.
        self.cls_score = nn.Linear(width, num_classes + 1)
        num_boxes = 1 if cls_agnostic_bbox_reg else num_classes
        box_dim = len(box2box_transform.weights)
        self.bbox_pred = nn.Linear(width, num_boxes * box_dim)
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.normal_(self.bbox_pred.weight, std=0.001)
        for layer in (self.cls_score, self.bbox_pred):
            nn.init.zeros_(layer.bias)

        self.box2box_transform = box2box_transform
        self.smooth_l1_beta = smooth_l1_beta
        self.box_reg_loss_type = box_reg_loss_type
        self.loss_cls = CrossEntropyLoss() if loss_cls is None else loss_cls
        self.loss_bbox = box_loss(box_reg_loss_type, smooth_l1_beta) if loss_bbox is None else loss_bbox
        check_losses("MODEL.ROI_BOX_HEAD", self.loss_cls, self.loss_bbox, has_background_score=True)
        if not isinstance(loss_weight, dict):
            loss_weight = {"loss_cls": loss_weight, "loss_box_reg": loss_weight}
        self.loss_weight = loss_weight
        self.use_sigmoid_ce = use_sigmoid_ce
        self.use_fed_loss = use_fed_loss
        self.fed_loss_num_classes = fed_loss_num_classes
        if use_fed_loss:
            weights = None if get_fed_loss_cls_weights is None else get_fed_loss_cls_weights()
            # The name is part of saved weights.
            self.register_buffer("fed_loss_cls_weights", weights)
        self.test_score_thresh = test_score_thresh
        self.test_nms_thresh = test_nms_thresh
        self.test_topk_per_image = test_topk_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        head = cfg.MODEL.ROI_BOX_HEAD
        return {
            "input_shape": input_shape,
            "box2box_transform": Box2BoxTransform(weights=head.BBOX_REG_WEIGHTS),
            "num_classes": cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "cls_agnostic_bbox_reg": head.CLS_AGNOSTIC_BBOX_REG,
            "smooth_l1_beta": head.SMOOTH_L1_BETA,
            "test_score_thresh": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            "test_nms_thresh": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
            "test_topk_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "box_reg_loss_type": head.BBOX_REG_LOSS_TYPE,
            "loss_weight": {"loss_box_reg": head.BBOX_REG_LOSS_WEIGHT},
            "use_fed_loss": head.USE_FED_LOSS,
            "use_sigmoid_ce": head.USE_SIGMOID_CE,
            "get_fed_loss_cls_weights": lambda: _class_weights_of(cfg.DATASETS.TRAIN, head.FED_LOSS_FREQ_WEIGHT_POWER),
            "fed_loss_num_classes": head.FED_LOSS_NUM_CLASSES,
            "loss_cls": build_loss(head.LOSS_CLS),
            "loss_bbox": build_loss(head.LOSS_BBOX),
        }

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, C) or (R, C, H, W) features to (R, K + 1) logits and (R, B * box dimension) deltas."""
        x = x.flatten(start_dim=1)
        return self.cls_score(x), self.bbox_pred(x)

    # Training

    def losses(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> dict[str, Tensor]:
        """
        Args:
            predictions: what :meth:`forward` gave.
            proposals: of each image, with ``proposal_boxes``, ``gt_classes`` (K for the background) and ``gt_boxes``,
                which an image without objects need not have.

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        logits, deltas = predictions
        gt_classes = torch.cat([p.gt_classes for p in proposals])  # (R,)
        _log_classification(logits, gt_classes)
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])  # (R, 4)
        gt_boxes = torch.cat([(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals])
        losses = {
            "loss_cls": self._class_loss(logits, gt_classes),
            "loss_box_reg": self.box_reg_loss(proposal_boxes, gt_boxes, deltas, gt_classes),
        }
        return {name: loss * self.loss_weight.get(name, 1.0) for name, loss in losses.items()}

    def _class_loss(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.use_sigmoid_ce:
            return self.sigmoid_cross_entropy_loss(logits, gt_classes)
        if gt_classes.numel() == 0:  # Not every loss can be asked about nothing.
            return logits.sum() * 0
        if self._scores_by_sigmoid:
            logits = logits[:, :-1]
        return self.loss_cls(logits, gt_classes, avg_factor=gt_classes.numel())

    @property
    def _scores_by_sigmoid(self) -> bool:
        return self.use_sigmoid_ce or getattr(self.loss_cls, "use_sigmoid", False)

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Binary cross-entropy of each class but the background, summed over classes and averaged over regions.

        Args:
            pred_class_logits: (R, K + 1).
            gt_classes: (R,), K for the background.
        """
        if pred_class_logits.numel() == 0:
            return pred_class_logits.sum()
        K = self.num_classes
        targets = F.one_hot(gt_classes, K + 1)[:, :K].to(pred_class_logits.dtype)
        loss = F.binary_cross_entropy_with_logits(pred_class_logits[:, :K], targets, reduction="none")
        if self.use_fed_loss:
            counted = self.get_fed_loss_classes(gt_classes, self.fed_loss_num_classes, K, self.fed_loss_cls_weights)
            counts = loss.new_zeros(K + 1).index_fill_(0, counted, 1.0)
            loss = loss * counts[:K]
        return loss.sum() / len(gt_classes)

    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Tensor | None
    ) -> Tensor:
        """The classes that count in a batch: those in it, filled up by a random draw of others.

        Args:
            gt_classes: (R,), ``num_classes`` for the background.
            weight: (num_classes,), the odds of each class to be drawn; equal by default.
        """
        present = gt_classes.unique()
        missing = num_fed_loss_classes - len(present)
        if missing <= 0:
            return present
        odds = present.new_ones(num_classes, dtype=torch.float32) if weight is None else weight.float().clone()
        odds[present[present < num_classes]] = 0
        num_drawn = min(missing, int((odds > 0).sum()))  # No more than there are other classes.
        if num_drawn == 0:
            return present
        drawn = torch.multinomial(odds, num_drawn, replacement=False)
        return torch.cat([present, drawn])

    def box_reg_loss(self, proposal_boxes: Tensor, gt_boxes: Tensor, pred_deltas: Tensor, gt_classes: Tensor) -> Tensor:
        """Loss of the boxes of foreground regions, divided by the number of all regions.

        So each foreground region weighs the same, however many there are in a batch; dividing by their number would
        give one that stands alone in its batch the weight of a hundred.

        Args:
            proposal_boxes: (R, box dimension).
            gt_boxes: (R, box dimension); those of the background play no part.
            pred_deltas: (R, B * box dimension).
            gt_classes: (R,), K for the background.
        """
        box_dim = proposal_boxes.shape[1]
        foreground = ((gt_classes >= 0) & (gt_classes < self.num_classes)).nonzero()[:, 0]
        deltas = pred_deltas[foreground].unflatten(1, (-1, box_dim))  # (foreground, B, box dimension)
        one_for_all = deltas.shape[1] == 1
        box_index = torch.zeros_like(foreground) if one_for_all else gt_classes[foreground]
        deltas = deltas[torch.arange(len(foreground), device=deltas.device), box_index]
        return box_regression_loss(
            self.box2box_transform,
            proposal_boxes[foreground],
            deltas,
            gt_boxes[foreground],
            self.loss_bbox,
            avg_factor=max(gt_classes.numel(), 1),
        )

    # Inference

    def inference(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> tuple[list[Instances], list[Tensor]]:
        """Detections in each image, as :func:`fast_rcnn_inference` gives them."""
        return fast_rcnn_inference(
            self.predict_boxes(predictions, proposals),
            self.predict_probs(predictions, proposals),
            [p.image_size for p in proposals],
            self.test_score_thresh,
            self.test_nms_thresh,
            self.test_topk_per_image,
        )

    def predict_boxes_for_gt_classes(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> list[Tensor]:
        """The box that each region predicts for its true class, for each image (R_i, box dimension).

        Where the true class is the background, any class stands in for it.
        """
        if not proposals:
            return []
        counts = [len(p) for p in proposals]
        boxes = torch.cat(self.predict_boxes(predictions, proposals))
        boxes = boxes.unflatten(1, (-1, len(self.box2box_transform.weights)))  # (R, B, box dimension)
        if boxes.shape[1] > 1:
            classes = torch.cat([p.gt_classes for p in proposals]).clamp(0, self.num_classes - 1)
            boxes = boxes[torch.arange(len(boxes), device=boxes.device), classes]
        return boxes.flatten(1).split(counts)

    def predict_boxes(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """The predicted boxes of each image, (R_i, B * box dimension)."""
        if not proposals:
            return []
        _, deltas = predictions
        proposal_boxes = torch.cat([p.proposal_boxes.tensor for p in proposals])
        boxes = self.box2box_transform.apply_deltas(deltas, proposal_boxes)
        return boxes.split([len(p) for p in proposals])

    def predict_probs(self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]) -> list[Tensor]:
        """The probabilities of each image's regions, (R_i, K + 1)."""
        logits, _ = predictions
        probs = logits.sigmoid() if self._scores_by_sigmoid else F.softmax(logits, dim=-1)
        return probs.split([len(p) for p in proposals])


def fast_rcnn_inference(
    boxes: list[Tensor],
    scores: list[Tensor],
    image_shapes: list[tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> tuple[list[Instances], list[Tensor]]:
    """The best detections of each image, after suppression within each class.

    Args:
        boxes: of each image, (R_i, B * 4), XYXY.
        scores: of each image, (R_i, K + 1).
        image_shapes: height and width of each image.
        score_thresh: detections must score more.
        nms_thresh: IoU above which the worse of two detections of one class is dropped.
        topk_per_image: how many to keep; all if negative.

    Returns:
        For each image, Instances with ``pred_boxes``, ``scores`` and ``pred_classes``, best first; and for each of its
        detections the number of the region it comes from, counting only regions whose numbers are finite.
    """
    limits = (score_thresh, nms_thresh, topk_per_image)
    results = [
        select_detections(image_boxes.unflatten(1, (-1, 4)), *image, *limits, box_type=Boxes, nms=batched_nms)
        for image_boxes, *image in zip(boxes, scores, image_shapes, strict=True)
    ]
    return [instances for instances, _ in results], [kept for _, kept in results]


def select_detections(
    boxes: Tensor,
    scores: Tensor,
    image_size: tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
    *,
    box_type: type[Boxes],
    nms: Callable[[Tensor, Tensor, Tensor, float], Tensor],
) -> tuple[Instances, Tensor]:
    """As :func:`fast_rcnn_inference`, for one image and boxes of any type.

    Args:
        boxes: (R, B, box dimension).
        scores: (R, K + 1).
        nms: takes boxes, scores, their classes and a threshold, and returns the kept, best first.
    """
    # A region that overflowed (float16) is left out rather than the image.
    finite = boxes.isfinite().all(dim=-1).all(dim=-1) & scores.isfinite().all(dim=1)
    boxes, scores = boxes[finite], scores[finite]
    region, classes = (scores[:, :-1] > score_thresh).nonzero(as_tuple=True)
    boxes = box_type(boxes[region, classes if boxes.shape[1] > 1 else 0])
    boxes.clip(image_size)
    scores = scores[region, classes]
    keep = nms(boxes.tensor, scores, classes, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep])
    return result, region[keep]


@torch.no_grad()
def _log_classification(logits: Tensor, gt_classes: Tensor) -> None:
    """Scalars: the part of all and of foreground regions classified right, and of the latter called background."""
    if gt_classes.numel() == 0:
        return
    background = logits.shape[1] - 1
    predicted = logits.argmax(dim=1)
    foreground = (gt_classes >= 0) & (gt_classes < background)
    correct = predicted == gt_classes
    num_foreground = foreground.sum().clamp(min=1)
    log_scalar("fast_rcnn/cls_accuracy", correct.float().mean())
    log_scalar("fast_rcnn/fg_cls_accuracy", (correct & foreground).sum() / num_foreground)
    log_scalar("fast_rcnn/false_negative", ((predicted == background) & foreground).sum() / num_foreground)


def _class_weights_of(dataset_names: tuple[str, ...], power: float) -> Tensor:
    # The one look of a model at the data: how often each class occurs. It happens only with the federated loss.
    from detlib.data.detection_utils import get_fed_loss_cls_weights

    return get_fed_loss_cls_weights(dataset_names, power)
