import argparse
import os
import random
import sys

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import IterableDataset

from detlib.config import CfgNode, get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import create_ddp_model, default_argument_parser, default_setup, default_writers
from detlib.engine.setup import check_num_classes, run_tool, with_memory_length
from detlib.utils.errors import ConfigError, DatasetError


@pytest.fixture
def dataset():
    """A dataset of two classes that are known only once it is loaded, as with COCO files."""

    def load():
        MetadataCatalog.get("two_classes").thing_classes = ["cat", "dog"]
        return []

    DatasetCatalog.register("two_classes", load)
    yield "two_classes"
    DatasetCatalog.remove("two_classes")
    MetadataCatalog.remove("two_classes")


def test_parser_takes_overrides_in_both_forms_after_the_options():
    args = default_argument_parser().parse_args(["--config-file", "a.yaml", "--num-gpus", "2", "A.B", "1", "C=2"])
    assert (args.config_file, args.num_gpus, args.opts) == ("a.yaml", 2, ["A.B", "1", "C=2"])
    assert (args.num_machines, args.machine_rank, args.dist_url) == (1, 0, "auto")
    assert not (args.resume or args.eval_only or args.print_config)


def test_help_shows_examples():
    assert "--resume" in default_argument_parser().format_help().split("Examples:")[1]
    assert "my own" in default_argument_parser(epilog="my own").format_help()


def test_default_setup_writes_a_config_that_reloads_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "A B"])
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / "out"), 7
    default_setup(cfg, argparse.Namespace(eval_only=False))
    path = tmp_path / "out" / "config.yaml"
    assert path.read_text().splitlines()[0].endswith("train.py 'A B'")
    again = get_cfg()
    again.merge_from_file(str(path))
    assert again == cfg
    assert "train.py" in (tmp_path / "out" / "log.txt").read_text()


