"""How the parts that detlib has by name become nodes of a module graph: what they take from the dict and give to it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.layers import ShapeSpec
from detlib.modeling.backbone import BACKBONE_REGISTRY, build_backbone, build_bottom_up
from detlib.modeling.backbone.given_features import GivenFeatures
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.graph.build import Setting, Shapes, construct, overlaid
from detlib.modeling.meta_arch.graph.config import NodeConfig, suggestion
from detlib.modeling.meta_arch.semantic_seg import (
    SEM_SEG_HEADS_REGISTRY,
    batch_targets,
    build_sem_seg_head,
    resize_to_output,
)
from detlib.modeling.module_zoo import MODULE_ZOO_REGISTRY, Wires
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.postprocessing import detector_postprocess
from detlib.modeling.preprocessing import class_labels_of, output_size_of
from detlib.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, build_proposal_generator
from detlib.modeling.roi_heads import ROI_HEADS_REGISTRY, build_roi_heads
from detlib.structures import Instances
from detlib.utils.errors import ConfigError, ConfigTypeError, CustomImportError, UnknownNameError
from detlib.utils.registry import Registry, locate

__all__ = ["FEATURES", "GraphPart", "part_of"]

FEATURES = ("features", "strides", "feature_dict")
"""Entries that every node with features has of its own: a list of maps, one of their strides, and the maps by name."""

Data = dict[str, Any]


class GraphPart:
    """How modules of one kind are built, and called with a dict. This one is for modules that take the dict itself."""

    def __init__(self, target: Callable[..., nn.Module]) -> None:
        self.target = target

    def build(self, setting: Setting) -> nn.Module:
        return construct(self.target, setting)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires | None:
        """What is known before the module runs; None if nothing is."""
        if node.inputs is not None:
            return Wires(inputs=node.inputs, outputs=node.outputs)
        return getattr(module, "wires", None)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        """Of the features that the module gives; empty if it gives none."""
        if hasattr(module, "output_shape"):
            return module.output_shape()
        if not hasattr(module, "get_outplanes"):
            return {}
        planes = _as_list(module.get_outplanes())
        strides = _as_list(module.get_outstrides()) if hasattr(module, "get_outstrides") else [None] * len(planes)
        return {f"f{i}": ShapeSpec(channels=c, stride=s) for i, (c, s) in enumerate(zip(planes, strides, strict=True))}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Any:
        """Call the module and return new entries."""
        if node.inputs is None:
            return module(data)
        returned = module(*(data[name] for name in node.inputs))
        if len(node.outputs) == 1:
            return {node.outputs[0]: returned}
        if not isinstance(returned, tuple | list) or len(returned) != len(node.outputs):
            count = len(returned) if isinstance(returned, tuple | list) else 1
            raise ConfigTypeError(f"{node} names {len(node.outputs)} outputs, but its module returned {count}")
        return dict(zip(node.outputs, returned))


class ConfiguredPart(GraphPart):
    """A part that reads the config; the ``kwargs`` of its node are keys of its section.

    Attributes:
        section: of the config.
        name_section: that which has the NAME of the part.
    """

    section = ""
    name_section = ""

    def __init__(self, name: str = "") -> None:
        """
        Args:
            name: in the registry of the parts; "" for what the config names.
        """
        self.name = name

    def cfg(self, setting: Setting) -> CfgNode:
        """The config as this node sees it."""
        node = setting.node
        cfg = overlaid(setting.cfg, self.section, {key.upper(): value for key, value in node.kwargs.items()}, node)
        return overlaid(cfg, self.name_section or self.section, {"NAME": self.name}, node) if self.name else cfg


class BackbonePart(ConfiguredPart):
    """From ``image``, or the only map of ``prev``, to feature maps."""

    section = "MODEL.BACKBONE"

    def build(self, setting: Setting) -> nn.Module:
        shapes = list(setting.input_shape.values())
        if len(shapes) > 1:
            raise ConfigError(f"a backbone takes one feature map, but prev gives {', '.join(setting.input_shape)}")
        build = build_bottom_up if self.name else build_backbone  # The latter adds the neck of the config.
        return build(self.cfg(setting), shapes[0] if shapes else None)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("features",) if node.prev else ("image",), outputs=FEATURES)

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        return {"feature_dict": module(data["features"][0] if node.prev else data["image"])}


class NeckPart(GraphPart):
    """From feature maps to feature maps, or to vectors."""

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("feature_dict",), outputs=FEATURES)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        if hasattr(module, "output_shape"):
            return module.output_shape()
        return {name: ShapeSpec(channels=shape.channels) for name, shape in input_shape.items()}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        maps = module(data["feature_dict"])
        return {"feature_dict": maps} if isinstance(maps, Mapping) else {"features": _as_list(maps)}


class ClassifierPart(GraphPart):
    """Heads of image classifiers, on the last of the features."""

    def build(self, setting: Setting) -> nn.Module:
        offers = {"num_classes": setting.cfg.MODEL.CLASSIFIER.NUM_CLASSES}
        if setting.input_shape:
            offers["in_channels"] = list(setting.input_shape.values())[-1].channels
        return construct(self.target, setting, **offers)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        losses = (f"{node.name}.*loss*",)
        return Wires(inputs=("feature_dict",), losses=losses, predictions=("pred_score", "pred_label"))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        features = data["feature_dict"]
        if module.training:
            num_classes = module.scores(features).shape[1]
            labels = class_labels_of(data["batched_inputs"], num_classes, data["image"].device)
            return prefixed(module.loss(features, labels), node)
        predictions = module.predict(features)
        return {key: [prediction[key] for prediction in predictions] for key in ("pred_score", "pred_label")}


class DenseHeadPart(GraphPart):
    """Heads of dense detectors alone: a list of maps in, predictions for every map out, under the node's name."""

    def build(self, setting: Setting) -> nn.Module:
        shapes = list(setting.input_shape.values())
        offers = {"input_shape": shapes, "in_channels": shapes[0].channels, "num_anchors": 1} if shapes else {}
        return construct(self.target, setting, **offers)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("features",), outputs=(node.name,))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        return {node.name: module(data["features"])}


