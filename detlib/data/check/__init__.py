"""Looks for mistakes in datasets: unreadable images, boxes that are none, images to test on that are trained on, ..."""

from detlib.data.check.brief import check_briefly
from detlib.data.check.check import check_datasets
from detlib.data.check.findings import KINDS, Finding, Report

__all__ = ["KINDS", "Finding", "Report", "check_briefly", "check_datasets"]
