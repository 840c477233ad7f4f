"""What flows between the nodes of a module graph, checked when the graph is built."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from detlib.modeling.meta_arch.graph.config import NodeConfig, suggestion
from detlib.modeling.meta_arch.graph.construct import Shapes
from detlib.modeling.meta_arch.graph.parts import FEATURES, GraphPart
from detlib.modeling.module_zoo import Wires
from detlib.utils.errors import ConfigError, ConfigKeyError

__all__ = ["FROM_BATCH", "Node", "check_wires", "join_features"]

FROM_BATCH = (
    "image",
    "images",
    "image_sizes",
    "batched_inputs",
    "gt_instances",
    "label",
    "labels",
    "score",
    "sem_seg",
    "proposals",
    "task",
    "file_name",
    "image_id",
    "height",
    "width",
)
"""Entries that come with the batch, or may."""


@dataclass(frozen=True)
class Node:
    """A node of a graph that is built.

    Attributes:
        shape: of the features that it gives; empty if it gives none.
        wires: what else it takes and gives, if it tells.
        padding: ``size_divisibility`` and ``square_size`` that it asks of the images; 0 for any.
    """

    config: NodeConfig
    part: GraphPart
    shape: Shapes
    wires: Wires | None
    padding: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.config.name

    def __str__(self) -> str:
        return str(self.config)

    def runs(self, task: str | None) -> bool:
        """Whether it runs for batches of a task; for those without one all nodes do."""
        return not self.config.tasks or task is None or task in self.config.tasks

    def taken(self, training: bool) -> list[str]:
        """Entries that it takes, by their names in the graph."""
        names = {inner: outer for outer, inner in self.config.rename_inputs.items()}
        return [names.get(name, name) for name in (self.wires.taken(self._trains(training)) if self.wires else ())]

    def given(self, training: bool) -> list[str]:
        """Entries that it gives, by their names in the graph; each of its feature maps is one."""
        names = self.config.rename_outputs
        given = [names.get(name, name) for name in (self.wires.given(self._trains(training)) if self.wires else ())]
        return [*given, *map(self.map_name, self.shape)]

    def map_name(self, feature: str) -> str:
        """The entry that is one of its feature maps."""
        return f"{self.name}.{feature}"

    def _trains(self, training: bool) -> bool:
        return training and not self.config.freeze


def check_wires(node: Node, earlier: Sequence[Node], inputs: Iterable[str]) -> None:
    """Compare what a node takes and gives with what the nodes before it give.

    Args:
        inputs: entries that samples bring beyond FROM_BATCH.

    Raises:
        ConfigKeyError: no earlier node provides what it takes.
        ConfigError: an earlier node gives an entry that it gives, too; or gives one that it takes, but for other tasks.
    """
    for other in earlier:
        if other.name in node.config.prev and not _covers(other, node):
            raise ConfigError(_partial(node, other, "its features"))
    for training in (True, False):
        for name in node.taken(training):
            _check_input(node, name, earlier, training, (*FROM_BATCH, *inputs))
        for name in node.given(training):
            for other in earlier:
                same = name not in FEATURES and name in other.given(training) and "*" not in name
                if same and _meet(node, other):
                    raise ConfigError(
                        f"{node} gives {name!r}, which {other.name!r} ({other.config.place}) gives already; rename it "
                        f"in one of them, as rename: {{output: {{{name}: {node.name}_{name}}}}}"
                    )
    known = node.wires.losses if node.wires else ()
    weights = node.config.loss_weights
    for name in weights if isinstance(weights, dict) else ():
        if known and not any(fnmatchcase(key, pattern) for key in _loss_names(name, node) for pattern in known):
            raise ConfigError(f"{node} has a loss weight for {name!r}, but its losses are {', '.join(known)}")


def _loss_names(name: str, node: Node) -> tuple[str, str]:
    return name, f"{node.name}.{name}"


def _check_input(node: Node, name: str, earlier: Sequence[Node], training: bool, from_batch: Sequence[str]) -> None:
    givers = [other for other in earlier if any(fnmatchcase(name, key) for key in other.given(training))]
    if name in FEATURES:
        givers += [other for other in earlier if other.shape]
    if any(_covers(other, node) for other in givers) or name in from_batch:
        return
    if givers:
        raise ConfigError(_partial(node, givers[-1], repr(name)))
    if any(other.wires is None for other in earlier):
        return  # One of them may give it.
    known = {key for other in earlier for key in other.given(training)}
    raise ConfigKeyError(
        f"{node} takes {name!r}, which no earlier node provides; {suggestion(name, {*known, *from_batch})}"
        f"There {'are' if known else 'is'} {', '.join(sorted(known)) or 'nothing'} of nodes and "
        f"{', '.join(from_batch)} of the batch. If samples bring it, list it in MODEL.MODULE_GRAPH.INPUTS"
    )


def _partial(node: Node, other: Node, what: str) -> str:
    return (
        f"{node} takes {what} from {other.name!r} ({other.config.place}), which runs for the tasks "
        f"{', '.join(other.config.tasks)} only; give it tasks that are all among these"
    )


def _covers(other: Node, node: Node) -> bool:
    """Whether one node runs whenever another one does."""
    tasks = set(node.config.tasks)
    return not other.config.tasks or (bool(tasks) and tasks <= set(other.config.tasks))


def _meet(node: Node, other: Node) -> bool:
    """Whether two nodes run for the same batch."""
    tasks, others = set(node.config.tasks), set(other.config.tasks)
    return not tasks or not others or bool(tasks & others)


def join_features(features: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The features of several nodes, or their shapes, in order; a name that two have gets that of the node in front.

    Args:
        features: by the name of the node, then by that of the feature.
    """
    names = [name for part in features.values() for name in part]
    return {
        name if names.count(name) == 1 else f"{node}.{name}": value
        for node, part in features.items()
        for name, value in part.items()
    }
