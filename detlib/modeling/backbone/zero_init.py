"""Residual branches that start as 0."""

from torch import nn

from detlib.layers import CNNBlockBase
from detlib.utils.errors import ConfigError

__all__ = ["zero_init_residual"]


def zero_init_residual(resnet: nn.Module) -> nn.Module:
    """Set the scale of the last norm of each block to 0, so that blocks are their shortcuts at first; gives it back.

    "Accurate, Large Minibatch SGD" (https://arxiv.org/abs/1706.02677, sec. 5.1).

    Raises:
        ConfigError: a block ends in no norm, or in one whose scale does not learn.
    """
    for block in resnet.modules():
        if isinstance(block, CNNBlockBase) and hasattr(block, "shortcut"):
            norm = (block.conv3 if hasattr(block, "conv3") else block.conv2).norm
            if not isinstance(getattr(norm, "weight", None), nn.Parameter):
                raise ConfigError(
                    f"ZERO_INIT_RESIDUAL is on, but blocks end in {type(norm).__name__}, whose scale does not learn; "
                    f"set NORM to BN or SyncBN and FREEZE_AT to 0"
                )
            nn.init.zeros_(norm.weight)
    return resnet
