"""MODEL: what learns from whole images."""

from typing import Any

from detlib.config.defaults.part import Part

__all__ = ["REPRESENTATION"]

CLASSIFIER = {
    "NUM_CLASSES": 1000,
    # By its name in HEAD_REGISTRY. It takes a LOSS, {NAME: X, ...}, of LOSS_REGISTRY; each head has one by default.
    "HEAD": Part(NAME="LinearClsHead"),
    # Mixtures of the images of a batch, such as [{NAME: Mixup, ALPHA: 0.2}, {NAME: CutMix, ALPHA: 1.0}], one of which
    # is drawn for each batch; with which probabilities (empty: equal ones).
    "BATCH_AUGMENTS": [],
    "BATCH_AUGMENT_PROBS": [],
}

REPRESENTATION: dict[str, Any] = {
    "CLASSIFIER": CLASSIFIER,
}
