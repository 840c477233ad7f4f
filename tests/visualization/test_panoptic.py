import numpy as np
import pytest
import torch

from detlib.data.catalog import Metadata
from detlib.visualization.panoptic import _PanopticPrediction

MAP = torch.tensor([[1, 1, 1], [2, 2, 0]])
INFO = [{"id": 1, "category_id": 4, "isthing": False}, {"id": 2, "category_id": 0, "isthing": True}]


def test_segments_are_divided_into_stuff_and_things():
    prediction = _PanopticPrediction(MAP, INFO)
    ((stuff, stuff_info),) = prediction.semantic_masks()
    ((thing, thing_info),) = prediction.instance_masks()
    assert (stuff.tolist(), stuff_info["category_id"]) == ([[True, True, True], [False, False, False]], 4)
    assert (thing.tolist(), thing_info["category_id"]) == ([[False, False, False], [True, True, False]], 0)


def test_pixels_without_segment_are_empty():
    np.testing.assert_array_equal(_PanopticPrediction(MAP, INFO).non_empty_mask(), MAP.numpy() > 0)


def test_larger_segments_come_first():
    info = [{"id": i, "category_id": 0, "isthing": True} for i in (2, 1)]
    assert [info["id"] for _, info in _PanopticPrediction(MAP, info).instance_masks()] == [1, 2]


def test_segment_that_is_not_in_the_map_is_left_out():
    assert list(_PanopticPrediction(MAP, [{"id": 9, "category_id": 0, "isthing": True}]).instance_masks()) == []


def test_without_info_the_ids_give_the_classes():
    metadata = Metadata(label_divisor=1000, thing_dataset_id_to_contiguous_id={12: 3})
    prediction = _PanopticPrediction(torch.tensor([[3001, 3002, 5000, -1]]), None, metadata)
    assert [info["category_id"] for _, info in prediction.instance_masks()] == [3, 3]
    assert [info["category_id"] for _, info in prediction.semantic_masks()] == [5]
    assert prediction.non_empty_mask().tolist() == [[True, True, True, False]]


def test_without_info_and_divisor_the_error_says_what_to_set():
    with pytest.raises(ValueError, match="label_divisor"):
        _PanopticPrediction(MAP, None, Metadata())
