"""Normalization layers: frozen, synchronised and per-level batch norm, layer norm over channels, and get_norm."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F

from detlib.layers._fvcore import differentiable_all_reduce
from detlib.utils.errors import ConfigError, UnknownNameError

__all__ = ["CycleBatchNormList", "FrozenBatchNorm2d", "LayerNorm", "NaiveSyncBatchNorm", "get_norm"]


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are constants.

    All four are buffers, named as in :class:`torch.nn.BatchNorm2d`, so that no optimizer sees them and checkpoints of
    either load into the other. Backbones pre-trained with large batches are fine-tuned with it.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        # Together with eps a variance of 1: a new layer is the identity.
        self.register_buffer("running_var", torch.ones(num_features) - eps)
        # A layer made of a trainable one keeps its counter, so that the model's checkpoints have the same keys.
        self.register_buffer("num_batches_tracked", None)

    def forward(self, x: Tensor) -> Tensor:
        if not x.requires_grad:
            return F.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        # The backward pass of F.batch_norm keeps x to find gradients of weight and bias, which nobody needs here.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).view(-1, 1, 1) + shift.to(x.dtype).view(-1, 1, 1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.num_batches_tracked is None:
            state_dict.pop(prefix + "num_batches_tracked", None)  # Batch norm counts its batches.
        else:
            state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        if prefix + "weight" in state_dict and prefix + "running_mean" not in state_dict:
            # Caffe2 folded the statistics into weight and bias.
            state_dict[prefix + "running_mean"] = torch.zeros_like(self.running_mean)
            state_dict[prefix + "running_var"] = torch.ones_like(self.running_var) - self.eps
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        return f"{self.num_features}, eps={self.eps}"

    @classmethod
    def convert_frozen_batchnorm(cls, module: nn.Module) -> nn.Module:
        """Replace each batch norm in a module by a frozen one of the same numbers; returns the new module."""
        if isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm)):
            frozen = cls(module.num_features, module.eps).to(module.running_var)
            frozen.num_batches_tracked = module.num_batches_tracked
            return _copy_batch_norm(module, frozen)
        return _convert_children(module, cls.convert_frozen_batchnorm)

    @classmethod
    def convert_frozenbatchnorm2d_to_batchnorm2d(cls, module: nn.Module) -> nn.Module:
        """Replace each frozen batch norm in a module by a trainable one of the same numbers; returns the new module."""
        if isinstance(module, FrozenBatchNorm2d):
            trainable = nn.BatchNorm2d(module.num_features, module.eps).to(module.running_var)
            return _copy_batch_norm(module, trainable)
        return _convert_children(module, cls.convert_frozenbatchnorm2d_to_batchnorm2d)


def _convert_children(module: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> nn.Module:
    for name, child in module.named_children():
        new = convert(child)
        if new is not child:
            setattr(module, name, new)
    return module


@torch.no_grad()
def _copy_batch_norm(source: nn.Module, target: nn.Module) -> nn.Module:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(source, name)
        if value is not None:
            getattr(target, name).copy_(value)
    return target.train(source.training)


class NaiveSyncBatchNorm(nn.BatchNorm2d):
    """Batch norm with the statistics of all processes, on any device and for any batch size per process.

    :class:`torch.nn.SyncBatchNorm` needs a GPU; this one reduces the mean and the mean square by plain all-reduces.
    """

    def __init__(self, *args: Any, stats_mode: str = "", **kwargs: Any) -> None:
        """Take the arguments of :class:`torch.nn.BatchNorm2d` and one more.

        Args:
            stats_mode: "" gives each process the same weight; "N" gives each image the same weight, and allows
                processes without images.
        """
        super().__init__(*args, **kwargs)
        if stats_mode not in ("", "N"):
            raise ValueError(f"stats_mode is {stats_mode!r}; expected '' (by process) or 'N' (by image)")
        self._stats_mode = stats_mode

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or not _is_distributed():
            return super().forward(input)
        x = input.float()
        mean, variance, count = self._global_statistics(x)
        self._update_running_statistics(mean.detach(), variance.detach(), count)
        scale = (variance + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = -mean * scale
        if self.affine:
            shift = shift + self.bias
        return (x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).to(input.dtype)

    def _global_statistics(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean (C), biased variance (C) and number of values per channel, over all processes."""
        share = x.shape[0] if self._stats_mode == "N" else 1
        if x.numel() == 0:
            if self._stats_mode != "N":
                raise ValueError("NaiveSyncBatchNorm got no images; a process without images needs stats_mode='N'")
            moments = x.sum(dim=(0, 2, 3)).repeat(2)  # Zeros that keep this process in the backward pass.
        else:
            moments = torch.cat([x.mean(dim=(0, 2, 3)), x.square().mean(dim=(0, 2, 3))]) * share
        sizes = x.new_tensor([share, x.numel() // x.shape[1]])
        total = differentiable_all_reduce(torch.cat([moments, sizes]))
        shares, count = total[-2:].detach()
        mean, mean_square = (total[:-2] / shares.clamp(min=1)).chunk(2)
        return mean, (mean_square - mean.square()).clamp(min=0), count

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats:
            return
        self.num_batches_tracked += 1
        momentum = self.momentum if self.momentum is not None else 1.0 / self.num_batches_tracked
        momentum = momentum * count.clamp(max=1)  # Nothing is learned from a batch without images.
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean += momentum * (mean - self.running_mean)
        self.running_var += momentum * (unbiased - self.running_var)


def _is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class CycleBatchNormList(nn.ModuleList):
    """Batch norms with separate statistics and shared affine parameters, used in turn, one per call.

    A head that is applied to L feature levels gets one of length L: each level keeps its own statistics.
    """

    def __init__(self, length: int, bn_class: type[nn.Module] = nn.BatchNorm2d, **kwargs: Any) -> None:
        """Build the list.

        Args:
            length: how many calls make one round.
            kwargs: arguments of ``bn_class``; ``affine`` is about the shared parameters.
        """
        affine = kwargs.pop("affine", True)
        super().__init__(bn_class(**kwargs, affine=False) for _ in range(length))
        self.weight = nn.Parameter(torch.ones(self[0].num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(self[0].num_features)) if affine else None
        self._next = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self[self._next](x)
        self._next = (self._next + 1) % len(self)
        if self.weight is None:
            return x
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f"affine={self.weight is not None}"


class LayerNorm(nn.Module):
    """Layer norm over the channels of (N, C, H, W), at each position on its own."""

    def __init__(self, normalized_shape: int, eps: float = 1e-6) -> None:
        """Build the layer.

        Args:
            normalized_shape: number of channels.
        """
        super().__init__()
        self.weight = nn.Parameter(torch.ones(normalized_shape))
        self.bias = nn.Parameter(torch.zeros(normalized_shape))
        self.eps = eps
        self.normalized_shape = (normalized_shape,)

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        return F.layer_norm(channels_last, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def _group_norm(out_channels: int) -> nn.GroupNorm:
    groups = 32  # Group Normalization (Wu and He, 2018), table 3.
    if out_channels % groups:
        raise ConfigError(
            f"norm 'GN' makes {groups} groups, which {out_channels} channels do not divide into; "
            f"use a multiple of {groups} channels or another norm"
        )
    return nn.GroupNorm(groups, out_channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BN": nn.BatchNorm2d,
    "SyncBN": nn.SyncBatchNorm,
    "nnSyncBN": nn.SyncBatchNorm,
    "naiveSyncBN": NaiveSyncBatchNorm,
    "naiveSyncBN_N": lambda channels: NaiveSyncBatchNorm(channels, stats_mode="N"),
    "FrozenBN": FrozenBatchNorm2d,
    "GN": _group_norm,
    "LN": LayerNorm,
}


def get_norm(norm: str | Callable[[int], nn.Module] | None, out_channels: int) -> nn.Module | None:
    """Build a normalization layer for (N, out_channels, H, W).

    Args:
        norm: a name (BN, SyncBN, nnSyncBN, naiveSyncBN, naiveSyncBN_N, FrozenBN, GN, LN), a function that takes the
            number of channels, or "" or None for no layer.

    Raises:
        UnknownNameError: no norm has this name.
    """
    if norm is None or norm == "":
        return None
    if not isinstance(norm, str):
        return norm(out_channels)
    if norm not in _NORMS:
        raise UnknownNameError(f"No norm is called {norm!r}; known: {', '.join(_NORMS)}, or '' for none")
    return _NORMS[norm](out_channels)
