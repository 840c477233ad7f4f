"""The process that code runs in: device, random seeds, modules from files."""

import functools
import importlib
import importlib.util
import logging
import os
import random
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import numpy as np
import torch

from detlib.utils.errors import ConfigError

__all__ = ["TORCH_VERSION", "seed_all_rng", "select_device", "setup_environment"]

TORCH_VERSION: tuple[int, ...] = tuple(int(part) for part in torch.__version__.split(".")[:2])
"""Major and minor version of torch."""

_logger = logging.getLogger(__name__)


def select_device(name: str | torch.device) -> torch.device:
    """Return the device called `name`, or the best that this machine has instead.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps", ...; a missing accelerator is warned of once.

    Raises:
        ConfigError: There is no such kind of device, or the accelerator has fewer devices than the index says.
    """
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {name!r} is unknown; set MODEL.DEVICE to 'cuda', 'cuda:1', 'mps' or 'cpu'") from None
    if device.type == "cuda":
        present = torch.cuda.is_available()
    elif device.type == "mps":
        present = torch.backends.mps.is_available()
    else:
        return device
    if not present:
        return _best_device_without(device.type)
    num_devices = torch.cuda.device_count() if device.type == "cuda" else 1
    if (device.index or 0) >= num_devices:
        raise ConfigError(f"device {name!r} does not exist; this machine has {num_devices} of type {device.type}")
    return device


@functools.lru_cache
def _best_device_without(kind: str) -> torch.device:
    """Fall back from an absent accelerator; cached, so that the warning comes once."""
    device = torch.device("mps" if kind != "mps" and torch.backends.mps.is_available() else "cpu")
    _logger.warning(f"No {kind} device is available: using {device}. Set MODEL.DEVICE to {device} to silence this.")
    return device


def seed_all_rng(seed: int | None = None) -> None:
    """Seed python, numpy and torch on all devices.

    Args:
        seed: None draws one and logs it, so that the run can be repeated.
    """
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
        _logger.info(f"Using the random seed {seed}")
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)  # for processes started from here


@functools.lru_cache
def setup_environment() -> None:
    """Run the user's own set-up, once: `setup_environment()` of the module or file named by DETLIB_ENV_MODULE."""
    name = os.environ.get("DETLIB_ENV_MODULE")
    if not name:
        return
    module = _import_file("detlib.utils.env.custom", name) if name.endswith(".py") else importlib.import_module(name)
    if not callable(getattr(module, "setup_environment", None)):
        raise ConfigError(f"DETLIB_ENV_MODULE is {name!r}, which has no function setup_environment()")
    module.setup_environment()


def _import_file(module_name: str, file_path: str, make_importable: bool = False) -> ModuleType:
    """Run a python file as a module; `make_importable` lets later imports find it under its name."""
    spec = importlib.util.spec_from_file_location(module_name, file_path)
    module = importlib.util.module_from_spec(spec)
    if make_importable:
        sys.modules[module_name] = module
    spec.loader.exec_module(module)
    return module


def fixup_module_metadata(module_name: str, namespace: dict[str, Any], keys: Iterable[str] | None = None) -> None:
    """Make public functions and classes say that they live in the package that re-exports them.

    Args:
        namespace: The package's `globals()`.
        keys: The names to change; by default those without a leading underscore.
    """
    for key in namespace if keys is None else keys:
        value = namespace[key]
        if key.startswith("_") or not getattr(value, "__module__", "").startswith(f"{module_name}."):
            continue
        value.__module__ = module_name
