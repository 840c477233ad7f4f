"""How the parts that detlib has by name become nodes of a module graph: what they take from the dict and give to it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from detlib.config import CfgNode
from detlib.config.component import takes
from detlib.config.defaults import DEFAULTS
from detlib.layers import ShapeSpec
from detlib.modeling.backbone import BACKBONE_REGISTRY, build_backbone, build_bottom_up
from detlib.modeling.backbone.given_features import GivenFeatures
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.loss import LOSS_REGISTRY
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.dense_detector import DenseDetector
from detlib.modeling.meta_arch.graph.base import (
    FEATURES,
    CalledPart,
    ConfiguredPart,
    Data,
    GraphPart,
    maps_of,
    prefixed,
)
from detlib.modeling.meta_arch.graph.config import NodeConfig, suggestion
from detlib.modeling.meta_arch.graph.construct import BuildContext, Shapes, as_list, construct, overlaid, tried_shape
from detlib.modeling.meta_arch.graph.detector_parts import DenseDetectorPart, ProposalPart, ROIHeadsPart, SemSegPart
from detlib.modeling.meta_arch.graph.targets import class_labels_for, compared_by
from detlib.modeling.meta_arch.semantic_seg import SEM_SEG_HEADS_REGISTRY
from detlib.modeling.module_zoo import MODULE_ZOO_REGISTRY, Wires
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detlib.modeling.roi_heads import ROI_HEADS_REGISTRY
from detlib.utils.errors import ConfigError, ConfigKeyError, CustomImportError, UnknownNameError
from detlib.utils.registry import Registry, locate

__all__ = ["FEATURES", "BackbonePart", "Data", "GraphPart", "LossPart", "NeckPart", "part_of"]


class BackbonePart(ConfiguredPart):
    """From ``image``, or the only map of ``prev``, to feature maps."""

    section = "MODEL.BACKBONE"

    def cfg(self, context: BuildContext) -> CfgNode:
        """The config without the options of another backbone."""
        cfg, given = context.cfg, {key.upper(): value for key, value in context.node.kwargs.items()}
        if (self.name or given.get("NAME", cfg.MODEL.BACKBONE.NAME)) != cfg.MODEL.BACKBONE.NAME:
            cfg = cfg.clone()
            cfg.defrost()
            for key in set(cfg.MODEL.BACKBONE) - set(DEFAULTS["MODEL"]["BACKBONE"]):
                del cfg.MODEL.BACKBONE[key]
        return super().cfg(replace(context, cfg=cfg))

    def build(self, context: BuildContext) -> nn.Module:
        shapes = list(maps_of(context).values()) if context.node.prev else []
        if len(shapes) > 1:
            raise ConfigError(f"a backbone takes one feature map, but prev gives {', '.join(context.input_shape)}")
        build = build_bottom_up if self.name else build_backbone  # The latter adds the neck of the config.
        try:
            return build(self.cfg(context), shapes[0] if shapes else None)
        except ConfigKeyError as error:
            raise ConfigKeyError(f"{error} In a node, write that as cfg: {{MODEL: {{...}}}}.") from None

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("features",) if node.prev else ("image",), outputs=FEATURES)

    # A backbone tells strides, and what it asks of its input, in cells of the map that it is given.

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        shapes, stride = module.output_shape(), _stride_of(input_shape)
        return {
            name: replace(x, stride=x.stride * stride if x.stride and stride else None) for name, x in shapes.items()
        }

    def padding(self, module: nn.Module, input_shape: Shapes) -> dict[str, int]:
        stride = _stride_of(input_shape) or 1
        return {key: value * stride for key, value in super().padding(module, input_shape).items()}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        return {"feature_dict": module(data["features"][0] if node.prev else data["image"])}


class NeckPart(GraphPart):
    """From feature maps to feature maps, or to vectors."""

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("feature_dict",), outputs=FEATURES)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        if hasattr(module, "output_shape"):
            return module.output_shape()
        return tried_shape(module, input_shape) if input_shape else {}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        maps = module(data["feature_dict"])
        return {"feature_dict": maps} if isinstance(maps, Mapping) else {"features": as_list(maps)}


class EmbeddingPart(NeckPart):
    """Necks of one map, the last of the features, as self-supervised learning has them."""

    def build(self, context: BuildContext) -> nn.Module:
        return construct(self.target, context, in_channels=list(maps_of(context).values())[-1].channels)

    def output_shape(self, module: nn.Module, input_shape: Shapes) -> Shapes:
        return {"f0": ShapeSpec(channels=module.out_channels)}

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        return {"features": [module(data["features"][-1])]}


class ClassifierPart(GraphPart):
    """Heads of image classifiers, on the last of the features."""

    @property
    def num_image_classes_key(self) -> str | None:
        return "MODEL.CLASSIFIER.NUM_CLASSES" if "num_classes" in takes(self.target) else None

    def cfg(self, context: BuildContext) -> CfgNode:
        given = {key.upper(): value for key, value in context.node.kwargs.items() if key.lower() == "num_classes"}
        return overlaid(context.cfg, "MODEL.CLASSIFIER", given, context.node)

    def build(self, context: BuildContext) -> nn.Module:
        if context.cfg.MODEL.CLASSIFIER.BATCH_AUGMENTS:
            raise ConfigError(
                "MODEL.CLASSIFIER.BATCH_AUGMENTS mixes images before an ImageClassifier's backbone, which a graph does "
                "not; set it to []"
            )
        offers: dict[str, Any] = {"num_classes": self.cfg(context).MODEL.CLASSIFIER.NUM_CLASSES}
        if context.input_shape:
            offers["in_channels"] = list(context.input_shape.values())[-1].channels
        module = construct(self.target, context, **offers)
        if not hasattr(module, "num_classes"):  # With which labels are compared.
            module.num_classes = offers.get("num_classes" if self.num_image_classes_key else "in_channels")
        return module

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        losses = (f"{node.name}.*loss*",)
        return Wires(inputs=("feature_dict",), losses=losses, predictions=("pred_score", "pred_label"))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        features = data["feature_dict"]
        if module.training:
            labels = class_labels_for(node, data, module.num_classes)
            return prefixed(module.loss(features, labels), node)
        predictions = module.predict(features)
        return {key: [prediction[key] for prediction in predictions] for key in ("pred_score", "pred_label")}


class DenseHeadPart(GraphPart):
    """Heads of dense detectors alone: a list of maps in, predictions for every map out, under the node's name."""

    def build(self, context: BuildContext) -> nn.Module:
        shapes = list(maps_of(context).values())
        offers = {"input_shape": shapes, "in_channels": shapes[0].channels, "num_anchors": 1}
        return construct(self.target, context, **offers)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(inputs=("features",), outputs=(node.name,))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        return {node.name: module(data["features"])}


