import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.data.check import KINDS

PAGE = (Path(__file__).parents[2] / "docs/tutorials/checking_data.md").read_text(encoding="utf-8")


@pytest.fixture
def cells(tmp_path):
    """The option that registers a dataset of two images; its file is written by ``write(annotations)``."""
    for number in (1, 2):
        pixels = np.random.RandomState(number).randint(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    images = [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 8} for i in (1, 2)]
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1, 1, 3, 2]} for i in (1, 2)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}

    def write(change=lambda content: None):
        change(content)
        (tmp_path / "cells.json").write_text(json.dumps(content))
        register = "DATASETS.REGISTER=[{NAME: cells_of_tool, TYPE: coco, JSON: cells.json, IMAGES: .}]"
        return register, "DATASETS.TRAIN=[cells_of_tool]", "DATALOADER.NUM_WORKERS=0"

    yield write
    DatasetCatalog.pop("cells_of_tool", None)
    MetadataCatalog.pop("cells_of_tool", None)


def test_help_shows_examples(call_tool):
    done = call_tool("check_data", "--help")
    assert done.status == 0
    assert "--json report.json --strict" in done.out


def test_sound_data_gives_the_numbers_and_status_0(call_tool, cells):
    done = call_tool("check_data", *cells())
    assert done.status == 0, done.err
    assert "cells_of_tool (train): 2 images, 2 objects" in done.out
    assert "0 errors, 0 warnings, 0 notes in 1 dataset" in done.out


def test_errors_give_status_1_and_are_all_told(call_tool, cells, tmp_path):
    def spoil(content):
        content["annotations"][0]["bbox"] = [1, 1, 2]
        content["annotations"][1]["image_id"] = 9

    os.truncate(tmp_path / "2.png", 60)
    done = call_tool("check_data", "--json", "report.json", *cells(spoil))
    assert done.status == 1
    assert "image 1, annotation 1: its box is [1, 1, 2]\n    -> correct or delete them" in done.out
    report = json.loads((tmp_path / "report.json").read_text())
    found = {(f["kind"], f["image_id"]) for f in report["findings"] if f["severity"] == "error"}
    assert found == {("box-invalid", 1), ("unknown-image", 9), ("image-unreadable", 2), ("no-usable-images", None)}
    assert report["summary"]["errors"] == 4
    assert report["datasets"][0]["class_counts"] == {"cell": 0}


@pytest.mark.parametrize(("options", "status"), [((), 0), (("--strict",), 1)])
def test_warnings_count_if_it_is_to_be_strict(call_tool, cells, options, status):
    done = call_tool(
        "check_data", *options, *cells(lambda content: content["annotations"][0].update(bbox=[1, 1, 0, 2]))
    )
    assert done.status == status
    assert "1 warning," in done.out


def test_other_number_of_classes_than_the_model_has_is_an_error(call_tool, cells, config_file):
    done = call_tool("check_data", "--config-file", config_file, *cells(), "DATASETS.TEST=[]")
    assert done.status == 1
    assert "MODEL: {RETINANET: {NUM_CLASSES: 1}}" in done.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no dataset is named"),
        (["--config-file", "missing.yaml"], "missing.yaml"),
        (["DATASETS.TEST=[shapes_vall]"], "did you mean 'shapes_val'"),
    ],
)
def test_mistakes_of_the_user_are_told_in_one_line_with_status_2(call_tool, args, message):
    done = call_tool("check_data", *args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_tutorial_prints_what_it_shows_and_its_python_finds_the_damaged_image(call_tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw, config, shown, snippet = re.findall(r"```(?:python|yaml|text)\n(.*?)```", PAGE, flags=re.DOTALL)
    exec(draw, {})
    (tmp_path / "cells.yaml").write_text(config)
    names = {}
    try:
        done = call_tool("check_data", "--config-file", "cells.yaml")
        exec(snippet, names)
    finally:
        DatasetCatalog.pop("cells", None)
        MetadataCatalog.pop("cells", None)
    assert done.out.replace(str(tmp_path), "/home/me") == shown
    assert done.status == 1
    assert names["damaged"] == [str(tmp_path / "cells/2.png")]


def test_table_of_the_tutorial_has_all_kinds():
    rows = [f"| `{name}` | {kind.severity} | {kind.title} | {kind.remedy} |" for name, kind in KINDS.items()]
    assert [line for line in PAGE.splitlines() if line.startswith("| `")] == rows
