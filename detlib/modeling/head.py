"""Heads by name, and the heads of classifiers.

Shapes: N images, C channels of the features, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.modeling.loss import build_loss
from detlib.utils.errors import ConfigAssertionError, ConfigError
from detlib.utils.events import log_scalar
from detlib.utils.registry import Registry

__all__ = ["HEAD_REGISTRY", "ClsHead", "Features", "LinearClsHead", "MultiLabelLinearClsHead"]

HEAD_REGISTRY = Registry("HEAD")
HEAD_REGISTRY.__doc__ = """
Heads of dense detectors and classifiers: modules built by `build_component`. A detector offers ``input_shape``, the
list of ``ShapeSpec`` of its feature maps, ``in_channels``, ``num_classes`` and ``num_anchors``; a classifier
``in_channels`` and ``num_classes``.
"""

Features = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""What a neck gives: one tensor, or several, the last of which counts."""


@HEAD_REGISTRY.register()
class ClsHead(nn.Module):
    """A head without layers, whose features are the scores already. Others say in ``forward`` what the scores are."""

    def __init__(self, loss: Any = None, topk: int | Sequence[int] = (1,), cal_acc: bool = True) -> None:
        """
        Args:
            loss: a module, or its name and arguments, as in ``{"NAME": "LabelSmoothLoss", "LABEL_SMOOTH_VAL": 0.1}``;
                by default CrossEntropyLoss.
            topk: for which k to log, when training, how many labels are among the k best scores.
            cal_acc: whether to log that at all.
        """
        super().__init__()
        self.loss_module = build_loss(loss or {"NAME": "CrossEntropyLoss"})
        self.topk = (topk,) if isinstance(topk, int) else tuple(topk)
        if not all(k > 0 for k in self.topk):
            raise ConfigAssertionError(f"topk must be positive, got {self.topk}")
        self.cal_acc = cal_acc

    def forward(self, features: Features) -> Tensor | list[Tensor]:
        """The scores before softmax, (N, K); or a list of them, from several classifiers."""
        return features if isinstance(features, list) else self.pre_logits(features)

    def pre_logits(self, features: Features) -> Tensor:
        """What the scores are computed from: the last of the features."""
        if isinstance(features, Mapping):
            features = list(features.values())
        return features if isinstance(features, Tensor) else features[-1]

    def scores(self, features: Features) -> Tensor:
        """The scores before softmax, (N, K); several classifiers give their mean."""
        scores = self(features)
        return torch.stack(scores).mean(dim=0) if isinstance(scores, list) else scores

    def loss(self, features: Features, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
        """The losses by name. Accuracies go to the event storage, as ``top1_acc``.

        Args:
            target: (N,) classes, or (N, K) soft labels, for which there is no accuracy.
            weight: (N,) of the samples, for a weighted mean over them; by default they count alike.
        """
        scores = self.scores(features)
        if self.cal_acc and target.dim() == 1:
            for name, percent in self.accuracy(scores.detach(), target).items():
                log_scalar(f"{name.replace('-', '')}_acc", percent)
        if weight is None:  # A loss of the user's own may take no weights.
            return {"loss_cls": self.loss_module(scores, target, avg_factor=len(scores))}
        return {"loss_cls": self.loss_module(scores, target, weight=weight, avg_factor=weight.sum())}

    def accuracy(self, scores: Tensor, target: Tensor) -> dict[str, Tensor]:
        """How many labels are among the k best scores, in percent, as ``{"top-1": ..., "top-5": ...}``.

        Args:
            scores: (N, K); of equal ones, the lower class comes first.
            target: (N,) classes.

        Raises:
            ConfigError: a k is larger than the number of classes.
            ValueError: the labels are soft.
        """
        if target.dim() != 1:
            raise ValueError(f"accuracy needs one class for each image, of shape (N,); got {tuple(target.shape)}")
        num_classes = scores.shape[1]
        if max(self.topk) > num_classes:
            raise ConfigError(
                f"top-{max(self.topk)} accuracy of {num_classes} classes is not defined; "
                f"set TOPK in MODEL.CLASSIFIER.HEAD to {num_classes} or less"
            )
        best = scores.argsort(dim=1, descending=True, stable=True)[:, : max(self.topk)]
        hits = best == target[:, None]  # (N, largest k)
        return {f"top-{k}": hits[:, :k].any(dim=1).float().mean() * 100 for k in self.topk}

    def predict(self, features: Features) -> list[dict[str, Any]]:
        """For each image ``pred_score``, the (K,) probabilities, and ``pred_label``, the most probable class."""
        probabilities = self.scores(features).float().softmax(dim=1)
        labels = probabilities.argmax(dim=1).tolist()
        return [{"pred_score": score, "pred_label": label} for score, label in zip(probabilities, labels)]


@HEAD_REGISTRY.register()
class LinearClsHead(ClsHead):
    """One linear layer."""

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        loss: Any = None,
        topk: int | Sequence[int] = (1,),
        cal_acc: bool = True,
        init_std: float = 0.01,
    ) -> None:
        """Arguments not named here are those of :class:`ClsHead`.

        Args:
            in_channels: C.
            init_std: of the weights at first.
        """
        super().__init__(loss, topk, cal_acc)
        self.init_std = init_std
        self.fc = _classifier(in_channels, num_classes, init_std)

    def reset_parameters(self) -> None:
        """Forget what was learned: the weights are drawn anew."""
        _init_classifier(self.fc, self.init_std)

    def forward(self, features: Features) -> Tensor:
        return self.fc(_checked(self.pre_logits(features), self.fc.in_features))


