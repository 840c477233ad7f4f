"""From the samples of a batch to the tensors that a model takes."""

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.structures import ImageList
from detlib.utils.errors import DatasetError

__all__ = [
    "CLASS_LABELS",
    "ImagePreprocessor",
    "PreprocessesImages",
    "check_sem_seg",
    "class_labels_of",
    "instances_of",
    "output_size_of",
    "pad_labels",
    "whole_label",
]

CLASS_LABELS = ("score", "labels", "label")
"""Entries by which a sample says what its image shows; the first that is there counts."""


class ImagePreprocessor(nn.Module):
    """Move images to the model's device, normalise each channel and pad them into one batch."""

    def __init__(
        self,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        size_divisibility: int = 0,
        padding_constraints: dict[str, int] | None = None,
    ) -> None:
        """
        Args:
            pixel_mean: of each channel, in the order of ``INPUT.FORMAT``.
            pixel_std: likewise.
            size_divisibility: the padded height and width are multiples of it; 0 for any.
            padding_constraints: as :meth:`ImageList.from_tensors` takes them.
        """
        super().__init__()
        # Not in the state_dict, as checkpoints of the field have no such keys.
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean, dtype=torch.float32).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.size_divisibility = size_divisibility
        self.padding_constraints = padding_constraints

    @property
    def device(self) -> torch.device:
        """Where the batch will be."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """
        Args:
            batched_inputs: each with an ``image`` of shape (C, H, W), uint8 or float, of any size.
        """
        images = [self._normalize(sample) for sample in batched_inputs]
        return ImageList.from_tensors(images, self.size_divisibility, padding_constraints=self.padding_constraints)

    def _normalize(self, sample: dict[str, Any]) -> Tensor:
        if "image" not in sample:
            advice = "remove INPUT.VIEWS, or set MODEL.META_ARCHITECTURE to a self-supervised algorithm"
            raise DatasetError(
                f"the model takes one 'image' of each sample, but {_name(sample)} has only {', '.join(sorted(sample))}"
                + (f": {advice}" if "views" in sample else "")
            )
        image, channels = sample["image"], len(self.pixel_mean)
        if image.dim() != 3 or image.shape[0] != channels:
            raise DatasetError(
                f"the image of {_name(sample)} has the shape {tuple(image.shape)}; ({channels}, H, W) is expected, as "
                f"MODEL.PIXEL_MEAN has {channels} values. Set INPUT.FORMAT and MODEL.PIXEL_MEAN alike."
            )
        normalized = (image.to(self.device, non_blocking=True) - self.pixel_mean) / self.pixel_std
        return normalized.to(self.pixel_mean.dtype)  # That of the model, also for float32 images and bfloat16 weights.


class PreprocessesImages:
    """What a model with a ``preprocessor`` offers to its subclasses, under the names that projects use."""

    preprocessor: ImagePreprocessor

    @property
    def device(self) -> torch.device:
        """Where the model is and its inputs go."""
        return self.preprocessor.device

    @property
    def pixel_mean(self) -> Tensor:
        """(C, 1, 1)."""
        return self.preprocessor.pixel_mean

    @property
    def pixel_std(self) -> Tensor:
        """(C, 1, 1)."""
        return self.preprocessor.pixel_std

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, pad and batch the images: an ImageList over (N, C, H', W')."""
        return self.preprocessor(batched_inputs)


def instances_of(batched_inputs: list[dict[str, Any]], device: torch.device) -> list:
    """The ground truth of a training batch, on ``device``."""
    for sample in batched_inputs:
        if "instances" not in sample:
            raise DatasetError(
                f"training needs 'instances', but {_name(sample)} has only {', '.join(sorted(sample))}. "
                f"Build the loader with DatasetMapper(cfg, is_train=True), or call model.eval() to predict."
            )
    return [sample["instances"].to(device) for sample in batched_inputs]


def check_sem_seg(batched_inputs: list[dict[str, Any]], num_classes: int | None, ignore_value: int) -> None:
    """Look at the label maps of a training batch.

    Args:
        num_classes: labels must be below it or ``ignore_value``; None takes them as they are.
        ignore_value: label of pixels that do not count.

    Raises:
        DatasetError: a sample has no labels, labels of another size than its image, or labels of unknown classes.
    """
    for sample in batched_inputs:
        if "sem_seg" not in sample:
            raise DatasetError(
                f"training needs 'sem_seg', but {_name(sample)} has only {', '.join(sorted(sample))}. Train on a "
                f"dataset whose samples have sem_seg_file_name (DATASETS.TRAIN), or call model.eval() to predict."
            )
        _check_labels(sample, num_classes, ignore_value)


