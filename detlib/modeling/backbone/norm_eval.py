"""Batch norms that keep their statistics while the rest of a network trains."""

from torch import nn

__all__ = ["eval_batch_norms"]


def eval_batch_norms(module: nn.Module) -> None:
    """Make batch norms use their running statistics, as when testing; scale and shift still learn.

    Statistics of the two or so images per GPU that fit in detection are worse than those of pre-training.
    """
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
            child.eval()
