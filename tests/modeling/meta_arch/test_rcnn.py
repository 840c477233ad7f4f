import pytest
import torch

from detlib.modeling import GeneralizedRCNN, build_model
from detlib.structures import BitMasks, Boxes, ImageList, Instances, Keypoints
from detlib.utils.errors import DatasetError

BOXES = [[4.0, 4, 30, 40], [20, 20, 60, 60]]
LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}


def with_masks_and_keypoints(sample):
    instances = sample["instances"]
    masks = torch.zeros(len(instances), *instances.image_size, dtype=torch.bool)
    masks[:, 8:30, 8:25] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_keypoints = Keypoints(torch.tensor([[[25.0, 25, 2], [28, 30, 2]]]).expand(len(instances), 2, 3))
    return sample


@pytest.fixture
def batch(sample):
    """Images of two sizes, one with objects."""
    return [with_masks_and_keypoints(sample(64, 64, BOXES, [0, 2])), with_masks_and_keypoints(sample(48, 72))]


@pytest.fixture
def full_cfg(tiny_rcnn_cfg):
    tiny_rcnn_cfg.MODEL.MASK_ON = tiny_rcnn_cfg.MODEL.KEYPOINT_ON = True
    return tiny_rcnn_cfg


def c4(cfg):
    """The C4 variant of a tiny R-CNN."""
    cfg.MODEL.KEYPOINT_ON = False
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH = 50
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 4
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.RPN.IN_FEATURES = cfg.MODEL.ROI_HEADS.IN_FEATURES = ["res4"]
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[16, 32, 64]]
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    return cfg


def test_losses_of_all_heads_have_their_names_and_reach_every_parameter(full_cfg, batch):
    model = build_model(full_cfg).train()
    losses = model(batch)
    assert set(losses) == {*LOSSES, "loss_mask", "loss_keypoint"}
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_c4_trains_and_predicts(full_cfg, batch):
    model = build_model(c4(full_cfg)).train()
    losses = model(batch)
    assert set(losses) == {*LOSSES, "loss_mask"}
    sum(losses.values()).backward()
    outputs = model.eval()(batch)
    assert [x["instances"].image_size for x in outputs] == [(64, 64), (48, 72)]


@pytest.mark.parametrize("variant", [lambda cfg: cfg, c4], ids=["FPN", "C4"])
def test_a_batch_without_objects_has_finite_losses(variant, full_cfg, sample):
    model = build_model(variant(full_cfg)).train()
    losses = model([with_masks_and_keypoints(sample(64, 64))])
    assert losses["loss_box_reg"] == losses["loss_mask"] == losses["loss_rpn_loc"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_predictions_have_the_size_wanted_and_all_fields(full_cfg, batch):
    full_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    model = build_model(full_cfg).eval()
    batch[0]["height"], batch[0]["width"] = 128, 96
    with torch.no_grad():
        first, second = model(batch)
    instances = first["instances"]
    assert instances.image_size == (128, 96)
    assert second["instances"].image_size == (48, 72)
    assert len(instances) > 0
    assert instances.pred_masks.shape == (len(instances), 128, 96)
    assert instances.pred_keypoints.shape == (len(instances), 2, 3)
    assert set(instances.get_fields()) >= {"pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints"}
    assert (instances.scores[:-1] >= instances.scores[1:]).all()


def test_no_detection_gives_empty_fields(full_cfg, batch):
    full_cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    with torch.no_grad():
        outputs = build_model(full_cfg).eval()(batch)
    instances = outputs[0]["instances"]
    assert len(instances) == 0
    assert instances.pred_masks.shape == (0, 64, 64)
    assert instances.pred_keypoints.shape == (0, 2, 3)


def test_given_boxes_get_masks_and_keypoints_alone(full_cfg, batch):
    model = build_model(full_cfg).eval()
    given = [Instances(s["image"].shape[1:], pred_boxes=Boxes(BOXES), pred_classes=torch.tensor([0, 2])) for s in batch]
    with torch.no_grad():
        results = model.inference(batch, detected_instances=given, do_postprocess=False)
    assert [x.pred_boxes.tensor.tolist() for x in results] == [BOXES, BOXES]
    assert results[0].pred_masks.shape == (2, 1, 8, 8)
    assert results[0].pred_keypoints.shape == (2, 2, 3)


def test_heads_learn_from_predicted_boxes_if_wanted(full_cfg, batch):
    full_cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES = True
    losses = build_model(full_cfg).train()(batch)
    assert all(loss.isfinite() for loss in losses.values())


def test_proposal_network(tiny_rcnn_cfg, batch):
    tiny_rcnn_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    model = build_model(tiny_rcnn_cfg).train()
    assert set(model(batch)) == {"loss_rpn_cls", "loss_rpn_loc"}
    batch[0]["height"], batch[0]["width"] = 128, 96
    with torch.no_grad():
        first, second = model.eval()(batch)
    assert first["proposals"].image_size == (128, 96)
    assert set(second["proposals"].get_fields()) == {"proposal_boxes", "objectness_logits"}


def test_precomputed_proposals_replace_the_generator(tiny_rcnn_cfg, batch):
    tiny_rcnn_cfg.MODEL.LOAD_PROPOSALS = True
    tiny_rcnn_cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    model = build_model(tiny_rcnn_cfg).train()
    with pytest.raises(DatasetError, match=r"DATASETS.PROPOSAL_FILES_TRAIN"):
        model(batch)
    for x in batch:
        boxes = Boxes(BOXES)
        x["proposals"] = Instances(x["image"].shape[1:], proposal_boxes=boxes, objectness_logits=torch.zeros(2))
    assert set(model(batch)) == {"loss_cls", "loss_box_reg"}
    assert len(model.eval()(batch)) == 2


def test_training_without_labels_names_the_image(tiny_rcnn_cfg, sample):
    unlabelled = {**sample(64, 64), "file_name": "a.jpg"}
    del unlabelled["instances"]
    with pytest.raises(DatasetError, match=r"'a.jpg' has only"):
        build_model(tiny_rcnn_cfg).train()([unlabelled])


def test_channels_that_do_not_fit_name_the_config_key(tiny_rcnn_cfg, sample):
    grey = {**sample(64, 64), "image": torch.zeros(1, 64, 64)}
    with pytest.raises(DatasetError, match=r"MODEL.PIXEL_MEAN"):
        build_model(tiny_rcnn_cfg).eval()([grey])


def test_a_project_may_normalise_by_itself(tiny_rcnn_cfg, sample):
    """Under the names that subclasses written elsewhere use."""

    class Project(GeneralizedRCNN):
        def preprocess_image(self, batched_inputs):
            images = [(x["image"].to(self.device) - self.pixel_mean) / self.pixel_std for x in batched_inputs]
            return ImageList.from_tensors(images, self.backbone.size_divisibility)

    torch.manual_seed(0)
    plain = GeneralizedRCNN(tiny_rcnn_cfg).eval()
    project = Project(tiny_rcnn_cfg).eval()
    project.load_state_dict(plain.state_dict())
    batch = [sample(48, 72)]
    torch.testing.assert_close(project.preprocess_image(batch).tensor, plain.preprocess_image(batch).tensor)
    assert len(project(batch)[0]["instances"]) == len(plain(batch)[0]["instances"])
