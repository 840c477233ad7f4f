import numpy as np
import pytest
import torch

from detlib.data.catalog import Metadata
from detlib.structures import Boxes, Instances, RotatedBoxes
from detlib.utils import video_visualizer as door
from detlib.visualization import ColorMode, VideoVisualizer
from detlib.visualization.color_memory import NUM_FRAMES_REMEMBERED, ColorMemory

FRAME = np.full((60, 80, 3), 120, dtype=np.uint8)
LEFT, RIGHT = [5.0, 20.0, 25.0, 40.0], [45.0, 20.0, 65.0, 40.0]


def boxes(*boxes_xyxy: list[float]) -> torch.Tensor:
    return torch.tensor(boxes_xyxy).reshape(-1, 4)


def detections(*boxes_xyxy: list[float], masks: bool = False, ids: list[int] | None = None) -> Instances:
    instances = Instances((60, 80))
    instances.pred_boxes = Boxes(boxes(*boxes_xyxy))
    instances.pred_classes = torch.zeros(len(boxes_xyxy), dtype=torch.int64)
    if masks:
        instances.pred_masks = torch.zeros(len(boxes_xyxy), 60, 80, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(instances.pred_masks, boxes_xyxy, strict=True):
            mask[int(y0) : int(y1), int(x0) : int(x1)] = True
    if ids is not None:
        instances.ID = ids
    return instances


def color_inside(image: np.ndarray, box: list[float]) -> tuple[int, ...]:
    """The colour of a pixel that neither an outline nor a label covers."""
    return tuple(image[int(box[3]) - 4, int(box[2]) - 4].tolist())


def test_objects_of_one_class_have_different_colors_and_keep_them_when_their_order_changes():
    memory = ColorMemory()
    first, second = memory.by_overlap(boxes(LEFT, RIGHT), [0, 0])
    assert first != second
    assert memory.by_overlap(boxes(RIGHT, LEFT), [0, 0]) == [second, first]


def test_color_is_kept_while_the_object_moves_slowly_through_the_frame():
    memory = ColorMemory()
    (color,) = memory.by_overlap(boxes([0, 0, 20, 20]), [0])
    for step in range(1, 10):
        assert memory.by_overlap(boxes([5.0 * step, 0, 5.0 * step + 20, 20]), [0]) == [color]


def test_object_is_recognised_after_some_frames_without_it_but_not_after_many():
    memory = ColorMemory()
    (color,) = memory.by_overlap(boxes(LEFT), [0])
    for _ in range(NUM_FRAMES_REMEMBERED):
        assert memory.by_overlap(boxes(), []) == []
    assert memory.by_overlap(boxes(LEFT), [0]) == [color]
    for _ in range(NUM_FRAMES_REMEMBERED + 1):
        memory.by_overlap(boxes(), [])
    assert memory.by_overlap(boxes(LEFT), [0]) != [color]


def test_object_of_another_class_at_the_same_place_is_another_one():
    memory = ColorMemory([(255, 0, 0), (0, 0, 255)])
    assert memory.by_overlap(boxes(LEFT), [0]) == [(1, 0, 0)]
    assert memory.by_overlap(boxes(LEFT), [1]) == [(0, 0, 1)]


def test_rotated_boxes_are_recognised():
    memory = ColorMemory()
    (color,) = memory.by_overlap(torch.tensor([[20.0, 20, 30, 10, 30]]), [0])
    assert memory.by_overlap(torch.tensor([[60.0, 20, 30, 10, 30], [20, 20, 30, 10, 35]]), [0, 0])[1] == color


def test_drawn_masks_keep_their_colors_over_frames():
    visualizer = VideoVisualizer(Metadata())
    first = visualizer.draw_instance_predictions(FRAME, detections(LEFT, RIGHT, masks=True)).get_image()
    second = visualizer.draw_instance_predictions(FRAME, detections(RIGHT, LEFT, masks=True)).get_image()
    assert color_inside(first, LEFT) == color_inside(second, LEFT)
    assert color_inside(first, RIGHT) == color_inside(second, RIGHT)
    assert color_inside(first, LEFT) != color_inside(first, RIGHT)


def test_identities_of_a_tracker_decide_whatever_the_boxes():
    visualizer = VideoVisualizer(Metadata())
    first = visualizer.draw_instance_predictions(FRAME, detections(LEFT, RIGHT, masks=True, ids=[4, 9])).get_image()
    second = visualizer.draw_instance_predictions(FRAME, detections(LEFT, RIGHT, masks=True, ids=[9, 4])).get_image()
    assert color_inside(first, LEFT) == color_inside(second, RIGHT) != color_inside(second, LEFT)


def test_identities_are_written(monkeypatch):
    texts = []
    monkeypatch.setattr(
        "detlib.visualization.Visualizer._draw_labels", lambda self, labels, *rest: texts.extend(labels)
    )
    metadata = Metadata(thing_classes=["cat"])
    VideoVisualizer(metadata).draw_instance_predictions(FRAME, detections(LEFT, ids=[7]))
    assert texts == ["#7 cat"]


@pytest.mark.parametrize("mode", ColorMode)
def test_frame_without_detections_is_drawn(mode):
    image = VideoVisualizer(None, mode).draw_instance_predictions(FRAME, detections()).get_image()
    np.testing.assert_array_equal(image, FRAME)


def test_objects_with_masks_keypoints_or_rotated_boxes_only_are_drawn():
    masks, keypoints, rotated = Instances((60, 80)), Instances((60, 80)), Instances((60, 80))
    masks.pred_masks = detections(LEFT, masks=True).pred_masks
    keypoints.pred_keypoints = torch.tensor([[[20.0, 20.0, 1.0], [30.0, 30.0, 1.0]]])
    rotated.pred_boxes = RotatedBoxes(torch.tensor([[40.0, 30, 30, 10, 30]]))
    for instances in (masks, keypoints, rotated):
        visualizer = VideoVisualizer(None)
        images = [visualizer.draw_instance_predictions(FRAME, instances).get_image() for _ in range(2)]
        assert (images[0] != FRAME).any()
        np.testing.assert_array_equal(images[0], images[1])


def test_things_of_panoptic_maps_keep_their_colors_though_their_ids_change():
    visualizer = VideoVisualizer(Metadata(thing_classes=["cat"], stuff_classes=["sky"]))
    image = {}
    for ids in ((1, 2), (2, 1)):
        panoptic = np.zeros((60, 80), dtype=np.int32)
        panoptic[20:40, 5:25], panoptic[20:42, 45:65] = ids
        info = [{"id": i, "category_id": 0, "isthing": True} for i in (1, 2)]
        image[ids] = visualizer.draw_panoptic_seg_predictions(FRAME, panoptic, info).get_image()
    assert color_inside(image[1, 2], LEFT) == color_inside(image[2, 1], LEFT) != color_inside(image[1, 2], RIGHT)


def test_panoptic_map_of_stuff_alone_is_drawn():
    info = [{"id": 1, "category_id": 0, "isthing": False}]
    drawn = VideoVisualizer(None).draw_panoptic_seg_predictions(FRAME, np.ones((60, 80), dtype=np.int32), info)
    assert (drawn.get_image() != FRAME).any()


def test_semantic_map_is_drawn():
    drawn = VideoVisualizer(Metadata(stuff_classes=["sky"])).draw_sem_seg(FRAME, torch.zeros(60, 80)).get_image()
    assert (drawn != FRAME).any()


def test_old_path_gives_the_same_class():
    assert door.VideoVisualizer is VideoVisualizer
    assert dir(door) == ["VideoVisualizer"]
    with pytest.raises(AttributeError, match="it has VideoVisualizer"):
        door.VideoVisualiser  # noqa: B018
