"""How far an evaluation is, and where its time goes."""

import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from detlib.utils.comm import is_main_process

__all__ = ["InferenceProgress"]

logger = logging.getLogger(__name__)

Batch = TypeVar("Batch")

SECONDS_BETWEEN_LINES = 5.0


class InferenceProgress(AbstractContextManager["InferenceProgress"]):
    """A bar on a terminal, a log line every few seconds elsewhere; and the time each stage took.

    Args:
        num_batches: ``None`` when unknown.
        num_warmup: batches at the start that are left out of the average times, if there are more than these.
    """

    def __init__(self, num_batches: int | None, num_warmup: int) -> None:
        self.num_batches = num_batches
        self.num_warmup = num_warmup if num_batches is None else max(0, min(num_warmup, num_batches - 1))
        self.batches_done = 0
        self.images_done = 0
        self.timed_images = 0
        self.seconds: Counter[str] = Counter()
        self.start = self.last_line = time.perf_counter()
        on_terminal = sys.stderr.isatty() and is_main_process()
        self.bar = tqdm(total=num_batches, desc="inference", unit="batch", disable=not on_terminal, leave=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def timed_batches(self, data_loader: Iterable[Batch]) -> Iterator[Batch]:
        """Pass the batches on, noting how long each was waited for."""
        before = time.perf_counter()
        for batch in data_loader:
            self._waited = time.perf_counter() - before
            yield batch
            before = time.perf_counter()

    def step(self, num_images: int, **seconds: float) -> None:
        """Count one batch and the seconds that its stages took."""
        self.batches_done += 1
        self.images_done += num_images
        if self.batches_done > self.num_warmup:
            self.timed_images += num_images
            self.seconds.update(data=self._waited, **seconds)
        self.bar.update()
        if self.bar.disable and time.perf_counter() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.perf_counter()
            logger.info(self._line())

    def summary(self, num_processes: int) -> str:
        """One line for the end: number of images, total time, average time per image of each stage."""
        total = timedelta(seconds=round(time.perf_counter() - self.start))
        text = f"Inference done on {self.images_done} images in {total} ({num_processes} process(es))"
        return f"{text}; {self._times()}" if self.timed_images else text

    def _line(self) -> str:
        if self.num_batches is None:
            return f"Inference: {self.batches_done} batches done; {self._times()}"
        elapsed = time.perf_counter() - self.start
        remaining = elapsed / self.batches_done * (self.num_batches - self.batches_done)
        eta = timedelta(seconds=round(remaining))
        return f"Inference: {self.batches_done} of {self.num_batches} batches done; {self._times()}; ETA {eta}"

    def _times(self) -> str:
        stages = ", ".join(
            f"{stage} {1000 * seconds / max(self.timed_images, 1):.1f}" for stage, seconds in self.seconds.items()
        )
        return f"milliseconds per image: {stages}" if stages else "warming up"
