import numpy as np
import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.structures import BoxMode


@pytest.fixture
def image_file(tmp_path):
    """Writes an image: ``image_file("a.png", height, width)``; random, but the same for the same size."""

    def write(name, height, width):
        pixels = np.random.RandomState(height * 1000 + width).randint(0, 256, (height, width, 3), dtype=np.uint8)
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        return str(path)

    return write


@pytest.fixture
def dataset(image_file):
    """Registers images of the given sizes, with one object each, as ``tiny``; their ids are 0, 1, 2, ..."""

    def register(*sizes, name="tiny", annotations=None):
        samples = [
            {
                "file_name": image_file(f"{name}_{i}.png", height, width),
                "height": height,
                "width": width,
                "image_id": i,
                "annotations": [{"bbox": [1, 2, 5, 4], "bbox_mode": BoxMode.XYWH_ABS, "category_id": i % 2}]
                if annotations is None
                else annotations[i],
            }
            for i, (height, width) in enumerate(sizes)
        ]
        DatasetCatalog.register(name, lambda: samples)
        MetadataCatalog.get(name).set(thing_classes=["cat", "dog"])
        registered.append(name)
        return samples

    registered = []
    yield register
    for name in registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def metadata():
    """Makes metadata for the time of a test: ``metadata("cells", thing_classes=[...])``."""
    names = []

    def make(name, **values):
        names.append(name)
        return MetadataCatalog.get(name).set(**values)

    yield make
    for name in names:
        MetadataCatalog.remove(name)
