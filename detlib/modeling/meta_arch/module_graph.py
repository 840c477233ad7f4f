"""Any network as a list of modules in the config, which pass a dict along.

Every node takes the dict of all that is known, and returns new entries. ``features`` (a list of maps), ``strides`` (a
list of their strides) and ``feature_dict`` (the maps by name) are those of the node's ``prev``; an entry of a node
whose name contains ``loss`` is part of the training loss. Nodes run in the order of the list.
"""

import functools
import logging
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.meta_arch.graph.build import Setting, Shapes, overlaid
from detlib.modeling.meta_arch.graph.config import NodeConfig, read_nodes, suggestion
from detlib.modeling.meta_arch.graph.parts import Data, part_of
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.modeling.meta_arch.graph.trial import check_layers
from detlib.modeling.meta_arch.graph.wires import Node, check_wires, join_features
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages
from detlib.structures import ImageList
from detlib.utils.errors import (
    ConfigAssertionError,
    ConfigError,
    ConfigKeyError,
    ConfigRuntimeError,
    ConfigTypeError,
    DatasetError,
    DetlibError,
)
from detlib.utils.events import log_scalar

__all__ = ["ModuleGraph"]

_logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class ModuleGraph(PreprocessesImages, nn.Module):
    """The network of MODEL.MODULE_GRAPH; its weights are ``nodes.<name of the node>.*``.

    Attributes:
        plan: the nodes in the order in which they run.
        nodes: their modules by name.
    """

    @configurable
    def __init__(
        self,
        *,
        plan: list[Node],
        nodes: nn.ModuleDict,
        preprocessor: ImagePreprocessor,
        outputs: list[str],
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            outputs: entries that predictions have; empty for all that nodes give but features and losses.
            ignore_value: label of pixels that do not count, with which label maps are padded.
        """
        super().__init__()
        self.preprocessor = preprocessor
        self.plan = plan
        self.nodes = nodes
        self.outputs = outputs
        self.ignore_value = ignore_value
        for node in plan:
            if node.config.freeze:
                nodes[node.name].requires_grad_(False)
        self.train()
        check_layers(self, {node.name: node for node in plan})

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        plan, nodes = build_nodes(cfg)
        return {
            "plan": plan,
            "nodes": nodes,
            "preprocessor": _preprocessor(cfg, nodes),
            "outputs": cfg.MODEL.MODULE_GRAPH.OUTPUTS,
            "ignore_value": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor] | list[dict[str, Any]]:
        """
        Args:
            batched_inputs: for each image a dict with ``image``, (C, H, W) in the channel order and range of
                ``INPUT.FORMAT``, and what the nodes take: see :meth:`collate`.

        Returns:
            The losses by name when training. Else a dict for each image: the items of ``results``, if a node gives
            that, or what all nodes predict.
        """
        run = GraphRun(self.collate(batched_inputs))
        for node in self.plan:
            if node.runs(run.data.get("task")):
                run.run(node, self.nodes[node.name])
        return self._losses(run) if self.training else self._results(run, len(batched_inputs))

    @property
    def lr_factors(self) -> dict[str, float]:
        """Factors on the learning rate, by the prefix of the names of the parameters they are for."""
        return {f"nodes.{n.name}.": n.config.lr_factor for n in self.plan if n.config.lr_factor != 1.0}

    @property
    def part_weights(self) -> dict[str, str]:
        """Checkpoints of single nodes, by the name of the module that they are for."""
        return {f"nodes.{n.name}": n.config.weights for n in self.plan if n.config.weights}

    @property
    def tapped_modules(self) -> list[str]:
        """Names of the modules whose outputs are to be drawn."""
        return [f"nodes.{n.name}.{tap}".rstrip(".") for n in self.plan for tap in n.config.taps]

    @property
    def has_unused_parameters(self) -> bool:
        """Whether some batches leave nodes out."""
        return any(node.config.tasks for node in self.plan)

    def train(self, mode: bool = True) -> "ModuleGraph":
        super().train(mode)
        for node in self.plan:
            if node.config.freeze:
                self.nodes[node.name].eval()
        return self

    def collate(self, batched_inputs: list[dict[str, Any]]) -> Data:
        """The dict that the first node gets.

        It has ``image``, (N, C, H, W) normalised and padded; ``images``, the same as an ImageList; ``image_sizes``, the
        (height, width) of each before padding; ``batched_inputs``; ``task``, if samples have one, the same for all;
        ``label``, (N,) int64; ``gt_instances``, the ``instances`` of the samples; ``sem_seg``, (N, H, W) int64, padded;
        and whatever else all samples have, as a list under its own name.

        Raises:
            DatasetError: samples of several tasks are in one batch.
        """
        images = self.preprocess_image(batched_inputs)
        common = set(batched_inputs[0]).intersection(*batched_inputs) - {"image"}
        data: Data = {key: [sample[key] for sample in batched_inputs] for key in batched_inputs[0] if key in common}
        if "task" in data:
            if len(set(data["task"])) > 1:
                raise DatasetError(f"a batch has samples of the tasks {data['task']}; they must all be of one task")
            data["task"] = data["task"][0]
        if "label" in data:
            data["label"] = torch.as_tensor(data["label"], dtype=torch.int64).to(self.device, non_blocking=True)
        if "instances" in data:
            data["gt_instances"] = [instances.to(self.device) for instances in data.pop("instances")]
        if "sem_seg" in data:
            data["sem_seg"] = self._padded_labels(data["sem_seg"], images)
        return {
            **data,
            "image": images.tensor,
            "images": images,
            "image_sizes": images.image_sizes,
            "batched_inputs": batched_inputs,
        }

    def _padded_labels(self, labels: list[Tensor], images: ImageList) -> Tensor:
        padded = labels[0].new_full((len(labels), *images.tensor.shape[-2:]), self.ignore_value, dtype=torch.int64)
        for target, label in zip(padded, labels):
            target[: label.shape[0], : label.shape[1]] = label
        return padded.to(self.device, non_blocking=True)

    def _losses(self, run: GraphRun) -> dict[str, Tensor]:
        """Entries of nodes that are losses, each times its weight; other scalars go to the event storage."""
        losses = {}
        for key, node in run.givers.items():
            value = run.data[key]
            if "loss" in key:
                losses[key] = _checked_loss(value, key, node) * _weight(key, node)
            elif isinstance(value, Tensor) and value.dim() == 0:
                log_scalar(key, value.detach())
        if not losses:
            names = ", ".join(run.givers) or "nothing"
            raise ConfigRuntimeError(
                f"no loss: a training needs a node that gives an entry with 'loss' in its name; nodes gave {names}"
            )
        return losses

    def _results(self, run: GraphRun, num_images: int) -> list[dict[str, Any]]:
        """A dict for each image, of ``results`` or of what the nodes predict."""
        if "results" in run.givers:
            results = run.data["results"]
            self._check_length("results", results, num_images)
            return results
        for key in self.outputs:
            if key not in run.data:
                names = ", ".join(run.data)
                raise ConfigKeyError(f"MODEL.MODULE_GRAPH.OUTPUTS has {key!r}, which no node gives; there is {names}")
        keys = self.outputs or [key for key, node in run.givers.items() if "loss" not in key and _is_result(key, node)]
        for key in keys:
            self._check_length(key, run.data[key], num_images)
        return [{key: run.data[key][index] for key in keys} for index in range(num_images)]

    @staticmethod
    def _check_length(key: str, value: Any, num_images: int) -> None:
        sized = isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.dim() > 0)
        if not sized or len(value) != num_images:
            came = f"a {type(value).__name__}" + (f" of {len(value)}" if sized else "")
            raise ConfigError(
                f"{key!r} must have an item for each of the {num_images} images, but it is {came}; list what to "
                f"predict in MODEL.MODULE_GRAPH.OUTPUTS"
            )


def build_nodes(cfg: CfgNode) -> tuple[list[Node], nn.ModuleDict]:
    """The nodes of the config and their modules.

    Raises:
        ConfigError: a node cannot be built, or its wires do not fit; it is named, with the line of the config.
    """
    cfg = cfg.clone()
    cfg.freeze()
    plan: list[Node] = []
    modules = nn.ModuleDict()
    for config in read_nodes(cfg):
        node, module = _build_node(config, cfg, {node.name: node.shape for node in plan})
        check_wires(node, plan, cfg.MODEL.MODULE_GRAPH.INPUTS)
        plan.append(node)
        modules[node.name] = module
    return plan, modules


def _build_node(config: NodeConfig, cfg: CfgNode, shapes: dict[str, Shapes]) -> tuple[Node, nn.Module]:
    part = part_of(config)
    input_shape = join_features({name: shapes[name] for name in config.prev})
    try:
        module = part.build(Setting(config, overlaid(cfg, "", config.options, config), input_shape))
        if not isinstance(module, nn.Module):
            raise ConfigTypeError(f"{config.type} gave a {type(module).__name__}; it must give a torch.nn.Module")
        shape = part.output_shape(module, input_shape)
        _check_taps(config, module)
        return Node(config, part, shape, part.wires(module, config)), module
    except (DetlibError, ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        raise _in_node(error, config) from error


def _check_taps(config: NodeConfig, module: nn.Module) -> None:
    known = dict(module.named_modules())
    for tap in config.taps:
        if tap not in known:
            names = ", ".join(list(known)[1:20]) or "none"
            raise ConfigError(f"tap is {tap!r}; {suggestion(tap, known)}The modules in the node are {names}")


def _in_node(error: Exception, config: NodeConfig) -> ConfigError:
    """The error with the name of the node in front, which can still be caught as what it was."""
    text = str(error) if isinstance(error, DetlibError) else f"{config.type}: {type(error).__name__}: {error}"
    kinds = {KeyError: ConfigKeyError, TypeError: ConfigTypeError, AssertionError: ConfigAssertionError}
    kind = next((kind for base, kind in kinds.items() if isinstance(error, base)), ConfigError)
    return kind(f"{config}: {text}")


def _preprocessor(cfg: CfgNode, nodes: nn.ModuleDict) -> ImagePreprocessor:
    size_divisibility = max(getattr(module, "size_divisibility", 0) for module in nodes.values())
    squares = [getattr(module, "padding_constraints", {}).get("square_size", 0) for module in nodes.values()]
    constraints = {"square_size": max(squares)} if any(squares) else {}
    return ImagePreprocessor(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, size_divisibility, constraints)


def _checked_loss(value: Any, key: str, node: Node) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1:
        came = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ConfigTypeError(f"{node} gives {key!r}, which must be one number, as it is a loss; it is {came}")
    if not value.requires_grad:
        _warn_once(f"{node}: nothing can be learned from {key!r}, as it has no gradient")
    return value.reshape(())


def _weight(key: str, node: Node) -> float:
    weights = node.config.loss_weights
    if isinstance(weights, float):
        return weights
    return weights.get(key, weights.get(key.removeprefix(f"{node.name}."), 1.0))


def _is_result(key: str, node: Node) -> bool:
    """Whether a prediction has an entry; not those that a module declares to be for later nodes."""
    return node.wires is None or node.config.inputs is not None or key not in node.wires.outputs


@functools.cache
def _warn_once(message: str) -> None:
    _logger.warning(message)
