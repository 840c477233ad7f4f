"""What the tutorials show works as it stands."""

import importlib.util
import re
import shlex
from pathlib import Path

import cv2
import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import get_cfg
from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import DefaultPredictor, DefaultTrainer
from detlib.modeling import HEAD_REGISTRY, LOSS_REGISTRY, META_ARCH_REGISTRY, MODULE_ZOO_REGISTRY, build_model
from detlib.modeling.loss import build_loss
from detlib.modeling.meta_arch.graph.config import read_nodes
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError, DetlibError

ROOT = Path(__file__).parents[1]


def blocks_of(page):
    """The code of a page: (language, text) in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture
def blocks():
    return blocks_of("docs/tutorials/components.md")


@pytest.fixture
def folder(tmp_path):
    """Has the bases that the examples build on."""
    base = f"_BASE_: {ROOT}/configs/COCO-Detection/retinanet_R_50_FPN_1x.yaml\n"
    (tmp_path / "configs").mkdir()
    for name in ("configs/retinanet_R_50_FPN_1x.yaml", "Base-RCNN-FPN.yaml", "configs/schedule.yaml"):
        (tmp_path / name).write_text(base)
    return tmp_path / "configs"


def read(folder, text):
    (folder / "my_config.yaml").write_text(text)
    cfg = get_cfg()
    cfg.merge_from_file(str(folder / "my_config.yaml"))
    return cfg


def test_parts_of_the_first_example_are_built(blocks, folder):
    cfg = read(folder, blocks[0][1])
    assert build_loss(cfg.MODEL.RETINANET.LOSS_BBOX).loss_weight == 2.0
    assert cfg.MODEL.NECK.NAME == "PAFPN"


def test_loss_of_ones_own_is_used_from_the_config(blocks, folder):
    (folder / "my_losses.py").write_text(blocks[1][1])
    cfg = read(folder, blocks[2][1])
    try:
        assert type(build_loss(cfg.MODEL.RETINANET.LOSS_BBOX)).__name__ == "MyLoss"
    finally:
        del LOSS_REGISTRY._obj_map["MyLoss"]


def test_config_that_builds_on_others_reads_as_described(blocks, folder):
    cfg = read(folder, blocks[3][1])
    assert cfg.MODEL.RETINANET.LOSS_BBOX == {"NAME": "GIoULoss"}
    assert cfg.MODEL.PIXEL_STD == [57.4, 1.0, 1.0]


GRAPHS = "docs/tutorials/module_graphs.md"


@pytest.fixture
def my_graph(tmp_path, monkeypatch):
    """The files of the tutorial on module graphs, as ``my_graph/...`` in the current directory."""
    files = (re.match(r"# (my_graph/\S+)\n", text) and text for _, text in blocks_of(GRAPHS))
    (tmp_path / "my_graph").mkdir()
    for text in filter(None, files):
        path = tmp_path / text.split()[1]
        path.write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    # projects/CustomNet may have registered modules of the same names.
    known = {name: target for name, target in MODULE_ZOO_REGISTRY if not name.startswith("custom_")}
    monkeypatch.setattr(MODULE_ZOO_REGISTRY, "_obj_map", known)
    yield tmp_path / "my_graph"
    if "drawn" in DatasetCatalog:
        DatasetCatalog.remove("drawn")
        MetadataCatalog.remove("drawn")


def config_of(name, *options):
    cfg = get_cfg()
    cfg.merge_from_file(f"my_graph/{name}")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


def test_classifier_of_ones_own_learns_to_tell_circles_from_squares(my_graph):
    exec((my_graph / "draw.py").read_text(), {})
    cfg = config_of("custom_net.yaml", "DATASETS.TEST", "()")
    seed_all_rng(cfg.SEED)
    DefaultTrainer(cfg).train()
    cfg.MODEL.WEIGHTS = "output/custom_net/model_final.pth"
    predict = DefaultPredictor(cfg)
    drawn = sorted(my_graph.glob("drawn/*/*.png"))
    found = [int(predict(cv2.imread(str(path)))["pred_score"].argmax()) for path in drawn]
    right = [(path.parent.name == "square") == bool(label) for path, label in zip(drawn, found, strict=True)]
    assert len(right) == 80
    assert sum(right) > 70


def test_classifier_of_ones_own_is_used_from_python_as_shown(my_graph):
    (snippet,) = (text for _, text in blocks_of(GRAPHS) if text.startswith("import torch\n"))
    names = {}
    exec(snippet, names)
    assert set(names["losses"]) == {"head.ce_loss"}
    assert [prediction["pred_score"].shape for prediction in names["predictions"]] == [(2,)] * 16
    assert str(names["model"].nodes.head.fc).startswith("Linear(in_features=32, out_features=2")


def test_retinanet_as_three_nodes_has_the_weights_of_the_class(my_graph):
    cfg = config_of("retinanet.yaml")
    graph = build_model(cfg)
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    shapes = [sorted(tuple(p.shape) for p in model.state_dict().values()) for model in (graph, build_model(cfg))]
    assert shapes[0] == shapes[1]
    assert graph.part_weights == {f"nodes.{n}": "output/quickstart/model_final.pth" for n in graph.nodes}


def test_nodes_of_the_second_head_are_those_of_the_config():
    (nodes,) = (text for _, text in blocks_of(GRAPHS) if "name: segmentation" in text)
    assert nodes in (ROOT / "configs/graph/multi_task_shapes.yaml").read_text()


def test_table_of_keys_has_what_a_node_can_have(my_graph):
    text = (ROOT / GRAPHS).read_text()
    table = text.split("## What a node can have")[1].split("\n## ")[0]
    cfg = config_of("custom_net.yaml", "MODEL.MODULE_GRAPH.NET.0.none_such", "1")
    with pytest.raises(ConfigError) as error:
        read_nodes(cfg)
    keys = re.search(r"Keys of a node: ([\w, ]+);", str(error.value))[1].split(", ")
    assert sorted(re.findall(r"^\| `(\w+)`", table, flags=re.MULTILINE)) == sorted(keys)


@pytest.fixture
def wired(my_graph):
    """``graph_parts.py`` with the wires that the tutorial gives the head."""
    (wires,) = (text for _, text in blocks_of(GRAPHS) if "wires = Wires(" in text)
    docstring = 'tells it in_planes."""\n'
    path = my_graph / "graph_parts.py"
    text = path.read_text().replace("import MODULE_ZOO_REGISTRY", "import MODULE_ZOO_REGISTRY, Wires")
    path.write_text(text.replace(docstring, f"{docstring}\n{wires[wires.index('    wires =') :]}"))
    return path


