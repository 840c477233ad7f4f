"""Region-of-interest pooling with bilinear sampling."""

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

__all__ = ["ROIAlign", "roi_align"]


class ROIAlign(nn.Module):
    """ROIAlign of Mask R-CNN (https://arxiv.org/abs/1703.06870) with a fixed output size."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float, sampling_ratio: int, aligned: bool = True
    ) -> None:
        """Build the layer.

        Args:
            output_size: cells per region, height and width.
            spatial_scale: factor from the coordinates of the boxes to those of the feature map, 1 / stride.
            sampling_ratio: samples per cell and axis; 0 takes about one per cell of the feature map.
            aligned: shift boxes by half a cell, so that cell i of the feature map covers i to i + 1. The first
                published ROIAlign did not.
        """
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Pool regions.

        Args:
            input: (N, C, H, W).
            rois: (R, 5), the number of the image and the box as XYXY.

        Returns:
            (R, C, height, width).
        """
        if rois.dim() != 2 or rois.shape[1] != 5:
            raise ValueError(f"rois have shape (R, 5): number of the image, then XYXY; got {tuple(rois.shape)}")
        # Neither may be float16 alone: boxes would be off by half a pixel beyond 1024.
        dtype = torch.promote_types(input.dtype, rois.dtype)
        pooled = roi_align(
            input.to(dtype), rois.to(dtype), self.output_size, self.spatial_scale, self.sampling_ratio, self.aligned
        )
        return pooled.to(input.dtype)

    def extra_repr(self) -> str:
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}"
        )