@HEAD_REGISTRY.register()
class MultiLabelLinearClsHead(ClsHead):
    """One linear layer that decides on every class by itself: an image has any number of them."""

    def __init__(
        self, num_classes: int, in_channels: int, thr: float | None = None, topk: int | None = None, loss: Any = None
    ) -> None:
        """
        Args:
            in_channels: C.
            thr: predict the classes with at least this probability; by default 0.5, unless ``topk`` is given.
            topk: predict this many classes for every image; ``thr`` wins.
            loss: see :class:`ClsHead`; by default the cross entropy of each class by itself.
        """
        super().__init__(loss or {"NAME": "CrossEntropyLoss", "USE_SIGMOID": True}, cal_acc=False)
        if topk is not None and not 0 < topk <= num_classes:
            raise ConfigError(f"topk is {topk}; it must be between 1 and the number of classes, {num_classes}")
        self.fc = _classifier(in_channels, num_classes)
        self.thr = 0.5 if thr is None and topk is None else thr
        self.num_labels = topk

    def forward(self, features: Features) -> Tensor:
        return self.fc(_checked(self.pre_logits(features), self.fc.in_features))

    def predict(self, features: Features) -> list[dict[str, Any]]:
        """For each image ``pred_score``, the (K,) probabilities, and ``pred_label``, the list of classes."""
        probabilities = self.scores(features).float().sigmoid()
        if self.thr is None:
            labels = probabilities.topk(self.num_labels).indices.tolist()
        else:
            labels = [row.nonzero().flatten().tolist() for row in (probabilities >= self.thr).cpu()]
        return [{"pred_score": score, "pred_label": label} for score, label in zip(probabilities, labels)]


def _classifier(in_channels: int, num_classes: int, init_std: float = 0.01) -> nn.Linear:
    if num_classes <= 0:
        raise ConfigError(f"num_classes is {num_classes}; it must be positive. Set MODEL.CLASSIFIER.NUM_CLASSES.")
    fc = nn.Linear(in_channels, num_classes)
    _init_classifier(fc, init_std)
    return fc


def _init_classifier(fc: nn.Linear, std: float) -> None:
    # 0.01 as for ImageNet in "Accurate, Large Minibatch SGD" (arXiv:1706.02677, sec. 5.1); all classes start alike.
    nn.init.normal_(fc.weight, std=std)
    nn.init.zeros_(fc.bias)


def _checked(features: Tensor, in_channels: int) -> Tensor:
    if features.dim() != 2 or features.shape[1] != in_channels:
        raise ConfigError(
            f"the head takes features of shape (N, {in_channels}), got {tuple(features.shape)}; a neck must pool "
            f"feature maps, as GlobalAveragePooling does (MODEL.NECK, or a node of type gap), and IN_CHANNELS of the "
            f"head be their channels"
        )
    return features
