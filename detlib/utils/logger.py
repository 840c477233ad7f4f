"""Logging to the console and to a file, and messages that come only now and then."""

import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Hashable, Mapping
from types import FrameType

import torch
from tabulate import tabulate
from termcolor import colored

__all__ = ["create_small_table", "log_every_n", "log_every_n_seconds", "log_first_n", "setup_logger"]

_times_called: Counter[Hashable] = Counter()
_last_logged: dict[Hashable, float] = {}

_LEVEL_COLORS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _Formatter(logging.Formatter):
    """`[time name]: message`, with the level in front of warnings and errors."""

    def __init__(self, root_name: str, abbrev_name: str, color: bool) -> None:
        super().__init__(datefmt="%m/%d %H:%M:%S")
        self._root_name = root_name
        self._abbrev_name = abbrev_name
        self._color = color

    def formatMessage(self, record: logging.LogRecord) -> str:
        name = record.name
        if name == self._root_name or name.startswith(self._root_name + "."):
            name = (self._abbrev_name + name[len(self._root_name) :]).lstrip(".")
        head = self._paint(f"[{record.asctime} {name}]:", "green")
        if record.levelno < logging.WARNING:
            return f"{head} {record.message}"
        return f"{head} {self._paint(record.levelname, _LEVEL_COLORS.get(record.levelno, 'yellow'))} {record.message}"

    def usesTime(self) -> bool:
        return True

    def _paint(self, text: str, color: str) -> str:
        return colored(text, color, force_color=True) if self._color else text


def setup_logger(
    output: str | None = None,
    distributed_rank: int = 0,
    *,
    color: bool = True,
    name: str = "detlib",
    abbrev_name: str | None = None,
    enable_propagation: bool = False,
    configure_stdout: bool = True,
) -> logging.Logger:
    """Make a logger print to the console and write to a file; calling it again adds nothing twice.

    Args:
        output: A file name ending in .txt or .log, or a folder, which gets `log.txt`. Ranks above 0 append their
            number to the name.
        distributed_rank: Only rank 0 prints to the console.
        color: Colour the console when it is a terminal.
        abbrev_name: Shown in place of `name`.
        enable_propagation: Whether loggers above this one get the messages too.
        configure_stdout: Whether to print to the console at all.
    """
    logger = logging.getLogger(name)
    logger.setLevel(logging.DEBUG)
    logger.propagate = enable_propagation
    abbrev_name = name if abbrev_name is None else abbrev_name
    has_console = any(type(handler) is logging.StreamHandler for handler in logger.handlers)
    if configure_stdout and distributed_rank == 0 and not has_console:
        console = logging.StreamHandler(sys.stdout)
        console.setFormatter(_Formatter(name, abbrev_name, color and sys.stdout.isatty()))
        logger.addHandler(console)
    if output is not None:
        path = _log_file(output, distributed_rank)
        if path not in {getattr(handler, "baseFilename", None) for handler in logger.handlers}:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            file = logging.FileHandler(path)
            file.setFormatter(_Formatter(name, name, color=False))
            logger.addHandler(file)
    return logger


def _log_file(output: str, rank: int) -> str:
    path = output if output.endswith((".txt", ".log")) else os.path.join(output, "log.txt")
    return os.path.abspath(path if rank == 0 else f"{path}.rank{rank}")


def create_small_table(small_dict: Mapping[str, float]) -> str:
    """Lay out a few numbers as a table of one row under their names."""
    return tabulate(
        [list(small_dict.values())],
        headers=list(small_dict),
        tablefmt="pipe",
        floatfmt=".3f",
        stralign="center",
        numalign="center",
    )


def _caller() -> FrameType:
    """Frame of the code that called into this file."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame


def _place(frame: FrameType) -> tuple[str, int]:
    return frame.f_code.co_filename, frame.f_lineno


def _log(frame: FrameType, lvl: int, msg: str, name: str | None) -> None:
    logging.getLogger(name or frame.f_globals.get("__name__", "detlib")).log(lvl, msg)


def log_first_n(
    lvl: int, msg: str, n: int = 1, *, name: str | None = None, key: str | tuple[str, ...] = "caller"
) -> None:
    """Log only the first `n` times.

    Args:
        name: Of the logger; by default that of the calling module.
        key: What counts as the same: "caller" (the line of code), "message", or both.
    """
    kinds = (key,) if isinstance(key, str) else tuple(key)
    if not kinds or not set(kinds) <= {"caller", "message"}:
        raise ValueError(f"key is {key!r}; expected 'caller', 'message' or a tuple of them")
    frame = _caller()
    same = ("first", *(_place(frame) if "caller" in kinds else ()), *((msg,) if "message" in kinds else ()))
    _times_called[same] += 1
    if _times_called[same] <= n:
        _log(frame, lvl, msg, name)


def log_every_n(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log the first of every `n` calls from the same line of code."""
    frame = _caller()
    same = ("every", *_place(frame))
    if _times_called[same] % n == 0:
        _log(frame, lvl, msg, name)
    _times_called[same] += 1


def log_every_n_seconds(lvl: int, msg: str, n: int = 1, *, name: str | None = None) -> None:
    """Log unless the same line of code did so less than `n` seconds ago."""
    frame = _caller()
    now = time.monotonic()
    if now - _last_logged.get(_place(frame), float("-inf")) >= n:
        _last_logged[_place(frame)] = now
        _log(frame, lvl, msg, name)


def _log_api_usage(identifier: str) -> None:
    """Tell torch's usage logging, off unless its owner turns it on, that a part of detlib was used."""
    torch._C._log_api_usage_once(f"detlib.{identifier}")
