"""Running the nodes of a module graph: what each sees of the dict, and whether it gives what it told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from detlib.layers import ShapeSpec
from detlib.modeling.meta_arch.graph.config import suggestion
from detlib.modeling.meta_arch.graph.construct import Shapes
from detlib.modeling.meta_arch.graph.parts import FEATURES, Data
from detlib.modeling.meta_arch.graph.wires import Node, join_features
from detlib.utils.errors import ConfigError, ConfigKeyError, ConfigTypeError, DetlibError

__all__ = ["GraphRun"]


@dataclass
class GraphRun:
    """The way of one batch through the nodes.

    Attributes:
        data: all that is known, by name; entries of nodes are added to it.
        givers: the node of each entry that a node has given, features apart.
        maps: feature maps by name, of each node that gives some.
        strides: of the maps, likewise.
    """

    data: Data
    givers: dict[str, Node] = field(default_factory=dict)
    maps: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    strides: dict[str, dict[str, int | None]] = field(default_factory=dict)

    def run(self, node: Node, module: nn.Module) -> None:
        """Run one node.

        Raises:
            ConfigKeyError: it takes an entry that is not there.
            ConfigTypeError: it returns something else than a dict, or than it declares.
            ConfigError: it gives what an earlier node has given.
        """
        view = self._view(node)
        new = self._call(node, module, view)
        self._take_features(node, new, view)
        for key, value in new.items():
            if key in self.givers:
                other = self.givers[key]
                raise ConfigError(
                    f"{node} gives {key!r}, which {other.name!r} ({other.config.place}) has given already; rename it "
                    f"in one of them, as rename: {{output: {{{key}: {node.name}_{key}}}}}"
                )
            self.givers[key] = node
            self.data[key] = value
        self._outdate_samples(new)

    def _outdate_samples(self, new: Data) -> None:
        """Leave out of the samples what a node has given anew, such as mixed labels; the caller's stay as they are."""
        samples = self.data["batched_inputs"]
        if any(key in samples[0] for key in new):
            self.data["batched_inputs"] = [{k: v for k, v in sample.items() if k not in new} for sample in samples]

    def _view(self, node: Node) -> Data:
        """What the node sees: everything, but of the features those of its ``prev`` only, under its own names."""
        view = dict(self.data)
        sources = [name for name in node.config.prev if name in self.maps]
        if sources:
            maps = join_features({name: self.maps[name] for name in sources})
            strides = join_features({name: self.strides[name] for name in sources})
            view.update(features=list(maps.values()), strides=list(strides.values()), feature_dict=maps)
        # What is not there may not be needed, as labels are when predicting.
        renamed = {inner: view[outer] for outer, inner in node.config.rename_inputs.items() if outer in view}
        kept = {key: value for key, value in view.items() if key not in node.config.rename_inputs}
        return {**kept, **renamed}

    @staticmethod
    def _call(node: Node, module: nn.Module, view: Data) -> Data:
        """The new entries that the module gives, by their names in the graph."""
        own = _View(view, node.config.rename_inputs)  # The module may write into it.
        try:
            returned = node.part.run(module, own, node.config)
        except DetlibError as error:
            error.args = (f"{node} {error}" if isinstance(error, _MissingEntryError) else f"{node}: {error}",)
            raise
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(f"This is from {node}. Without inputs, a module is called with the dict of all entries.")
            raise
        if not isinstance(returned, Mapping):
            came, hint = f"a {type(returned).__name__}", ", as {'logits': x}"
            if returned is None:
                came, hint = "nothing", ": does its forward() end with return?"
            raise ConfigTypeError(f"{node} returned {came}; a module must return a dict of new entries{hint}")
        new = {key: value for key, value in returned.items() if key not in view or value is not view[key]}
        if node.shape:  # It gives features, be they those that it has got.
            new.update({key: returned[key] for key in FEATURES if key in returned})
        _check_names(node, new, module.training)
        return {node.config.rename_outputs.get(key, key): value for key, value in new.items()}

    def _take_features(self, node: Node, new: Data, view: Data) -> None:
        """Move features from the new entries to those of the node, in all three forms."""
        given = {key: new.pop(key) for key in FEATURES if key in new}
        if not given and node.shape:
            raise ConfigTypeError(
                f"{node} declares the features {_listed(node.shape)}, but it returned none; a module returns them as "
                f"{{'features': [...], 'strides': [...]}}"
            )
        if not given:
            return
        maps = given.get("feature_dict")
        features = given.get("features", list(maps.values()) if maps is not None else view.get("features", []))
        if not isinstance(features, list | tuple) or not all(isinstance(x, Tensor) for x in features):
            raise ConfigTypeError(f"{node} must return features as a list of tensors; it returned {_kind(features)}")
        known = [shape.stride for shape in node.shape.values()]
        told = known if len(known) == len(features) else [None] * len(features)
        strides = given.get("strides", told if "strides" not in view or node.shape else view["strides"])
        if not isinstance(strides, list | tuple) or len(features) != len(strides):
            raise ConfigError(f"{node} must return a stride for each of the {len(features)} features; got {strides!r}")
        names = list(node.shape) if len(node.shape) == len(features) else [f"f{i}" for i in range(len(features))]
        maps = dict(zip(names, features)) if maps is None else maps
        _check_features(node, maps, strides)
        self.maps[node.name], self.strides[node.name] = maps, dict(zip(maps, strides))
        self.data.update(features=list(features), strides=list(strides), feature_dict=maps)
        self.data.update({node.map_name(name): x for name, x in maps.items()})


