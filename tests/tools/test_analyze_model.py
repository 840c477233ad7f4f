import pytest

from detlib.modeling import build_model


def test_help_shows_examples(call_tool):
    done = call_tool("analyze_model", "--help")
    assert done.status == 0
    assert "--zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml" in done.out


def test_parameters_and_operations_are_counted_by_part(call_tool, config_file, tiny_cfg):
    done = call_tool("analyze_model", "--config-file", config_file)
    assert done.status == 0, done.err
    parameters = sum(p.numel() for p in build_model(tiny_cfg).parameters())
    assert f"{parameters:,} parameters, {parameters:,} of them trained." in done.out
    assert "a random image, 64 pixels high and 85 wide" in done.out
    assert "| head.cls_score" in done.out and "backbone.bottom_up" in done.out
    assert "billion operations." in done.out


def test_frozen_parameters_are_not_counted_as_trained(call_tool, config_file, tiny_cfg):
    args = ("--tasks", "parameter", "--opts", "MODEL.BACKBONE.FREEZE_AT=1")
    done = call_tool("analyze_model", "--config-file", config_file, *args)
    tiny_cfg.MODEL.BACKBONE.FREEZE_AT = 1
    trained = sum(p.numel() for p in build_model(tiny_cfg).parameters() if p.requires_grad)
    assert f"{trained:,} of them trained" in done.out


def test_tables_go_as_deep_as_asked(call_tool, config_file):
    done = call_tool("analyze_model", "--config-file", config_file, "--tasks", "parameter", "--depth", 1)
    assert "| backbone " in done.out and "backbone.bottom_up" not in done.out


def test_size_of_the_random_image_can_be_chosen(call_tool, config_file):
    counts = {}
    for size in (64, 128):
        done = call_tool("analyze_model", "--config-file", config_file, "--tasks", "activation", "--size", size, size)
        counts[size] = float(done.out.split(" million activations.")[0].split()[-1])
    assert counts[128] == pytest.approx(4 * counts[64], rel=0.05)


def test_random_image_has_the_size_that_the_augmentations_of_the_config_make(call_tool, config_file):
    augmentations = "[{NAME: ResizeShortestEdge, SHORT_EDGE_LENGTH: 80}, {NAME: CenterCrop, SIZE: [64, 72]}]"
    args = ("--tasks", "flop", "--opts", f"INPUT.AUGMENTATIONS_TEST={augmentations}")
    done = call_tool("analyze_model", "--config-file", config_file, *args)
    assert "a random image, 64 pixels high and 72 wide" in done.out, done.err


def test_data_gives_an_average(call_tool, config_file):
    done = call_tool("analyze_model", "--config-file", config_file, "--tasks", "flop", "--use-data", "--num-inputs", 3)
    assert "billion operations on average of 3 images" in done.out


def test_structure_is_what_torch_prints(call_tool, config_file, tiny_cfg):
    done = call_tool("analyze_model", "--config-file", config_file, "--tasks", "structure")
    assert str(build_model(tiny_cfg)) in done.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config-file", "missing.yaml"], "missing.yaml"),
        (["--zoo", "retinanet"], "the model zoo has no config 'retinanet'"),
        (["--zoo", "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "--depth", "0"], "must be 1 or more"),
        (["--zoo", "COCO-Detection/retinanet_R_50_FPN_1x.yaml", "--opts", "MODEL.DEPTH", "18"], "MODEL.RESNETS.DEPTH"),
    ],
)
def test_mistakes_are_told_in_one_line(call_tool, args, message):
    done = call_tool("analyze_model", *args)
    assert done.status == 2
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert message in line


def test_data_without_a_dataset_is_an_error(call_tool, config_file):
    args = ("--tasks", "flop", "--use-data", "--opts", "DATASETS.TEST=[]")
    done = call_tool("analyze_model", "--config-file", config_file, *args)
    assert done.status == 2
    assert "--use-data needs a dataset" in done.err
