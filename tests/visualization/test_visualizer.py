import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data.catalog import Metadata
from detlib.structures import BitMasks, Boxes, BoxMode, Instances, Keypoints, PolygonMasks, RotatedBoxes
from detlib.utils.errors import MissingFileError
from detlib.utils.visualizer import ColorMode, Visualizer

SIZE = (100, 120)
METADATA = Metadata(
    thing_classes=["cat", "dog"],
    thing_colors=[(255, 0, 0), (0, 255, 0)],
    stuff_classes=["grass", "sky"],
    stuff_colors=[(0, 0, 255), (255, 255, 0)],
    keypoint_names=["nose", "left_shoulder", "right_shoulder"],
    keypoint_connection_rules=[("left_shoulder", "right_shoulder", (0, 0, 255))],
)


@pytest.fixture
def image():
    return np.full((*SIZE, 3), 128, dtype=np.uint8)


@pytest.fixture
def predictions():
    masks = torch.zeros(2, *SIZE, dtype=torch.bool)
    masks[0, 20:60, 20:60] = True
    masks[1, 70:90, 70:110] = True
    return Instances(
        SIZE,
        pred_boxes=Boxes(torch.tensor([[20.0, 20, 60, 60], [70, 70, 110, 90]])),
        scores=torch.tensor([0.9, 0.6]),
        pred_classes=torch.tensor([1, 0]),
        pred_masks=masks,
    )


def texts(output):
    return sorted(text.get_text() for text in output.ax.texts)


def test_predictions_are_labelled_and_coloured_by_class(image, predictions):
    output = Visualizer(image, METADATA).draw_instance_predictions(predictions)
    assert texts(output) == ["cat 60%", "dog 90%"]
    drawn = output.get_image().astype(int)
    dog, cat = drawn[50, 40] - 128, drawn[85, 90] - 128
    assert dog[1] > 40 > dog[0] and cat[0] > 40 > cat[1]


def test_image_of_the_caller_is_not_changed(image, predictions):
    before = image.copy()
    Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(predictions).get_image()
    np.testing.assert_array_equal(image, before)


def test_no_predictions_leave_the_image_as_it_is(image):
    empty = Instances(
        SIZE, pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0), pred_classes=torch.zeros(0, dtype=torch.int64)
    )
    np.testing.assert_array_equal(Visualizer(image, METADATA).draw_instance_predictions(empty).get_image(), image)


def test_without_metadata_classes_are_numbers(image, predictions):
    assert texts(Visualizer(image).draw_instance_predictions(predictions)) == ["0 60%", "1 90%"]


def test_predictions_with_boxes_only_are_drawn(image):
    instances = Instances(SIZE, pred_boxes=Boxes(torch.tensor([[20.0, 20, 60, 60]])))
    assert (Visualizer(image).draw_instance_predictions(instances).get_image() != image).any()