def test_default_setup_seeds_everything(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path), 7
    drawn = []
    for _ in range(2):
        default_setup(cfg, argparse.Namespace())
        drawn.append((random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_evaluation_leaves_the_config_of_the_training_alone(tmp_path):
    (tmp_path / "config.yaml").write_text("SEED: 3\n")
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    default_setup(cfg, argparse.Namespace(eval_only=True))
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == {"SEED": 3}


def test_default_setup_sets_the_precision_of_float32(tmp_path):
    before = torch.get_float32_matmul_precision()
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.FLOAT32_PRECISION = str(tmp_path), "medium"
    default_setup(cfg, argparse.Namespace())
    assert torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision(before)


def test_default_writers(tmp_path):
    names = [type(writer).__name__ for writer in default_writers(str(tmp_path / "new"), 10)]
    assert names == ["CommonMetricPrinter", "JSONWriter", "TensorboardXWriter"]


def test_one_process_needs_no_ddp():
    model = nn.Linear(1, 1)
    assert create_ddp_model(model) is model


def test_number_of_classes_must_match_the_data(dataset):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "RetinaNet", (dataset,)
    cfg.MODEL.RETINANET.NUM_CLASSES = 80
    with pytest.raises(ConfigError) as error:
        check_num_classes(cfg)
    assert "MODEL.RETINANET.NUM_CLASSES is 80" in str(error.value)
    assert "'two_classes' has 2 classes (cat, dog)" in str(error.value)
    line = str(error.value).split("Write in the config: ")[1]
    assert yaml.safe_load(line) == {"MODEL": {"RETINANET": {"NUM_CLASSES": 2}}}
    cfg.MODEL.RETINANET.NUM_CLASSES = 2
    check_num_classes(cfg)


@pytest.mark.parametrize("architecture", ["SemanticSegmentor", "PanopticFPN"])
def test_number_of_classes_of_pixels_is_checked_too(dataset, architecture):
    MetadataCatalog.get(dataset).stuff_classes = ["sky", "road", "tree"]
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = architecture, (dataset,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2
    with pytest.raises(ConfigError, match=r"MODEL: \{SEM_SEG_HEAD: \{NUM_CLASSES: 3\}\}"):
        check_num_classes(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    check_num_classes(cfg)


def test_number_of_classes_of_images_is_checked_too():
    MetadataCatalog.get("three_kinds").classes = ("cat", "dog", "owl")
    DatasetCatalog.register("three_kinds", list)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "ImageClassifier", ("three_kinds",)
    try:
        with pytest.raises(ConfigError, match=r"\(cat, dog, owl\)\..* MODEL: \{CLASSIFIER: \{NUM_CLASSES: 3\}\}"):
            check_num_classes(cfg)
        cfg.MODEL.CLASSIFIER.NUM_CLASSES = 3
        check_num_classes(cfg)
        # A class without a folder would shift the numbers of the others.
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.MODEL.CLASSIFIER.NUM_CLASSES = (), ("three_kinds",), 4
        with pytest.raises(ConfigError, match="is 4, but the dataset 'three_kinds' has 3 classes"):
            check_num_classes(cfg)
    finally:
        DatasetCatalog.remove("three_kinds")
        MetadataCatalog.remove("three_kinds")


@pytest.fixture
def classes_of_images():
    """Registers the datasets "in_training" and "in_test" with names of classes; returns the config of a classifier."""

    def register(in_training, in_test):
        for name, classes in zip(("in_training", "in_test"), (in_training, in_test)):
            MetadataCatalog.get(name).classes = classes
            DatasetCatalog.register(name, list)
        cfg = get_cfg()
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.CLASSIFIER.NUM_CLASSES = "ImageClassifier", len(in_training)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("in_training",), ("in_test",)
        return cfg

    yield register
    for name in ("in_training", "in_test"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_folder_missing_among_the_images_to_test_on_is_told_from_a_wrong_number_of_classes(classes_of_images):
    cfg = classes_of_images(("cat", "dog", "owl"), ("cat", "owl"))
    with pytest.raises(
        ConfigError, match=r"'in_test' has 2 classes \(cat, owl\), but 'in_training' has 3 .*empty folder"
    ):
        check_num_classes(cfg)


def test_other_names_of_classes_in_the_test_are_warned_of(classes_of_images, caplog):
    check_num_classes(classes_of_images(("cat", "dog"), ("dog", "hamster")))
    assert "'in_test' (dog, hamster) are not named as those of 'in_training' (cat, dog)" in caplog.text


@pytest.fixture
def two_kinds(dataset):
    """The datasets "two_classes" of boxes, with classes of pixels, and "three_kinds" of images of classes."""
    MetadataCatalog.get(dataset).set(thing_classes=["cat", "dog"], stuff_classes=["sky", "road", "tree", "wall"])
    MetadataCatalog.get("three_kinds").set(classes=("cat", "dog", "owl"), task="cls")
    DatasetCatalog.register("three_kinds", list)
    yield (dataset, "three_kinds")
    DatasetCatalog.remove("three_kinds")
    MetadataCatalog.remove("three_kinds")


GRAPH = """
MODEL:
  META_ARCHITECTURE: ModuleGraph
  MODULE_GRAPH:
    NET:
      - {name: boxes, type: retinanet_head, kwargs: {num_classes: 2}}
      - {name: points, type: FCOS, kwargs: {num_classes: 2}}
      - {name: regions, type: roi_heads, kwargs: {num_classes: 2}}
      - {name: pixels, type: sem_seg_head, kwargs: {num_classes: 4}}
      - {name: images, type: linear_cls_head, kwargs: {num_classes: 3}}
"""


def graph_cfg(folder, text, datasets):
    (folder / "graph.yaml").write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "graph.yaml"))
    cfg.DATASETS.TRAIN = datasets
    return cfg


@pytest.mark.parametrize(
    ("node", "line", "option", "number", "classes"),
    [
        ("boxes", 6, "MODEL.RETINANET.NUM_CLASSES", 2, "cat, dog"),
        ("points", 7, "MODEL.FCOS.NUM_CLASSES", 2, "cat, dog"),
        ("regions", 8, "MODEL.ROI_HEADS.NUM_CLASSES", 2, "cat, dog"),
        ("pixels", 9, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "sky, road, tree, wall"),
        ("images", 10, "MODEL.CLASSIFIER.NUM_CLASSES", 3, "cat, dog, owl"),
    ],
)
def test_number_of_classes_of_a_node_is_checked_too(tmp_path, two_kinds, node, line, option, number, classes):
    check_num_classes(graph_cfg(tmp_path, GRAPH, two_kinds))
    start, end = GRAPH.split(f"name: {node}")
    cfg = graph_cfg(tmp_path, f"{start}name: {node}{end.replace(str(number), '9', 1)}", two_kinds)
    with pytest.raises(ConfigError) as error:
        check_num_classes(cfg)
    assert f"graph.yaml:{line}: node {node!r}: {option} is 9" in str(error.value)
    assert f"has {number} classes ({classes})" in str(error.value)
    advice = yaml.safe_load(str(error.value).split("Write in the config: ")[1])
    cfg.MODEL.MODULE_GRAPH.OVERRIDES = advice["MODEL"]["MODULE_GRAPH"]["OVERRIDES"]
    check_num_classes(cfg)


def test_number_of_classes_of_a_node_may_come_from_the_config_around_it(tmp_path, two_kinds):
    node = "NET: [{name: boxes, type: retinanet_head, cfg: {MODEL: {RETINANET: {NUM_CLASSES: 9}}}}]"
    text = f"MODEL: {{META_ARCHITECTURE: ModuleGraph, RETINANET: {{NUM_CLASSES: 2}}, MODULE_GRAPH: {{{node}}}}}"
    with pytest.raises(ConfigError, match=r"node 'boxes': MODEL\.RETINANET\.NUM_CLASSES is 9"):
        check_num_classes(graph_cfg(tmp_path, text, two_kinds))
    check_num_classes(graph_cfg(tmp_path, text.replace(", cfg: {MODEL: {RETINANET: {NUM_CLASSES: 9}}}", ""), two_kinds))


def test_nodes_of_a_task_are_compared_with_datasets_of_that_task(tmp_path, two_kinds):
    text = GRAPH.replace("kwargs: {num_classes: 3}", "kwargs: {num_classes: 9}, tasks: [other]")
    check_num_classes(graph_cfg(tmp_path, text, two_kinds))
    with pytest.raises(ConfigError, match="node 'images'"):
        check_num_classes(graph_cfg(tmp_path, text.replace("[other]", "[cls]"), two_kinds))


def test_datasets_that_a_project_loads_itself_are_not_checked():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE, cfg.DATASETS.TRAIN = "RetinaNet", ("not_in_the_catalog",)
    check_num_classes(cfg)


def test_run_tool_shows_a_mistake_of_the_user_in_one_line(capsys):
    def fail():
        raise ConfigError("wrong\n  key")

    with pytest.raises(SystemExit) as stop:
        run_tool(fail)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: wrong key\n"


def test_run_tool_ends_quietly_when_interrupted(capsys):
    def interrupt():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_tool(interrupt)
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_run_tool_lets_bugs_through():
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 / 0)


def test_error_in_a_loader_worker_is_one_line_without_its_traceback(capsys):
    def main():
        raise DatasetError(
            "Caught DatasetError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
            "  File x\ndetlib.utils.errors.DatasetError: a.jpg is damaged"
        )

    with pytest.raises(SystemExit):
        run_tool(main)
    assert capsys.readouterr().err == "error: a.jpg is damaged\n"


@pytest.fixture
def remembering():
    """A config with a memory of the 3 samples of a dataset, one of which has no object."""
    samples = [{"file_name": f"{i}.png", "annotations": [{"category_id": 0}] * (i > 0)} for i in range(3)]
    DatasetCatalog.register("three_samples", lambda: samples)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("three_samples",)
    cfg.MODEL.SSL.MEMORY = CfgNode({"NAME": "SimpleMemory"})
    yield cfg
    DatasetCatalog.remove("three_samples")


def test_memory_gets_the_number_of_samples(remembering):
    remembering.freeze()
    cfg = with_memory_length(remembering)
    assert cfg.MODEL.SSL.MEMORY.LENGTH == 3
    assert cfg.is_frozen() and "LENGTH" not in remembering.MODEL.SSL.MEMORY


def test_memory_of_another_number_of_samples_is_an_error(remembering):
    remembering.MODEL.SSL.MEMORY.LENGTH = 4
    with pytest.raises(ConfigError, match=r"MODEL.SSL.MEMORY.LENGTH is 4, but DATASETS.TRAIN has 3 samples; leave it"):
        with_memory_length(remembering)
    remembering.DATASETS.TRAIN = ()  # The project feeds its own loader.
    assert with_memory_length(remembering) is remembering


def test_memory_of_a_stream_is_an_error(remembering, monkeypatch):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    monkeypatch.setitem(DatasetCatalog.data, "three_samples", Stream)
    with pytest.raises(DatasetError, match="SimpleMemory remembers samples by their place in the dataset, got an It"):
        with_memory_length(remembering)


def test_no_memory_needs_no_length():
    cfg = get_cfg()
    assert with_memory_length(cfg) is cfg


@pytest.fixture
def restarted(monkeypatch, tmp_path):
    """What ``--resume`` is in the second life of a training whose first one did something."""

    def in_second_life(in_first_life, **options):
        cfg = get_cfg()
        cfg.OUTPUT_DIR = str(tmp_path)
        default_setup(cfg, argparse.Namespace(resume=False))
        in_first_life()
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
        args = argparse.Namespace(resume=False, **options)
        cfg.SEED = 5
        default_setup(cfg, args)
        return args.resume

    return in_second_life


def write_later(path):
    path.write_text("model_0000003.pth")
    config = path.with_name("config.yaml")
    os.utime(path, (config.stat().st_mtime + 1,) * 2)


def test_a_restarted_training_goes_on_and_keeps_its_config(restarted, tmp_path):
    assert restarted(lambda: write_later(tmp_path / "last_checkpoint"))
    assert "SEED: 5" not in (tmp_path / "config.yaml").read_text()


def test_a_restarted_training_that_saved_nothing_does_not_go_on_from_an_earlier_one(restarted, tmp_path):
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    os.utime(tmp_path / "last_checkpoint", (0, 0))
    assert not restarted(lambda: None)


def test_a_restarted_evaluation_does_not_take_the_last_checkpoint(restarted, tmp_path):
    assert not restarted(lambda: write_later(tmp_path / "last_checkpoint"), eval_only=True)
