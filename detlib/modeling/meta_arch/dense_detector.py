"""What detectors with a prediction at every cell of the feature maps share.

Shapes: N images, L feature maps of H x W cells, A anchors at each cell, K numbers predicted by each anchor;
R = the sum of H * W * A over all feature maps.
"""

from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, build_component
from detlib.layers import ShapeSpec
from detlib.modeling.backbone.backbone import Backbone
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages, instances_of, output_size_of
from detlib.modeling.training_picture import put_training_picture
from detlib.structures import Boxes, ImageList, Instances
from detlib.utils.errors import ConfigError

__all__ = ["DenseDetector", "build_dense_head", "permute_to_N_HWA_K"]


class DenseDetector(PreprocessesImages, nn.Module):
    """Backbone, a fully convolutional head, and two methods for a subclass to write.

    These are :meth:`forward_training` and :meth:`forward_inference`.
    """

    training_state_buffers: tuple[str, ...] = ()

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str] | None = None,
        *,
        pixel_mean: list[float],
        pixel_std: list[float],
    ) -> None:
        """
        Args:
            head: takes L feature maps and returns a tuple of predictions, each with L maps of shape (N, A * K, H, W).
            head_in_features: names of the feature maps, finest first; by default all that the backbone gives.
            pixel_mean: of each channel.
            pixel_std: of each channel.
        """
        super().__init__()
        self.backbone = backbone
        self.head = head
        if head_in_features is None:
            shapes = backbone.output_shape()
            head_in_features = sorted(shapes, key=lambda name: shapes[name].stride)
        self.head_in_features = head_in_features
        self.preprocessor = ImagePreprocessor(
            pixel_mean, pixel_std, backbone.size_divisibility, backbone.padding_constraints
        )

    @property
    def has_unused_parameters(self) -> bool:
        """Whether layers of the backbone get no gradient, since the head does not take all feature maps."""
        return not set(self.backbone.output_shape()) <= set(self.head_in_features)

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: for each image a dict with

                * ``image``: (C, H, W) in the channel order and range of ``INPUT.FORMAT``;
                * ``instances``: when training, Instances with ``gt_boxes`` and ``gt_classes``;
                * ``height``, ``width``: size in which the predictions are wanted; by default that of ``image``.

        Returns:
            The losses by name when training. Else for each image a dict whose ``instances`` have ``pred_boxes``,
            ``scores`` and ``pred_classes``, best first.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        features = [features[name] for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            return self.forward_training(images, features, predictions, instances_of(batched_inputs, self.device))

        results = self.forward_inference(images, features, predictions)
        sizes = [output_size_of(*sample) for sample in zip(batched_inputs, images.image_sizes)]
        return [{"instances": detector_postprocess(result, *size)} for result, size in zip(results, sizes)]

    def forward_training(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]], gt_instances: list[Instances]
    ) -> dict[str, Tensor]:
        """The losses of a batch by name."""
        raise NotImplementedError(f"{type(self).__name__} needs forward_training()")

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]
    ) -> list[Instances]:
        """Detections in each image, in the coordinates of the network's input."""
        raise NotImplementedError(f"{type(self).__name__} needs forward_inference()")

    def visualize_training(self, batched_inputs: list[dict[str, Any]], results: list[Instances]) -> None:
        """Put a picture of the first image into the event storage: ground truth on the left, the best 20 boxes right.

        Args:
            results: detections in the coordinates of the network's input.
        """
        pred_boxes = results[0].pred_boxes.tensor[:20]
        input_format = getattr(self, "input_format", "BGR")
        put_training_picture(batched_inputs[0], pred_boxes, input_format, "predictions")

    def _transpose_dense_predictions(
        self, predictions: list[list[Tensor]], dims_per_anchor: list[int]
    ) -> list[list[Tensor]]:
        """From L maps of (N, A * K, H, W) to L of (N, H * W * A, K), for each kind of prediction and its K."""
        channels = [maps[0].shape[1] for maps in predictions]
        num_anchors = [A_K / K for A_K, K in zip(channels, dims_per_anchor)]
        if len(channels) != len(dims_per_anchor) or any(number != num_anchors[0] for number in num_anchors):
            raise ConfigError(
                f"{type(self.head).__name__} predicts maps of {channels} channels; {type(self).__name__} needs A times "
                f"{dims_per_anchor}, for A anchors. Name a head for this detector, with its number of classes."
            )
        return [[permute_to_N_HWA_K(x, K) for x in maps] for maps, K in zip(predictions, dims_per_anchor)]

    def _ema_update(self, name: str, value: Tensor, initial_value: float, momentum: float = 0.9) -> Tensor:
        """Update the moving average in the buffer ``name`` and return it, without waiting for the device."""
        value = torch.as_tensor(value, dtype=torch.float32, device=self.device)
        if not hasattr(self, name):
            self.register_buffer(name, torch.full_like(value, initial_value), persistent=False)
        # A new tensor each time: autograd may still hold the last one.
        setattr(self, name, getattr(self, name) * momentum + value.detach() * (1 - momentum))
        return getattr(self, name)

    def _decode_multi_level_predictions(
        self,
        anchors: list[Boxes],
        pred_scores: list[Tensor],
        pred_deltas: list[Tensor],
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        """The candidates of one image: of each feature map, the best scores above a threshold.

        Args:
            anchors: of each feature map, H * W * A boxes.
            pred_scores: of each feature map, (H * W * A, K) probabilities of K classes.
            pred_deltas: of each feature map, (H * W * A, 4).
            topk_candidates: how many to keep of each feature map.
        """
        candidates = [
            self._decode_per_level_predictions(*level, score_thresh, topk_candidates, image_size)
            for level in zip(anchors, pred_scores, pred_deltas)
        ]
        return Instances.cat(candidates)

    def _decode_per_level_predictions(
        self,
        anchors: Boxes,
        pred_scores: Tensor,
        pred_deltas: Tensor,
        score_thresh: float,
        topk_candidates: int,
        image_size: tuple[int, int],
    ) -> Instances:
        anchor_index, classes = (pred_scores > score_thresh).nonzero(as_tuple=True)
        scores = pred_scores[anchor_index, classes]
        scores, best = scores.topk(min(topk_candidates, len(scores)))
        anchor_index, classes = anchor_index[best], classes[best]
        boxes = self.box2box_transform.apply_deltas(pred_deltas[anchor_index], anchors.tensor[anchor_index])
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)


def build_dense_head(
    cfg: CfgNode, section: CfgNode, input_shape: list[ShapeSpec], default: type[nn.Module]
) -> nn.Module:
    """The head that ``section.HEAD`` names, or the default one.

    Args:
        section: of the detector.
        default: what its ``from_config(cfg, input_shape)`` gives is offered to the head that is named.
    """
    if not section.HEAD:
        return default(cfg, input_shape)
    # A head without a number of anchors predicts one box at each cell.
    offers = {"in_channels": input_shape[0].channels, "num_anchors": 1, **default.from_config(cfg, input_shape)}
    return build_component(HEAD_REGISTRY, section.HEAD, **offers)


def permute_to_N_HWA_K(tensor: Tensor, K: int) -> Tensor:
    """From (N, A * K, H, W), as a convolution gives it, to (N, H * W * A, K)."""
    if tensor.dim() != 4 or tensor.shape[1] % K:
        raise ValueError(f"expected a shape (N, A * {K}, H, W), got {tuple(tensor.shape)}")
    N, _, H, W = tensor.shape
    return tensor.view(N, -1, K, H, W).permute(0, 3, 4, 1, 2).reshape(N, -1, K)
