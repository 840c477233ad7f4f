"""From the size of the network's input to the size that the user asked for."""

from torch import Tensor
from torch.nn import functional as F

from detlib.structures import Instances, ROIMasks
from detlib.utils.memory import retry_if_cuda_oom

__all__ = ["detector_postprocess", "sem_seg_postprocess"]


def detector_postprocess(
    results: Instances, output_height: int, output_width: int, mask_threshold: float = 0.5
) -> Instances:
    """Scale detections to an image of the given size; boxes that are empty there are left out.

    Args:
        results: detections in an image of ``results.image_size``. It is not changed.
        mask_threshold: a mask's pixel is set where its probability is at least this.

    Returns:
        Instances of size (output_height, output_width). ``pred_masks`` of (R, M, M) or (R, 1, M, M) probabilities
        become (R, output_height, output_width) bool.
    """
    height, width = results.image_size
    scale_x, scale_y = output_width / width, output_height / height
    output = Instances((output_height, output_width), **results.get_fields())
    name = "pred_boxes" if output.has("pred_boxes") else "proposal_boxes"
    boxes = output.get(name).clone()
    boxes.scale(scale_x, scale_y)
    boxes.clip(output.image_size)
    output.set(name, boxes)
    output = output[boxes.nonempty()]

    if output.has("pred_masks"):
        masks = output.pred_masks
        if not isinstance(masks, ROIMasks):
            masks = ROIMasks(masks[:, 0] if masks.dim() == 4 else masks)
        to_bitmasks = retry_if_cuda_oom(masks.to_bitmasks)
        output.pred_masks = to_bitmasks(output.get(name).tensor, output_height, output_width, mask_threshold).tensor
    if output.has("pred_keypoints"):
        keypoints = output.pred_keypoints.clone()  # (R, K, 3) of x, y, score
        keypoints[..., 0] *= scale_x
        keypoints[..., 1] *= scale_y
        output.pred_keypoints = keypoints
    return output


def sem_seg_postprocess(result: Tensor, img_size: tuple[int, int], output_height: int, output_width: int) -> Tensor:
    """Crop the padding from (C, H, W) logits and resize them to (C, output_height, output_width).

    Args:
        img_size: height and width of the image inside of the padded input.
    """
    cropped = result[None, :, : img_size[0], : img_size[1]]
    return F.interpolate(cropped, size=(output_height, output_width), mode="bilinear", align_corners=False)[0]
