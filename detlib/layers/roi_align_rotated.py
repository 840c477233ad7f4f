"""Pooling of rotated regions of interest with bilinear sampling (RRPN, https://arxiv.org/abs/1703.01086, sec. III-F).

Shapes: N images, C channels, H x W cells of the feature map, R regions, B bins in all regions, S samples in all bins.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torch.nn.modules.utils import _pair

__all__ = ["ROIAlignRotated", "roi_align_rotated"]


class ROIAlignRotated(nn.Module):
    """ROIAlign of rotated boxes with a fixed output size."""

    def __init__(self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int) -> None:
        """Build the layer.

        Args:
            output_size: cells per region, height and width.
            spatial_scale: factor from the coordinates of the boxes to those of the feature map, 1 / stride.
            sampling_ratio: samples per cell and axis; 0 takes about one per cell of the feature map.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool regions, as :func:`roi_align_rotated` does."""
        return roi_align_rotated(input, rois, self.output_size, self.spatial_scale, self.sampling_ratio)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, sampling_ratio={self.sampling_ratio}"
        )


def roi_align_rotated(
    input: Tensor, rois: Tensor, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int
) -> Tensor:
    """Pool rotated regions. The gradient goes to ``input``.

    Args:
        input: (N, C, H, W). Cell i covers the coordinates i to i + 1.
        rois: (R, 6): the number of the image, and the box as center x, center y, width, height, angle in degrees.
        output_size: cells per region, height and width.
        spatial_scale: factor from the coordinates of the boxes to those of the feature map, 1 / stride.
        sampling_ratio: samples per cell and axis; 0 takes about one per cell of the feature map.

    Returns:
        (R, C, height, width); row by row of the box as it stands when turned back to an angle of 0.
    """
    if rois.dim() != 2 or rois.shape[1] != 6:
        raise ValueError(
            "rois have shape (R, 6): number of the image, center x, center y, width, height, angle; "
            f"got {tuple(rois.shape)}"
        )
    height, width = _pair(output_size)
    channels = input.shape[1]
    # Coordinates in float16 would be off by half a pixel beyond 1024.
    dtype = torch.promote_types(input.dtype, torch.float32)
    cells = input.permute(0, 2, 3, 1).reshape(-1, channels).to(dtype)  # (N * H * W, C)
    with torch.no_grad():
        bins, y, x, share = _samples(rois.to(dtype), height, width, spatial_scale, sampling_ratio)
        image = rois[bins // (height * width), 0].long()
        index, weight = _bilinear(image, y, x, input.shape[-2:])  # (S, 4) each
        weight *= share[:, None]
    pooled = _weighted_sums(cells, index, weight, bins, len(rois) * height * width)  # (B, C)
    return pooled.to(input.dtype).view(len(rois), height, width, channels).permute(0, 3, 1, 2)


def _samples(
    rois: Tensor, height: int, width: int, spatial_scale: float, sampling_ratio: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where to sample, in cells of the feature map.

    Returns:
        (S) each, ordered by bin: the number of the bin, y, x, and the share of the sample in the mean of its bin.
    """
    center_x, center_y = (rois[:, 1:3] * spatial_scale - 0.5).unbind(1)
    roi_width, roi_height = (rois[:, 3:5] * spatial_scale).clamp(min=0).unbind(1)
    bin_width, bin_height = roi_width / width, roi_height / height
    if sampling_ratio > 0:
        columns = torch.full_like(roi_width, sampling_ratio, dtype=torch.int64)
        rows = columns
        num_samples = len(rois) * height * width * sampling_ratio**2
    else:
        columns, rows = bin_width.ceil().long(), bin_height.ceil().long()
        num_samples = int((rows * columns).sum()) * height * width
    samples_of_bin = (rows * columns).repeat_interleave(height * width)  # (B)
    bins = torch.arange(len(samples_of_bin), device=rois.device)
    bins = bins.repeat_interleave(samples_of_bin, output_size=num_samples)  # (S)
    first = samples_of_bin.cumsum(0) - samples_of_bin
    in_bin = torch.arange(num_samples, device=rois.device) - first[bins]
    roi, bin_x, bin_y = bins // (height * width), bins % width, bins // width % height
    rows, columns = rows[roi], columns[roi]
    # Offsets from the center of the box, along its width and its height.
    along_width = (bin_x + (in_bin % columns + 0.5) / columns) * bin_width[roi] - roi_width[roi] / 2
    along_height = (bin_y + (in_bin // columns + 0.5) / rows) * bin_height[roi] - roi_height[roi] / 2
    angle = torch.deg2rad(rois[:, 5])
    cos, sin = angle.cos()[roi], angle.sin()[roi]
    x = center_x[roi] + along_width * cos + along_height * sin
    y = center_y[roi] - along_width * sin + along_height * cos
    return bins, y, x, 1 / (rows * columns).to(rois.dtype)


def _bilinear(image: Tensor, y: Tensor, x: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The four cells around each sample, as indices into (N * H * W), and their weights; (S, 4) each.

    Up to one cell outside the map the value is that of the border, beyond it is 0.
    """
    height, width = size
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    # What is not finite must not become an index.
    y, x = (torch.where(inside, v, 0).clamp(0, last - 1) for v, last in ((y, height), (x, width)))
    y0, x0 = y.long(), x.long()
    y1, x1 = (y0 + 1).clamp(max=height - 1), (x0 + 1).clamp(max=width - 1)
    below, right = y - y0, x - x0
    row0, row1 = (image * height + y0) * width, (image * height + y1) * width
    index = torch.stack([row0 + x0, row0 + x1, row1 + x0, row1 + x1], dim=1)
    above, left = 1 - below, 1 - right
    weight = torch.stack([above * left, above * right, below * left, below * right], dim=1)
    return index, weight * inside[:, None]


def _weighted_sums(cells: Tensor, index: Tensor, weight: Tensor, bins: Tensor, num_bins: int) -> Tensor:
    """Sum of the cells that belong to each bin, (B, C), without the (S, C) values of all samples in memory.

    Args:
        cells: (N * H * W, C).
        index: (S, 4) into the cells.
        weight: (S, 4).
        bins: (S), the bin of each sample, rising.
    """
    if cells.device.type == "mps":  # embedding_bag does not have all it needs on every version there.
        values = (cells[index] * weight[..., None]).sum(dim=1)
        return cells.new_zeros(num_bins, cells.shape[1]).index_add(0, bins, values)
    first = torch.searchsorted(bins, torch.arange(num_bins, device=bins.device)) * index.shape[1]
    return embedding_bag(index.flatten(), cells, first, mode="sum", per_sample_weights=weight.flatten())
