"""Which part of an optimizer's step a forward pass is for, where its gradients come from several batches."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_first_part", "part_of_step"]

_current_parts: list[int] = []


@contextmanager
def part_of_step(index: int) -> Iterator[None]:
    """What a trainer puts around each forward pass: the passes of a step have the indices 0, 1, 2, ..."""
    _current_parts.append(index)
    try:
        yield
    finally:
        _current_parts.pop()


def is_first_part() -> bool:
    """Whether what a model does once in a step, such as moving a momentum encoder, is due in this forward pass.

    Always, if no trainer says otherwise: then each forward pass is a step.
    """
    return not _current_parts or _current_parts[-1] == 0
