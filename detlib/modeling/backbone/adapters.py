"""Backbones of timm and torchvision under the contract of detlib.

A feature map with stride s is named ``res{log2(s)}``: "res2" has stride 4, "res5" has stride 32, as in ResNet and
MobileNet, so that necks and heads keep their IN_FEATURES when the backbone changes. Where several maps have the same
stride, as in a plain ViT, they are "res4_1", "res4_2" and so on, in the order of the network. Weights keep the names of
the network's own package.

Shapes: N images; the map with stride s is (N, channels, about H / s, about W / s).
"""

import copy
import difflib
import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torchvision
from fvcore.nn import weight_init
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.backbone.build import BACKBONE_REGISTRY
from detlib.modeling.backbone.norm_eval import eval_batch_norms
from detlib.utils.errors import ConfigError, DetlibError

__all__ = ["TimmBackbone", "TorchvisionBackbone"]

# By default, maps of finer strides are left out: no neck uses them.
_MIN_STRIDE = 4

# Where torchvision's classifiers keep the blocks that run one after the other; ResNets have theirs at the top.
_TRUNKS = ("features", "trunk_output", "layers")

# (H, W) of the image that tells strides. Multiples of 32, small, and of two sides, so that channels stand out.
_PROBE_SIZE = (128, 96)


class _Map(NamedTuple):
    """What is known of a feature map."""

    channels: int
    stride: int
    channels_last: bool


class _Adapter(Backbone):
    """Maps that a network gives in a row, by names and with the channels in front."""

    def __init__(self, model: nn.Module, maps: Sequence[_Map], norm_eval: bool) -> None:
        """
        Args:
            model: the network.
            maps: the last of its outputs, in their order.
            norm_eval: keep batch norms in evaluation mode.
        """
        super().__init__()
        self.model = model
        self.norm_eval = norm_eval
        self._out_features = _names([found.stride for found in maps])
        self._out_feature_channels = {name: found.channels for name, found in zip(self._out_features, maps)}
        self._out_feature_strides = {name: found.stride for name, found in zip(self._out_features, maps)}
        self._channels_last = {name for name, found in zip(self._out_features, maps) if found.channels_last}
        self.train()

    @property
    def size_divisibility(self) -> int:
        """The largest stride: many of these networks cut off, or refuse, what is left over at the border."""
        return max(self._out_feature_strides.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W).

        Returns:
            The feature maps by name.
        """
        maps = self.model(x)
        maps = list(maps.values() if isinstance(maps, dict) else maps)[-len(self._out_features) :]
        return {
            name: x.permute(0, 3, 1, 2).contiguous() if name in self._channels_last else x
            for name, x in zip(self._out_features, maps)
        }

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode of all but, with ``norm_eval``, batch norms."""
        super().train(mode)
        if self.norm_eval:
            eval_batch_norms(self)
        return self


