"""Which part of an optimizer's step a forward pass is for, where its gradients come from several batches."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["is_first_part", "is_last_part", "part_of_step"]

_current_parts: list[tuple[int, int]] = []


@contextmanager
def part_of_step(index: int, num_parts: int) -> Iterator[None]:
    """What a trainer puts around each forward pass: the passes of a step have the indices 0 to ``num_parts`` - 1."""
    _current_parts.append((index, num_parts))
    try:
        yield
    finally:
        _current_parts.pop()


def is_first_part() -> bool:
    """Whether what a model does before a step, such as moving a momentum encoder, is due in this forward pass.

    Always, if no trainer says otherwise: then each forward pass is a step.
    """
    return not _current_parts or _current_parts[-1][0] == 0


def is_last_part() -> bool:
    """Whether what a model does after a step, such as counting it, is due in this forward pass; as above."""
    return not _current_parts or _current_parts[-1][0] == _current_parts[-1][1] - 1
