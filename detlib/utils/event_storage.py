"""What happens during training: scalars, images and histograms, stored by iteration."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.common.history_buffer import HistoryBuffer
from torch import Tensor

from detlib.utils.errors import DetlibError, UnknownNameError

__all__ = ["EventStorage", "get_event_storage", "has_event_storage", "log_scalar"]

_open_storages: list["EventStorage"] = []

_MAX_PENDING = 10_000  # tensors held back when nobody reads them

# Values kept of each scalar, the latest ones. Each takes about 120 bytes: those of a million iterations, for the 20
# scalars of a detector, would be 2.4 GB.
_MAX_HISTORY = 20_000


def get_event_storage() -> "EventStorage":
    """Return the storage of the innermost open `with EventStorage(...)` block.

    Raises:
        DetlibError: None is open.
    """
    if not _open_storages:
        raise DetlibError(
            "no EventStorage is open; work inside `with EventStorage(start_iter):`, "
            "or call detlib.utils.events.log_scalar, which then does nothing"
        )
    return _open_storages[-1]


def has_event_storage() -> bool:
    """Whether a storage is open, that is, whether training is running."""
    return bool(_open_storages)


def log_scalar(name: str, value: float | Tensor) -> None:
    """Put a scalar into the current storage; do nothing when there is none."""
    if _open_storages:
        _open_storages[-1].put_scalar(name, value)


class EventStorage:
    """Everything that one training run has recorded so far.

    Scalars may be put as tensors: they are read from their device only when somebody asks for values, all at once, so
    that recording never makes the device wait.
    """

    def __init__(self, start_iter: int = 0) -> None:
        self.iter = start_iter
        self._histories: dict[str, HistoryBuffer] = {}
        self._latest: dict[str, tuple[float, int]] = {}
        self._smoothing_hints: dict[str, bool] = {}
        self._pending: list[tuple[str, Tensor, int]] = []
        self._images: list[tuple[str, Any, int]] = []
        self._histograms: list[dict[str, Any]] = []
        self._prefix = ""

    @property
    def iter(self) -> int:
        """Index of the current iteration."""
        return self._iter

    @iter.setter
    def iter(self, value: int) -> None:
        self._iter = int(value)

    @property
    def iteration(self) -> int:
        """The same as `iter`."""
        return self._iter

    def step(self) -> None:
        """Go on to the next iteration."""
        self._iter += 1

    def put_scalar(
        self, name: str, value: float | Tensor, smoothing_hint: bool = True, cur_iter: int | None = None
    ) -> None:
        """Record a scalar.

        Args:
            value: A number or a tensor of one element.
            smoothing_hint: Whether writers should show the median of a window rather than the last value. It cannot
                change for a name.
            cur_iter: By default the current iteration.
        """
        name = self._prefix + name
        if self._smoothing_hints.setdefault(name, smoothing_hint) != smoothing_hint:
            raise ValueError(f"scalar {name!r} was first put with smoothing_hint={not smoothing_hint}; keep to one")
        iteration = self._iter if cur_iter is None else cur_iter
        if isinstance(value, Tensor):
            # A copy, as losses and buffers may be changed in place before anybody reads them.
            self._pending.append((name, value.detach().reshape(()).clone(), iteration))
            if len(self._pending) >= _MAX_PENDING:
                self._read_pending()
            return
        if self._pending:
            # Keeps the order within a history: a number may follow a tensor of the same name.
            self._pending.append((name, torch.tensor(float(value), dtype=torch.float64), iteration))
            return
        self._record(name, float(value), iteration)

    def _record(self, name: str, value: float, iteration: int) -> None:
        if name not in self._histories:
            self._histories[name] = HistoryBuffer(_MAX_HISTORY)
        self._histories[name].update(value, iteration)
        self._latest[name] = (value, iteration)

    def _read_pending(self) -> None:
        pending, self._pending = self._pending, []
        values: dict[int, float] = {}
        for device in {value.device for _, value, _ in pending}:
            indices = [i for i, (_, value, _) in enumerate(pending) if value.device == device]
            dtype = torch.float64 if device.type == "cpu" else torch.float32
            on_device = torch.stack([pending[i][1].to(dtype) for i in indices])
            values.update(zip(indices, on_device.tolist(), strict=True))
        for i, (name, _, iteration) in enumerate(pending):
            self._record(name, values[i], iteration)

    def put_scalars(
        self, *, smoothing_hint: bool = True, cur_iter: int | None = None, **kwargs: float | Tensor
    ) -> None:
        """Record several scalars, given as keyword arguments."""
        for name, value in kwargs.items():
            self.put_scalar(name, value, smoothing_hint=smoothing_hint, cur_iter=cur_iter)

    def put_image(self, img_name: str, img_tensor: Any) -> None:
        """Record an image for writers that show images.

        Args:
            img_tensor: (C, H, W) array or tensor of RGB values, uint8 in [0, 255] or float in [0, 1].
        """
        self._images.append((self._prefix + img_name, img_tensor, self._iter))

    def put_histogram(self, hist_name: str, hist_tensor: Tensor, bins: int = 1000) -> None:
        """Record how the values of a tensor of any shape are distributed; those that are not finite are left out."""
        values = hist_tensor.detach().float().flatten().cpu()
        values = values[values.isfinite()]
        if not len(values):
            return
        low, high = values.min().item(), values.max().item()
        start, end = (low, high) if low < high else (low - 0.5, high + 0.5)
        counts = torch.histc(values, bins=bins, min=start, max=end)
        self._histograms.append(
            {
                "tag": self._prefix + hist_name,
                "min": low,
                "max": high,
                "num": values.numel(),
                "sum": values.sum().item(),
                "sum_squares": values.square().sum().item(),
                "bucket_limits": torch.linspace(start, end, bins + 1)[1:].tolist(),
                "bucket_counts": counts.tolist(),
                "global_step": self._iter,
            }
        )

    def clear_images(self) -> None:
        """Forget the images recorded so far, as a writer does once it has written them."""
        self._images = []

    def clear_histograms(self) -> None:
        """Forget the histograms recorded so far."""
        self._histograms = []

    def history(self, name: str) -> HistoryBuffer:
        """Return the values of a scalar, the last 20,000 of them; its global average is over all.

        Raises:
            UnknownNameError: It was never put.
        """
        histories = self.histories()
        if name not in histories:
            raise UnknownNameError(f"no scalar {name!r} was recorded; known: {', '.join(sorted(histories)) or 'none'}")
        return histories[name]

    def histories(self) -> dict[str, HistoryBuffer]:
        """Return all values of all scalars."""
        self._read_pending()
        return self._histories

    def latest(self) -> dict[str, tuple[float, int]]:
        """Return the last value of each scalar and its iteration."""
        self._read_pending()
        return self._latest

    def latest_with_smoothing_hint(self, window_size: int = 20) -> dict[str, tuple[float, int]]:
        """Return, for each scalar, what to show and its iteration.

        Shown is the median over the last `window_size` iterations, or the last value if its hint says so.
        """
        shown = {}
        for name, (value, iteration) in self.latest().items():
            if self._smoothing_hints[name]:
                value = float(self._histories[name].median(self.count_samples(name, window_size)))
            shown[name] = (value, iteration)
        return shown

    def smoothing_hints(self) -> dict[str, bool]:
        """Return the smoothing hint of each scalar."""
        return self._smoothing_hints

    def count_samples(self, name: str, window_size: int = 20) -> int:
        """Count the values that a scalar got in the last `window_size` iterations up to its latest one."""
        values = self.history(name).values()
        oldest = values[-1][1] - window_size
        samples = 0
        while samples < len(values) and values[-1 - samples][1] > oldest:
            samples += 1
        return samples

    @contextmanager
    def name_scope(self, name: str) -> Iterator[None]:
        """Prefix the names of everything put in this block with `name/`."""
        outer = self._prefix
        self._prefix = name.rstrip("/") + "/"
        try:
            yield
        finally:
            self._prefix = outer

    def __enter__(self) -> "EventStorage":
        _open_storages.append(self)
        return self

    def __exit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        _open_storages.remove(self)
