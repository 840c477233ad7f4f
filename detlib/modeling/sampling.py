"""Random samples of foreground and background."""

import torch
from torch import Tensor

__all__ = ["subsample_labels"]


def subsample_labels(
    labels: Tensor, num_samples: int, positive_fraction: float, bg_label: int
) -> tuple[Tensor, Tensor]:
    """Draw at most ``num_samples`` elements, at most ``positive_fraction`` of them foreground.

    Background fills what the foreground leaves, so there are fewer samples only where the background runs out.

    Args:
        labels: (N,), with -1 for ignored elements.
        bg_label: the label of the background; all others but -1 are foreground.

    Returns:
        Indices of the foreground samples and of the background samples.
    """
    positive = ((labels != -1) & (labels != bg_label)).nonzero(as_tuple=True)[0]
    negative = (labels == bg_label).nonzero(as_tuple=True)[0]
    num_positive = min(len(positive), int(num_samples * positive_fraction))
    num_negative = min(len(negative), num_samples - num_positive)
    return _draw(positive, num_positive), _draw(negative, num_negative)


def _draw(index: Tensor, count: int) -> Tensor:
    return index[torch.randperm(len(index), device=index.device)[:count]]
