"""MODEL: what learns from whole images."""

from typing import Any

from detlib.config.defaults.part import Part, Parts

__all__ = ["REPRESENTATION"]

CLASSIFIER = {
    "NUM_CLASSES": 1000,
    # By its name in HEAD_REGISTRY. It takes a LOSS, {NAME: X, ...}, of LOSS_REGISTRY; each head has one by default.
    "HEAD": Part(NAME="LinearClsHead"),
    # Mixtures of the images of a batch, such as [{NAME: Mixup, ALPHA: 0.2}, {NAME: CutMix, ALPHA: 1.0}], one of which
    # is drawn for each batch; with which probabilities (empty: equal ones).
    "BATCH_AUGMENTS": Parts(),
    "BATCH_AUGMENT_PROBS": [],
}

MODULE_GRAPH = {
    # The nodes in the order in which they run: {name: X, type: X, prev: X, kwargs: {...}, ...}; all keys are in
    # docs/tutorials/module_graphs.md.
    "NET": Parts(),
    # Changes of single kwargs, for child configs and the command line: {name of a node: {argument: value}}.
    "OVERRIDES": Part(),
    # What samples bring that nodes take, beyond images and the usual labels.
    "INPUTS": [],
    # What predictions have; empty for all that nodes give but features and losses.
    "OUTPUTS": [],
}

REPRESENTATION: dict[str, Any] = {
    "MODULE_GRAPH": MODULE_GRAPH,
    "CLASSIFIER": CLASSIFIER,
}
