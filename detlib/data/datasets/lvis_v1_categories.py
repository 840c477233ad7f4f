"""``LVIS_CATEGORIES``: the categories of LVIS v1, read from its annotation files when first used."""

from detlib.data.datasets.lvis import LVISCategories

__all__ = ["LVIS_CATEGORIES"]

LVIS_CATEGORIES = LVISCategories("lvis_v1")
