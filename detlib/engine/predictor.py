"""Predictions on single images, for scripts."""

import logging
from typing import Any

import numpy as np
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode
from detlib.data import MetadataCatalog
from detlib.data import transforms as T
from detlib.data.datasets.register import register_datasets
from detlib.data.detection_utils import build_augmentation
from detlib.engine.checkpoint_metadata import checkpoint_metadata, with_classes_of_checkpoint
from detlib.modeling import build_model
from detlib.utils.errors import ConfigError

__all__ = ["DefaultPredictor"]

logger = logging.getLogger(__name__)


class DefaultPredictor:
    """Predicts on single images as evaluation does: same weights, same resizing, same channel order.

    >>> predictor = DefaultPredictor(cfg)
    >>> instances = predictor(cv2.imread("image.jpg"))["instances"]

    It loads ``MODEL.WEIGHTS``; ``metadata`` is that of the first dataset in ``DATASETS.TEST``. If that is unknown, it
    has the names of the classes that are in the checkpoint.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg.clone()
        register_datasets(cfg)
        self.metadata = MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "__unused")
        self.input_format = cfg.INPUT.FORMAT
        if self.input_format not in ("BGR", "RGB"):
            raise ConfigError(f"INPUT.FORMAT is {self.input_format!r}; DefaultPredictor takes 'BGR' or 'RGB'")
        augmentations = build_augmentation(cfg, is_train=False)
        # Scripts call predictor.aug.get_transform(image) on the one resizing that there usually is.
        self.aug = augmentations[0] if len(augmentations) == 1 else T.AugmentationList(augmentations)
        self.model = build_model(self.cfg)
        self.model.eval()
        if not cfg.MODEL.WEIGHTS:
            logger.warning("MODEL.WEIGHTS is empty: predictions come from random weights.")
        checkpointer = DetectionCheckpointer(self.model)
        checkpointer.metadata = checkpoint_metadata(cfg, names=())
        self.metadata = with_classes_of_checkpoint(self.metadata, checkpointer.load(cfg.MODEL.WEIGHTS))

    def __call__(self, original_image: np.ndarray) -> dict[str, Any]:
        """
        Args:
            original_image: (H, W, 3) in BGR order, whatever ``INPUT.FORMAT`` is, with values in [0, 255].

        Returns:
            what the model returns for one image, at the image's size.
        """
        _check_image(original_image)
        image = original_image[:, :, ::-1] if self.input_format == "RGB" else original_image
        height, width = image.shape[:2]
        aug_input = T.AugInput(image)
        self.aug(aug_input)
        tensor = torch.from_numpy(aug_input.image.astype("float32").transpose(2, 0, 1))  # (3, H', W')
        tensor = tensor.to(next(self.model.parameters()).device)
        with torch.no_grad():
            return self.model([{"image": tensor, "height": height, "width": width}])[0]


def _check_image(image: np.ndarray) -> None:
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3:
        came = f"an array of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(
            f"DefaultPredictor takes an image of shape (H, W, 3) in BGR order, but {came} came; convert gray images "
            "with cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), and those with alpha with cv2.COLOR_BGRA2BGR"
        )
