import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from detlib.engine import HookBase, SimpleTrainer, hooks
from detlib.engine.feature_hook import draw_features

from .toy import KeepStorage


class Tapped(nn.Module):
    """A small network with everything that a second or an eval run would change: norm, dropout, a counter."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.dropout = nn.Dropout(0.5)
        self.levels = Levels()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flat = nn.Flatten()
        self.never = nn.Identity()

    def forward(self, batch):
        x = self.dropout(self.body(torch.stack([sample["image"] for sample in batch]).float() / 255))
        small = self.levels(x)["p"][1]
        return {"loss": self.flat(self.pool(small)).square().mean()}


class Levels(nn.Module):
    def forward(self, x):
        return {"p": [x, x[..., ::2, ::2]], "strides": [1, 2], "regions": torch.cat([x, x, x])}


def batches(seed=0, size=(16, 24)):
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield [{"image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)} for _ in range(2)]


class KeepLosses(HookBase):
    """The losses and pictures of each iteration."""

    def __init__(self):
        self.losses, self.pictures = [], {}

    def after_step(self):
        self.losses.append(self.trainer.storage.latest()["total_loss"][0])
        for name, picture, iteration in self.trainer.storage._images:
            self.pictures.setdefault(iteration, {})[name] = picture
        self.trainer.storage.clear_images()


def train(*own_hooks, num_iter=4):
    torch.manual_seed(0)
    model = Tapped()
    trainer = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    kept = KeepLosses()
    trainer.register_hooks([*own_hooks, kept])
    trainer.train(0, num_iter)
    return kept, model


def test_every_map_gets_a_picture_every_period(tmp_path):
    kept, _ = train(hooks.VisualizeFeatures(2, ["body.0", "levels"], str(tmp_path)))
    assert sorted(kept.pictures) == [1, 3]
    assert set(kept.pictures[1]) == {"features/body.0/output", "features/levels/p.0", "features/levels/p.1"}
    names = {path.name for path in (tmp_path / "features").iterdir()}
    assert names == {f"{n}_000000{i}.png" for n in ("body.0.output", "levels.p.0", "levels.p.1") for i in (1, 3)}
    in_file = np.asarray(Image.open(tmp_path / "features" / "levels.p.1_0000003.png"))
    np.testing.assert_array_equal(in_file.transpose(2, 0, 1), kept.pictures[3]["features/levels/p.1"])


def test_training_is_the_same_with_and_without_drawings():
    without, expected = train()
    with_drawings, model = train(hooks.VisualizeFeatures(1, ["body", "dropout", "levels"]))
    assert with_drawings.losses == without.losses
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert not any(module._forward_hooks for module in model.modules())


def test_map_is_drawn_as_it_was_before_a_layer_changed_it_in_place():
    kept, _ = train(hooks.VisualizeFeatures(1, ["body.1", "body.2"]), num_iter=1)
    norm, relu = (kept.pictures[0][f"features/body.{i}/output"] for i in (1, 2))
    assert not np.array_equal(norm, relu)


def test_module_that_runs_several_times_has_a_picture_for_each():
    class Twice(Tapped):
        def forward(self, batch):
            self.never(self.body(torch.stack([sample["image"] for sample in batch]).float()))
            return super().forward(batch)

    model = Twice()
    trainer = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    kept = KeepLosses()
    trainer.register_hooks([hooks.VisualizeFeatures(1, ["body"]), kept])
    trainer.train(0, 1)
    assert set(kept.pictures[0]) == {"features/body/output", "features/body/output#1"}


def test_modules_without_maps_are_warned_of_once(caplog):
    kept, _ = train(hooks.VisualizeFeatures(1, ["flat", "never"]), num_iter=3)
    assert not kept.pictures
    assert caplog.text.count("Nothing is drawn of 'flat' in iteration 0: it gives no feature maps") == 1
    assert caplog.text.count("Nothing is drawn of 'never' in iteration 0: it did not run") == 1
    assert caplog.text.count("Nothing is drawn") == 2


def test_failed_training_leaves_no_hooks_in_the_model():
    class Fail(HookBase):
        def after_backward(self):
            raise RuntimeError("as planned")

    model = Tapped()
    trainer = SimpleTrainer(model, batches(), torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_hooks([hooks.VisualizeFeatures(1, ["body"]), Fail(), KeepStorage()])
    with pytest.raises(RuntimeError, match="as planned"):
        trainer.train(0, 1)
    assert not model.body._forward_hooks


def tiles(picture, rows, columns):
    """(rows, columns, tile height, tile width, 3), without the gaps of 2 pixels between them."""
    split = np.stack([np.stack(np.split(row, columns, axis=1)) for row in np.split(picture, rows, axis=0)])
    return split[:, :, :-2, :-2]


def test_picture_shows_image_heat_and_channels():
    rgb = np.full((32, 64, 3), 100, dtype=np.uint8)
    maps = torch.zeros(3, 1, 2)
    maps[:, 0, 1] = torch.tensor([-6.0, 0.0, 3.0])  # The right half has activations of 3 in the mean.
    ((image, heat, *channels),) = tiles(draw_features(rgb, maps, (32, 64)), 1, 5)
    assert image.shape == (128, 256, 3)
    assert (image == 100).all()
    assert heat[0, 0].tolist() == [50, 50, 50]  # Black over it.
    assert heat[0, -1].tolist() == [178, 178, 178]  # White over it: (100 + 255) / 2, rounded to even.
    left, right = [[channel[0, x, 0] for channel in channels] for x in (0, -1)]
    assert (left, right) == ([255, 0, 0], [0, 0, 255])


def test_picture_has_two_rows_for_eight_channels_and_no_more():
    picture = draw_features(np.zeros((64, 64, 3), np.uint8), torch.ones(20, 2, 2), (64, 64))
    assert picture.shape == (2 * (256 + 2), 5 * (256 + 2), 3)


def test_padding_is_cut_off():
    maps = torch.zeros(1, 2, 2)
    maps[0, :, 1] = 9  # Nothing but padding: the image is the left half.
    ((_, heat, channel, *_),) = tiles(draw_features(np.zeros((8, 4, 3), np.uint8), maps, (8, 8)), 1, 5)
    assert (channel == 0).all()
    assert heat[0, 0].tolist() == [0, 0, 0]
