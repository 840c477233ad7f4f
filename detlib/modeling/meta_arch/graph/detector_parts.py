"""How detectors and semantic heads, which read the config, become nodes of a module graph."""

from torch import nn

from detlib.modeling.backbone.given_features import GivenFeatures
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.graph.base import ConfiguredPart, Data, maps_of, prefixed
from detlib.modeling.meta_arch.graph.config import NodeConfig
from detlib.modeling.meta_arch.graph.construct import BuildContext, Shapes
from detlib.modeling.meta_arch.graph.targets import gt_instances_for, proposals_for, sem_seg_for
from detlib.modeling.meta_arch.semantic_seg import build_sem_seg_head, resize_to_output
from detlib.modeling.module_zoo import Wires
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.preprocessing import output_size_of
from detlib.modeling.proposal_generator import build_proposal_generator
from detlib.modeling.roi_heads import build_roi_heads
from detlib.structures import Instances
from detlib.utils.errors import ConfigError

__all__ = ["DenseDetectorPart", "ProposalPart", "ROIHeadsPart", "SemSegPart"]


class ProposalPart(ConfiguredPart):
    """Proposal generators."""

    section = "MODEL.RPN"
    name_section = "MODEL.PROPOSAL_GENERATOR"

    def build(self, context: BuildContext) -> nn.Module:
        module = build_proposal_generator(self.cfg(context), maps_of(context))
        if module is None:
            raise ConfigError("MODEL.PROPOSAL_GENERATOR.NAME says that samples bring proposals; leave the node out")
        return module

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict"),
            targets=("gt_instances",),
            outputs=("proposals",),
            losses=(f"{node.name}.*loss*",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        gt_instances = gt_instances_for(node, data) if module.training else None
        proposals, losses = module(data["images"], data["feature_dict"], gt_instances)
        return {"proposals": proposals, **prefixed(losses if module.training else {}, node)}


class ROIHeadsPart(ConfiguredPart):
    """Heads over the regions of ``proposals``."""

    section = "MODEL.ROI_HEADS"
    num_classes_key = "MODEL.ROI_HEADS.NUM_CLASSES"

    def build(self, context: BuildContext) -> nn.Module:
        return build_roi_heads(self.cfg(context), maps_of(context))

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict", "proposals"),
            targets=("gt_instances",),
            losses=(f"{node.name}.*loss*",),
            predictions=("instances",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        gt_instances = gt_instances_for(node, data) if module.training else None
        proposals = proposals_for(node, data)
        results, losses = module(data["images"], data["feature_dict"], proposals, gt_instances)
        return prefixed(losses, node) if module.training else {"instances": _in_output_size(results, data)}


class SemSegPart(ConfiguredPart):
    """Heads that classify every pixel."""

    section = "MODEL.SEM_SEG_HEAD"
    num_stuff_classes_key = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"

    def build(self, context: BuildContext) -> nn.Module:
        return build_sem_seg_head(self.cfg(context), maps_of(context))

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict"),
            targets=("sem_seg",),
            losses=(f"{node.name}.*loss*",),
            predictions=("sem_seg",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        if module.training:
            _, losses = module(data["feature_dict"], sem_seg_for(node, data, module))
            return prefixed(losses, node)
        logits, _ = module(data["feature_dict"])
        return {"sem_seg": resize_to_output(logits, data["batched_inputs"], data["image_sizes"])}


class DenseDetectorPart(ConfiguredPart):
    """RetinaNet, FCOS and their kin without their backbone: head, anchors, losses and the choice of detections."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.detector = META_ARCH_REGISTRY.get(name)
        self.num_classes_key = getattr(self.detector, "num_classes_key", "")
        self.section = self.num_classes_key.rpartition(".")[0]

    def build(self, context: BuildContext) -> nn.Module:
        name = self.detector.__name__
        if context.node.kwargs and not self.section:
            raise ConfigError(f"{name} has no num_classes_key, which tells its section; write cfg in place of kwargs")
        cfg = self.cfg(context).clone()
        cfg.defrost()
        shapes = {name: {"channels": x.channels, "stride": x.stride} for name, x in maps_of(context).items()}
        cfg.MODEL.BACKBONE = {"NAME": "GivenFeatures", "FREEZE_AT": 0, "SHAPES": shapes}
        cfg.MODEL.NECK = {"NAME": ""}
        cfg.freeze()
        module = self.detector(cfg)
        if not isinstance(module.backbone, GivenFeatures):
            raise ConfigError(f"{name} makes a backbone of its own; let its from_config call build_backbone(cfg)")
        if type(module).forward is not DenseDetector.forward:
            raise ConfigError(
                f"{name} has a forward() of its own, which takes images rather than feature maps; move what it adds to "
                f"forward_training() and forward_inference()"
            )
        return module

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        return {}

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict"),
            targets=("gt_instances",),
            losses=(f"{node.name}.*loss*",),
            predictions=("instances",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        features = [data["feature_dict"][name] for name in module.head_in_features]
        predictions = module.head(features)
        if module.training:
            gt_instances = gt_instances_for(node, data)
            losses = module.forward_training(data["images"], features, predictions, gt_instances)
            return prefixed(losses, node)
        results = module.forward_inference(data["images"], features, predictions)
        return {"instances": _in_output_size(results, data)}


def _in_output_size(results: list[Instances], data: Data) -> list[Instances]:
    sizes = [output_size_of(*sample) for sample in zip(data["batched_inputs"], data["image_sizes"])]
    return [detector_postprocess(result, *size) for result, size in zip(results, sizes)]
