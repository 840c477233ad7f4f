"""Results as tables, as lines to paste into a spreadsheet, and against expected values."""

import logging
import math
import pprint
import sys
from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

from detlib.config import CfgNode

__all__ = ["flatten_results_dict", "print_csv_format", "verify_results"]

logger = logging.getLogger(__name__)


def print_csv_format(results: Mapping[str, Any]) -> None:
    """Log the main metrics of each task as a table, and as ``copypaste:`` lines of comma-separated values.

    Metrics with a ``-`` in the name, such as ``AP-person``, belong to one class; they are left out.
    """
    for task, metrics in results.items():
        if not isinstance(metrics, Mapping):
            logger.info("copypaste: %s=%s", task, metrics)
            continue
        overall = {name: value for name, value in metrics.items() if "-" not in name}
        values = [_text(value) for value in overall.values()]
        table = tabulate([[task, *values]], headers=["task", *overall], tablefmt="pipe", disable_numparse=True)
        logger.info("Results:\n%s", table)
        logger.info("copypaste: Task: %s", task)
        logger.info("copypaste: %s", ",".join(overall))
        logger.info("copypaste: %s", ",".join(values))


def verify_results(cfg: CfgNode, results: Mapping[str, Any]) -> bool:
    """Compare results with ``cfg.TEST.EXPECTED_RESULTS`` and exit with status 1 if one is off or missing.

    Each expectation is ``[task, metric, value, tolerance]``.
    """
    problems = []
    for task, metric, expected, tolerance in cfg.TEST.EXPECTED_RESULTS:
        actual = results.get(task, {}).get(metric)
        if actual is None:
            problems.append(f"{task}/{metric} is missing")
        elif not math.isfinite(actual) or abs(actual - expected) > tolerance:
            problems.append(f"{task}/{metric} is {actual:.4f}, expected {expected} within {tolerance}")
    if problems:
        logger.error("Results are not as TEST.EXPECTED_RESULTS wants them: %s", "; ".join(problems))
        logger.error("All results:\n%s", pprint.pformat(results))
        sys.exit(1)
    if cfg.TEST.EXPECTED_RESULTS:
        logger.info("Results are as TEST.EXPECTED_RESULTS wants them")
    return True


def flatten_results_dict(results: Mapping[str, Any]) -> dict[str, Any]:
    """Join the keys of nested dicts with ``/``: ``{"bbox": {"AP": 1}}`` gives ``{"bbox/AP": 1}``."""
    flat = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}/{inner}": v for inner, v in flatten_results_dict(value).items()})
        else:
            flat[key] = value
    return flat


def _text(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, (int, float)) else str(value)
