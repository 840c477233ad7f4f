"""Each tiny config of self-supervised learning, trained by tools/train_net.py, learns, and resumes to the last bit."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from detlib.data import DatasetCatalog, MetadataCatalog
from detlib.engine import HookBase, default_argument_parser

ROOT = Path(__file__).parents[2]
TINY = ROOT / "configs" / "SelfSupervised" / "tiny"
NUM_IMAGES = 96

# A schedule of seconds.
SHORTER = {
    "DATASETS.TRAIN": ["glowing_colors"],
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.WARMUP_ITERS": 3,
}
NARROW = {"MODEL.BACKBONE.BASE_CHANNELS": 8}
BANK = {**NARROW, "MODEL.SSL.MEMORY.LENGTH": NUM_IMAGES, "SOLVER.MAX_ITER": 48}
CLUSTERS = {**BANK, "MODEL.SSL.HEAD.NUM_CLASSES": 6}
QUEUE = {**NARROW, "MODEL.SSL.QUEUE_LEN": 80}
CHANGES = {
    "barlow_twins": {**NARROW, "MODEL.SSL.NECK.HID_CHANNELS": 64, "MODEL.SSL.NECK.OUT_CHANNELS": 32},
    "byol": NARROW,
    "cae": {},
    "deepcluster": {**CLUSTERS, "SOLVER.IMS_PER_BATCH": 8, "MODEL.SSL.MEMORY.NUM_COMPONENTS": 4},
    "densecl": {**QUEUE, "MODEL.SSL.HEAD.WARMUP_ITERS": 3},
    "mae": {},
    "moco": QUEUE,
    "mocov3": {},
    "npid": {**BANK, "MODEL.SSL.MEMORY.NUM_NEGATIVES": 64, "SOLVER.MAX_ITER": 72},
    "odc": {**CLUSTERS, "MODEL.SSL.MEMORY.MIN_CLUSTER": 4},
    "relative_loc": {**NARROW, "SOLVER.IMS_PER_BATCH": 4},
    "rotation_pred": {**NARROW, "SOLVER.IMS_PER_BATCH": 8},
    "simclr": {**NARROW, "SOLVER.MAX_ITER": 48},
    "simmim": {},
    "simsiam": NARROW,
    "swav": {
        **NARROW,
        "SOLVER.MAX_ITER": 36,
        "MODEL.SSL.HEAD.FREEZE_ITERS": 3,
        "MODEL.SSL.HEAD.QUEUE_LEN": 64,
        "MODEL.SSL.HEAD.QUEUE_START": 10,
    },
}

# What the mean loss of the last 8 steps falls below, and what it is there without learning: with a rate of 1e-9, or,
# for CAE and SimMIM, at the start. As queues and banks fill, losses change without learning, too.
LEARNED = {
    "barlow_twins": 14.0,  # 19.6
    "byol": 2.0,  # 4.1
    "cae": 4.0,  # 8.1
    "deepcluster": 1.72,  # ln 6 = 1.79
    "densecl": 3.7,  # 4.1
    "mae": 0.8,  # 1.26
    "moco": 4.05,  # 4.15
    "mocov3": 1.95,  # 2.36
    "npid": 3.45,  # 3.7
    "odc": 1.65,  # ln 6 = 1.79
    "relative_loc": 1.85,  # ln 8 = 2.08
    "rotation_pred": 1.0,  # ln 4 = 1.39
    "simclr": 3.25,  # 3.5
    "simmim": 0.75,  # 1.1
    "simsiam": -0.04,  # 0.0
    "swav": 4.5,  # 5.0
}


@pytest.fixture(scope="module", autouse=True)
def glowing_colors(tmp_path_factory):
    """A dataset of pictures of a color each, which grow brighter upwards, and less so to the right."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[-1:1:72j, -1:1:72j, :1][:2]
    for i in range(NUM_IMAGES):
        image = rng.uniform(20, 235, 3) - 60 * ys + 20 * xs + rng.normal(0, 10, (72, 72, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.png")
    samples = [{"file_name": str(folder / f"{i}.png"), "image_id": i} for i in range(NUM_IMAGES)]
    DatasetCatalog.register("glowing_colors", lambda: samples)
    yield
    DatasetCatalog.remove("glowing_colors")
    MetadataCatalog.pop("glowing_colors", None)


class Recorder(HookBase):
    """Keeps metrics, and counts steps."""

    num_steps = 0

    def after_step(self):
        self.num_steps += 1

    def after_train(self):
        histories = self.trainer.storage.histories()
        self.metrics = {name: [value for value, _ in history.values()] for name, history in histories.items()}


def train(name, folder, resume=False):
    """What the tool does."""
    spec = importlib.util.spec_from_file_location("train_net", ROOT / "tools" / "train_net.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    recorder = Recorder()

    class Trainer(tool.Trainer):
        def build_hooks(self):
            return [recorder, *super().build_hooks()]

    tool.Trainer = Trainer
    changes = {"SOLVER.MAX_ITER": 24, **SHORTER, **CHANGES[name], "OUTPUT_DIR": folder}
    changes["SOLVER.CHECKPOINT_PERIOD"] = changes["SOLVER.MAX_ITER"] // 2
    opts = [f"{key}={value}" for key, value in changes.items()]
    arguments = ["--config-file", str(TINY / f"{name}.yaml"), *(["--resume"] if resume else []), *opts]
    tool.main(default_argument_parser().parse_args(arguments))
    return recorder


def saved(folder):
    """The last checkpoint of a training, which is taken away, as if the training had stopped in its middle."""
    final, middle = folder / "model_final.pth", min(folder.glob("model_0*.pth"))
    checkpoint = torch.load(final, weights_only=False)
    final.unlink()
    (folder / "last_checkpoint").write_text(middle.name)
    return checkpoint


@pytest.mark.parametrize("name", sorted(file.stem for file in TINY.glob("*.yaml")))
def test_tiny_config_learns_without_collapse_and_resumes_to_the_last_bit(name, tmp_path):
    training = train(name, tmp_path)
    assert np.mean(training.metrics["total_loss"][-8:]) < LEARNED[name]
    assert np.mean(training.metrics["embedding_spread"][-8:]) > 0.5

    uninterrupted = saved(tmp_path)
    assert train(name, tmp_path, resume=True).num_steps == training.num_steps // 2
    resumed = saved(tmp_path)
    for part in ("model", "trainer"):  # weights and buffers; optimizer, schedule, random states and place in the data
        torch.testing.assert_close(resumed[part], uninterrupted[part], rtol=0, atol=0)
