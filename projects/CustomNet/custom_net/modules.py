"""A network and a head as modules of a graph: each takes the dict of all that is known, and returns new entries.

Shapes: N images of H x W pixels, K classes; C channels and stride s of the last layer.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.modeling import MODULE_ZOO_REGISTRY
from detlib.modeling.module_zoo import Wires

__all__ = ["CustomHead", "CustomNet"]


@MODULE_ZOO_REGISTRY.register("custom_net")
class CustomNet(nn.Module):
    """So many 3x3 convolutions with a ReLU after each. It comes first, so nobody has to tell its input channels."""

    wires = Wires(inputs=("image",), outputs=("features", "strides"))

    def __init__(self, depth: int, out_planes: Sequence[int], layer_strides: Sequence[int] = ()) -> None:
        """
        Args:
            out_planes: channels of each layer.
            layer_strides: of each layer; empty for 1, which keeps the resolution of the image.
        """
        super().__init__()
        layer_strides = layer_strides or [1] * depth
        if not len(out_planes) == len(layer_strides) == depth:
            raise ValueError(
                f"depth is {depth}, so out_planes and layer_strides need as many entries; they have {len(out_planes)} "
                f"and {len(layer_strides)}"
            )
        self.body = nn.Sequential()
        self.channels, self.stride = 3, 1
        for index, (planes, stride) in enumerate(zip(out_planes, layer_strides)):
            self.body.add_module(f"conv{index}", nn.Conv2d(self.channels, planes, 3, stride=stride, padding=1))
            self.body.add_module(f"relu{index}", nn.ReLU(inplace=True))
            self.channels, self.stride = planes, self.stride * stride

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Of the features, which the graph passes on to the modules that follow."""
        return {"conv": ShapeSpec(channels=self.channels, stride=self.stride)}

    def forward(self, data: dict[str, Any]) -> dict[str, Any]:
        return {"features": [self.body(data["image"])], "strides": [self.stride]}  # (N, C, H / s, W / s)


@MODULE_ZOO_REGISTRY.register("custom_head")
class CustomHead(nn.Module):
    """Global average pooling and one linear layer; ``in_planes`` comes from the module that ``prev`` names."""

    def __init__(self, in_planes: int, num_classes: int, node_name: str = "head") -> None:
        """
        Args:
            in_planes: channels of the feature map.
            node_name: name of the node, which its losses bear; the graph tells it.
        """
        super().__init__()
        self.fc = nn.Linear(in_planes, num_classes)
        self.node_name = node_name
        self.wires = Wires(
            inputs=("features",),
            targets=("label",),
            losses=(f"{node_name}.ce_loss",),
            predictions=("pred_score", "pred_label"),
        )

    def forward(self, data: dict[str, Any]) -> dict[str, Tensor]:
        logits = self.fc(data["features"][0].mean(dim=(-2, -1)))  # (N, K)
        if self.training:
            return {f"{self.node_name}.ce_loss": F.cross_entropy(logits, data["label"])}
        # What ClassificationEvaluator takes of each image: the scores of all classes, and the best class.
        return {"pred_score": logits.softmax(dim=1), "pred_label": logits.argmax(dim=1)}
