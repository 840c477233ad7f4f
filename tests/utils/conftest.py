import logging

import pytest


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    """Lets caplog see messages although another test has called setup_logger."""
    monkeypatch.setattr(logging.getLogger("detlib"), "propagate", True)
