"""A detector: RetinaNet with an option of its own."""

from typing import Any

from torch import Tensor

from detlib.config import CfgNode, configurable
from detlib.modeling import META_ARCH_REGISTRY, RetinaNet
from detlib.structures import ImageList, Instances

__all__ = ["MyProjectRetinaNet"]


@META_ARCH_REGISTRY.register()
class MyProjectRetinaNet(RetinaNet):
    """RetinaNet that is not trained on objects too small to see."""

    @configurable
    def __init__(self, *, min_object_size: float, **kwargs: Any) -> None:
        """Take the arguments of :class:`RetinaNet`, and one more.

        Args:
            min_object_size: objects whose width or height is not above it, in pixels, are background.
        """
        super().__init__(**kwargs)
        self.min_object_size = min_object_size

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "min_object_size": cfg.MODEL.MY_PROJECT.MIN_OBJECT_SIZE}

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        visible = [x[x.gt_boxes.nonempty(self.min_object_size)] for x in gt_instances]
        return super().forward_training(images, features, predictions, visible)
