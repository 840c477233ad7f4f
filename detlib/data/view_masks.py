"""Masks over the patches of an image that a model is to fill in."""

import math

import numpy as np

from detlib.utils.errors import ConfigError
from detlib.utils.registry import Registry

__all__ = ["VIEW_MASK_REGISTRY", "RandomBlocks", "RandomSquares"]

VIEW_MASK_REGISTRY = Registry("VIEW_MASK")
"""What ``MASK`` of an entry of ``INPUT.VIEWS`` names: called without arguments, it draws a mask (h, w) of bool, true
where a patch is hidden.
"""


@VIEW_MASK_REGISTRY.register()
class RandomSquares:
    """Hide a fixed share of the squares that the grid of patches is divided into.

    Xie et al., "SimMIM" (https://arxiv.org/abs/2111.09886), sec. 3.2.
    """

    def __init__(self, grid_size: int = 48, square_size: int = 8, ratio: float = 0.6) -> None:
        """
        Args:
            grid_size: patches along each side of the image.
            square_size: patches along each side of a square.
            ratio: share of the squares to hide, rounded up to whole squares.
        """
        if grid_size < 1 or square_size < 1 or grid_size % square_size:
            raise ConfigError(f"SQUARE_SIZE must divide GRID_SIZE; they are {square_size} and {grid_size} patches")
        if not 0 < ratio <= 1:
            raise ConfigError(f"RATIO must be in (0, 1], got {ratio}")
        self.square_size = square_size
        self.squares_per_side = grid_size // square_size
        self.num_hidden = math.ceil(round(self.squares_per_side**2 * ratio, 6))  # 100 * 0.07 is above 7.

    def __call__(self) -> np.ndarray:
        mask = np.zeros(self.squares_per_side**2, dtype=bool)
        mask[np.random.permutation(len(mask))[: self.num_hidden]] = True
        mask = mask.reshape(self.squares_per_side, self.squares_per_side)
        return mask.repeat(self.square_size, axis=0).repeat(self.square_size, axis=1)


@VIEW_MASK_REGISTRY.register()
class RandomBlocks:
    """Hide one rectangle after the other, which may overlap, until a fixed number of patches is hidden.

    Chen et al., "Context Autoencoder" (https://arxiv.org/abs/2202.03026), sec. 4.1, after BEiT
    (https://arxiv.org/abs/2106.08254), alg. 1.
    """

    num_tries = 10

    def __init__(
        self, grid_size: int = 14, num_hidden: int = 75, min_area: int = 16, min_aspect_ratio: float = 0.3
    ) -> None:
        """
        Args:
            grid_size: patches along each side of the image.
            num_hidden: how many patches to hide.
            min_area: patches of the smallest rectangle; fewer if fewer are left to hide.
            min_aspect_ratio: least height of a rectangle over its width; the greatest is its inverse.
        """
        if not 0 < num_hidden < grid_size**2:
            raise ConfigError(
                f"NUM_HIDDEN must be above 0 and below {grid_size**2}, as there are GRID_SIZE x GRID_SIZE = "
                f"{grid_size} x {grid_size} patches; got {num_hidden}"
            )
        if min_area < 1 or not 0 < min_aspect_ratio <= 1:
            raise ConfigError(
                f"MIN_AREA must be 1 or more, and MIN_ASPECT_RATIO in (0, 1]; got {min_area} and {min_aspect_ratio}"
            )
        self.grid_size, self.num_hidden = grid_size, num_hidden
        self.min_area, self.log_ratio = min_area, -math.log(min_aspect_ratio)

    def __call__(self) -> np.ndarray:
        mask = np.zeros((self.grid_size, self.grid_size), dtype=bool)
        while (missing := self.num_hidden - int(mask.sum())) > 0:
            block = self._draw_block(mask, missing)
            if block is None:  # No rectangle fits: the few that are missing are hidden one by one.
                mask.flat[np.random.permutation(np.flatnonzero(~mask))[:missing]] = True
            else:
                mask[block] = True
        return mask

    def _draw_block(self, mask: np.ndarray, missing: int) -> tuple[slice, slice] | None:
        """Draw a rectangle that hides at least one more patch, and at most as many as are missing."""
        for _ in range(self.num_tries):
            area = np.random.uniform(min(self.min_area, missing), missing)
            ratio = math.exp(np.random.uniform(-self.log_ratio, self.log_ratio))
            height, width = max(round(math.sqrt(area * ratio)), 1), max(round(math.sqrt(area / ratio)), 1)
            if max(height, width) > self.grid_size:
                continue
            y, x = np.random.randint(self.grid_size - height + 1), np.random.randint(self.grid_size - width + 1)
            block = np.s_[y : y + height, x : x + width]
            if 0 < np.count_nonzero(~mask[block]) <= missing:
                return block
        return None
