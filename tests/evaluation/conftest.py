import pytest

from detlib.data import DatasetCatalog, MetadataCatalog


@pytest.fixture
def dataset(request):
    """Registers a dataset for the test: ``dataset(samples, **metadata)`` returns its name."""
    names = []

    def make(samples, **metadata):
        name = f"{request.node.name}_{len(names)}"
        DatasetCatalog.register(name, lambda: samples)
        MetadataCatalog.get(name).set(**metadata)
        names.append(name)
        return name

    yield make
    for name in names:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