class _MissingEntryError(ConfigKeyError):
    """A module takes an entry that is not there; the message goes on from the name of the node."""


class _View(Data):
    """A copy of all entries for a module, which tells what it lacks."""

    def __init__(self, entries: Data, renamed: Mapping[str, str]) -> None:
        """
        Args:
            renamed: entry -> name by which the module knows it.
        """
        super().__init__(entries)
        self._outer = {inner: outer for outer, inner in renamed.items()}

    def __missing__(self, name: str) -> Any:
        outer = self._outer.get(name, name)
        what = repr(name) if outer == name else f"{outer!r} as {name!r}"
        hint = suggestion(str(outer), self)
        raise _MissingEntryError(f"takes {what}, which is not there; {hint}There is {', '.join(sorted(self))}")


def _check_names(node: Node, new: Data, training: bool) -> None:
    """Compare the names of what a module has returned with those that it declares."""
    if node.wires is None:
        return
    declared, returned = node.wires.given(training), [key for key in new if key not in FEATURES]
    missing = [name for name in declared if name not in FEATURES and "*" not in name and name not in new]
    extra = [key for key in returned if not any(fnmatchcase(key, name) for name in declared)]
    if missing or extra:
        raise ConfigTypeError(
            f"{node} declares that it gives {', '.join(declared) or 'nothing'} when "
            f"{'training' if training else 'not training'}, but it returned {', '.join(new) or 'nothing'}"
        )


def _check_features(node: Node, maps: Mapping[str, Tensor], strides: list[int | None]) -> None:
    """Compare feature maps with the shapes that the node tells."""
    # Of tokens, (N, L, C) or (N, C, L), nobody knows which are the channels.
    channels = {name: x.shape[1] if x.dim() in (2, 4, 5) else None for name, x in maps.items()}
    came = {name: ShapeSpec(channels=channels[name], stride=stride) for name, stride in zip(maps, strides)}
    told = {name: ShapeSpec(channels=shape.channels, stride=shape.stride) for name, shape in node.shape.items()}
    fits = came.keys() == told.keys() and all(
        None in pair or pair[0] == pair[1]
        for name, shape in came.items()
        for pair in ((told[name].channels, shape.channels), (told[name].stride, shape.stride))
    )
    if told and not fits:
        raise ConfigTypeError(
            f"{node} declares the features {_listed(told)} (by output_shape() or get_outplanes()), but it returned "
            f"{_listed(came)}"
        )


def _listed(shapes: Shapes) -> str:
    return ", ".join(
        f"{name} of {shape.channels} channels" + (f" and stride {shape.stride}" if shape.stride else "")
        for name, shape in shapes.items()
    )


def _kind(value: Any) -> str:
    inner = f" of {type(value[0]).__name__}" if isinstance(value, list | tuple) and value else ""
    return f"a {type(value).__name__}{inner}"
