"""A module graph as plain data: its nodes, what flows between them, and what each costs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from detlib.modeling.meta_arch.graph.base import FEATURES, CalledPart, GraphPart
from detlib.modeling.meta_arch.graph.config import NodeConfig
from detlib.modeling.meta_arch.graph.construct import in_eval_mode
from detlib.modeling.meta_arch.graph.parts import BackbonePart, LossPart, NeckPart
from detlib.modeling.meta_arch.graph.run import GraphRun
from detlib.modeling.meta_arch.graph.wires import Node
from detlib.modeling.meta_arch.module_graph import ModuleGraph
from detlib.utils.analysis import FlopCountAnalysis

__all__ = ["FeatureSummary", "GraphSummary", "NodeSummary", "summarize_graph"]

Batch = list[dict[str, Any]]


@dataclass(frozen=True)
class FeatureSummary:
    """A feature map.

    Attributes:
        shape: without the batch: (channels, height, width), (channels,) of a vector, or that of tokens.
    """

    name: str
    shape: tuple[int, ...]
    stride: int | None = None

    @property
    def channels(self) -> int | None:
        """None of tokens, (length, channels) or (channels, length), as nobody knows which of the two it is."""
        return self.shape[0] if len(self.shape) in (1, 3, 4) else None

    @property
    def size(self) -> tuple[int, ...]:
        """The shape but for the channels."""
        return self.shape if self.channels is None else self.shape[1:]


@dataclass(frozen=True)
class NodeSummary:
    """A node of a graph.

    Attributes:
        kind: "backbone", "neck", "head" or "loss".
        takes: the entries that it takes, by the node that gives them; its features are the one entry "features".
        entries: what it gives besides features, as name -> what the value is.
        flops: None if it runs only when training.
        notes: what else the config says of it, such as "tasks: det".
    """

    name: str
    type: str
    kind: str = "head"
    prev: tuple[str, ...] = ()
    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    features: tuple[FeatureSummary, ...] = ()
    entries: Mapping[str, str] = field(default_factory=dict)
    num_parameters: int = 0
    num_trained: int = 0
    flops: int | None = 0
    frozen: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class GraphSummary:
    """A graph.

    Attributes:
        nodes: in the order in which they run; each takes from earlier ones only.
    """

    nodes: tuple[NodeSummary, ...]

    @property
    def num_parameters(self) -> int:
        return sum(node.num_parameters for node in self.nodes)

    @property
    def num_trained(self) -> int:
        return sum(node.num_trained for node in self.nodes)

    @property
    def flops(self) -> int:
        return sum(node.flops or 0 for node in self.nodes)


def summarize_graph(graph: ModuleGraph, batched_inputs: Batch) -> GraphSummary:
    """Run a graph as when predicting, for each of its tasks if it has some, and note what its nodes give.

    Args:
        batched_inputs: what the graph takes.
    """
    tasks = dict.fromkeys(task for node in graph.plan for task in node.config.tasks)
    batches = [[{**sample, "task": task} for sample in batched_inputs] for task in tasks] or [batched_inputs]
    nodes: dict[str, NodeSummary] = {}
    with in_eval_mode(graph):
        for batch in batches:
            for node in _summaries(graph, batch):
                nodes.setdefault(node.name, node)
    return GraphSummary(tuple(nodes[node.name] for node in graph.plan))


def _summaries(graph: ModuleGraph, batch: Batch) -> Iterator[NodeSummary]:
    """Of the nodes that run for a batch."""
    calls = _NodeCalls(graph)
    run, reads = _watched_run(calls, graph, batch)
    flops = FlopCountAnalysis(calls, batch).uncalled_modules_warnings(False).by_module()
    ran = [node for node in graph.plan if node.runs(run.data.get("task"))]
    for index, node in enumerate(ran):
        takes = _takes(node, ran[:index], run, reads.get(node.name, set()))
        yield _summary(node, graph.nodes[node.name], run, takes, flops[f"calls.{node.name}"])


class _NodeCall(nn.Module):
    """A node with all that it does beside calling its module, such as resizing masks, so that this is counted too."""

    def __init__(self, node: Node, module: nn.Module) -> None:
        super().__init__()
        self.node = node
        self.module = module

    def forward(self, run: GraphRun) -> None:
        run.run(self.node, self.module)


class _NodeCalls(nn.Module):
    """A graph that returns all that its nodes give, as tracing leaves out what leads to nothing that is returned."""

    def __init__(self, graph: ModuleGraph) -> None:
        super().__init__()
        self.collate = graph.collate
        self.calls = nn.ModuleDict({node.name: _NodeCall(node, graph.nodes[node.name]) for node in graph.plan})

    def forward(self, batched_inputs: Batch) -> list[Any]:
        run = self.run(batched_inputs)
        return [run.maps, [run.data[key] for key in run.givers]]

    def run(self, batched_inputs: Batch) -> GraphRun:
        run = GraphRun(self.collate(batched_inputs))
        for call in self.calls.values():
            if call.node.runs(run.data.get("task")):
                call(run)
        return run


class _WatchedDict(dict):
    """A dict that notes which of its entries are looked up."""

    def __init__(self, data: Mapping[str, Any], looked_up: set[str]) -> None:
        super().__init__(data)
        self._looked_up = looked_up

    def __getitem__(self, key: str) -> Any:
        self._looked_up.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._looked_up.add(key)
        return super().get(key, default)


@torch.no_grad()
def _watched_run(calls: _NodeCalls, graph: ModuleGraph, batch: Batch) -> tuple[GraphRun, dict[str, set[str]]]:
    """What nodes give, and the entries that those which do not tell what they take have looked up."""
    reads: dict[str, set[str]] = {node.name: set() for node in graph.plan if node.wires is None}
    handles = [
        graph.nodes[name].register_forward_pre_hook(lambda module, args, seen=seen: (_WatchedDict(args[0], seen),))
        for name, seen in reads.items()
    ]
    try:
        return calls.run(batch), reads
    finally:
        for handle in handles:
            handle.remove()


def _takes(node: Node, earlier: Sequence[Node], run: GraphRun, looked_up: set[str]) -> dict[str, tuple[str, ...]]:
    """The entries that a node takes, by the earlier node that gives them, in the order of these."""
    outer = {inner: name for name, inner in node.config.rename_inputs.items()}
    names = node.taken(training=True) if node.wires else [outer.get(name, name) for name in sorted(looked_up)]
    targets = {outer.get(name, name) for name in node.wires.targets} if node.wires else set()
    givers = {name: _giver(name, earlier, run, training=name in targets) for name in names if name not in FEATURES}
    pairs = [(other, name) for name, other in givers.items() if other is not None]
    # A module that looks nothing up, as it goes through all entries, may take features, too.
    if any(name in FEATURES for name in names) or (node.wires is None and not looked_up):
        pairs += [(other, "features") for other in _feature_givers(node, earlier, run)]
    # Where nothing else flows, prev still says what comes first.
    linked = {*node.config.prev, *(other.name for other, _ in pairs)}
    takes = {other.name: [] for other in earlier if other.name in linked}
    for other, name in pairs:
        takes[other.name].append(name)
    return {name: tuple(entries) for name, entries in takes.items()}


def _giver(name: str, earlier: Sequence[Node], run: GraphRun, training: bool) -> Node | None:
    """The earlier node that gives an entry; None if it comes with the batch, or there is none."""
    for other in earlier:
        gave = name in map(other.map_name, run.maps.get(other.name, {}))
        gave = gave or (name in run.givers and run.givers[name].name == other.name)
        if training and other.wires is not None:
            gave = any(fnmatchcase(name, pattern) for pattern in other.given(training=True))
        if gave:
            return other
    return None


def _feature_givers(node: Node, earlier: Sequence[Node], run: GraphRun) -> list[Node]:
    """The nodes whose features a node sees."""
    givers = [other for other in earlier if other.name in run.maps]
    return [other for other in givers if other.name in node.config.prev] or givers[-1:]


def _summary(
    node: Node, module: nn.Module, run: GraphRun, takes: Mapping[str, tuple[str, ...]], flops: int
) -> NodeSummary:
    config, parameters = node.config, list(module.parameters())
    maps, strides = run.maps.get(node.name, {}), run.strides.get(node.name, {})
    entries = {key: _described(run.data[key]) for key, giver in run.givers.items() if giver.name == node.name}
    is_loss = isinstance(node.part, LossPart)
    if is_loss:
        entries = dict.fromkeys(node.given(training=True), "when training")
    return NodeSummary(
        name=node.name,
        type=config.type,
        kind=_kind(node.part, bool(maps), "features" in {name for names in takes.values() for name in names}),
        prev=config.prev,
        takes=takes,
        features=tuple(FeatureSummary(name, tuple(x.shape[1:]), strides[name]) for name, x in maps.items()),
        entries=entries,
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        flops=None if is_loss else flops,
        frozen=config.freeze,
        notes=tuple(_notes(config)),
    )


def _kind(part: GraphPart, gives_features: bool, takes_features: bool) -> str:
    part = part.part if isinstance(part, CalledPart) else part
    for known, kind in ((BackbonePart, "backbone"), (NeckPart, "neck"), (LossPart, "loss")):
        if isinstance(part, known):
            return kind
    if not gives_features:
        return "head"
    return "neck" if takes_features else "backbone"


def _notes(config: NodeConfig) -> Iterator[str]:
    if config.tasks:
        yield f"tasks: {', '.join(config.tasks)}"
    weights = config.loss_weights
    for name, weight in weights.items() if isinstance(weights, dict) else [("loss", weights)]:
        if weight != 1.0:
            yield f"{name} x {weight:g}"
    if config.lr_factor != 1.0:
        yield f"learning rate x {config.lr_factor:g}"
    if config.weights:
        yield f"weights: {config.weights}"
    if config.taps:
        yield f"tap: {', '.join(tap or 'output' for tap in config.taps)}"


def _described(value: Any) -> str:
    """The shape of a tensor, or what is in a container."""
    if isinstance(value, Tensor):
        return " x ".join(map(str, value.shape)) or "a number"
    if isinstance(value, Mapping):
        return f"dict of {', '.join(map(str, value)) or 'nothing'}"
    if not isinstance(value, list | tuple):
        return type(value).__name__
    described = f"{'list' if isinstance(value, list) else 'tuple'} of {len(value)}"
    items = {_described(item) if isinstance(item, Tensor) else _kind_of(item) for item in value}
    return f"{described}: {items.pop()}" if len(items) == 1 else described


def _kind_of(item: Any) -> str:
    """The class of an item, and how many things it has, as the cost of nodes that take these depends on it."""
    return f"{type(item).__name__} of {len(item)}" if hasattr(item, "get_fields") else type(item).__name__
