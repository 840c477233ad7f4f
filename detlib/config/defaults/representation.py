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

SSL = {
    # The output of the backbone that the neck takes; empty for the last.
    "IN_FEATURE": "",
    # Parts by name, as {NAME: NonLinearNeck, HID_CHANNELS: 2048, ...}: in NECK_REGISTRY, HEAD_REGISTRY, LOSS_REGISTRY
    # (the loss of the head), MEMORY_REGISTRY and TARGET_GENERATOR_REGISTRY. Not every algorithm has all of them.
    "NECK": Part(),
    "HEAD": Part(),
    "LOSS": Part(),
    "MEMORY": Part(),
    "TARGET_GENERATOR": Part(),
    # Share of the old values that an update of the momentum encoder keeps, "constant", or from this to 1 by "cosine".
    "MOMENTUM": 0.999,
    "MOMENTUM_SCHEDULE": "constant",
    # Keys that a queue holds, over all processes.
    "QUEUE_LEN": 65536,
    # Part of the patches that are hidden.
    "MASK_RATIO": 0.75,
}

REPRESENTATION: dict[str, Any] = {
    "SSL": SSL,
    "MODULE_GRAPH": MODULE_GRAPH,
    "CLASSIFIER": CLASSIFIER,
}
