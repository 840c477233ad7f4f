"""The configs that come with detlib, by their path below ``configs/``, and the weights published for them."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode, get_cfg
from detlib.model_zoo.weights import WEIGHTS
from detlib.modeling import build_model
from detlib.utils.errors import UnknownNameError

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]

WEIGHTS_PREFIX = "https://dl.fbaipublicfiles.com/detectron2/"

# An installed package carries the configs; in a clone they are beside it.
CONFIG_FOLDERS = (Path(__file__).parent / "configs", Path(__file__).parents[2] / "configs")


def get_checkpoint_url(config_path: str) -> str:
    """Return the address of the weights trained with a config.

    Args:
        config_path: path below ``configs/``, for example ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``.

    Raises:
        UnknownNameError: there is no such config, or no weights were published for it.
    """
    name = str(config_path).removesuffix(".yaml")
    if name not in WEIGHTS:
        get_config_file(config_path)  # a misspelt name gets the suggestion of that function
        known = [f"{name}.yaml" for name in WEIGHTS]
        raise UnknownNameError(
            f"no weights are published for {str(config_path)!r}. {_suggest(config_path, known)}"
            "Train it, or set MODEL.WEIGHTS to a file of your own."
        )
    return f"{WEIGHTS_PREFIX}{name}/{WEIGHTS[name]}"


def get_config_file(config_path: str) -> str:
    """Return the full path of a config that comes with detlib.

    Args:
        config_path: path below ``configs/``, for example ``COCO-Detection/retinanet_R_50_FPN_1x.yaml``.

    Raises:
        UnknownNameError: there is no such config.
    """
    for folder in CONFIG_FOLDERS:
        if (folder / config_path).is_file():
            return str(folder / config_path)
    known = [path.relative_to(folder).as_posix() for folder in CONFIG_FOLDERS for path in folder.glob("**/*.yaml")]
    raise UnknownNameError(
        f"the model zoo has no config {str(config_path)!r}. {_suggest(config_path, known)}"
        "Load a file of your own with get_cfg().merge_from_file(path)."
    )


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """Return a config that comes with detlib.

    Args:
        config_path: path below ``configs/``.
        trained: set ``MODEL.WEIGHTS`` to the weights trained with this config; otherwise it stays as in the file,
            where most name a backbone trained on ImageNet.
    """
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(config_path))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """Build the model of a config, in training mode, and load the weights that :func:`get_config` names.

    They are downloaded once and cached.

    Args:
        config_path: path below ``configs/``.
        trained: see :func:`get_config`.
        device: instead of ``MODEL.DEVICE``.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = str(device)
    model = build_model(cfg)
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model


def _suggest(given: str, known: Iterable[str]) -> str:
    """A sentence with the three nearest names, or with all folders if none is near."""
    known = sorted(set(known))
    near = difflib.get_close_matches(str(given), known, n=3)
    if near:
        return f"Did you mean {' or '.join(map(repr, near))}? "
    return f"There are {', '.join(sorted({name.split('/')[0] for name in known})) or 'none'}. "