class LossPart(GraphPart):
    """A loss of the entries that ``inputs`` names, when training."""

    def build(self, context: BuildContext) -> nn.Module:
        if context.node.inputs is None:
            raise ConfigError("a loss needs inputs: what it compares, as inputs: [logits, label]")
        outputs = context.node.outputs
        if len(outputs) > 1 or not all("loss" in name for name in outputs):
            raise ConfigError(f"a loss gives one entry, with 'loss' in its name; outputs is {list(outputs)}")
        return construct(self.target, context)

    def wires(self, module: nn.Module, node: NodeConfig) -> Wires:
        return Wires(targets=node.inputs or (), losses=node.outputs or (f"{node.name}.loss",))

    def run(self, module: nn.Module, data: Data, node: NodeConfig) -> Data:
        if not module.training:
            return {}
        (name,) = node.outputs or (f"{node.name}.loss",)
        return {name: module(*compared_by(node, data))}


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
    part = _named_part(node)
    if node.inputs is None or isinstance(part, LossPart):
        return part
    if type(part) is GraphPart and len(node.outputs) == 1 and "loss" in node.outputs[0]:
        return LossPart(part.target)  # Such as torch.nn.CrossEntropyLoss; without labels it cannot run.
    return CalledPart(part)


def _named_part(node: NodeConfig) -> GraphPart:
    if node.type in MODULE_ZOO_REGISTRY:
        target = MODULE_ZOO_REGISTRY.get(node.type)
        return target if isinstance(target, GraphPart) else GraphPart(target)
    found = {registry: make for registry, make in _KINDS if node.type in _names_in(registry)}
    if len(found) > 1:
        names = ", ".join(registry._name for registry in found)
        raise ConfigError(f"{node} has the type {node.type!r}, which is in the registries {names}; rename one of these")
    for make in found.values():
        return make(node.type)
    if node.type in META_ARCH_REGISTRY:
        raise ConfigError(
            f"{node} has the type {node.type!r}, which is a whole model, from images to predictions; write its parts "
            f"as nodes, such as backbone, fpn, rpn, roi_heads and sem_seg_head"
        )
    if "." in node.type:
        try:
            return GraphPart(locate(node.type))
        except Exception as error:  # The module's own code runs, and can fail in any way.
            raise CustomImportError(f"{node} has the type {node.type!r}: {error}") from error
    known = sorted({name for registry in (MODULE_ZOO_REGISTRY, *dict(_KINDS)) for name in _names_in(registry)})
    raise UnknownNameError(
        f"{node} has the unknown type {node.type!r}; {suggestion(node.type, known)}Known: "
        f"{', '.join(_names_in(MODULE_ZOO_REGISTRY))}; backbones, necks, heads and losses by their names; or a class "
        f"by its path, as package.module.Class. Is its module in CUSTOM_IMPORTS?"
    )


def _stride_of(input_shape: Shapes) -> int | None:
    """The stride of the only map, or that of the image."""
    return next(iter(input_shape.values())).stride if input_shape else 1


def _neck(name: str) -> GraphPart:
    neck = NECK_REGISTRY.get(name)
    takes_one = "in_channels" in takes(neck) and "input_shape" not in takes(neck)
    return (EmbeddingPart if takes_one else NeckPart)(neck)


def _head(name: str) -> GraphPart:
    head = HEAD_REGISTRY.get(name)
    return (ClassifierPart if hasattr(head, "loss") and hasattr(head, "predict") else DenseHeadPart)(head)


def _is_dense_detector(target: Any) -> bool:
    return isinstance(target, type) and issubclass(target, DenseDetector)


_KINDS: tuple[tuple[Registry, Callable[[str], GraphPart]], ...] = (
    (BACKBONE_REGISTRY, BackbonePart),
    (NECK_REGISTRY, _neck),
    (HEAD_REGISTRY, _head),
    (LOSS_REGISTRY, lambda name: LossPart(LOSS_REGISTRY.get(name))),
    (PROPOSAL_GENERATOR_REGISTRY, ProposalPart),
    (ROI_HEADS_REGISTRY, ROIHeadsPart),
    (SEM_SEG_HEADS_REGISTRY, SemSegPart),
    (META_ARCH_REGISTRY, DenseDetectorPart),
)


def _names_in(registry: Registry) -> Iterator[str]:
    for name, target in registry:
        if target is not GivenFeatures and (registry is not META_ARCH_REGISTRY or _is_dense_detector(target)):
            yield name
