"""From one view of an image to several, for algorithms that learn how they belong together."""

import numpy as np

from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.registry import Registry

__all__ = ["VIEW_SPLIT_REGISTRY", "GridPatches", "QuarterTurns"]

VIEW_SPLIT_REGISTRY = Registry("VIEW_SPLIT")
"""What ``SPLIT`` of an entry of ``INPUT.VIEWS`` names: from an array (H, W, C) to a list of such arrays."""


@VIEW_SPLIT_REGISTRY.register()
class GridPatches:
    """A patch of each of 3 x 3 cells: that of the middle first, then the eight around it, row by row.

    Doersch et al., "Unsupervised Visual Representation Learning by Context Prediction"
    (https://arxiv.org/abs/1505.05192), sec. 3.
    """

    def __init__(self, patch_size: int = 64) -> None:
        """
        Args:
            patch_size: side of the square patches, less than that of a cell.
        """
        if patch_size < 1:
            raise ConfigError(f"PATCH_SIZE must be a number of pixels, got {patch_size}")
        self.patch_size = patch_size

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        height, width = image.shape[0] // 3, image.shape[1] // 3  # Of a cell.
        if min(height, width) <= self.patch_size:
            raise DatasetError(
                f"an image of {image.shape[0]} x {image.shape[1]} (height x width) has 3 x 3 cells of {height} x "
                f"{width}, which must be larger than PATCH_SIZE, {self.patch_size}; crop images to "
                f"{3 * (self.patch_size + 1)} or more in the AUGMENTATIONS of INPUT.VIEWS"
            )
        patches = [self._patch_of(image[y : y + height, x : x + width]) for y, x in self._corners(height, width)]
        return [patches.pop(4), *patches]

    @staticmethod
    def _corners(height: int, width: int) -> list[tuple[int, int]]:
        return [(row * height, column * width) for row in range(3) for column in range(3)]

    def _patch_of(self, cell: np.ndarray) -> np.ndarray:
        # The last row and column of a cell stay out, so that no two patches touch: a line that goes on from one to the
        # other would give the answer away (sec. 3.1).
        y, x = np.random.randint(0, np.array(cell.shape[:2]) - self.patch_size)
        return cell[y : y + self.patch_size, x : x + self.patch_size]


@VIEW_SPLIT_REGISTRY.register()
class QuarterTurns:
    """The image turned by 0, 90, 180 and 270 degrees counter-clockwise, pixel by pixel.

    Gidaris et al., "Unsupervised Representation Learning by Predicting Image Rotations"
    (https://arxiv.org/abs/1803.07728). An interpolation would give the angle away.
    """

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        if image.shape[0] != image.shape[1]:
            raise DatasetError(
                f"QuarterTurns needs square images, got {image.shape[0]} x {image.shape[1]} (height x width); crop "
                "them in the AUGMENTATIONS of INPUT.VIEWS, e.g. with RandomResizedCrop"
            )
        return [np.rot90(image, turns) for turns in range(4)]