@BACKBONE_REGISTRY.register()
class TimmBackbone(_Adapter):
    """The feature maps of a model of timm (https://github.com/huggingface/pytorch-image-models)."""

    def __init__(
        self,
        model_name: str,
        *,
        pretrained: bool = False,
        out_indices: Sequence[int] | None = None,
        in_channels: int = 3,
        norm_eval: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            model_name: as in ``timm.list_models()``, with or without the tag of its weights, or "hf-hub:...".
            pretrained: download weights.
            out_indices: which maps to return, counted as timm does; 0 often has stride 2. Most networks, but not
                EfficientNets, end with the last one. By default timm's choice, without strides below 4.
            norm_eval: keep batch norms in evaluation mode.
            model_kwargs: further arguments of ``timm.create_model``, such as ``drop_path_rate: 0.1``. Transformers for
                images of one size mostly take ``img_size``; for images of any size Swin takes
                ``strict_img_size: false``, ViT ``dynamic_img_size: true``.
        """
        timm = _import_timm()
        if ":" not in model_name and not timm.is_model(model_name):
            raise _unknown_name(model_name, timm.list_models(), "timm")
        arguments = {} if out_indices is None else {"out_indices": tuple(out_indices)}
        arguments.update(_lower_case(model_kwargs))
        try:
            model = timm.create_model(
                model_name, pretrained=pretrained, features_only=True, in_chans=in_channels, **arguments
            )
        except (AssertionError, AttributeError, IndexError, TypeError) as error:
            raise ConfigError(f"timm cannot build {model_name!r} with {arguments}: {error}") from error
        channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        maps = [
            _Map(channels, stride, channels_last)
            for channels, stride in zip(model.feature_info.channels(), model.feature_info.reduction())
            if out_indices is not None or stride >= _MIN_STRIDE  # Finer ones come first.
        ]
        super().__init__(model, maps, norm_eval)


@BACKBONE_REGISTRY.register()
class TorchvisionBackbone(_Adapter):
    """The feature maps of a classifier of torchvision, such as "resnet50", "mobilenet_v2", "convnext_tiny" or "swin_t".

    The network is traced, and what the maps do not need is left out.
    """

    def __init__(
        self,
        model_name: str,
        *,
        weights: str = "",
        out_nodes: Sequence[str] | None = None,
        in_channels: int = 3,
        norm_eval: bool = False,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """
        Args:
            model_name: as in ``torchvision.models.list_models()``.
            weights: which ones to download, such as "DEFAULT" or "IMAGENET1K_V2"; "" for none.
            out_nodes: which maps to return: names of modules, or of nodes as
                ``torchvision.models.feature_extraction.get_graph_node_names`` lists them. By default the last block of
                each stride from 4.
            in_channels: with weights and other than 3, each channel gets the mean of the colours' kernels.
            norm_eval: keep batch norms in evaluation mode.
            model_kwargs: further arguments of the network, such as ``stochastic_depth_prob: 0.2``.
        """
        model = _torchvision_model(model_name, weights, _lower_case(model_kwargs))
        if in_channels != 3:
            _change_in_channels(model, in_channels, keep_weights=bool(weights))
        if out_nodes is None:
            out_nodes = _last_blocks(model_name, model, in_channels)
        extractor, maps = _extract(model_name, model, out_nodes, in_channels)
        without = [node for node, found in maps.items() if found is None]
        if without or not maps:
            raise ConfigError(
                f"OUT_NODES of {model_name} is {list(out_nodes)}; it must name at least one, and only feature maps "
                f"whose strides are powers of 2, which {', '.join(without) or 'nothing'} is not."
            )
        super().__init__(extractor, list(maps.values()), norm_eval)

    def __deepcopy__(self, memo: dict[int, Any]) -> "TorchvisionBackbone":
        # A copy of a traced network forgets its mode and that of its batch norms.
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied.train(self.training)


def _names(strides: list[int]) -> list[str]:
    """Names of feature maps after their strides."""
    names = [f"res{round(math.log2(stride))}" for stride in strides]
    return [f"{x}_{names[: i + 1].count(x)}" if names.count(x) > 1 else x for i, x in enumerate(names)]


def _import_timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise DetlibError("TimmBackbone needs timm: pip install 'detlib[timm]'") from error
    return timm


def _torchvision_model(model_name: str, weights: str, arguments: dict[str, Any]) -> nn.Module:
    known = torchvision.models.list_models(module=torchvision.models)
    if model_name not in known:
        raise _unknown_name(model_name, known, "torchvision.models")
    known_weights = torchvision.models.get_model_weights(model_name).__members__
    if weights and weights not in known_weights:
        raise ConfigError(f"WEIGHTS of {model_name} is {weights!r}; it must be '' or {', '.join(known_weights)}.")
    try:
        return torchvision.models.get_model(model_name, weights=weights or None, **arguments)
    except TypeError as error:
        raise ConfigError(f"torchvision cannot build {model_name!r} with {arguments}: {error}") from error


def _last_blocks(model_name: str, model: nn.Module, in_channels: int) -> list[str]:
    """The last block of each stride, from the finest to the coarsest."""
    trunk = next((name for name in _TRUNKS if hasattr(model, name)), "")
    children = [name for name, _ in model.get_submodule(trunk).named_children()]
    blocks = [f"{trunk}.{name}" if trunk else name for name in children]
    _, maps = _extract(model_name, model, blocks, in_channels)
    last = {found.stride: block for block, found in maps.items() if found and found.stride >= _MIN_STRIDE}
    if not last:
        raise ConfigError(f"{model_name} has no feature maps whose strides are powers of 2; name some by OUT_NODES.")
    return list(last.values())


def _extract(
    model_name: str, model: nn.Module, nodes: Sequence[str], in_channels: int
) -> tuple[nn.Module, dict[str, _Map | None]]:
    """A network that ends with these nodes, and what is known of their outputs: None if they are no feature maps."""
    try:
        extractor = create_feature_extractor(model, list(nodes)).eval()
        with torch.no_grad():
            outputs = extractor(torch.zeros(1, in_channels, *_PROBE_SIZE))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"feature maps {', '.join(nodes)} cannot be taken from torchvision's {model_name}; either it has no such "
            f"nodes, or it takes images of one size only: {error}"
        ) from error
    return extractor.train(), {node: _read_shape(output) for node, output in outputs.items()}


def _read_shape(output: Any) -> _Map | None:
    if not isinstance(output, Tensor) or output.dim() != 4:
        return None
    _, *shape = output.shape
    for channels_last, (channels, height, width) in ((False, shape), (True, (shape[2], shape[0], shape[1]))):
        stride = _PROBE_SIZE[0] // height
        if stride & (stride - 1) == 0 and (height * stride, width * stride) == _PROBE_SIZE:
            return _Map(channels, stride, channels_last)
    return None


def _change_in_channels(model: nn.Module, in_channels: int, keep_weights: bool) -> None:
    """Make the first convolution, which sees the image, take another number of channels."""
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    kernels = conv.weight.detach()
    conv.in_channels = in_channels
    # The sum over channels stays, and with it the size of the output.
    mean = kernels.mean(1, keepdim=True) * (kernels.shape[1] / in_channels)
    conv.weight = nn.Parameter(mean.repeat(1, in_channels, 1, 1))
    if not keep_weights:
        weight_init.c2_msra_fill(conv)


def _unknown_name(name: str, known: Collection[str], package: str) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else f"{package}.list_models() lists them."
    return ConfigError(f"{package} has no model {name!r}; {hint}")


def _lower_case(arguments: dict[str, Any] | None) -> dict[str, Any]:
    return {str(key).lower(): value for key, value in (arguments or {}).items()}
