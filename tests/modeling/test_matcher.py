import pytest
import torch

from detlib.modeling.matcher import Matcher
from detlib.utils.errors import ConfigError


def test_labels_change_at_the_thresholds():
    quality = torch.tensor([[0.39, 0.4, 0.49, 0.5]])
    matches, labels = Matcher([0.4, 0.5], [0, -1, 1])(quality)
    assert matches.tolist() == [0, 0, 0, 0]
    assert labels.tolist() == [0, -1, -1, 1]
    assert labels.dtype == torch.int8


def test_prediction_goes_to_its_best_ground_truth():
    matches, _ = Matcher([0.5], [0, 1])(torch.tensor([[0.6, 0.1], [0.7, 0.0]]))
    assert matches.tolist() == [1, 0]


def test_low_quality_matches_keep_all_ties():
    quality = torch.tensor([[0.2, 0.2, 0.1]])
    assert Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)(quality)[1].tolist() == [1, 1, 0]
    assert Matcher([0.4, 0.5], [0, -1, 1])(quality)[1].tolist() == [0, 0, 0]


def test_without_ground_truth_all_is_background():
    matches, labels = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)(torch.zeros(0, 3))
    assert matches.tolist() == [0, 0, 0]
    assert labels.tolist() == [0, 0, 0]


def test_wrong_number_of_labels_is_explained():
    with pytest.raises(ConfigError, match=r"IOU_LABELS is .* it must hold 3 labels"):
        Matcher([0.4, 0.5], [0, 1])


def test_descending_thresholds_are_refused():
    with pytest.raises(ConfigError, match="ascending"):
        Matcher([0.5, 0.4], [0, -1, 1])
