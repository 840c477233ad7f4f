import torch

from detlib.modeling import detector_postprocess
from detlib.modeling.postprocessing import sem_seg_postprocess
from detlib.structures import Boxes, Instances


def detections(boxes_xyxy, size=(10, 20)):
    boxes = Boxes(torch.tensor(boxes_xyxy, dtype=torch.float32).reshape(-1, 4))
    return Instances(size, pred_boxes=boxes, scores=torch.ones(len(boxes)))


def test_boxes_are_scaled_and_clipped_to_the_output():
    results = detector_postprocess(detections([[1, 2, 30, 4]]), output_height=20, output_width=60)
    assert results.image_size == (20, 60)
    assert results.pred_boxes.tensor.tolist() == [[3, 4, 60, 8]]


def test_boxes_outside_of_the_image_are_left_out():
    results = detector_postprocess(detections([[30, 2, 40, 4], [1, 2, 3, 4]]), 10, 20)
    assert results.pred_boxes.tensor.tolist() == [[1, 2, 3, 4]]


def test_the_input_is_not_changed():
    given = detections([[1, 2, 3, 4]])
    detector_postprocess(given, 100, 200)
    assert given.pred_boxes.tensor.tolist() == [[1, 2, 3, 4]]


def test_no_detections():
    assert len(detector_postprocess(detections([]), 5, 5)) == 0


def test_keypoints_keep_their_scores():
    given = detections([[0, 0, 20, 10]])
    given.pred_keypoints = torch.tensor([[[2.0, 3.0, 0.5]]])
    results = detector_postprocess(given, 20, 60)
    assert results.pred_keypoints.tolist() == [[[6.0, 6.0, 0.5]]]


def test_masks_are_pasted_into_the_whole_image():
    given = detections([[0, 0, 10, 10]])
    given.pred_masks = torch.ones(1, 1, 28, 28)
    masks = detector_postprocess(given, 10, 20).pred_masks
    assert masks.shape == (1, 10, 20)
    assert masks[0, :, :10].all()
    assert not masks[0, :, 10:].any()


def test_sem_seg_padding_is_cropped_before_resizing():
    logits = torch.zeros(1, 4, 6)
    logits[:, :2, :3] = 1.0
    assert sem_seg_postprocess(logits, (2, 3), 8, 9).eq(1).all()
