"""The process that code runs in: device, random seeds, modules from files."""

import functools
import importlib
import importlib.util
import logging
import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch

from detlib.utils.errors import ConfigError

__all__ = [
    "TORCH_VERSION",
    "get_random_states",
    "preserved_random_states",
    "seed_all_generators",
    "seed_all_rng",
    "select_device",
    "set_random_states",
    "setup_environment",
]

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
    seed_all_generators(seed)
    torch.manual_seed(seed)  # also of accelerators
    os.environ["PYTHONHASHSEED"] = str(seed % 2**32)  # for processes started from here


def seed_all_generators(seed: int) -> None:
    """Seed python, numpy and torch on the CPU; quick enough to be done for every sample."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def get_random_states() -> dict[str, Any]:
    """Where the random generators of python, numpy, torch and its device are, in types that can be saved."""
    _, keys, *rest = np.random.get_state()  # The first is the name of the algorithm, which is fixed.
    states = {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Bring the random generators to where `get_random_states` found them; those of an absent accelerator are left."""
    version, internal, gauss_next = states["python"]
    random.setstate((version, tuple(internal), gauss_next))
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])


@contextmanager
def preserved_random_states() -> Iterator[None]:
    """After the block, go on with random numbers as if it had drawn none."""
    states = get_random_states()
    try:
        yield
    finally:
        set_random_states(states)


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