def _check_labels(sample: dict[str, Any], num_classes: int | None, ignore_value: int) -> None:
    """On the CPU, where the labels come from, so that the device need not be waited for."""
    labels, size = sample["sem_seg"], tuple(sample["image"].shape[-2:])
    if tuple(labels.shape) != size:
        raise DatasetError(f"sem_seg of {_name(sample)} has the shape {tuple(labels.shape)}, its image {size}")
    if num_classes is None or labels.device.type != "cpu":
        return
    wrong = (labels < 0) | (labels >= num_classes)
    wrong &= labels != ignore_value
    if wrong.any():
        found = labels[wrong].unique().tolist()
        raise DatasetError(
            f"sem_seg of {_name(sample)} has the labels {found[:10]}, but there are {num_classes} classes, numbered "
            f"from 0, and {ignore_value} is ignored. Set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {max(found) + 1} or more if "
            f"they are classes, or MODEL.SEM_SEG_HEAD.IGNORE_VALUE to the label of pixels that do not count."
        )


def pad_labels(labels: Iterable[Tensor], images: ImageList, ignore_value: int) -> Tensor:
    """Label maps of a batch as (N, H, W) int64, with ``ignore_value`` where the images are padded.

    Args:
        labels: of each image, of its size or padded.
    """
    device, (height, width) = images.device, images.tensor.shape[-2:]
    padded = torch.full((len(images), height, width), ignore_value, dtype=torch.int64, device=device)
    for target, label, (h, w) in zip(padded, labels, images.image_sizes, strict=True):
        target[:h, :w].copy_(label[:h, :w], non_blocking=True)
    return padded


def class_labels_of(batched_inputs: list[dict[str, Any]], num_classes: int, device: torch.device) -> Tensor:
    """What the images of a training batch show, on ``device``.

    Returns:
        (N,) int64 classes, of samples with a ``label``; or (N, num_classes) floats: 1 for each class of the list
        ``labels`` and 0 for others, or the vectors ``score``.

    Raises:
        DatasetError: a sample has none of them, or others than the first one has; or a label of an unknown class.
    """
    key = next((key for key in CLASS_LABELS if key in batched_inputs[0]), "label")
    for sample in batched_inputs:
        if key not in sample:
            raise DatasetError(
                f"training needs 'label', 'labels' or 'score', the same of all images of a batch, but {_name(sample)} "
                f"has only {', '.join(sorted(sample))}. Train on a dataset of classification (DATASETS.TRAIN), or call "
                f"model.eval() to predict."
            )
    if key == "score":
        labels = torch.stack([_class_scores(sample, num_classes) for sample in batched_inputs])
    elif key == "labels":
        labels = torch.zeros(len(batched_inputs), num_classes)
        for row, sample in zip(labels, batched_inputs):
            row[_class_indices(sample, num_classes)] = 1
    else:
        labels = torch.tensor([_class_index(sample["label"], sample, num_classes) for sample in batched_inputs])
    return labels.to(device, non_blocking=True)


def _class_indices(sample: dict[str, Any], num_classes: int) -> list[int]:
    labels = sample["labels"]
    if not isinstance(labels, Iterable) or isinstance(labels, str):
        raise DatasetError(f"the labels of {_name(sample)} are {labels!r}; they must be a list of whole numbers")
    return [_class_index(label, sample, num_classes) for label in labels]


def whole_label(label: Any, sample: dict[str, Any]) -> int:
    """The number of the class that a sample shows.

    Raises:
        DatasetError: it is no whole number.
    """
    try:
        return operator.index(label)
    except TypeError:
        raise DatasetError(f"the label of {_name(sample)} is {label!r}; it must be a whole number") from None


def _class_index(label: Any, sample: dict[str, Any], num_classes: int) -> int:
    index = whole_label(label, sample)
    if not 0 <= index < num_classes:
        hint = f". Set MODEL.CLASSIFIER.NUM_CLASSES to {index + 1} or more if it is a class" if index > 0 else ""
        raise DatasetError(
            f"the label of {_name(sample)} is {index}, but there are {num_classes} classes, numbered from 0{hint}"
        )
    return index


def _class_scores(sample: dict[str, Any], num_classes: int) -> Tensor:
    scores = torch.as_tensor(sample["score"], dtype=torch.float32)
    if scores.shape != (num_classes,):
        raise DatasetError(
            f"the score of {_name(sample)} has the shape {tuple(scores.shape)}; ({num_classes},) is expected, a number "
            f"for each of MODEL.CLASSIFIER.NUM_CLASSES"
        )
    return scores


def output_size_of(sample: dict[str, Any], image_size: tuple[int, int]) -> tuple[int, int]:
    """Height and width in which predictions are wanted; by default those of the network's input."""
    return sample.get("height", image_size[0]), sample.get("width", image_size[1])


def _name(sample: dict[str, Any]) -> str:
    return repr(sample["file_name"]) if "file_name" in sample else "a sample"
