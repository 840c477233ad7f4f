import math

import pytest
import torch

from detlib.config import get_cfg
from detlib.layers import ShapeSpec
from detlib.modeling import NECK_REGISTRY, build_model
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.events import EventStorage

K = 4

CONFIG = """
MODEL:
  META_ARCHITECTURE: ImageClassifier
  DEVICE: cpu
  BACKBONE: {NAME: build_resnet_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, OUT_FEATURES: [res4, res5], NORM: BN, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}
  CLASSIFIER: {NUM_CLASSES: 4, HEAD: {TOPK: [1, 3]}}
"""


SOFT = "HEAD: {LOSS: {NAME: CrossEntropyLoss, USE_SOFT: true}}"
MIXUP = "BATCH_AUGMENTS: [{NAME: Mixup, ALPHA: 1.0}]"


@pytest.fixture
def build(tmp_path):
    """Builds the tiny classifier with what the keywords say of sections under MODEL."""

    def build_classifier(**sections):
        (tmp_path / "base.yaml").write_text(CONFIG)
        changes = ", ".join(f"{name}: {{{text}}}" for name, text in sections.items())
        (tmp_path / "config.yaml").write_text(f"_BASE_: base.yaml\nMODEL: {{{changes}}}")
        cfg = get_cfg()
        cfg.merge_from_file(str(tmp_path / "config.yaml"))
        torch.manual_seed(0)
        return build_model(cfg)

    return build_classifier


