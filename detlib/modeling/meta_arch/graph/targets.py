"""What the nodes of a module graph are trained towards: labels of the samples, checked, or entries of earlier nodes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from detlib.modeling.meta_arch.graph.base import Data
from detlib.modeling.meta_arch.graph.config import NodeConfig
from detlib.modeling.preprocessing import CLASS_LABELS, check_sem_seg, class_labels_of, instances_of, pad_labels
from detlib.structures import Instances
from detlib.utils.errors import DatasetError

__all__ = ["class_labels_for", "compared_by", "gt_instances_for", "proposals_for", "sem_seg_for"]

Samples = list[dict[str, Any]]


def gt_instances_for(node: NodeConfig, data: Data) -> list[Instances]:
    """The objects of each image.

    Raises:
        DatasetError: a sample has none.
    """
    device = data["image"].device
    if "gt_instances" not in data or "instances" in node.rename_inputs.values():
        return _or_tasks(instances_of, _samples(node, data), device)
    return [instances.to(device) for instances in data["gt_instances"]]


def proposals_for(node: NodeConfig, data: Data) -> list[Instances]:
    """The proposals of each image, of an earlier node or of the samples.

    Raises:
        DatasetError: there are none.
    """
    if "proposals" not in data:
        raise DatasetError(
            "no earlier node gives 'proposals', and samples have none. Put a node of type rpn before this one, or set "
            "MODEL.LOAD_PROPOSALS: True and DATASETS.PROPOSAL_FILES_TRAIN and PROPOSAL_FILES_TEST."
        )
    return [proposals.to(data["image"].device) for proposals in data["proposals"]]


def class_labels_for(node: NodeConfig, data: Data, num_classes: int) -> Tensor:
    """What the images show: (N,) classes, or (N, num_classes) floats; see :func:`class_labels_of`.

    Where there are several of ``score``, ``labels`` and ``label``, one that the node renames counts, else the first.

    Raises:
        DatasetError: a sample has no labels, others than the first one, or of an unknown class.
    """
    samples, device = _samples(node, data), data["image"].device
    renamed = [key for key in CLASS_LABELS if key in node.rename_inputs.values()]
    keys = renamed or [key for key in CLASS_LABELS if key in data]
    if not keys:
        return _or_tasks(class_labels_of, samples, num_classes, device)
    if keys[0] not in samples[0]:
        return torch.as_tensor(data[keys[0]], device=device)  # Of an earlier node.
    others = set(CLASS_LABELS) - {keys[0]}
    samples = [{key: value for key, value in sample.items() if key not in others} for sample in samples]
    return class_labels_of(samples, num_classes, device)


def sem_seg_for(node: NodeConfig, data: Data, head: nn.Module) -> Tensor:
    """The class of each pixel, (N, H, W), with the head's ``ignore_value`` where images are padded.

    Raises:
        DatasetError: a sample has no labels, labels of another size than its image, or labels of unknown classes.
    """
    samples = _samples(node, data)
    # Heads of projects need not state their classes; their labels are then taken as they are.
    limits = getattr(head, "num_classes", None), head.ignore_value
    if "sem_seg" not in data:
        _or_tasks(check_sem_seg, samples, *limits)
    if "sem_seg" in samples[0]:
        check_sem_seg(samples, *limits)
    return pad_labels(data["sem_seg"], data["images"], head.ignore_value)


def compared_by(node: NodeConfig, data: Data) -> list[Any]:
    """The entries that a loss compares; what samples have one by one as one tensor, if it can be."""
    entries = [data[name] for name in node.inputs]
    samples = _samples(node, data)
    return [
        _stacked(entry, data["image"].device) if name in samples[0] and isinstance(entry, list) else entry
        for name, entry in zip(node.inputs, entries)
    ]


def _stacked(values: list[Any], device: torch.device) -> Any:
    try:
        return torch.stack([torch.as_tensor(value) for value in values]).to(device)
    except (TypeError, ValueError, RuntimeError):  # Texts, or tensors of different shapes.
        return values


def _samples(node: NodeConfig, data: Data) -> Samples:
    """The samples under the names by which a node knows their entries."""
    names = node.rename_inputs.items()
    return [
        {**sample, **{inner: sample[outer] for outer, inner in names if outer in sample}}
        for sample in data["batched_inputs"]
    ]


def _or_tasks(read: Callable[..., Any], *args: Any) -> Any:
    """Call what raises a DatasetError for labels that are missing, and say what else could be meant."""
    try:
        return read(*args)
    except DatasetError as error:
        hint = "If the node is for other samples only, give it tasks, and each sample a task."
        raise DatasetError(f"{error} {hint}") from None
