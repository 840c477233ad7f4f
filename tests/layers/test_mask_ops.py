import pytest
import torch
from torch.nn import functional as F

from detlib.layers import mask_ops, paste_masks_in_image
from detlib.structures import Boxes


def paste_by_grid_sample(masks, boxes, image_shape):
    """Bilinear values at the centers of pixels, by the library."""
    height, width = image_shape
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    x = (torch.arange(width) + 0.5 - x0) / (x1 - x0) * 2 - 1
    y = (torch.arange(height) + 0.5 - y0) / (y1 - y0) * 2 - 1
    shape = (len(masks), height, width)
    grid = torch.stack([x[:, None].expand(shape), y[:, :, None].expand(shape)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def random_masks_and_boxes(count=12):
    corner = torch.rand(count, 2) * 60 - 20
    return torch.rand(count, 14, 14), torch.cat([corner, corner + torch.rand(count, 2) * 40 + 1], dim=1)


def test_full_mask_fills_the_pixels_of_its_box():
    pasted = paste_masks_in_image(torch.ones(1, 4, 4), torch.tensor([[1.0, 2.0, 3.0, 5.0]]), (6, 5))
    assert pasted.dtype == torch.bool
    assert pasted[0].nonzero().tolist() == [[y, x] for y in (2, 3, 4) for x in (1, 2)]


def test_mask_of_one_cell_per_pixel_is_copied():
    mask = torch.rand(1, 3, 3)
    pasted = paste_masks_in_image(mask, torch.tensor([[1.0, 1.0, 4.0, 4.0]]), (5, 5))
    assert torch.equal(pasted[0, 1:4, 1:4], mask[0] >= 0.5)
    assert pasted.sum() == (mask >= 0.5).sum()


def test_negative_threshold_gives_probabilities_as_bytes():
    pasted = paste_masks_in_image(
        torch.full((1, 2, 2), 0.4), torch.tensor([[0.0, 0.0, 2.0, 2.0]]), (2, 2), threshold=-1
    )
    assert pasted.dtype == torch.uint8
    assert pasted.unique().tolist() == [102]  # 0.4 * 255


def test_pasting_agrees_with_grid_sample():
    masks, boxes = random_masks_and_boxes()
    soft = paste_masks_in_image(masks, boxes, (50, 40), threshold=-1)
    expected = (paste_by_grid_sample(masks, boxes, (50, 40)) * 255).to(torch.uint8)
    assert (soft.int() - expected.int()).abs().max() <= 1


def test_pasting_region_by_region_equals_pasting_in_chunks(monkeypatch):
    masks, boxes = random_masks_and_boxes()
    by_region = paste_masks_in_image(masks, boxes, (50, 40))
    monkeypatch.setattr(mask_ops, "_MAX_PIXELS_PER_CHUNK", 5 * 50 * 40)
    monkeypatch.setattr(mask_ops, "_mask_regions", lambda boxes, height, width: mask_ops._chunks(12, height, width))
    assert len(mask_ops._chunks(12, 50, 40)) == 3
    assert torch.equal(paste_masks_in_image(masks, boxes, (50, 40)), by_region)


def test_boxes_outside_of_the_image_and_without_size_give_empty_masks():
    boxes = torch.tensor([[50.0, 0.0, 60.0, 9.0], [-30.0, -30.0, -20.0, -20.0], [3.5, 3.5, 3.5, 3.5]])
    pasted = paste_masks_in_image(torch.ones(3, 4, 4), boxes, (8, 8))
    assert pasted[:2].sum() == 0
    assert pasted[2].sum() <= 1


def test_no_masks_give_no_masks():
    assert paste_masks_in_image(torch.zeros(0, 28, 28), torch.zeros(0, 4), (7, 9)).shape == (0, 7, 9)


def test_boxes_may_be_boxes_and_masks_half():
    masks, boxes = random_masks_and_boxes()
    assert torch.equal(
        paste_masks_in_image(masks.half().float(), boxes, (50, 40)),
        paste_masks_in_image(masks.half(), Boxes(boxes), (50, 40)),
    )


def test_numbers_of_masks_and_boxes_must_agree():
    with pytest.raises(ValueError, match="2 boxes"):
        paste_masks_in_image(torch.zeros(1, 4, 4), torch.zeros(2, 4), (8, 8))
