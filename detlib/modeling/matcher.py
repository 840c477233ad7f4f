"""Which ground truth each prediction is compared with."""

import torch
from torch import Tensor

from detlib.utils.errors import ConfigError

__all__ = ["Matcher"]


class Matcher:
    """Give each of N predictions the best of M ground truths and a label for how good the match is.

    Example:
        ``Matcher([0.4, 0.5], [0, -1, 1])`` labels a prediction 0 (background) where its best IoU is below 0.4, -1
        (ignored) from 0.4 to below 0.5, and 1 (foreground) from 0.5 on.
    """

    def __init__(self, thresholds: list[float], labels: list[int], allow_low_quality_matches: bool = False) -> None:
        """
        Args:
            thresholds: k ascending positive limits between the labels.
            labels: k + 1 labels out of -1, 0 and 1, worst match first.
            allow_low_quality_matches: label 1 also the best predictions of every ground truth, however bad they are.
        """
        if sorted(thresholds) != list(thresholds) or (thresholds and thresholds[0] <= 0):
            raise ConfigError(f"IOU_THRESHOLDS is {list(thresholds)}; it must hold ascending numbers above 0.")
        if len(labels) != len(thresholds) + 1 or not set(labels) <= {-1, 0, 1}:
            raise ConfigError(
                f"IOU_LABELS is {list(labels)}; it must hold {len(thresholds) + 1} labels out of -1, 0 and 1, "
                f"one more than IOU_THRESHOLDS has numbers."
            )
        self.thresholds = [-float("inf"), *thresholds, float("inf")]
        self.labels = list(labels)
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, match_quality_matrix: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            match_quality_matrix: (M, N), the quality (IoU, say) of every pair, not negative.

        Returns:
            matches: (N,) int64, index of each prediction's best ground truth; 0 where there is none.
            match_labels: (N,) int8.
        """
        if match_quality_matrix.dim() != 2:
            raise ValueError(
                f"expected a matrix of (M, N) qualities, got the shape {tuple(match_quality_matrix.shape)}"
            )
        num_gts, num_predictions = match_quality_matrix.shape
        if num_gts == 0 or num_predictions == 0:
            matches = match_quality_matrix.new_zeros(num_predictions, dtype=torch.int64)
            return matches, torch.full_like(matches, self.labels[0], dtype=torch.int8)

        best_quality, matches = match_quality_matrix.max(dim=0)
        match_labels = torch.full_like(matches, self.labels[0], dtype=torch.int8)
        for threshold, label in zip(self.thresholds[1:], self.labels[1:]):
            match_labels[best_quality >= threshold] = label
        if self.allow_low_quality_matches:
            self.set_low_quality_matches_(match_labels, match_quality_matrix)
        return matches, match_labels

    def set_low_quality_matches_(self, match_labels: Tensor, match_quality_matrix: Tensor) -> None:
        """Label 1, in place, every prediction that is the best of some ground truth, also if it is that of another too.

        Ties are all kept, so that each object has an anchor (Faster R-CNN, arXiv:1506.01497, sec. 3.1.2 (i)).
        """
        best_of_gt = match_quality_matrix.amax(dim=1, keepdim=True)  # (M, 1)
        match_labels[(match_quality_matrix == best_of_gt).any(dim=0)] = 1
