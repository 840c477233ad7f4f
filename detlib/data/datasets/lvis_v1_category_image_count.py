"""``LVIS_CATEGORY_IMAGE_COUNT``: images per category in LVIS v1's training set, read from its file when first used."""

from detlib.data.datasets.lvis import LVISCategories

__all__ = ["LVIS_CATEGORY_IMAGE_COUNT"]

LVIS_CATEGORY_IMAGE_COUNT = LVISCategories("lvis_v1", keys=("id", "image_count"))
