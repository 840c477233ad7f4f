"""What the parts of a graph are trained towards, and what they say of labels that do not fit."""

import pytest
import torch

from detlib.utils.errors import DatasetError

RESNET = {"name": "backbone", "type": "build_resnet_backbone"}
PYRAMID = {
    "name": "fpn",
    "type": "fpn",
    "prev": "backbone",
    "kwargs": {"out_channels": 16, "top_block": "LastLevelP6P7"},
}
GAP = {"name": "gap", "type": "gap", "prev": "backbone"}
HEAD = {"name": "head", "type": "linear_cls_head", "prev": "gap", "kwargs": {"num_classes": 4}}
RETINANET = {"name": "det", "type": "retinanet_head", "prev": "fpn"}
SEMANTIC = {"name": "seg", "type": "sem_seg_head", "prev": "fpn"}
RPN = {"name": "rpn", "type": "rpn", "prev": "fpn"}


def test_two_classifiers_learn_from_the_labels_that_they_rename(graph_of, samples):
    colours = {**HEAD, "name": "colours", "rename": {"input": {"colour": "label"}, "output": {}}}
    colours["rename"]["output"] = {"pred_score": "colour_score", "pred_label": "colour"}
    graph = graph_of(RESNET, GAP, HEAD, colours, options=["MODEL.MODULE_GRAPH.INPUTS", ["colour"]])
    graph.nodes["colours"].load_state_dict(graph.nodes["head"].state_dict())
    for x in samples:
        x["colour"] = 3 - x["label"]
    losses = graph.train()(samples)
    assert losses["head.loss_cls"] != losses["colours.loss_cls"]
    swapped = graph([{**x, "label": x["colour"], "colour": x["label"]} for x in samples])
    assert swapped["head.loss_cls"] == losses["colours.loss_cls"]


def test_semantic_head_learns_from_the_labels_that_it_renames(graph_of, samples):
    parts = {**SEMANTIC, "rename": {"input": {"parts": "sem_seg"}}}
    graph = graph_of(RESNET, PYRAMID, parts, options=["MODEL.MODULE_GRAPH.INPUTS", ["parts"]])
    renamed = [{**x, "parts": x["sem_seg"], "sem_seg": torch.full_like(x["sem_seg"], 255)} for x in samples]
    assert graph(renamed)["seg.loss_sem_seg"] > 0
    with pytest.raises(DatasetError, match=r"node 'seg': sem_seg of '0.jpg' has the labels \[9\], .* 4 classes"):
        graph([{**x, "parts": torch.full_like(x["sem_seg"], 9)} for x in samples])


def test_semantic_head_ignores_the_padding_by_its_own_ignore_value(graph_of, samples):
    graph = graph_of(RESNET, PYRAMID, {**SEMANTIC, "kwargs": {"ignore_value": 2}})
    targets = []
    graph.nodes["seg"].losses = lambda logits, labels: targets.append(labels) or {"loss_sem_seg": logits.sum()}
    graph(samples)
    first, second = targets[0]
    assert (first[:, :64] == 1).all() and (first[:, 64:] == 2).all()
    assert (second == 2).all()  # Labels of class 2, and padding.


def test_labels_of_a_node_replace_those_of_the_samples(graph_of, samples, returning):
    returning("relabel", lambda module, data: {"label": torch.tensor([3, 3])} if module.training else {})
    graph = graph_of(RESNET, {"name": "labels", "type": "relabel"}, GAP, HEAD)
    plain = graph_of(RESNET, GAP, HEAD)
    assert graph(samples)["head.loss_cls"] == plain([{**x, "label": 3} for x in samples])["head.loss_cls"]


def test_detector_learns_from_the_objects_that_it_renames(graph_of, samples):
    head = {**RETINANET, "rename": {"input": {"others": "instances"}}}
    graph = graph_of(RESNET, PYRAMID, head, options=["MODEL.MODULE_GRAPH.INPUTS", ["others"]])
    none = [x["instances"][[]] for x in samples]
    without = graph([{**x, "others": others} for x, others in zip(samples, none)])
    assert without["det.loss_box_reg"] == 0
    with_objects = graph([{**x, "others": x["instances"], "instances": others} for x, others in zip(samples, none)])
    assert with_objects["det.loss_box_reg"] > 0


def test_head_takes_the_kind_of_labels_that_it_renames(graph_of, samples):
    several = {**HEAD, "name": "several", "type": "MultiLabelLinearClsHead"}
    several["rename"] = {"output": {"pred_score": "scores", "pred_label": "labels"}}
    one = {**HEAD, "rename": {"input": {"label": "label"}}}  # Else labels would count, which are there as well.
    graph = graph_of(RESNET, GAP, one, several)
    losses = graph([{**x, "labels": [0, 1]} for x in samples])
    assert set(losses) == {"head.loss_cls", "several.loss_cls"}


@pytest.mark.parametrize(
    ("net", "changes", "message"),
    [
        ([GAP, HEAD], {"label": 4}, r"node 'head': the label of '0.jpg' is 4, but there are 4 classes"),
        ([GAP, HEAD], {"label": "cat"}, r"the label of '0.jpg' is 'cat'; it must be a whole number"),
        ([GAP, HEAD], {"label": None}, r"node 'head': training needs 'label', .*'0.jpg' .*give it tasks"),
        (
            [PYRAMID, RETINANET],
            {"instances": None},
            r"node 'det': training needs 'instances', .*'0.jpg' .*give it tasks",
        ),
        ([PYRAMID, RPN], {"instances": None}, r"node 'rpn': training needs 'instances', but '0.jpg'"),
        ([PYRAMID, SEMANTIC], {"sem_seg": None}, r"node 'seg': training needs 'sem_seg', .*'0.jpg' .*give it tasks"),
        (
            [PYRAMID, SEMANTIC],
            {"sem_seg": torch.full((64, 64), 5)},
            r"node 'seg': sem_seg .*labels \[5\], .* 4 classes",
        ),
        ([PYRAMID, SEMANTIC], {"sem_seg": torch.ones(9, 9)}, r"sem_seg of '0.jpg' has the shape \(9, 9\), its image"),
    ],
)
def test_labels_that_do_not_fit_are_named_with_the_node(graph_of, samples, net, changes, message):
    samples[0] = {key: value for key, value in {**samples[0], **changes}.items() if value is not None}
    graph = graph_of(RESNET, *net)
    with pytest.raises(DatasetError, match=message):
        graph(samples)


def test_roi_heads_without_proposals_say_where_these_come_from(graph_of, samples):
    graph = graph_of(RESNET, PYRAMID, {"name": "heads", "type": "roi_heads", "prev": "fpn"})
    with pytest.raises(DatasetError, match=r"node 'heads': .*Put a node of type rpn before.*LOAD_PROPOSALS"):
        graph(samples)