def test_declared_wires_are_those_of_the_head(wired):
    model = build_model(config_of("custom_net.yaml"))
    assert model.plan[1].wires.targets == ("label",)
    batch = [{"image": torch.zeros(3, 8, 8), "label": 1}]
    assert set(model.train()(batch)) == {"head.ce_loss"}
    assert set(model.eval()(batch)[0]) == {"pred_score"}


def test_error_of_a_head_that_returns_something_else_is_as_printed(wired):
    wired.write_text(wired.read_text().replace('{"head.ce_loss":', '{"ce_loss":'))
    model = build_model(config_of("custom_net.yaml"))
    with pytest.raises(ConfigError) as error:
        model([{"image": torch.zeros(3, 8, 8), "label": 1}])
    assert ("text", f"error: {error.value}\n") in blocks_of(GRAPHS)


def test_graph_without_a_module_of_ones_own_learns_and_predicts(my_graph):
    model = build_model(config_of("plain.yaml"))
    batch = [{"image": torch.rand(3, 8, 8), "label": 1}]
    losses = model.train()(batch)
    losses["loss.loss"].backward()
    assert model.nodes.conv.weight.grad is not None
    assert {key: x.shape for key, x in model.eval()(batch)[0].items()} == {"pred_score": (2,)}


def test_child_config_and_command_line_change_a_graph_alike(my_graph):
    (command,) = (text for _, text in blocks_of(GRAPHS) if "NET.0.lr_factor" in text)
    changes = [word for word in shlex.split(command) if word.startswith("MODEL.MODULE_GRAPH")]
    for cfg in (config_of("narrow.yaml"), config_of("custom_net.yaml", *changes)):
        model = build_model(cfg)
        assert model.nodes.head.fc.in_features == 8
        assert model.lr_factors == {"nodes.backbone.": 0.1}