def test_bw_mode_keeps_colour_inside_of_objects_only(predictions):
    image = np.full((*SIZE, 3), (200, 100, 0), dtype=np.uint8)
    for fields in (("pred_masks",), ("pred_boxes",)):
        instances = Instances(SIZE, **{name: predictions.get(name) for name in fields})
        drawn = Visualizer(image, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(instances).get_image()
        assert drawn[5, 100].tolist() == [100, 100, 100]
        assert drawn[40, 40, 0] > drawn[40, 40, 2] + 50


def test_segmentation_mode_is_more_opaque(image, predictions):
    pixel = {}
    for mode in (ColorMode.IMAGE, ColorMode.SEGMENTATION):
        drawn = Visualizer(image, METADATA, instance_mode=mode).draw_instance_predictions(predictions, jittering=False)
        pixel[mode] = drawn.get_image()[50, 40].astype(int)
    assert pixel[ColorMode.SEGMENTATION][0] < pixel[ColorMode.IMAGE][0] - 20


def test_objects_of_one_class_have_shades_only_with_jittering():
    colors = Visualizer(np.zeros((8, 8, 3)), METADATA)._class_colors
    assert len(set(colors([0, 0, 0]))) == 3
    assert set(colors([0, 0, 0], jittering=False)) == {(1, 0, 0)}


@pytest.mark.parametrize(
    "masks",
    [
        np.ones((1, *SIZE), dtype=bool),
        BitMasks(torch.ones(1, *SIZE)),
        PolygonMasks([[np.array([0.0, 0, 120, 0, 120, 100, 0, 100])]]),
        [[[0.0, 0, 120, 0, 120, 100, 0, 100]]],
        [{"size": list(SIZE), "counts": [0, 12000]}],
    ],
    ids=["array", "BitMasks", "PolygonMasks", "polygons", "RLE"],
)
def test_all_kinds_of_masks_look_the_same(image, masks):
    output = Visualizer(image).overlay_instances(masks=masks, assigned_colors=["r"], labels=["all"])
    assert texts(output) == ["all"]
    assert output.get_image()[30, 10].tolist() == pytest.approx([191, 64, 64], abs=2)


def test_small_object_is_drawn_over_a_large_one(image):
    masks = np.zeros((2, *SIZE), dtype=bool)
    masks[0, 40:60, 40:60] = True
    masks[1] = True
    drawn = Visualizer(image).overlay_instances(masks=masks, assigned_colors=["r", "b"], alpha=1)
    assert drawn.get_image()[50, 50].tolist() == [255, 0, 0]


def test_fields_of_different_lengths_are_an_error(image):
    with pytest.raises(ValueError, match="'boxes': 1, 'labels': 2"):
        Visualizer(image).overlay_instances(boxes=[[0, 0, 5, 5]], labels=["a", "b"])


def test_nothing_to_overlay_draws_nothing(image):
    for boxes in (None, np.zeros((0, 4)), Boxes(torch.zeros(0, 4)), []):
        output = Visualizer(image).overlay_instances(boxes=boxes, labels=[])
        np.testing.assert_array_equal(output.get_image(), image)
    np.testing.assert_array_equal(Visualizer(image).overlay_rotated_instances(np.zeros((0, 5))).get_image(), image)


def test_boxes_with_five_columns_are_drawn_rotated(image):
    output = Visualizer(image).overlay_instances(boxes=np.array([[60, 50, 40, 20, 45]]), labels=["tilted"])
    assert texts(output) == ["tilted"]
    assert len(output.ax.lines) == 4


def rotated_predictions():
    boxes = RotatedBoxes(torch.tensor([[60.0, 50, 60, 20, 45], [60, 50, 40, 16, 45]]))
    return Instances(SIZE, pred_boxes=boxes, scores=torch.tensor([0.9, 0.6]), pred_classes=torch.tensor([1, 0]))


def test_labels_of_rotated_boxes_are_at_their_upper_end_and_apart(image):
    output = Visualizer(image, METADATA).draw_instance_predictions(rotated_predictions())
    assert texts(output) == ["cat 60%", "dog 90%"]
    renderer = output.canvas.get_renderer()
    first, second = (text.get_window_extent(renderer) for text in output.ax.texts)
    assert not first.overlaps(second)
    # At 45 degrees, the upper end is on the right.
    assert all(text.get_position()[0] > 50 and text.get_position()[1] < 50 for text in output.ax.texts)


def test_black_and_white_mode_keeps_the_colour_inside_rotated_boxes():
    image = np.full((*SIZE, 3), (200, 100, 0), dtype=np.uint8)
    drawn = Visualizer(image, METADATA, instance_mode=ColorMode.IMAGE_BW).draw_instance_predictions(
        rotated_predictions()
    )
    pixels = drawn.get_image()
    assert pixels[55, 55].tolist() == [200, 100, 0]
    assert pixels[62, 72].tolist() == [100, 100, 100]  # within the upright box around it only


def test_keypoints_are_connected_where_both_are_visible(image):
    points = np.array([[60, 20, 0.9], [40, 50, 0.9], [80, 50, 0.9]])
    visualizer = Visualizer(image, METADATA)
    visualizer.draw_and_connect_keypoints(points)
    assert len(visualizer.output.ax.lines) == 2  # Shoulder to shoulder, and nose to the middle of the shoulders.
    points[1, 2] = 0.01
    visualizer = Visualizer(image, METADATA)
    visualizer.draw_and_connect_keypoints(torch.from_numpy(points))
    assert len(visualizer.output.ax.lines) == 0


def test_keypoints_without_metadata_are_points(image):
    keypoints = Keypoints(torch.tensor([[[60.0, 20, 2], [40, 50, 0]]]))
    output = Visualizer(image).overlay_instances(keypoints=keypoints, labels=["person"])
    assert (output.get_image()[20, 60] != 128).any()
    assert (output.get_image()[50, 40] == 128).all()


def test_keypoints_that_do_not_fit_the_metadata_are_an_error(image):
    with pytest.raises(ValueError, match=r"got 2 keypoints, but metadata\.keypoint_names has 3 names"):
        Visualizer(image, METADATA).draw_and_connect_keypoints(np.ones((2, 3)))


def test_semantic_classes_are_coloured_and_named_and_unknown_ids_left_out(image):
    labels = np.full(SIZE, 255)
    labels[:, :40], labels[:, 40:80] = 0, 1
    output = Visualizer(image, METADATA).draw_sem_seg(torch.from_numpy(labels), alpha=1)
    assert texts(output) == ["grass", "sky"]
    drawn = output.get_image()
    assert drawn[5, 20].tolist() == [0, 0, 255]
    assert drawn[5, 60].tolist() == [255, 255, 0]
    assert drawn[5, 110].tolist() == [128, 128, 128]
    assert texts(Visualizer(image, METADATA).draw_sem_seg(labels, draw_text=False)) == []


def test_panoptic_segments_are_named_with_scores_of_things(image):
    segments = torch.zeros(SIZE, dtype=torch.int64)
    segments[:50], segments[60:90, 20:80] = 1, 2
    info = [
        {"id": 1, "category_id": 1, "isthing": False},
        {"id": 2, "category_id": 0, "isthing": True, "score": 0.8},
    ]
    output = Visualizer(image, METADATA).draw_panoptic_seg_predictions(segments, info)
    assert texts(output) == ["cat 80%", "sky"]
    assert output.get_image()[95, 110].tolist() == [128, 128, 128]


def test_dataset_dict_shows_boxes_masks_keypoints_and_crowds(image):
    annotations = [
        {"bbox": [20, 20, 40, 40], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "keypoints": [30, 30, 2] * 3},
        {
            "bbox": [70, 70, 110, 90],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": {"size": list(SIZE), "counts": [0, 12000]},
            "iscrowd": 1,
        },
    ]
    output = Visualizer(image, METADATA).draw_dataset_dict({"annotations": annotations})
    assert texts(output) == ["cat|crowd", "dog"]
    assert [patch.get_hatch() for patch in output.ax.patches if patch.get_hatch()] == ["//"]


def test_dataset_dict_without_annotations_leaves_the_image_as_it_is(image):
    for sample in ({}, {"annotations": []}):
        np.testing.assert_array_equal(Visualizer(image).draw_dataset_dict(sample).get_image(), image)


def test_dataset_dict_shows_label_files(image, tmp_path):
    semantic = np.zeros(SIZE, dtype=np.uint8)
    semantic[:50] = 1
    Image.fromarray(semantic).save(tmp_path / "semantic.png")
    panoptic = np.zeros((*SIZE, 3), dtype=np.uint8)
    panoptic[:50] = (3, 1, 0)  # 3 + 256
    Image.fromarray(panoptic).save(tmp_path / "panoptic.png")
    sample = {"sem_seg_file_name": str(tmp_path / "semantic.png")}
    assert texts(Visualizer(image, METADATA).draw_dataset_dict(sample)) == ["grass", "sky"]
    sample = {
        "pan_seg_file_name": str(tmp_path / "panoptic.png"),
        "segments_info": [{"id": 259, "category_id": 0, "isthing": True}],
    }
    assert texts(Visualizer(image, METADATA).draw_dataset_dict(sample)) == ["cat"]
    # An object that is a segment too is named once.
    box = {"bbox": [10, 10, 40, 40], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    assert texts(Visualizer(image, METADATA).draw_dataset_dict({**sample, "annotations": [box]})) == ["cat"]


def test_missing_label_file_is_named(image):
    with pytest.raises(MissingFileError, match=r"nowhere\.png"):
        Visualizer(image).draw_dataset_dict({"sem_seg_file_name": "nowhere.png"})


def test_importing_the_door_loads_no_matplotlib_and_unknown_names_are_attribute_errors():
    code = (
        "import sys, detlib.utils.visualizer as door\n"
        "assert door.Visualizer and door.VisImage and door.ColorMode.IMAGE_BW.value == 2\n"
        "assert door._PanopticPrediction and door._create_text_labels\n"
        "assert 'matplotlib' not in sys.modules\n"
        "assert not hasattr(door, 'nothing')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_labels_of_many_objects_leave_most_of_a_small_image_free_and_go_to_the_largest():
    sides = torch.arange(8.0, 24.0)  # 16 boxes in a grid of 4 x 4, in an image of 120 x 120
    corners = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 30
    visualizer = Visualizer(np.zeros((120, 120, 3), dtype=np.uint8))
    boxes = torch.cat([corners, corners + sides[:, None]], dim=1)
    visualizer.overlay_instances(boxes=boxes, labels=[f"object {i}" for i in range(16)])
    written = {text.get_text() for text in visualizer.output.ax.texts}
    assert 1 <= len(written) < 16
    assert written == {f"object {i}" for i in range(16 - len(written), 16)}
