"""Losses of class scores.

Shapes: N samples, C classes. Targets are integer labels (N,), or (N, C) in 0..1: several labels, or the soft ones of
Mixup and CutMix. In the losses with a sigmoid any label outside 0..C-1 is background; detectors use C.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from detlib.layers.losses import sigmoid_focal_loss
from detlib.modeling.loss.build import LOSS_REGISTRY
from detlib.modeling.loss.targets import check_labels, check_same_shape, class_targets
from detlib.modeling.loss.weighted import WeightedLoss
from detlib.utils.errors import ConfigAssertionError

__all__ = ["AsymmetricLoss", "CrossEntropyLoss", "FocalLoss", "LabelSmoothLoss"]


@LOSS_REGISTRY.register()
class CrossEntropyLoss(WeightedLoss):
    """Cross-entropy of a softmax, with one element per sample, or of C sigmoids, with C elements per sample.

    With a sigmoid and ``avg_factor=N`` the loss is thus C times its mean.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        use_soft: bool = False,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        class_weight: Sequence[float] | None = None,
        pos_weight: Sequence[float] | None = None,
        weighted_mean: bool = False,
    ) -> None:
        """
        Args:
            use_sigmoid: C binary problems instead of one softmax.
            use_soft: targets of the softmax are distributions (N, C); integer labels are still taken.
            class_weight: C factors of the classes.
            pos_weight: C factors of the positive terms, with ``use_sigmoid`` only.
            weighted_mean: the mean over integer labels divides by the sum of their class weights, as that of
                :func:`torch.nn.functional.cross_entropy`, instead of by N. An ``avg_factor`` precedes both.
        """
        super().__init__(reduction, loss_weight)
        if use_sigmoid and use_soft:
            raise ConfigAssertionError(
                "use_sigmoid and use_soft are both set; sigmoids take soft targets without use_soft"
            )
        if weighted_mean and (use_sigmoid or class_weight is None):
            raise ValueError("weighted_mean is set; it needs class_weight, and a softmax: use_sigmoid=False")
        if pos_weight is not None and not use_sigmoid:
            raise ValueError("pos_weight is set; it needs use_sigmoid=True. class_weight does for a softmax")
        self.use_sigmoid = use_sigmoid
        self.use_soft = use_soft
        self.weighted_mean = weighted_mean
        self.register_buffer("class_weight", _optional_tensor(class_weight), persistent=False)
        self.register_buffer("pos_weight", _optional_tensor(pos_weight), persistent=False)

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """As :meth:`WeightedLoss.forward`, of scores (N, C) and the targets of the mode."""
        is_mean = self.choose_reduction(reduction_override) == "mean"
        if self.weighted_mean and is_mean and avg_factor is None and target.ndim == 1:
            avg_factor = self.class_weight[target.clamp(0, len(self.class_weight) - 1)].sum()
        return super().forward(pred, target, weight, avg_factor, reduction_override)

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        class_weight = _of_classes(self.class_weight, pred, "class_weight")
        if not self.use_sigmoid:
            if not self.use_soft and target.ndim > 1:
                raise ConfigAssertionError(
                    f"targets are {tuple(target.shape)}; expected integer labels (N,). Soft targets (N, C), such as "
                    f"BATCH_AUGMENTS make, need use_soft=True, several labels per sample use_sigmoid=True (or the head "
                    f"MultiLabelLinearClsHead)"
                )
            return softmax_cross_entropy(pred, target, class_weight)
        pos_weight = _of_classes(self.pos_weight, pred, "pos_weight")
        targets = class_targets(target, pred)  # (N, C)
        return F.binary_cross_entropy_with_logits(
            pred, targets, weight=class_weight, pos_weight=pos_weight, reduction="none"
        )


