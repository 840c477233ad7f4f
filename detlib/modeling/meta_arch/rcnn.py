"""Detectors in two stages: proposals, then heads over the regions (Faster R-CNN, https://arxiv.org/abs/1506.01497).

One class serves Fast, Faster, Mask, Keypoint and Cascade R-CNN: they differ in the parts that the config names.
"""

from typing import Any

from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.modeling.backbone import Backbone, build_backbone
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages, instances_of, output_size_of
from detlib.modeling.proposal_generator import build_proposal_generator
from detlib.modeling.roi_heads import ROIHeads, build_roi_heads
from detlib.modeling.training_picture import put_training_picture
from detlib.structures import ImageList, Instances
from detlib.utils.errors import DatasetError

__all__ = ["GeneralizedRCNN", "ProposalNetwork"]


@META_ARCH_REGISTRY.register()
class GeneralizedRCNN(PreprocessesImages, nn.Module):
    """Backbone, proposal generator and ROI heads."""

    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module | None,
        roi_heads: ROIHeads,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str | None = None,
        vis_period: int = 0,
    ) -> None:
        """
        Args:
            proposal_generator: gives proposals for each image; None takes those that come with the batch.
            roi_heads: from proposals to detections.
            pixel_mean: of each channel.
            pixel_std: of each channel.
            input_format: channel order of the images, for drawing.
            vis_period: kept for subclasses that read it; the trainer's hook does the drawing.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.preprocessor = ImagePreprocessor(
            pixel_mean, pixel_std, backbone.size_divisibility, backbone.padding_constraints
        )
        self.input_format = input_format
        self.vis_period = vis_period

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "roi_heads": build_roi_heads(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: for each image a dict with

                * ``image``: (C, H, W) in the channel order and range of ``INPUT.FORMAT``;
                * ``instances``: when training, Instances with ``gt_boxes``, ``gt_classes`` and, if the model has such
                  heads, ``gt_masks`` and ``gt_keypoints``;
                * ``proposals``: for a model without a proposal generator, Instances with ``proposal_boxes`` and
                  ``objectness_logits``;
                * ``height``, ``width``: size in which the predictions are wanted; by default that of ``image``.

        Returns:
            The losses by name when training. Else for each image a dict whose ``instances`` have ``pred_boxes``,
            ``scores``, ``pred_classes`` and, with such heads, ``pred_masks`` and ``pred_keypoints``; best first.
        """
        if not self.training:
            return self.inference(batched_inputs)
        images = self.preprocess_image(batched_inputs)
        gt_instances = instances_of(batched_inputs, self.device)
        features = self.backbone(images.tensor)
        proposals, proposal_losses = self._propose(batched_inputs, images, features, gt_instances)
        _, detector_losses = self.roi_heads(images, features, proposals, gt_instances)
        return {**detector_losses, **proposal_losses}

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> list[dict[str, Instances]] | list[Instances]:
        """Detections of a batch.

        Args:
            batched_inputs: as for :meth:`forward`.
            detected_instances: of each image, with ``pred_boxes`` and ``pred_classes`` in the coordinates of the
                network's input; only their masks and keypoints are then predicted.
            do_postprocess: bring detections to the size wanted.

        Returns:
            What :meth:`forward` gives, or without post-processing the Instances of each image in the coordinates of the
            network's input, with masks as (R, 1, M, M) probabilities within their boxes.
        """
        if self.training:
            raise RuntimeError("inference() predicts; call model.eval() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if detected_instances is not None:
            detected_instances = [x.to(self.device) for x in detected_instances]
            results = self.roi_heads.forward_with_given_boxes(features, detected_instances)
        else:
            proposals, _ = self._propose(batched_inputs, images, features)
            results, _ = self.roi_heads(images, features, proposals, None)
        if not do_postprocess:
            return results
        return self._postprocess(results, batched_inputs, images.image_sizes)

    def visualize_training(self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]) -> None:
        """Put a picture of each image into the event storage: ground truth on the left, the best 20 proposals right."""
        for sample, proposals_per_image in zip(batched_inputs, proposals):
            boxes = proposals_per_image.proposal_boxes.tensor[:20]
            put_training_picture(sample, boxes, self.input_format, "proposals")

    def _propose(
        self,
        batched_inputs: list[dict[str, Any]],
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """The proposals of each image, generated or given, and the losses of the generator when training."""
        if self.proposal_generator is None:
            return self._given_proposals(batched_inputs), {}
        return self.proposal_generator(images, features, gt_instances)

    def _given_proposals(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        for sample in batched_inputs:
            if "proposals" not in sample:
                raise DatasetError(
                    f"the model has no proposal generator, but {sample.get('file_name', 'a sample')!r} has no "
                    f"'proposals'. Set MODEL.LOAD_PROPOSALS: True and DATASETS.PROPOSAL_FILES_TRAIN and "
                    f"PROPOSAL_FILES_TEST, or MODEL.PROPOSAL_GENERATOR.NAME: RPN."
                )
        return [sample["proposals"].to(self.device) for sample in batched_inputs]

    @staticmethod
    def _postprocess(
        instances: list[Instances], batched_inputs: list[dict[str, Any]], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Instances]]:
        sizes = [output_size_of(*sample) for sample in zip(batched_inputs, image_sizes)]
        return [{"instances": detector_postprocess(x, *size)} for x, size in zip(instances, sizes)]


@META_ARCH_REGISTRY.register()
class ProposalNetwork(PreprocessesImages, nn.Module):
    """Backbone and proposal generator only."""

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: nn.Module,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
    ) -> None:
        """
        Args:
            proposal_generator: gives proposals for each image.
            pixel_mean: of each channel.
            pixel_std: of each channel.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.preprocessor = ImagePreprocessor(
            pixel_mean, pixel_std, backbone.size_divisibility, backbone.padding_constraints
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        backbone = build_backbone(cfg)
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, backbone.output_shape()),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Instances]]:
        """
        Args:
            batched_inputs: as for :class:`GeneralizedRCNN`.

        Returns:
            The losses by name when training. Else for each image a dict whose ``proposals`` have ``proposal_boxes`` and
            ``objectness_logits``, best first.
        """
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if self.training:
            _, losses = self.proposal_generator(images, features, instances_of(batched_inputs, self.device))
            return losses
        proposals, _ = self.proposal_generator(images, features, None)
        sizes = [output_size_of(*sample) for sample in zip(batched_inputs, images.image_sizes)]
        return [{"proposals": detector_postprocess(x, *size)} for x, size in zip(proposals, sizes)]
