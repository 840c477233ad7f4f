import re
from pathlib import Path

import pytest

from detlib.data import DatasetCatalog
from detlib.data.datasets import files
from detlib.utils.errors import MissingFileError

ROOT = Path(__file__).parents[3]
PUBLIC = ("ade20k_", "cifar", "cityscapes_", "imagenet_", "coco_20", "keypoints_coco_20", "lvis_v", "voc_20")


def expanded(text):
    """``a_{b,c}`` becomes ``a_b`` and ``a_c``."""
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", text)
    if braces is None:
        return [text]
    before, after = text[: braces.start()], text[braces.end() :]
    return [name for choice in braces[1].split(",") for name in expanded(before + choice + after)]


@pytest.fixture(scope="module")
def page():
    return (ROOT / files.DOCS_PAGE).read_text(encoding="utf-8")


def test_page_that_errors_refer_to_has_every_name(page):
    documented = {name for text in re.findall(r"`([^`\n]+)`", page) for name in expanded(text)}
    public = {name for name in DatasetCatalog if name.startswith(PUBLIC)}
    assert len(public) >= 52
    assert not public - documented


def test_tools_that_the_page_calls_are_there(page):
    tools = set(re.findall(r"tools/\w+\.py", page))
    assert len(tools) >= 5
    assert not [tool for tool in tools if not (ROOT / tool).is_file()]


def test_missing_files_are_listed_with_remedy_tree_and_page(tmp_path):
    (tmp_path / "there").touch()
    DatasetCatalog.register("lacks_files", list)
    paths = [str(tmp_path / name) for name in ("there", "away/a", "b")]
    files.require_files("lacks_files", str(tmp_path), paths, "Make b.")
    message = r"'lacks_files' lacks \S*away/a, \S*/b\. Make b\. .*DETLIB_DATASETS.* there, away/a, b;"
    with pytest.raises(MissingFileError, match=message) as error:
        DatasetCatalog.get("lacks_files")
    assert files.DOCS_PAGE in str(error.value)
    for path in paths[1:]:
        Path(path).parent.mkdir(exist_ok=True)
        Path(path).touch()
    assert DatasetCatalog.get("lacks_files") == []
