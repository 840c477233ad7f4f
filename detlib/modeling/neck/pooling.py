"""Necks that pool feature maps to vectors."""

from collections.abc import Mapping

from torch import Tensor, nn

from detlib.modeling.neck.build import NECK_REGISTRY
from detlib.utils.errors import ConfigAssertionError

__all__ = ["GlobalAveragePooling"]

Maps = Tensor | tuple[Tensor, ...] | list[Tensor] | Mapping[str, Tensor]


@NECK_REGISTRY.register()
class GlobalAveragePooling(nn.Module):
    """The mean of each channel of a feature map."""

    def __init__(self, dim: int = 2) -> None:
        """
        Args:
            dim: spatial axes of a map: 1, 2 or 3.
        """
        super().__init__()
        if dim not in (1, 2, 3):
            raise ConfigAssertionError(f"MODEL.NECK.DIM is {dim}; maps have 1, 2 or 3 spatial axes")
        self.dim = dim

    def forward(self, inputs: Maps) -> Tensor | tuple[Tensor, ...] | dict[str, Tensor]:
        """Pool one map (N, C, ...) to (N, C), each of a tuple or list to a tuple, or each of a dict to a dict."""
        if isinstance(inputs, Tensor):
            return self._pool(inputs)
        if isinstance(inputs, tuple | list):
            return tuple(self._pool(x) for x in inputs)
        if isinstance(inputs, Mapping):
            return {name: self._pool(x) for name, x in inputs.items()}
        raise TypeError(
            f"GlobalAveragePooling takes a feature map, or a tuple, list or dict of them; got a {type(inputs).__name__}"
        )

    def _pool(self, x: Tensor) -> Tensor:
        if x.dim() != self.dim + 2:
            raise ValueError(
                f"GlobalAveragePooling(dim={self.dim}) takes maps (N, C, ...) of {self.dim + 2} axes, got one of shape "
                f"{tuple(x.shape)}; set MODEL.NECK.DIM to the number of its spatial axes"
            )
        return x.flatten(start_dim=2).mean(dim=2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}"
