import pytest

from detlib.data import DatasetCatalog, MetadataCatalog


@pytest.fixture(autouse=True)
def own_catalogs(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(DatasetCatalog, "data", dict(DatasetCatalog.data))
    monkeypatch.setattr(MetadataCatalog, "data", dict(MetadataCatalog.data))