@pytest.mark.parametrize("block", [text for _, text in blocks_of(GRAPHS) if "\nerror: " in text])
def test_errors_are_as_printed(my_graph, block):
    lines = block.splitlines()
    options = shlex.split(lines[0])
    name = options[options.index("--config-file") + 1].removeprefix("my_graph/")
    with pytest.raises(ConfigError) as error:
        build_model(config_of(name, *(word for word in options if "=" in word)))
    assert f"error: {error.value}" == lines[1]


def test_two_heads_of_the_readme_are_built(tmp_path):
    (text,) = (text for _, text in blocks_of("README.md") if "ModuleGraph" in text)
    (tmp_path / "Base-RetinaNet.yaml").write_text(
        f"_BASE_: {ROOT}/configs/Base-RetinaNet.yaml\nMODEL: {{DEVICE: cpu}}\n"
    )
    model = build_model(read(tmp_path, text))
    assert list(model.nodes) == ["trunk", "pyramid", "boxes", "pixels"]
    assert [node.shape.keys() for node in model.plan[:2]] == [
        {"res3", "res4", "res5"},
        {"p3", "p4", "p5", "p6", "p7"},
    ]


SSL = "docs/tutorials/self_supervised.md"


@pytest.fixture(scope="module")
def tables():
    """The module that writes the tables of the page on self-supervised learning."""
    spec = importlib.util.spec_from_file_location("self_supervised_tables", ROOT / "docs/self_supervised_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def my_ssl(tmp_path, monkeypatch):
    """The files of the tutorial on self-supervised learning, as ``my_ssl/...`` in the current directory."""
    for _, text in blocks_of(SSL):
        if match := re.match(r"# (my_ssl/\S+)\n", text):
            path = tmp_path / match[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_ssl"
    for registry, name in ((META_ARCH_REGISTRY, "AlignUniform"), (HEAD_REGISTRY, "AlignUniformHead")):
        registry._obj_map.pop(name, None)


def ssl_config(name, *options):
    cfg = get_cfg()
    cfg.merge_from_file(f"my_ssl/{name}.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    return cfg


def ssl_batch(num_samples=4):
    generator = torch.Generator().manual_seed(0)
    views = torch.rand(num_samples, 2, 3, 32, 32, generator=generator) * 255
    return [{"views": list(pair)} for pair in views]


def test_tables_of_algorithms_are_what_make_docs_writes(tables):
    text = (ROOT / SSL).read_text(encoding="utf-8")
    assert text == tables.with_tables(text), "run `make docs`"


@pytest.mark.parametrize(("loss", "name"), [("{}", "CrossEntropyLoss"), ("{NAME: NCE, NUM_SAMPLES: 9}", "NCE")])
def test_loss_in_the_table_is_that_of_the_config_or_else_of_the_head(my_ssl, tables, loss, name):
    assert tables.loss_of(ssl_config("moco", "MODEL.SSL.LOSS", loss)) == name


def test_recipes_say_the_epochs_and_the_batch_that_they_have(tables):
    for recipe in tables.recipes():
        solver = recipe.cfg.SOLVER
        assert int(recipe.batch) == solver.IMS_PER_BATCH, recipe.path
        assert pytest.approx(int(recipe.epochs), rel=0.01) == solver.MAX_ITER * solver.IMS_PER_BATCH / 1281167
        assert recipe.path.stem.endswith(f"_{recipe.epochs}e")


def test_drawn_patterns_are_two_datasets_of_four_classes(my_ssl):
    exec((my_ssl / "draw.py").read_text(), {})
    for split, count in (("train", 150), ("test", 50)):
        folders = {path.name: len(list(path.iterdir())) for path in (my_ssl / split).iterdir()}
        assert folders == dict.fromkeys(("checks", "dots", "rings", "stripes"), count)


def test_self_supervised_model_returns_what_is_said(my_ssl):
    (snippet,) = (text for _, text in blocks_of(SSL) if text.startswith("import torch\n"))
    names = {}
    exec(snippet, names)
    assert set(names["losses"]) == {"loss"}
    assert {name: x.shape for name, x in names["features"].items()} == {"res5": (8, 128, 1, 1)}


def test_algorithm_of_ones_own_trains_backbone_and_neck(my_ssl):
    model = build_model(ssl_config("align_uniform"))
    losses = model.train()(ssl_batch())
    sum(losses.values()).backward()
    assert set(losses) == {"loss_align", "loss_uniform"}
    assert all(p.grad is not None for part in (model.backbone, model.neck) for p in part.parameters())
    model = build_model(ssl_config("align_uniform", "MODEL.SSL.HEAD.UNIFORMITY", "0.0"))
    assert model(ssl_batch())["loss_uniform"] == 0


def test_recombined_simsiam_has_the_parts_of_its_config_and_a_loss_of_0_at_best(my_ssl):
    model = build_model(ssl_config("simsiam")).train()
    assert [type(part).__name__ for part in (model.backbone, model.neck, model.head)] == [
        "MobileNetV2",
        "NonLinearNeck",
        "LatentPredictHead",
    ]
    assert 0 < model(ssl_batch())["loss"] < 2
    z = torch.ones(2, 128)
    assert model.head.loss_module(z, z).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("pretrained", "target", "part"),
    [
        ("my_ssl/moco.yaml", "configs/quickstart/retinanet_shapes.yaml", "backbone.bottom_up"),
        ("my_ssl/moco.yaml", "my_ssl/classifier.yaml", "backbone"),
        ("configs/SelfSupervised/tiny/mae.yaml", "my_ssl/mask_rcnn_vit.yaml", "backbone.net"),
    ],
)
def test_pretrained_backbone_is_found_by_the_model_that_is_shown(my_ssl, pretrained, target, part):
    models = []
    for path in (pretrained, target):
        cfg = get_cfg()
        cfg.merge_from_file(path)
        cfg.MODEL.DEVICE = "cpu"
        models.append(build_model(cfg))
    torch.save({"model": models[0].state_dict()}, "pretrained.pth")
    DetectionCheckpointer(models[1]).load("pretrained.pth")
    given, taken = models[0].backbone.state_dict(), models[1].get_submodule(part).state_dict()
    assert taken
    assert all(torch.equal(value, given[name]) for name, value in taken.items())


@pytest.mark.parametrize("command", [text for name, text in blocks_of(SSL) if name == "bash"])
def test_commands_name_tools_configs_and_options_that_exist(my_ssl, command):
    for line in command.replace("\\\n", " ").strip().splitlines():
        words = shlex.split(line, comments=True)
        assert all((ROOT / word).exists() for word in words if word.startswith("tools/"))
        if "--config-file" in words:
            cfg = get_cfg()
            cfg.merge_from_file(words[words.index("--config-file") + 1])
            cfg.merge_from_list([word for word in words if re.match(r"[A-Z_.]+=", word)])


def test_table_of_errors_has_them_as_they_come(my_ssl):
    table = (ROOT / SSL).read_text().split("## When something does not fit")[1].split("\n## ")[0]
    images = [{"views": [torch.zeros(3, 32, 32 + 16 * i)] * 2} for i in range(2)]
    calls = [
        lambda: build_model(ssl_config("moco")).train()(ssl_batch(48)),
        lambda: build_model(ssl_config("moco")).train()([{"image": torch.zeros(3, 32, 32)}]),
        lambda: build_model(ssl_config("moco"))(images),
        lambda: build_model(ssl_config("moco", "MODEL.SSL.IN_FEATURE", "res4")),
        lambda: build_model(ssl_config("simsiam", "MODEL.SSL.NECK.NAME", "")),
    ]
    for call in calls:
        with pytest.raises(DetlibError) as error:
            call()
        assert f"| `{error.value}` |" in table
