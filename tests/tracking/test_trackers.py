"""Hand-made videos of 100 x 100 frames, in which boxes are 20 x 20 and move a little."""

import numpy as np
import pytest
import torch

from detlib.config import get_cfg
from detlib.structures import Boxes, Instances
from detlib.tracking import (
    TRACKER_HEADS_REGISTRY,
    BaseHungarianTracker,
    BaseTracker,
    BBoxIOUTracker,
    IOUWeightedHungarianBBoxIOUTracker,
    VanillaHungarianBBoxIOUTracker,
    build_tracker_head,
    create_prediction_pairs,
)
from detlib.tracking.utils import LARGE_COST_VALUE
from detlib.utils.errors import UnknownNameError

TRACKERS = [BBoxIOUTracker, VanillaHungarianBBoxIOUTracker, IOUWeightedHungarianBBoxIOUTracker]
SIZE = {"video_height": 100, "video_width": 100}


def frame(*corners: tuple[float, float], side: float = 20) -> Instances:
    """Detections with the given top left corners; the score of number i is i / 10."""
    corners = torch.tensor(corners, dtype=torch.float32).reshape(-1, 2)
    instances = Instances((100, 100))
    instances.pred_boxes = Boxes(torch.cat([corners, corners + side], dim=1))
    instances.scores = torch.arange(len(corners)) / 10
    return instances


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_objects_keep_their_identities_when_they_move_and_change_places_in_the_list(tracker_class):
    tracker = tracker_class(**SIZE)
    assert tracker.update(frame((0, 0), (50, 50))).ID == [0, 1]
    second = tracker.update(frame((52, 50), (2, 2)))
    assert second.ID == [1, 0]
    assert second.ID_period == [2, 2]
    assert second.lost_frame_count == [0, 0]


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_object_elsewhere_is_a_new_one_even_if_it_is_the_only_candidate(tracker_class):
    tracker = tracker_class(**SIZE)
    tracker.update(frame((0, 0)))
    second = tracker.update(frame((60, 60)))
    assert (second.ID, second.ID_period) == ([1], [1])


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_frames_without_detections_are_fine_at_any_time(tracker_class):
    tracker = tracker_class(**SIZE)
    assert tracker.update(frame()).ID == []
    assert tracker.update(frame((0, 0))).ID == [0]
    assert len(tracker.update(frame())) == 0
    assert tracker.update(frame((0, 0))).ID == [1]  # with max_lost_frame_count=0 nothing is remembered


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_lost_object_is_kept_and_found_again_within_its_limit(tracker_class):
    tracker = tracker_class(**SIZE, max_lost_frame_count=2)
    tracker.update(frame((0, 0)))
    tracker.update(frame((1, 0)))
    lost = tracker.update(frame())
    assert (lost.ID, lost.ID_period, lost.lost_frame_count) == ([0], [2], [1])
    assert lost.pred_boxes.tensor.tolist() == [[1, 0, 21, 20]]
    assert tracker.update(frame((60, 60))).lost_frame_count == [0, 2]
    found = tracker.update(frame((3, 0), (60, 60)))
    assert (found.ID, found.ID_period, found.lost_frame_count) == ([0, 1], [3, 2], [0, 0])


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_object_that_is_lost_for_longer_is_given_up(tracker_class):
    tracker = tracker_class(**SIZE, max_lost_frame_count=1)
    for detections in (frame((0, 0)), frame((0, 0)), frame()):
        last = tracker.update(detections)
    assert last.ID == [0]
    assert len(tracker.update(frame())) == 0
    assert tracker.update(frame((0, 0))).ID == [1]


def test_lost_object_is_dropped_if_it_is_small_or_was_seen_once():
    seen_once = BBoxIOUTracker(**SIZE, max_lost_frame_count=5)
    seen_once.update(frame((0, 0)))
    assert len(seen_once.update(frame())) == 0
    small = BBoxIOUTracker(**SIZE, max_lost_frame_count=5, min_box_rel_dim=0.21)
    small.update(frame((0, 0)))
    small.update(frame((0, 0)))
    assert len(small.update(frame())) == 0


def test_no_lost_object_is_kept_beyond_the_highest_number():
    tracker = BBoxIOUTracker(**SIZE, max_lost_frame_count=5, max_num_instances=2)
    corners = [(0, 0), (30, 30), (60, 60)]
    tracker.update(frame(*corners))
    assert tracker.update(frame(*corners)).ID == [0, 1, 2]  # detections themselves are never dropped
    assert tracker.update(frame((60, 60))).ID == [2, 0]


def test_update_changes_neither_the_detections_nor_remembers_later_changes_of_them():
    tracker, detections = BBoxIOUTracker(**SIZE), frame((0, 0))
    tracker.update(detections)
    assert set(detections.get_fields()) == {"pred_boxes", "scores"}


