import logging

import pytest
import torch
from torch import nn

from detlib.modeling import build_model
from detlib.structures import Boxes, Instances
from detlib.utils.analysis import (
    FlopCountAnalysis,
    activation_count_operators,
    flop_count_operators,
    parameter_count,
    parameter_count_table,
)


class Detector(nn.Module):
    """3 -> 8 channels by 3 x 3, then one value per image; takes and gives what models of detlib do."""

    def __init__(self, padding=1):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=padding)
        self.score = nn.Linear(8, 1)

    def forward(self, batched_inputs):
        images = torch.stack([sample["image"].float() for sample in batched_inputs])
        scores = self.score(self.conv(images).mean(dim=(2, 3)))
        size = batched_inputs[0]["image"].shape[-2:]
        results = [Instances(size, pred_boxes=Boxes(torch.zeros(1, 4) + s), scores=s) for s in scores]
        return [{"instances": r, "name": "text"} for r in results]


def batch(num_images=1):
    return [{"image": torch.zeros(3, 10, 20, dtype=torch.uint8), "height": 5} for _ in range(num_images)]


CONV_FLOPS = 10 * 20 * 8 * 3 * 3 * 3


def test_operations_are_counted_per_module_under_its_own_name():
    flops = FlopCountAnalysis(Detector().eval(), batch())
    assert flops.by_module() == {"": CONV_FLOPS + 8, "conv": CONV_FLOPS, "score": 8}
    assert flops.total("conv") == CONV_FLOPS
    assert flops.by_operator()["conv"] == CONV_FLOPS


def test_operations_grow_with_the_batch():
    assert FlopCountAnalysis(Detector(), batch(3)).total() == 3 * (CONV_FLOPS + 8)


def test_padding_by_name_is_counted_like_padding_by_number():
    assert FlopCountAnalysis(Detector(padding="same"), batch()).total("conv") == CONV_FLOPS


def test_tensors_as_inputs_work_too():
    linear = nn.Linear(5, 7)
    assert FlopCountAnalysis(linear, torch.zeros(2, 5)).total() == 2 * 5 * 7
    assert FlopCountAnalysis(linear, (torch.zeros(2, 5),)).total() == 2 * 5 * 7


def test_annotations_in_the_input_are_left_alone():
    sample = {**batch()[0], "instances": Instances((10, 20), gt_boxes=Boxes(torch.zeros(2, 4)))}
    assert FlopCountAnalysis(Detector(), [sample]).total("conv") == CONV_FLOPS


def test_attention_counts_both_products():
    class Attention(nn.Module):
        def forward(self, x):
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert FlopCountAnalysis(Attention(), torch.zeros(2, 4, 6, 8)).total() == 2 * 4 * (6 * 6 * 8 + 6 * 6 * 8)


def test_batched_product_with_sum_is_counted():
    class Product(nn.Module):
        def forward(self, x):
            return torch.baddbmm(torch.zeros(2, 3, 3), x, x.transpose(1, 2))

    assert FlopCountAnalysis(Product(), torch.zeros(2, 3, 4)).total() == 2 * 3 * 4 * 3


def test_cheap_operators_give_no_warning_and_costly_ones_one_line(caplog):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 4)

        def forward(self, x):
            return torch.sigmoid(self.rnn(x)[0] * 2).mean()

    with caplog.at_level(logging.WARNING):
        FlopCountAnalysis(Detector(), batch()).total()
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        FlopCountAnalysis(Recurrent(), torch.zeros(3, 2, 4)).total()
    (message,) = [record.getMessage() for record in caplog.records]
    assert "aten::gru (1x)" in message and "sigmoid" not in message


def test_counting_leaves_no_hook_behind_and_the_mode_as_it_was():
    model = Detector().train()
    flop_count_operators(model, batch())
    assert model.training
    assert "name" in model(batch())[0]


def test_count_operators_use_billions_and_millions():
    assert flop_count_operators(Detector(), batch())["conv"] == pytest.approx(CONV_FLOPS / 1e9)
    activations = activation_count_operators(Detector(), batch())
    assert activations["conv"] == pytest.approx(10 * 20 * 8 / 1e6)
    assert activations["linear"] == pytest.approx(1 / 1e6)


def test_activations_of_more_operators_can_be_counted():
    handles = {"aten::mean": lambda inputs, outputs: 5e6}
    assert activation_count_operators(Detector(), batch(), supported_ops=handles)["mean"] == 5


def test_models_may_return_tensors_that_they_keep():
    model = Detector()
    model.anchors = torch.zeros(5, 4)
    model.register_forward_hook(lambda module, inputs, outputs: [*outputs, module.anchors])
    assert FlopCountAnalysis(model.eval(), batch()).total() == CONV_FLOPS + 8


def test_parameters_are_counted_by_name():
    assert parameter_count(Detector())["conv"] == 3 * 8 * 9 + 8
    assert "conv.weight" in parameter_count_table(Detector())


def test_operations_of_a_retinanet_are_those_of_its_convolutions(tiny_cfg):
    """The head has one shared 3 x 3 convolution per subnet, at the five levels of a 64 x 64 image."""
    model = build_model(tiny_cfg).eval()
    flops = FlopCountAnalysis(model, [{"image": torch.zeros(3, 64, 64)}]).uncalled_modules_warnings(False)
    num_cells = sum(side * side for side in (8, 4, 2, 1, 1))
    tower = 16 * 16 * 9 * num_cells
    assert flops.by_module()["head.cls_subnet.0"] == tower
    anchors = 2 * 3  # two sizes, three aspect ratios
    assert flops.by_module()["head.cls_score"] == 16 * 9 * anchors * 3 * num_cells
    assert flops.by_module()["head.bbox_pred"] == 16 * 9 * anchors * 4 * num_cells