@LOSS_REGISTRY.register()
class LabelSmoothLoss(WeightedLoss):
    """Cross-entropy of smoothed targets (https://arxiv.org/abs/1512.00567, sec. 7), from labels or soft targets.

    With a smoothing value e and a target t in 0..1 the modes train towards

    * "original": (1 - e) t + e / C, with a softmax;
    * "classy_vision": (t + e / C) / (1 + e), which is "original" with e / (1 + e);
    * "multi_label": (1 - e) t + e (1 - t), with sigmoids.
    """

    def __init__(
        self,
        label_smooth_val: float = 0.1,
        num_classes: int | None = None,
        mode: str = "original",
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        """
        Args:
            label_smooth_val: e, in [0, 1).
            num_classes: C; None for any number of scores.
        """
        super().__init__(reduction, loss_weight)
        if not 0 <= label_smooth_val < 1:
            raise ValueError(f"label_smooth_val is {label_smooth_val}; expected a value in [0, 1)")
        if mode not in ("original", "classy_vision", "multi_label"):
            raise ValueError(f"mode is {mode!r}; expected 'original', 'classy_vision' or 'multi_label'")
        self.label_smooth_val = label_smooth_val
        self.num_classes = num_classes
        self.mode = mode
        self.use_sigmoid = mode == "multi_label"

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        if self.num_classes not in (None, pred.shape[-1]):
            raise ValueError(
                f"num_classes is {self.num_classes}, but there are {pred.shape[-1]} scores per sample; "
                f"set num_classes={pred.shape[-1]}, or leave it out"
            )
        smoothing = self.label_smooth_val
        if self.mode == "multi_label":
            targets = class_targets(target, pred)
            targets = (1 - smoothing) * targets + smoothing * (1 - targets)  # (N, C)
            return F.binary_cross_entropy_with_logits(pred, targets, reduction="none")
        if self.mode == "classy_vision":
            smoothing = smoothing / (1 + smoothing)
        return softmax_cross_entropy(pred, target, label_smoothing=smoothing)


@LOSS_REGISTRY.register()
class FocalLoss(WeightedLoss):
    """Focal loss of sigmoids, -alpha_t (1 - p_t)^gamma log(p_t), one element per class.

    Eq. 5 of https://arxiv.org/abs/1708.02002. Detectors divide by the number of positives: their ``avg_factor``.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        """
        Args:
            use_sigmoid: must be True.
            gamma: how much less well-classified elements count.
            alpha: weight of the positives; that of the negatives is 1 - alpha.
        """
        super().__init__(reduction, loss_weight)
        if not use_sigmoid:
            raise ValueError("use_sigmoid is False; focal loss is of sigmoids only. CrossEntropyLoss has a softmax")
        self.use_sigmoid = use_sigmoid
        self.gamma = gamma
        self.alpha = alpha

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        return sigmoid_focal_loss(pred, class_targets(target, pred), alpha=self.alpha, gamma=self.gamma)  # (N, C)


@LOSS_REGISTRY.register()
class AsymmetricLoss(WeightedLoss):
    """Asymmetric loss for many labels, of which few are positive; one element per class.

    Eq. 7 of https://arxiv.org/abs/2009.14119: the positives have the loss -(1 - p)^gamma_pos log(p), the negatives
    -q^gamma_neg log(1 - q) with q = max(p - clip, 0).
    """

    use_sigmoid = True

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        clip: float = 0.05,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        eps: float = 1e-8,
    ) -> None:
        """
        Args:
            gamma_pos: how much less well-classified positives count.
            gamma_neg: how much less well-classified negatives count.
            clip: probability up to which a negative has no loss.
            eps: least probability in powers and logarithms.
        """
        super().__init__(reduction, loss_weight)
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.clip = clip
        self.eps = eps

    def elements(self, pred: Tensor, target: Tensor) -> Tensor:
        targets = class_targets(target, pred)
        p, not_p = pred.sigmoid(), (-pred).sigmoid()  # 1 - p would be 0 for large scores
        # Lower limits: the gradient of 0 to a power below 1 is infinite.
        positive = -not_p.clamp(min=self.eps).pow(self.gamma_pos) * F.logsigmoid(pred)
        q, not_q = (p - self.clip).clamp(min=self.eps), (not_p + self.clip).clamp(self.eps, 1)
        negative = -q.pow(self.gamma_neg) * not_q.log()
        return targets * positive + (1 - targets) * negative  # (N, C)


def softmax_cross_entropy(
    logits: Tensor, target: Tensor, class_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Loss (N,) of scores (N, C) against integer labels (N,) or distributions (N, C).

    A label outside 0..C-1 is an error of the caller: a ValueError on the CPU. A GPU cannot raise without waiting, so
    the loss is NaN there, for which the trainer stops; torch's own assertion would leave the process without a GPU.
    """
    if logits.ndim != 2:
        raise ConfigAssertionError(f"scores are {tuple(logits.shape)}; expected (N, C)")
    if target.ndim == 2:
        check_same_shape(logits, target)
        return F.cross_entropy(
            logits, target.to(logits.dtype), class_weight, reduction="none", label_smoothing=label_smoothing
        )
    check_labels(target, logits.shape[:-1])
    num_classes = logits.shape[-1]
    known = (target >= 0) & (target < num_classes)
    if target.device.type == "cpu" and not known.all():
        raise ValueError(
            f"label {target[~known][0].item()} for {num_classes} scores; expected 0 to {num_classes - 1}. If it is the "
            f"background, give the softmax one more score, or set use_sigmoid=True, which needs none"
        )
    loss = F.cross_entropy(
        logits, target.long().where(known, 0), class_weight, reduction="none", label_smoothing=label_smoothing
    )
    return loss.masked_fill(~known, torch.nan)


def _optional_tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values, dtype=torch.float32)


def _of_classes(values: Tensor | None, logits: Tensor, name: str) -> Tensor | None:
    if values is None:
        return None
    if len(values) != logits.shape[-1]:
        raise ValueError(f"{name} has {len(values)} values for {logits.shape[-1]} scores; expected one per score")
    return values.to(logits.dtype)
