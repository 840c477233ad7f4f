from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.modeling import build_model

TINY = Path(__file__).parents[2] / "configs" / "SelfSupervised" / "tiny"


@pytest.fixture
def gray(monkeypatch):
    """The name of a dataset of one image, which is 100 everywhere."""
    sample = {"image": np.full((64, 64, 3), 100, dtype=np.uint8), "image_id": 0, "height": 64, "width": 64}
    monkeypatch.setitem(DatasetCatalog.data, "gray", lambda: [sample])
    yield "gray"
    MetadataCatalog.pop("gray", None)


@pytest.fixture
def draw(call_tool, gray, tmp_path):
    """Draws what a model of a tiny config predicts that says 0 everywhere: ``draw("mae", "KEY=VALUE")``."""

    def run(name, *changes):
        cfg = get_cfg()
        cfg.merge_from_file(str(TINY / f"{name}.yaml"))
        cfg.merge_from_list(list(changes))
        model = build_model(cfg)
        for parameter in model.neck.parameters():
            torch.nn.init.zeros_(parameter)
        torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
        args = ("--config-file", TINY / f"{name}.yaml", "--weights", tmp_path / "model.pth", "--limit", 2)
        return call_tool("visualize_reconstruction", *args, f"DATASETS.TRAIN=['{gray}']", *changes)

    return run


def test_help_shows_examples(call_tool):
    done = call_tool("visualize_reconstruction", "--help")
    assert done.status == 0
    assert "--config-file configs/SelfSupervised/tiny/mae.yaml" in done.out


# What is 0 once normalised is PIXEL_MEAN; or the mean of the patch over normalised channels, which is
# ((100 - 123.7) / 58.4 + (100 - 116.3) / 57.1 + (100 - 103.5) / 57.4) / 3 = -0.25, hence 123.7 - 0.25 * 58.4 = 109 ...
@pytest.mark.parametrize(
    ("name", "changes", "filled"),
    [
        ("mae", ["MODEL.SSL.HEAD.NORM_PIX=True"], (109, 102, 89)),
        ("mae", ["MODEL.SSL.HEAD.NORM_PIX=False"], (124, 116, 104)),
        ("simmim", [], (124, 116, 104)),
    ],
)
def test_image_what_is_seen_and_what_is_filled_in_are_side_by_side(draw, tmp_path, name, changes, filled):
    done = draw(name, *changes)
    assert done.status == 0, done.err
    pictures = sorted((tmp_path / "reconstructed").iterdir())
    assert [path.name for path in pictures] == ["0001_image.png", "0002_image.png"]
    picture = np.asarray(Image.open(pictures[0]).convert("RGB"))
    scale = len(picture) // 64
    places = [slice(scale * start, scale * (start + 64)) for start in (0, 68, 136)]  # 4 pixels of white between them
    image, seen, reconstruction = (picture[:, place] for place in places)
    assert (image == 100).all()
    center = seen[scale * 4 :: scale * 8, scale * 4 :: scale * 8]  # of patches of 8 pixels, or of two of 4
    share = (center == 128).all(axis=2).mean()
    assert share == pytest.approx({"mae": 48 / 64, "simmim": 39 / 64}[name])
    hidden = (seen == 128).all(axis=2)
    assert (reconstruction[hidden] == filled).all()
    assert (reconstruction[(seen == 100).all(axis=2)] == 100).all()


def test_model_that_predicts_no_pixels_is_refused(draw):
    done = draw("cae")
    assert done.status == 2
    assert "MODEL.META_ARCHITECTURE is CAE, which predicts no pixels of hidden patches" in done.err


@pytest.mark.parametrize(
    ("args", "message"), [([], "there are no weights; add --weights FILE"), (["--limit", "0"], "--limit is 0")]
)
def test_mistakes_are_told_in_one_line(call_tool, args, message):
    done = call_tool("visualize_reconstruction", "--config-file", TINY / "mae.yaml", *args)
    assert done.status == 2
    assert message in done.err
