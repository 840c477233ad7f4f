import random

import pytest
import torch
from PIL import Image
from torch import nn

from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.evaluation.validation_loss import (
    build_validation_loader,
    check_validation_loss,
    evaluate_losses,
    validation_losses,
)
from detlib.modeling import build_model
from detlib.modeling.batch_augmentation import RandomBatchAugment
from detlib.modeling.preprocessing import ImagePreprocessor
from detlib.modeling.self_supervised import SelfSupModel
from detlib.structures import Boxes, BoxMode, Instances
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage, log_scalar


class Recorder(nn.Module):
    """Its loss is that of its input after layers that act otherwise when they are trained."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(1, eps=0)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("average", torch.tensor(1.0), persistent=False)

    def forward(self, batch):
        assert self.training
        x = self.dropout(self.norm(torch.tensor([[sample["x"]] for sample in batch])))
        self.average = self.average * 0.5 + 0.5
        self.norm.num_batches_tracked += 1
        log_scalar("seen", x.sum())
        return {"loss": x.mean() * self.average, "loss_drawn": torch.rand(())}


def batches(*sizes):
    """Of samples 0, 1, 2, ..."""
    numbers = iter(range(sum(sizes)))
    return [[{"x": float(next(numbers)), "label": 0} for _ in range(size)] for size in sizes]


def test_loss_is_the_mean_over_images_with_the_layers_of_testing():
    losses = validation_losses(Recorder(), batches(3, 1))
    assert losses["loss"] == 1.5  # of 0, 1, 2 and 3, as norm and dropout pass them on


def test_measuring_changes_nothing_of_the_training():
    model = Recorder()
    model.norm.eval()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    random.seed(0)
    torch.manual_seed(0)
    expected = random.random(), torch.rand(1)
    random.seed(0)
    torch.manual_seed(0)
    with EventStorage() as storage:
        validation_losses(model, batches(2, 2))
    assert storage.latest() == {}
    assert (random.random(), torch.rand(1)) == expected
    assert dict(model.named_buffers()) == before
    assert (model.training, model.norm.training, model.dropout.training) == (True, False, True)


def test_what_is_drawn_is_the_same_each_time():
    model = Recorder()
    assert validation_losses(model, batches(2)) == validation_losses(model, batches(2))


def test_data_without_annotations_has_no_loss():
    no_objects = Instances((8, 8), gt_boxes=Boxes(torch.zeros(0, 4)), gt_classes=torch.zeros(0))
    assert validation_losses(Recorder(), [[{"x": 1.0}]]) == {}
    assert validation_losses(Recorder(), [[{"x": 1.0, "instances": no_objects}]]) == {}


def test_images_are_not_mixed_when_the_loss_is_measured():
    def mix(images, targets):
        raise AssertionError("mixed")

    class Mixing(Recorder):
        def __init__(self):
            super().__init__()
            self.batch_augment = RandomBatchAugment([mix])

        def forward(self, batch):
            self.batch_augment(torch.zeros(1), torch.zeros(1))
            return super().forward(batch)

    assert validation_losses(Mixing(), batches(1))["loss"] == 0.0


def test_losses_of_several_datasets_are_told_apart_and_averaged():
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("a", "unlabelled", "b")
    loaders = {"a": batches(1), "unlabelled": [[{"x": 1.0}]], "b": batches(3)}
    losses = evaluate_losses(cfg, Constant(), lambda cfg, name: loaders[name])
    assert losses == {
        "a": {"validation_loss": 1.0, "validation": {"loss": 1.0}},
        "b": {"validation_loss": 3.0, "validation": {"loss": 3.0}},
        "validation_loss": 2.0,
    }


class Constant(nn.Module):
    """Its loss is the number of samples in the batch."""

    def forward(self, batch):
        return {"loss": torch.tensor(float(len(batch)))}


def test_detector_is_as_it_was(tiny_rcnn_cfg, sample):
    """Objects of R-CNN are sampled, and it has heads that give losses in training only."""
    tiny_rcnn_cfg.MODEL.MASK_ON = False
    model = build_model(tiny_rcnn_cfg).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    data = [[sample(64, 64, [[8, 8, 40, 40]], [1])], [sample(64, 48)]]
    losses = validation_losses(model, data)
    assert losses == validation_losses(model, data)
    assert losses.keys() == {"loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_retinanet_measures_with_its_normaliser_and_keeps_it(tiny_cfg, sample):
    model = build_model(tiny_cfg).train()
    normalizer = model.loss_normalizer.clone()
    one = [sample(64, 64, [[8, 8, 40, 40]], [1])]
    assert validation_losses(model, [one, one]) == pytest.approx(validation_losses(model, [one]))
    assert torch.equal(model.loss_normalizer, normalizer)


@pytest.fixture
def black_image_dataset(tmp_path):
    Image.new("RGB", (32, 16)).save(tmp_path / "black.png")
    annotation = {"bbox": [1, 1, 5, 5], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    image = {"file_name": str(tmp_path / "black.png"), "height": 16, "width": 32, "annotations": [annotation]}
    DatasetCatalog.register("black_images", lambda: [{**image, "image_id": i} for i in range(2)])
    MetadataCatalog.get("black_images").thing_classes = ["thing"]
    yield "black_images"
    DatasetCatalog.remove("black_images")
    MetadataCatalog.remove("black_images")


def test_samples_are_as_for_testing_with_their_annotations(tiny_cfg, black_image_dataset):
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.INPUT.MIN_SIZE_TEST = 2, 32
    (batch,) = build_validation_loader(tiny_cfg, black_image_dataset)
    assert [sample["image"].shape[1:] for sample in batch] == [(32, 64), (32, 64)]
    assert batch[0]["instances"].gt_boxes.tensor.tolist() == [[2.0, 2.0, 10.0, 10.0]]  # of [1, 1, 5, 5] in 16 x 32


def test_what_has_no_validation_loss_is_refused_before_the_training():
    cfg = get_cfg()
    with pytest.raises(ConfigError, match=r"DATASETS\.TEST"):
        check_validation_loss(cfg, Constant())
    preprocessor = ImagePreprocessor([0.0] * 3, [1.0] * 3)
    model = SelfSupModel(preprocessor=preprocessor, backbone=nn.Identity(), in_feature="x")
    with pytest.raises(ConfigError, match="learns without labels"):
        check_validation_loss(cfg, model)