def samples(count, height=32, width=32, **keys):
    """Random images; each of the keys is a list with a value for each image."""
    generator = torch.Generator().manual_seed(7)
    image = torch.randint(0, 256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    own = [dict(zip(keys, values)) for values in zip(*keys.values())] if keys else [{}] * count
    return [{"image": x, "file_name": f"{i}.jpg", **own[i]} for i, x in enumerate(image)]


def test_config_builds_average_pooling_and_a_linear_head(build):
    model = build()
    assert type(model.neck).__name__ == "GlobalAveragePooling"
    assert type(model.head).__name__ == "LinearClsHead"
    assert model.head.fc.weight.shape == (K, 64)  # channels of res5, the last of the maps
    assert model.head.topk == (1, 3)


def test_full_resnet_cifar_starts_near_the_loss_of_guessing(build):
    model = build(BACKBONE="NAME: ResNet_CIFAR, DEPTH: 18")
    losses = model(samples(4, label=[0, 1, 2, 3]))
    assert set(losses) == {"loss_cls"}
    assert losses["loss_cls"].item() == pytest.approx(math.log(K), abs=0.4)


def test_loss_reaches_every_weight(build):
    model = build()
    model(samples(4, label=[0, 1, 2, 3]))["loss_cls"].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


def test_predictions_are_probabilities_and_a_label(build):
    model = build().eval()
    predictions = model(samples(3))
    assert len(predictions) == 3
    for prediction in predictions:
        assert set(prediction) == {"pred_score", "pred_label"}
        assert prediction["pred_score"].shape == (K,)
        assert prediction["pred_score"].sum().item() == pytest.approx(1)
        assert prediction["pred_label"] == int(prediction["pred_score"].argmax())


def test_learns_random_images_by_heart(build):
    model = build()
    batch = samples(32, 16, 16, label=torch.arange(32).remainder(K).tolist())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with EventStorage() as storage:
        for _ in range(40):
            loss = model(batch)["loss_cls"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert storage.latest()["top1_acc"][0] == 100
    assert loss.item() < 0.1
    model.eval()
    with torch.no_grad():
        assert [p["pred_label"] for p in model(batch)] == [sample["label"] for sample in batch]


def test_accuracies_go_to_the_storage_and_not_to_the_losses(build):
    with EventStorage() as storage:
        assert set(build()(samples(2, label=[0, 1]))) == {"loss_cls"}
    assert set(storage.latest()) == {"top1_acc", "top3_acc"}


def test_images_of_different_sizes_are_padded(build):
    model = build().eval()
    small, large = samples(1, 32, 32)[0], samples(1, 48, 32)[0]
    assert model.preprocess_image([small, large]).tensor.shape == (2, 3, 48, 32)
    assert len(model([small, large])) == 2


def test_a_batch_of_one_trains_and_predicts(build):
    model = build()
    assert model(samples(1, 64, 64, label=[3]))["loss_cls"].isfinite()
    assert len(model.eval()(samples(1, 64, 64))) == 1


def test_soft_labels_train(build):
    score = [0.7, 0.3, 0, 0]
    model = build(CLASSIFIER=SOFT)
    for p in model.head.fc.parameters():
        torch.nn.init.zeros_(p)
    with EventStorage() as storage:
        loss = model(samples(2, score=[score, torch.tensor(score)]))["loss_cls"]
    assert loss.item() == pytest.approx(math.log(K))
    assert storage.latest() == {}


def test_several_labels_train_and_are_predicted(build):
    model = build(CLASSIFIER="HEAD: {_DELETE_: true, NAME: MultiLabelLinearClsHead, THR: 0.0}")
    batch = samples(2, 64, 64, labels=[[0, 2], []])
    assert model(batch)["loss_cls"].item() == pytest.approx(K * math.log(2), abs=0.4)
    assert [p["pred_label"] for p in model.eval()(batch)] == [[0, 1, 2, 3]] * 2


def test_mixed_images_have_mixed_labels(build):
    model, seen = build(CLASSIFIER=f"{MIXUP}, {SOFT}"), []
    model.head.loss = lambda features, target: seen.append(target)
    model(samples(4, label=[0, 1, 2, 3]))
    model(samples(4, score=torch.eye(K).tolist()))
    for target in seen:
        torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
        assert ((target > 0) & (target < 1)).any()


def test_nothing_is_mixed_in_evaluation(build):
    model = build(CLASSIFIER=MIXUP).eval()
    plain = build().eval()
    for mixed, expected in zip(model(samples(4)), plain(samples(4))):
        assert torch.equal(mixed["pred_score"], expected["pred_score"])


def test_features_of_each_stage(build):
    model = build().eval()
    images = model.preprocess_image(samples(2, 64, 64)).tensor
    maps = model.extract_feat(images, "backbone")
    assert {name: tuple(x.shape) for name, x in maps.items()} == {"res4": (2, 32, 4, 4), "res5": (2, 64, 2, 2)}
    pooled = model.extract_feat(images, "neck")
    torch.testing.assert_close(pooled["res5"], maps["res5"].mean(dim=(-2, -1)))
    assert torch.equal(model.extract_feat(images, "pre_logits"), pooled["res5"])


def test_unknown_stage_is_refused(build):
    with pytest.raises(ValueError, match="stage is 'head'; it must be one of backbone, neck, pre_logits"):
        build().extract_feat(torch.zeros(1, 3, 32, 32), "head")


@pytest.mark.parametrize("label", [K, -1, 1.5, "cat"])
def test_label_of_no_class_names_the_image(build, label):
    with pytest.raises(DatasetError, match=rf"label of '1\.jpg' is {label!r}"):
        build()(samples(2, label=[0, label]))
    if isinstance(label, int):
        hint = r"\. Set .*NUM_CLASSES to 5 or more" if label > 0 else "$"
        with pytest.raises(DatasetError, match=rf"'1\.jpg' is {label}, but there are 4 classes, numbered from 0{hint}"):
            build()(samples(2, labels=[[0], [1, label]]))


@pytest.mark.parametrize("labels", [1, None, "cat"])
def test_labels_that_are_no_list_name_the_image(build, labels):
    with pytest.raises(DatasetError, match=rf"labels of '1\.jpg' are {labels!r}; they must be a list"):
        build()(samples(2, labels=[[0], labels]))


def test_soft_labels_need_a_number_for_each_class(build):
    with pytest.raises(DatasetError, match=r"score of '0\.jpg' has the shape \(3,\); \(4,\) is expected"):
        build()(samples(1, score=[[0.2, 0.3, 0.5]]))


def test_image_without_label_is_named(build):
    with pytest.raises(DatasetError, match=r"needs 'label'.*'0\.jpg' has only file_name, image\..*DATASETS\.TRAIN"):
        build()(samples(2))


def test_images_of_a_batch_have_labels_of_one_kind(build):
    batch = samples(2, label=[0, 1])
    batch[1] = {**samples(2)[1], "labels": [1]}
    with pytest.raises(DatasetError, match=r"same of all images of a batch, but '1\.jpg' has only"):
        build()(batch)


def test_neck_tells_the_head_its_channels(build):
    class Twice(torch.nn.Module):
        def __init__(self, input_shape):
            super().__init__()
            self.channels = 2 * input_shape["res5"].channels

        def output_shape(self):
            return {"twice": ShapeSpec(channels=self.channels)}

        def forward(self, maps):
            return maps["res5"].mean(dim=(-2, -1)).repeat(1, 2)

    NECK_REGISTRY.register(Twice, name="TwiceForTest")
    try:
        model = build(NECK="NAME: TwiceForTest")
    finally:
        NECK_REGISTRY._obj_map.pop("TwiceForTest")
    assert model.head.fc.in_features == 128
    assert len(model.eval()(samples(2))) == 2


def test_neck_that_does_not_pool_is_refused(build):
    model = build().eval()
    model.neck = torch.nn.Identity()
    with pytest.raises(ConfigError, match=r"shape \(N, 64\), got \(2, 64, 1, 1\); a neck must pool"):
        model(samples(2))


def test_frozen_backbone_stays_frozen_in_training(build):
    model = build(BACKBONE="FREEZE_AT: 5").train()
    assert not any(p.requires_grad for p in model.backbone.parameters())
    before = {name: x.clone() for name, x in model.backbone.state_dict().items()}
    model(samples(2, label=[0, 1]))
    assert all(torch.equal(x, before[name]) for name, x in model.backbone.state_dict().items())


def test_weights_are_named_by_part(build):
    names = build().state_dict()
    assert {name.split(".")[0] for name in names} == {"backbone", "head"}
    assert {"head.fc.weight", "head.fc.bias"} <= set(names)


def test_number_of_classes_is_an_option_of_the_classifier(build):
    with pytest.raises(ConfigError, match=r"num_classes is 0.*MODEL\.CLASSIFIER\.NUM_CLASSES"):
        build(CLASSIFIER="NUM_CLASSES: 0")
