import pytest
import torch

from detlib.engine import DefaultTrainer
from detlib.engine.diagnosis import NonFiniteLossError


@pytest.fixture
def faulty_step(tiny_cfg, sample, tmp_path):
    """The file of a step whose rate is so high that the second one overflows, and the error of the training."""
    cfg = tiny_cfg
    cfg.SOLVER.BASE_LR = 1e20
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.OUTPUT_DIR = str(tmp_path / "output")
    batch = [{**sample(64, 64, [[8, 8, 40, 40]], [1]), "file_name": f"{name}.jpg"} for name in "ab"]

    class Trainer(DefaultTrainer):
        @classmethod
        def build_train_loader(cls, cfg):
            return [batch] * 9

        def build_writers(self):
            return []

    with pytest.raises(NonFiniteLossError) as caught:
        Trainer(cfg).train()
    return tmp_path / "output" / "faults" / "iteration_0000001.pth", str(caught.value)


def test_step_is_made_again_with_the_same_losses_and_the_same_first_module(call_tool, faulty_step):
    path, error = faulty_step
    done = call_tool("replay_step", path)
    assert done.status == 0
    lines = dict(line.split(": ", 1) for line in done.out.splitlines() if ": " in line)
    assert lines["Training"] == error.splitlines()[0].removesuffix(".")
    assert lines["Batch"] == "a.jpg, b.jpg"
    assert lines["Again"] in lines["Training"]
    assert f"First module whose output is not finite: {lines['First module whose output is not finite']}" in error


def test_step_that_is_finite_in_other_circumstances_says_so(call_tool, faulty_step):
    path, _ = faulty_step
    step = torch.load(path)
    step["model"] = {name: value.clamp(-1, 1) for name, value in step["model"].items()}
    torch.save(step, path)
    done = call_tool("replay_step", path)
    assert "All outputs and gradients are finite" in done.out
    assert done.status == 1


def test_other_files_are_refused(call_tool, tmp_path):
    torch.save({"model": {"weight": torch.zeros(1)}}, tmp_path / "weights.pth")
    done = call_tool("replay_step", tmp_path / "weights.pth")
    assert done.status == 2
    assert "holds no step of training: it lacks buffers" in done.err
    assert "there is no file" in call_tool("replay_step", tmp_path / "gone.pth").err
