"""Patches of images, masks over them, and the tokens that masks leave.

Shapes: N images of C channels and H x W pixels, L patches of p x p pixels row by row, D channels of tokens. Masks are
true where a patch is hidden.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.utils.errors import DatasetError

__all__ = [
    "check_size",
    "count_visible",
    "gather_tokens",
    "masks_of",
    "patchify",
    "random_masking",
    "split_by_mask",
    "unpatchify",
]


def check_size(images: Tensor, backbone: nn.Module) -> None:
    """Raise a DatasetError for images of another size than a backbone is pre-trained with.

    Args:
        images: (N, C, H, W).
        backbone: with ``grid_size`` patches of ``patch_size`` pixels along each side.
    """
    side = backbone.grid_size * backbone.patch_size
    if tuple(images.shape[2:]) != (side, side):
        raise DatasetError(
            f"images of {images.shape[2]} x {images.shape[3]} pixels came, but pre-training is set up for {side} x "
            f"{side}; let INPUT.VIEWS give that size, or set MODEL.BACKBONE.IMG_SIZE"
        )


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """The pixels of each patch: (N, C, H, W) to (N, L, p * p * C), in the order (row, column, channel)."""
    p = patch_size
    N, C, H, W = images.shape
    patches = images.reshape(N, C, H // p, p, W // p, p)
    return patches.permute(0, 2, 4, 3, 5, 1).reshape(N, (H // p) * (W // p), p * p * C)


def unpatchify(patches: Tensor, patch_size: int, size: tuple[int, int]) -> Tensor:
    """Undo :func:`patchify`.

    Args:
        size: (H, W).
    """
    p = patch_size
    rows, columns = size[0] // p, size[1] // p
    patches = patches.reshape(len(patches), rows, columns, p, p, -1)
    return patches.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, *size)


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Some tokens of each image.

    Args:
        tokens: (N, L, D), or (1, L, D) for the same ones in all images.
        ids: (N, K).

    Returns:
        (N, K, D).
    """
    tokens = tokens.expand(len(ids), -1, -1)
    return tokens.gather(1, ids[:, :, None].expand(-1, -1, tokens.shape[2]))


def count_visible(num_patches: int, mask_ratio: float) -> int:
    """How many patches stay visible (MAE, https://arxiv.org/abs/2111.06377, sec. 3)."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: Tensor, mask_ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """Hide the patches with the most noise.

    Args:
        noise: (N, L).
        mask_ratio: share of the patches to hide.

    Returns:
        The patches to keep, (N, K), those with the least noise first; the mask, (N, L); and the places, (N, L), at
        which the patches lie once those with the most noise are appended to the ones kept. :func:`gather_tokens` with
        these places restores the order.
    """
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    num_visible = count_visible(noise.shape[1], mask_ratio)
    return ids_shuffle[:, :num_visible], ids_restore >= num_visible, ids_restore


def split_by_mask(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The patches that are visible, (N, K), and those that are hidden, (N, L - K), row by row.

    Args:
        mask: (N, L) on the CPU, with as many patches hidden in each image.
    """
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_hidden = int(mask[0].sum())
    return order[:, : mask.shape[1] - num_hidden], order[:, mask.shape[1] - num_hidden :]


def masks_of(samples: Sequence[dict[str, Any]], grid: tuple[int, int], same_count: bool = False) -> Tensor:
    """The masks of a batch, (N, h, w), on the CPU.

    Args:
        samples: with a ``mask`` (h, w), not 0 where a patch is hidden.
        grid: (h, w), the patches of the images.
        same_count: whether all must hide equally many patches, and not all or none.

    Raises:
        DatasetError: a sample has no mask, or one of another grid; or the numbers of hidden patches are not allowed.
    """
    masks = []
    for sample in samples:
        if "mask" not in sample:
            raise DatasetError(
                f"{_name(sample)} has no 'mask', but {', '.join(sorted(sample))}; let INPUT.VIEWS draw a mask of "
                f"{grid[0]} x {grid[1]} patches"
            )
        mask = torch.as_tensor(sample["mask"]).cpu().bool()
        if tuple(mask.shape) != tuple(grid):
            raise DatasetError(
                f"the mask of {_name(sample)} has the shape {tuple(mask.shape)}, but the image has {grid[0]} x "
                f"{grid[1]} patches; let INPUT.VIEWS draw masks of that shape"
            )
        masks.append(mask)
    masks = torch.stack(masks)
    if same_count:
        counts = sorted(set(masks.sum(dim=(1, 2)).tolist()))
        if len(counts) > 1 or counts[0] in (0, grid[0] * grid[1]):
            raise DatasetError(
                f"the masks of a batch hide {counts[:5]} of {grid[0] * grid[1]} patches; all must hide the same "
                f"number, neither none nor all. Let INPUT.VIEWS draw masks of a fixed count"
            )
    return masks


def _name(sample: dict[str, Any]) -> str:
    return repr(sample["file_name"]) if "file_name" in sample else "a sample"
