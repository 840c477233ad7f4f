import json

import pytest


@pytest.fixture
def rcnn_file(tiny_rcnn_cfg, tmp_path):
    """The tiny Faster R-CNN for the six classes of shapes_val, with test-time augmentation, as a file."""
    cfg = tiny_rcnn_cfg
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 6
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("shapes_val",)
    cfg.SOLVER.MAX_ITER = 1
    cfg.SOLVER.STEPS = ()
    cfg.TEST.DETECTIONS_PER_IMAGE = 5
    cfg.TEST.AUG.ENABLED = True
    cfg.TEST.AUG.MIN_SIZES = (48,)
    cfg.SEED = 1
    path = tmp_path / "rcnn.yaml"
    path.write_text(cfg.dump())
    return path


def test_results_with_augmentation_stand_beside_the_others(call_tool, rcnn_file, tmp_path):
    folder = tmp_path / "output"
    done = call_tool("train_net", "--config-file", rcnn_file, "OUTPUT_DIR", folder)
    assert done.status == 0, done.err
    metrics = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        metrics.update(json.loads(line))
    assert {"bbox/AP", "bbox_TTA/AP"} <= set(metrics)
    assert (folder / "inference_TTA" / "coco_instances_results.json").exists()

    expected = ["TEST.EXPECTED_RESULTS", f"[['bbox_TTA', 'AP', {metrics['bbox_TTA/AP']}, 0.01]]"]
    done = call_tool(
        "train_net", "--config-file", rcnn_file, "--eval-only", "--resume", "OUTPUT_DIR", folder, *expected
    )
    assert done.status == 0, done.err


def test_a_model_that_cannot_be_augmented_is_told_before_training(call_tool, config_file, tmp_path):
    done = call_tool("train_net", "--config-file", config_file, "TEST.AUG.ENABLED=True", f"OUTPUT_DIR={tmp_path}")
    assert done.status == 2
    assert "not for RetinaNet; set TEST.AUG.ENABLED: False" in done.err.splitlines()[-1]
    assert not (tmp_path / "model_final.pth").exists()
    done = call_tool(
        "train_net",
        "--config-file",
        config_file,
        "--eval-only",
        "--resume",
        "TEST.AUG.ENABLED=True",
        f"OUTPUT_DIR={tmp_path}",
    )
    assert done.status == 2
    assert "not for RetinaNet" in done.err.splitlines()[-1]
    assert "Start inference" not in done.out