class LossPart(GraphPart):
    """A loss of the entries that ``inputs`` names, when training."""

    def build(self, setting: Setting) -> nn.Module:
        if setting.node.inputs is None:
            raise ConfigError("a loss needs inputs: what it compares, as [logits, label]")
        return construct(self.target, setting)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(targets=node.inputs or (), losses=node.outputs or (f"{node.name}.loss",))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        if not module.training:
            return {}
        (name,) = node.outputs or (f"{node.name}.loss",)
        return {name: module(*(data[key] for key in node.inputs))}


class ProposalPart(ConfiguredPart):
    """Proposal generators."""

    section = "MODEL.RPN"
    name_section = "MODEL.PROPOSAL_GENERATOR"

    def build(self, setting: Setting) -> nn.Module:
        return build_proposal_generator(self.cfg(setting), setting.input_shape)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict"),
            targets=("gt_instances",),
            outputs=("proposals",),
            losses=(f"{node.name}.*loss*",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        gt_instances = data["gt_instances"] if module.training else None
        proposals, losses = module(data["images"], data["feature_dict"], gt_instances)
        return {"proposals": proposals, **prefixed(losses if module.training else {}, node)}


class ROIHeadsPart(ConfiguredPart):
    """Heads over the regions of ``proposals``."""

    section = "MODEL.ROI_HEADS"

    def build(self, setting: Setting) -> nn.Module:
        return build_roi_heads(self.cfg(setting), setting.input_shape)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict", "proposals"),
            targets=("gt_instances",),
            losses=(f"{node.name}.*loss*",),
            predictions=("instances",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        gt_instances = data["gt_instances"] if module.training else None
        results, losses = module(data["images"], data["feature_dict"], data["proposals"], gt_instances)
        return prefixed(losses, node) if module.training else {"instances": _in_output_size(results, data)}


class SemSegPart(ConfiguredPart):
    """Heads that classify every pixel."""

    section = "MODEL.SEM_SEG_HEAD"

    def build(self, setting: Setting) -> nn.Module:
        return build_sem_seg_head(self.cfg(setting), setting.input_shape)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(
            inputs=("images", "feature_dict"),
            targets=("sem_seg",),
            losses=(f"{node.name}.*loss*",),
            predictions=("sem_seg",),
        )

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        samples, images = data["batched_inputs"], data["images"]
        if module.training:
            _, losses = module(data["feature_dict"], batch_targets(samples, images, module))
            return prefixed(losses, node)
        logits, _ = module(data["feature_dict"])
        return {"sem_seg": resize_to_output(logits, samples, images.image_sizes)}


class DenseDetectorPart(ConfiguredPart):
    """RetinaNet, FCOS and their kin without their backbone: head, anchors, losses and the choice of detections."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.detector = META_ARCH_REGISTRY.get(name)
        self.section = self.detector.num_classes_key.rpartition(".")[0]

    def build(self, setting: Setting) -> nn.Module:
        return self.detector(self.cfg(setting), backbone=GivenFeatures(setting.input_shape))

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
            losses = module.forward_training(data["images"], features, predictions, data["gt_instances"])
            return prefixed(losses, node)
        results = module.forward_inference(data["images"], features, predictions)
        return {"instances": _in_output_size(results, data)}


MODULE_ZOO_REGISTRY.register("backbone", BackbonePart())
MODULE_ZOO_REGISTRY.register("fpn", NeckPart(NECK_REGISTRY.get("FPN")))
MODULE_ZOO_REGISTRY.register("pafpn", NeckPart(NECK_REGISTRY.get("PAFPN")))
MODULE_ZOO_REGISTRY.register("gap", NeckPart(NECK_REGISTRY.get("GlobalAveragePooling")))
MODULE_ZOO_REGISTRY.register("linear_cls_head", ClassifierPart(HEAD_REGISTRY.get("LinearClsHead")))
MODULE_ZOO_REGISTRY.register("retinanet_head", DenseDetectorPart("RetinaNet"))
MODULE_ZOO_REGISTRY.register("rpn", ProposalPart())
MODULE_ZOO_REGISTRY.register("roi_heads", ROIHeadsPart())
MODULE_ZOO_REGISTRY.register("sem_seg_head", SemSegPart())


def part_of(node: NodeConfig) -> GraphPart:
    """What the type of a node names.

    Raises:
        UnknownNameError: nothing has this name.
        CustomImportError: it is a dotted path at which nothing can be imported.
    """
    if node.type in MODULE_ZOO_REGISTRY:
        target = MODULE_ZOO_REGISTRY.get(node.type)
        return target if isinstance(target, GraphPart) else GraphPart(target)
    for registry, make in _KINDS:
        if node.type in _names_in(registry):
            return make(node.type)
    if "." in node.type:
        try:
            return GraphPart(locate(node.type))
        except Exception as error:  # The module's own code runs, and can fail in any way.
            raise CustomImportError(f"{node} has the type {node.type!r}: {error}") from error
    known = sorted({name for registry in (MODULE_ZOO_REGISTRY, *dict(_KINDS)) for name in _names_in(registry)})
    raise UnknownNameError(
        f"{node} has the unknown type {node.type!r}; {suggestion(node.type, known)}Known: {', '.join(known)}; or a "
        f"class by its path, as package.module.Class. Is its module in CUSTOM_IMPORTS?"
    )


def prefixed(losses: Mapping[str, Tensor], node: NodeConfig) -> dict[str, Tensor]:
    """Losses under the names that they have in a graph."""
    return {f"{node.name}.{name}": loss for name, loss in losses.items()}


def _in_output_size(results: list[Instances], data: Data) -> list[Instances]:
    sizes = [output_size_of(*sample) for sample in zip(data["batched_inputs"], data["image_sizes"])]
    return [detector_postprocess(result, *size) for result, size in zip(results, sizes)]


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _head(name: str) -> GraphPart:
    head = HEAD_REGISTRY.get(name)
    return (ClassifierPart if hasattr(head, "loss") and hasattr(head, "predict") else DenseHeadPart)(head)


def _is_dense_detector(name: str) -> bool:
    detector = META_ARCH_REGISTRY.get(name)
    return isinstance(detector, type) and issubclass(detector, DenseDetector)


_KINDS: tuple[tuple[Registry, Callable[[str], GraphPart]], ...] = (
    (BACKBONE_REGISTRY, BackbonePart),
    (NECK_REGISTRY, lambda name: NeckPart(NECK_REGISTRY.get(name))),
    (HEAD_REGISTRY, _head),
    (LOSS_REGISTRY, lambda name: LossPart(LOSS_REGISTRY.get(name))),
    (PROPOSAL_GENERATOR_REGISTRY, ProposalPart),
    (ROI_HEADS_REGISTRY, ROIHeadsPart),
    (SEM_SEG_HEADS_REGISTRY, SemSegPart),
    (META_ARCH_REGISTRY, DenseDetectorPart),
)


def _names_in(registry: Registry) -> Iterator[str]:
    for name, _ in registry:
        if registry is not META_ARCH_REGISTRY or _is_dense_detector(name):
            yield name
