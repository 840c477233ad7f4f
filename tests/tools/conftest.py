import importlib.util
import logging
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine.setup import run_tool

TOOLS = Path(__file__).parents[2] / "tools"


class Done(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def call_tool(capsys, monkeypatch, tmp_path):
    """Runs a tool in this process and in an empty folder, as a new process would spend seconds on imports."""

    def call(name, *args):
        spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # Functions that go to other processes are looked up there.
        spec.loader.exec_module(module)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", *map(str, args)])
        for logger in ("detlib", "fvcore"):
            monkeypatch.setattr(logging.getLogger(logger), "handlers", [])
        status = 0
        try:
            run_tool(module.run)
        except SystemExit as stop:
            status = stop.code or 0
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    return call


@pytest.fixture
def config_file(tiny_cfg, tmp_path):
    """The tiny RetinaNet for the six classes of shapes_val, as a file."""
    tiny_cfg.MODEL.RETINANET.NUM_CLASSES = 6
    tiny_cfg.DATASETS.TRAIN = ("shapes_val",)
    tiny_cfg.DATASETS.TEST = ("shapes_val",)
    tiny_cfg.SEED = 1
    path = tmp_path / "tiny.yaml"
    path.write_text(tiny_cfg.dump())
    return path


@pytest.fixture
def thumbnails(monkeypatch):
    """The name of a dataset of two gray images in memory, a cat and a dog."""
    samples = [
        {"image": np.full((32, 32, 3), 128, dtype=np.uint8), "image_id": i, "label": i, "height": 32, "width": 32}
        for i in range(2)
    ]
    monkeypatch.setitem(DatasetCatalog.data, "thumbnails", lambda: samples)
    MetadataCatalog.get("thumbnails").set(classes=("cat", "dog"), evaluator_type="image_classification")
    yield "thumbnails"
    MetadataCatalog.remove("thumbnails")