def test_a_field_that_only_later_frames_have_is_an_error_when_an_object_is_lost():
    tracker = BBoxIOUTracker(**SIZE, max_lost_frame_count=5)
    tracker.update(frame((0, 0)))
    tracker.update(frame((0, 0)))
    detections = frame()
    detections.pred_classes = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"pred_classes.*same fields for every frame"):
        tracker.update(detections)


def test_greedy_tracker_takes_the_pair_with_most_overlap_first():
    tracker = BBoxIOUTracker(**SIZE, track_iou_threshold=0.3)
    tracker.update(frame((0, 0)))
    assert tracker.update(frame((6, 0), (1, 0))).ID == [1, 0]


def test_weighted_assignment_maximises_the_sum_of_overlaps():
    # Overlaps: detection 0 with both objects 14/26 and 16/24; detection 1 with object 1 alone 20/20.
    tracker = IOUWeightedHungarianBBoxIOUTracker(**SIZE, track_iou_threshold=0.5)
    tracker.update(frame((0, 0), (10, 0)))
    assert tracker.update(frame((6, 0), (10, 0))).ID == [0, 1]


def test_plain_assignment_matches_as_many_as_possible():
    # Detection 0 fits both objects, detection 1 only the object that detection 0 overlaps most.
    greedy = BBoxIOUTracker(**SIZE, track_iou_threshold=0.4)
    hungarian = VanillaHungarianBBoxIOUTracker(**SIZE, track_iou_threshold=0.4)
    for tracker, expected in ((greedy, [1, 2]), (hungarian, [0, 1])):
        tracker.update(frame((0, 0), (10, 0)))
        assert expected == tracker.update(frame((8, 0), (18, 0))).ID


def test_pairs_name_both_sides_and_their_overlap():
    previous = frame((0, 0), (50, 50))
    previous.ID, previous.ID_period = [7, 9], [3, 4]
    overlaps = np.array([[0.1, 0.5], [0.9, 0.2]])
    assert create_prediction_pairs(frame((0, 0), (50, 50)), previous, overlaps, threshold=0.5) == [
        {"idx": 0, "prev_idx": 1, "prev_id": 9, "IoU": 0.5, "prev_period": 4},
        {"idx": 1, "prev_idx": 0, "prev_id": 7, "IoU": 0.9, "prev_period": 3},
    ]


def test_pairs_that_are_ruled_out_are_never_assigned():
    class NothingMatches(BaseHungarianTracker):
        def build_cost_matrix(self, instances, prev_instances):
            return np.full((len(instances), len(prev_instances)), LARGE_COST_VALUE)

    tracker = NothingMatches(100, 100)
    tracker.update(frame((0, 0)))
    assert tracker.update(frame((0, 0))).ID == [1]


@pytest.mark.parametrize("tracker_class", TRACKERS)
def test_config_builds_the_tracker_it_names_with_its_options(tracker_class):
    cfg = get_cfg()
    cfg.merge_from_list(["TRACKER_HEADS.TRACKER_NAME", tracker_class.__name__, "TRACKER_HEADS.VIDEO_HEIGHT", 100])
    cfg.merge_from_list(["TRACKER_HEADS.VIDEO_WIDTH", 100, "TRACKER_HEADS.TRACK_IOU_THRESHOLD", 0.95])
    tracker = build_tracker_head(cfg)
    assert type(tracker) is tracker_class
    tracker.update(frame((0, 0)))
    assert tracker.update(frame((2, 0))).ID == [1]  # an overlap of 18/22


def test_config_without_the_size_of_the_video_is_an_error_that_names_the_options():
    with pytest.raises(ValueError, match=r"TRACKER_HEADS\.VIDEO_HEIGHT"):
        build_tracker_head(get_cfg())


def test_unknown_tracker_is_an_error_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'BBoxIOUTracker'"):
        TRACKER_HEADS_REGISTRY.get("BboxIOUTracker")


def test_base_classes_say_what_is_to_be_defined():
    with pytest.raises(NotImplementedError, match="update"):
        BaseTracker().update(frame())
    tracker = BaseHungarianTracker(100, 100)
    tracker.update(frame((0, 0)))
    with pytest.raises(NotImplementedError, match="build_cost_matrix"):
        tracker.update(frame((0, 0)))


def test_missing_scipy_is_an_error_that_says_what_to_do(monkeypatch):
    tracker = VanillaHungarianBBoxIOUTracker(**SIZE)
    tracker.update(frame((0, 0)))
    monkeypatch.setitem(__import__("sys").modules, "scipy.optimize", None)
    with pytest.raises(Exception, match="pip install scipy"):
        tracker.update(frame((0, 0)))
