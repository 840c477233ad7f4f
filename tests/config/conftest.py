"""What tests of configs share."""

import logging
import textwrap

import pytest


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(autouse=True)
def propagate_logs(monkeypatch):
    """Lets caplog see messages although another test has called setup_logger."""
    monkeypatch.setattr(logging.getLogger("detlib"), "propagate", True)
