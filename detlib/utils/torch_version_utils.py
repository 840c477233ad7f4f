"""Asking for a version of torch."""

import torch

__all__ = ["min_torch_version"]


def min_torch_version(min_version: str) -> bool:
    """Whether torch is at least of a version such as "2.4"; builds before a release do not count as it."""
    return torch.__version__ >= min_version
