"""Any network as a list of modules in the config, which pass a dict along.

Every node takes the dict of all that is known, and returns new entries. ``features`` (a list of maps), ``strides`` (a
list of their strides) and ``feature_dict`` (the maps by name) are those of the node's ``prev``; an entry of a node
whose name contains ``loss`` is part of the training loss. Nodes run in the order of the list.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode, configurable
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY, ClassOption
from detlib.modeling.meta_arch.graph.build import build_nodes
from detlib.modeling.meta_arch.graph.config import read_nodes
from detlib.modeling.meta_arch.graph.construct import BuildContext, overlaid
from detlib.modeling.meta_arch.graph.parts import Data, part_of
from detlib.modeling.meta_arch.graph.results import losses_of, results_of
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.modeling.meta_arch.graph.trial import try_out
from detlib.modeling.meta_arch.graph.wires import FROM_BATCH, Node
from detlib.modeling.preprocessing import (
    ImagePreprocessor,
    PreprocessesImages,
    check_sem_seg,
    pad_labels,
    whole_label,
)
from detlib.utils.errors import (
    DatasetError,
)

__all__ = ["ModuleGraph"]


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
        inputs: Sequence[str] = (),
        outputs: Sequence[str] = (),
        ignore_value: int = 255,
    ) -> None:
        """
        Args:
            inputs: entries of samples that nodes take, beyond images and the usual labels.
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
        try_out(self, (*FROM_BATCH, *inputs))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        plan, nodes = build_nodes(cfg)
        return {
            "plan": plan,
            "nodes": nodes,
            "preprocessor": _preprocessor(cfg, plan),
            "inputs": cfg.MODEL.MODULE_GRAPH.INPUTS,
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
        return losses_of(run, self.plan) if self.training else results_of(run, self.plan, self.outputs)

    @classmethod
    def class_options(cls, cfg: CfgNode) -> list[ClassOption]:
        """The numbers of classes of those nodes whose parts tell them."""
        settings = [BuildContext(node, overlaid(cfg, "", node.cfg_changes, node), {}) for node in read_nodes(cfg)]
        return [option for context in settings for option in part_of(context.node).class_options(context)]

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
        ``label``, (N,) int64; ``gt_instances``, the ``instances`` of the samples; ``sem_seg``, when training padded to
        (N, H, W) int64; and whatever else all samples have, as a list under its own name.

        Raises:
            DatasetError: samples of several tasks are in one batch, a label is no whole number, or the labels of pixels
                are not of the size of their image.
        """
        images = self.preprocess_image(batched_inputs)
        common = set(batched_inputs[0]).intersection(*batched_inputs) - {"image"}
        data: Data = {key: [sample[key] for sample in batched_inputs] for key in batched_inputs[0] if key in common}
        if "task" in data:
            if len(set(data["task"])) > 1:
                raise DatasetError(f"a batch has samples of the tasks {data['task']}; they must all be of one task")
            data["task"] = data["task"][0]
        if "label" in data:
            labels = torch.tensor([whole_label(sample["label"], sample) for sample in batched_inputs])
            data["label"] = labels.to(self.device, non_blocking=True)
        if "instances" in data:
            data["gt_instances"] = [instances.to(self.device) for instances in data.pop("instances")]
        if "sem_seg" in data and self.training:
            check_sem_seg(batched_inputs, None, self.ignore_value)
            data["sem_seg"] = pad_labels(data["sem_seg"], images, self.ignore_value)
        return {
            **data,
            "image": images.tensor,
            "images": images,
            "image_sizes": images.image_sizes,
            "batched_inputs": batched_inputs,
        }


def _preprocessor(cfg: CfgNode, plan: list[Node]) -> ImagePreprocessor:
    """One for all nodes: images are padded to the largest multiple and the largest square that they ask for."""
    padding = {key: max(node.padding.get(key, 0) for node in plan) for key in ("size_divisibility", "square_size")}
    square = {"square_size": padding["square_size"]}
    return ImagePreprocessor(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, padding["size_divisibility"], square)
