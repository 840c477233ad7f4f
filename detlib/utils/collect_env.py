"""What a bug report should say about the machine: run `python -m detlib.utils.collect_env`."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

import torch
from tabulate import tabulate

import detlib

__all__ = ["collect_env_info"]

_PACKAGES = (
    "torchvision",
    "numpy",
    "pillow",
    "fvcore",
    "iopath",
    "pycocotools",
    "faster-coco-eval",
    "opencv-python",
    "opencv-python-headless",
    "matplotlib",
    "tensorboard",
    "timm",
    "onnx",
)
_VARIABLES = ("CUDA_VISIBLE_DEVICES", "DETLIB_DATASETS", "DETLIB_ENV_MODULE", "FVCORE_CACHE", "OMP_NUM_THREADS")


def collect_env_info() -> str:
    """Return a table of versions, devices and environment variables."""
    rows = [*_python(), *_devices(), *_packages()]
    rows += [(name, os.environ[name]) for name in _VARIABLES if name in os.environ]
    return tabulate(rows)


def _python() -> Iterator[tuple[str, str]]:
    yield "detlib", f"{detlib.__version__} @{os.path.dirname(detlib.__file__)}"
    yield "Platform", platform.platform()
    yield "Python", sys.version.replace("\n", "")
    yield "PyTorch", f"{torch.__version__} @{os.path.dirname(torch.__file__)}"


def _devices() -> Iterator[tuple[str, str]]:
    yield "CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} used by PyTorch"
    yield "CUDA of PyTorch", str(torch.version.cuda)
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        yield f"GPU {i}", f"{properties.name}, {memory}, compute {properties.major}.{properties.minor}"
    yield "MPS available", str(torch.backends.mps.is_available())


def _packages() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed"


if __name__ == "__main__":
    print(collect_env_info())
