"""Necks of two or more self-supervised algorithms: from feature maps, or vectors, to embeddings.

Shapes: (N, C, h, w) maps or (N, C) vectors in; (N, d) embeddings out.
"""

from torch import Tensor, nn

from detlib.layers import NaiveSyncBatchNorm
from detlib.modeling.neck import NECK_REGISTRY
from detlib.utils import comm
from detlib.utils.errors import ConfigError

__all__ = ["AvgPool2dNeck", "LinearNeck", "MoCoV2Neck", "NonLinearNeck", "batch_norm_1d", "mean_of_cells"]


class BatchNorm1d(nn.BatchNorm1d):
    """Batch norm of vectors (N, C)."""

    def forward(self, input: Tensor) -> Tensor:
        _check_count(self, len(input))
        return super().forward(input)


class SyncBatchNorm1d(NaiveSyncBatchNorm):
    """Batch norm of vectors (N, C) with the statistics of all processes."""

    def forward(self, input: Tensor) -> Tensor:
        _check_count(self, len(input) * comm.get_world_size())
        return super().forward(input[:, :, None, None])[:, :, 0, 0]


def _check_count(norm: nn.Module, num_vectors: int) -> None:
    if norm.training and num_vectors == 1:
        raise ConfigError(
            "batch norm got one vector, which has no variance; set SOLVER.IMS_PER_BATCH to 2 images or more, for each "
            "process unless the neck and its predictor have NORM: SyncBN"
        )


def batch_norm_1d(norm: str, channels: int, **kwargs: bool | float) -> nn.Module:
    """Batch norm of vectors (N, channels).

    Args:
        norm: "BN", or "SyncBN" with the statistics of all processes.
        kwargs: of ``nn.BatchNorm1d``.
    """
    norms = {"BN": BatchNorm1d, "SyncBN": SyncBatchNorm1d}
    if norm not in norms:
        raise ConfigError(f"the norm of a neck is {norm!r}; it must be one of {', '.join(norms)}")
    return norms[norm](channels, **kwargs)


def mean_of_cells(x: Tensor) -> Tensor:
    """From maps (N, C, h, w) to (N, C); vectors (N, C) stay as they are."""
    return x.flatten(start_dim=2).mean(dim=2) if x.dim() > 2 else x


@NECK_REGISTRY.register()
class LinearNeck(nn.Module):
    """The mean of each channel, and a linear layer."""

    def __init__(self, in_channels: int, out_channels: int = 128) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.fc = nn.Linear(in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(mean_of_cells(x))


@NECK_REGISTRY.register()
class MoCoV2Neck(nn.Module):
    """The mean of each channel, and two linear layers with a ReLU between (MoCo v2, arXiv:2003.04297)."""

    def __init__(self, in_channels: int, hid_channels: int = 2048, out_channels: int = 128) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hid_channels), nn.ReLU(inplace=True), nn.Linear(hid_channels, out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(mean_of_cells(x))


@NECK_REGISTRY.register()
class NonLinearNeck(nn.Module):
    """A multi-layer perceptron with batch norm: the projectors and predictors of SimCLR, BYOL, SimSiam and others."""

    def __init__(
        self,
        in_channels: int,
        hid_channels: int,
        out_channels: int,
        num_layers: int = 2,
        with_bias: bool = False,
        with_last_bias: bool = False,
        with_last_bn: bool = True,
        with_last_bn_affine: bool = True,
        with_avg_pool: bool = True,
        norm: str = "BN",
    ) -> None:
        """
        Args:
            num_layers: linear layers, each but the last followed by batch norm and ReLU.
            with_bias: of the layers before the last; with_last_bias: of the last.
            with_last_bn: batch norm at the end; with_last_bn_affine: with scale and shift.
            with_avg_pool: take the mean of each channel of a map; without, what comes must be vectors.
            norm: see :func:`batch_norm_1d`.
        """
        super().__init__()
        if num_layers < 1:
            raise ConfigError(f"NonLinearNeck: num_layers is {num_layers}; it must be 1 or more")
        self.out_channels = out_channels
        self.with_avg_pool = with_avg_pool
        layers: list[nn.Module] = []
        for _ in range(num_layers - 1):
            layers += [nn.Linear(in_channels, hid_channels, bias=with_bias), batch_norm_1d(norm, hid_channels)]
            layers += [nn.ReLU(inplace=True)]
            in_channels = hid_channels
        layers.append(nn.Linear(in_channels, out_channels, bias=with_last_bias))
        if with_last_bn:
            layers.append(batch_norm_1d(norm, out_channels, affine=with_last_bn_affine))
        self.mlp = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(mean_of_cells(x) if self.with_avg_pool else x)


@NECK_REGISTRY.register()
class AvgPool2dNeck(nn.Module):
    """Maps averaged to a few cells a side."""

    def __init__(self, in_channels: int, output_size: int = 1) -> None:
        super().__init__()
        self.out_channels = in_channels
        self.pool = nn.AdaptiveAvgPool2d(output_size)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, h, w) to (N, C, output_size, output_size)."""
        return self.pool(x)
