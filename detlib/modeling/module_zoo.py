"""Modules that pass a dict along, by name, and how they declare what they take from it and put into it."""

from dataclasses import dataclass

from detlib.utils.registry import Registry

__all__ = ["MODULE_ZOO_REGISTRY", "Wires"]

MODULE_ZOO_REGISTRY = Registry("MODULE_ZOO")
MODULE_ZOO_REGISTRY.__doc__ = """
Modules for the nodes of a ModuleGraph: classes or functions that return a module, called with what the node has as
``kwargs``. Those of the following arguments that they take are given to them: ``input_shape``, the ``ShapeSpec`` of
each feature map of the nodes before; ``in_planes``, ``inplanes`` or ``in_channels``, the channels of the only map or a
list of those of all; ``in_strides`` likewise; ``node_name``; and ``cfg``, the whole config.

A module takes a dict and returns a dict of new entries. Its ``output_shape()``, or ``get_outplanes()`` and
``get_outstrides()``, tells the shapes of its ``features``; an attribute ``wires`` tells what else it takes and gives.
"""


@dataclass(frozen=True)
class Wires:
    """What a module takes from the dict and puts into it, so that a graph can be checked before it sees data.

    Names may have wildcards, ``loss_*``, where a module gives any number of entries.

    Attributes:
        inputs: what it takes.
        targets: what it takes besides when training.
        outputs: what it gives.
        losses: what it gives besides when training.
        predictions: what it gives besides otherwise.
    """

    inputs: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    predictions: tuple[str, ...] = ()

    def taken(self, training: bool) -> tuple[str, ...]:
        """Names of what the module takes."""
        return (*self.inputs, *self.targets) if training else self.inputs

    def given(self, training: bool) -> tuple[str, ...]:
        """Names of what the module gives."""
        return (*self.outputs, *(self.losses if training else self.predictions))
