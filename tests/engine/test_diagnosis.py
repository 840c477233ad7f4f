import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from detlib.config import get_cfg
from detlib.data import build_batch_data_loader
from detlib.data.samplers import TrainingSampler
from detlib.data.train_loader import LoadingError
from detlib.engine import AMPTrainer, HookBase, SimpleTrainer, create_ddp_model, launch
from detlib.engine.diagnosis import NonFiniteLossError, TrainingMemoryError, UnusedParametersError, explain, read_step
from detlib.engine.diagnosis.learning_rate import rate_advice
from detlib.engine.diagnosis.plain import from_plain, to_plain
from detlib.engine.diagnosis.step import samples_of
from detlib.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks, RotatedBoxes
from detlib.utils import comm
from detlib.utils.errors import CheckpointError, DetlibError, NonFiniteError

from .toy import Batches, ToyModel, toy_trainer

needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="processes share the CPU only where no GPU is")


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


class Net(nn.Module):
    """Roots of weight * x: NaN below 0, with an infinite gradient at 0."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 1, bias=False)
        self.root = Root()
        self.unused = nn.Linear(1, 1)
        self.linear.weight.data.fill_(1.0)

    def forward(self, batch):
        return {"loss": self.root(self.linear(batch[0]["x"].view(1, 1))).sum()}


class Named(Batches):
    """Samples 0.jpg, 1.jpg, ... of the values, in turn."""

    def __iter__(self):
        for number, batch in enumerate(super().__iter__()):
            batch[0]["file_name"] = f"{number % len(self.values)}.jpg"
            yield batch


def trainer_of(*values, model=None, trainer_class=SimpleTrainer, cfg=None, lr=0.0, **kwargs):
    model = model or Net()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=lr)
    trainer = trainer_class(model, Named(*values), optimizer, **kwargs)
    if cfg is not None:
        trainer.cfg = cfg
    return trainer


def error_of(trainer, num_iterations=3):
    with pytest.raises(DetlibError) as caught:
        trainer.train(0, num_iterations)
    return caught.value


@pytest.fixture
def cfg(tmp_path):
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path)
    return cfg


def test_loss_that_is_not_finite_is_traced_to_the_first_module_and_the_file():
    error = error_of(trainer_of(4, -9))
    assert isinstance(error, NonFiniteLossError)
    text = str(error)
    assert "iteration 1: loss=nan" in text
    assert (
        "not finite: root (Root): 1 NaN and 0 Inf of 1 values (1 x 1, float32); its input is finite, at most 9" in text
    )
    assert "Batch: 1.jpg" in text
    assert "0.jpg" not in text


def test_code_between_modules_is_told_from_modules():
    model = Net()
    model.root.forward = lambda x: x
    forward = model.forward
    model.forward = lambda batch: {"loss": forward(batch)["loss"].sqrt()}
    text = str(error_of(trainer_of(-9, model=model)))
    assert "Net as a whole: 1 NaN and 0 Inf of 1 values" in text
    assert "the modules in it give finite numbers, so it is in its own code" in text


def test_weights_that_were_not_finite_before_are_named():
    model = Net()
    model.linear.weight.data.fill_(float("inf"))
    text = str(error_of(trainer_of(0, model=model)))
    assert "Weights not finite already before this step: 1 of 3, linear.weight" in text
    assert (
        "linear (Linear): 1 NaN and 0 Inf of 1 values (1 x 1, float32); its input is finite, its weight is not" in text
    )


def test_data_that_is_not_finite_is_named_by_file_and_field():
    assert "Not finite in the data: x of 1.jpg" in str(error_of(trainer_of(4, float("nan"))))


def test_gradient_that_is_not_finite_stops_training_before_it_reaches_the_weights():
    trainer = trainer_of(4, 0, lr=0.5)
    text = str(error_of(trainer))
    assert "a gradient is not finite in iteration 1" in text
    assert "Losses: loss=0." in text
    assert "respect to the output of linear (Linear): 0 NaN and 1 Inf of 1 values" in text
    assert "Gradients not finite: 1 of 3, linear.weight." in text  # inf * 0 = NaN
    assert trainer.model.linear.weight.item() == 1 - 0.5 * 4 / (2 * 2)


def test_gradients_that_a_scaler_leaves_out_do_not_stop_training():
    trainer = trainer_of(0, trainer_class=AMPTrainer, grad_scaler=torch.amp.GradScaler("cpu"), lr=0.5)
    trainer.train(0, 2)
    assert trainer.model.linear.weight.item() == 1
    with pytest.raises(NonFiniteLossError, match="a gradient"):
        trainer_of(0, trainer_class=AMPTrainer, precision=torch.bfloat16).train(0, 2)


def test_mixed_precision_is_looked_into_in_that_precision():
    text = str(error_of(trainer_of(-9, trainer_class=AMPTrainer, precision=torch.bfloat16)))
    assert "root (Root): 1 NaN and 0 Inf of 1 values (1 x 1, bfloat16)" in text


def test_part_of_a_step_that_is_not_finite_is_found():
    text = str(error_of(trainer_of(4, -9, 4, accumulation_steps=3)))
    assert "root (Root): 1 NaN" in text
    assert "Batch: 0.jpg, 1.jpg, 2.jpg" in text


def test_losses_of_the_parts_of_a_step_are_averaged():
    assert "Losses: loss=1." in str(error_of(trainer_of(4, 0, accumulation_steps=2)))  # (2 + 0) / 2


def test_loss_that_is_checked_late_still_names_its_batch():
    text = str(error_of(trainer_of(4, -9, 16, 25, async_write_metrics=True, lr=0.1), 4))
    assert "iteration 1: loss=nan" in text
    assert "Batch: 1.jpg" in text
    assert "train without async_write_metrics" in text


def test_error_of_the_model_about_its_numbers_is_explained_too(cfg):
    model = Net()

    def refuse(module, args, output):
        if not output.isfinite():
            raise NonFiniteError("boxes are not finite")

    model.root.register_forward_hook(refuse)
    text = str(error_of(trainer_of(-9, model=model, cfg=cfg)))
    assert text.startswith("iteration 0: boxes are not finite.\n")
    assert "Made again, the step fails: NonFiniteError: boxes are not finite" in text
    assert "Batch: 0.jpg" in text


def count_in_queue(model, args):
    model.queue += 1


def test_step_is_written_as_it_began(cfg, tmp_path):
    trainer = toy_trainer(4, float("nan"))
    trainer.model.register_buffer("queue", torch.zeros(2), persistent=False)
    trainer.model.register_forward_pre_hook(count_in_queue)
    trainer.cfg = cfg
    text = str(error_of(trainer))
    path = tmp_path / "faults" / "iteration_0000001.pth"
    assert f"python tools/replay_step.py {path}" in text
    step = read_step(str(path))
    assert step["iteration"] == 1
    assert step["model"]["weight"] == pytest.approx(1 - 0.1 * 4)
    assert step["training_state"]["num_calls"] == 1  # Of iteration 0; the failed step and the search counted on.
    assert step["buffers"]["queue"].tolist() == [1, 1]
    assert str(tmp_path) == get_cfg().load_cfg(step["config"]).OUTPUT_DIR


def test_state_that_is_too_large_to_be_copied_is_told(cfg, monkeypatch):
    monkeypatch.setattr("detlib.engine.diagnosis.step.MAX_COPIED", 1)
    trainer = toy_trainer(4, float("nan"))
    trainer.model.register_buffer("queue", torch.zeros(2))
    trainer.model.register_forward_pre_hook(count_in_queue)
    trainer.cfg = cfg
    assert "To make this step again (from the changed values of queue)" in str(error_of(trainer))


def test_step_that_is_made_again_has_the_same_losses():
    seen = []

    class Drifting(ToyModel):
        def forward(self, batch):
            self.num_calls += 1
            loss = self.num_calls + torch.rand(()) + (self.weight * batch[0]["x"]).sqrt()
            seen.append(loss.item())
            return {"loss": loss}

    text = str(error_of(trainer_of(4, 0, model=Drifting())))
    assert 2 <= seen[1] < 3
    assert f"Losses: loss={seen[1]:.4g}." in text


def test_fault_that_random_numbers_bring_comes_again():
    class Lottery(nn.Module):
        def forward(self, x):
            return x.log() if torch.rand(()) < 0.1 else x

    model = Net()
    model.root = Lottery()
    torch.manual_seed(0)
    assert "root (Lottery): 1 NaN" in str(error_of(trainer_of(-1, model=model), 100))


def test_training_without_a_fault_asks_no_module_for_hooks_and_draws_no_number():
    trainer = trainer_of(4)
    torch.manual_seed(0)
    trainer.train(0, 2)
    drawn = torch.rand(())
    torch.manual_seed(0)
    assert drawn == torch.rand(())
    assert not any(module._forward_hooks for module in trainer.model.modules())


def test_rate_is_compared_with_the_published_one_for_as_large_a_batch():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "RetinaNet"
    cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH = 0.04, 8
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    text = rate_advice(cfg, optimizer)
    assert "0.01 in this step; SOLVER.BASE_LR is 0.04 at SOLVER.IMS_PER_BATCH 8" in text
    assert "0.01 for 16 images" in text
    assert "makes 0.005 for 8; yours is 8 times that" in text
    assert "try SOLVER.BASE_LR 0.005" in text
    cfg.SOLVER.BASE_LR = 0.005
    assert "look at the data and the precision first" in rate_advice(cfg, optimizer)
    cfg.SOLVER.OPTIMIZER = "AdamW"
    assert "no published rate" in rate_advice(cfg, optimizer)


def test_batch_is_the_same_after_it_was_plain():
    instances = Instances(
        (4, 6),
        gt_boxes=Boxes(torch.tensor([[0.0, 1, 2, 3]])),
        gt_rotated=RotatedBoxes(torch.tensor([[0.0, 1, 2, 3, 45]])),
        gt_bitmasks=BitMasks(torch.ones(1, 4, 6, dtype=torch.bool)),
        gt_masks=PolygonMasks([[np.array([0.0, 0, 2, 0, 2, 2])]]),
        gt_keypoints=Keypoints(torch.ones(1, 2, 3)),
        gt_classes=torch.tensor([5]),
    )
    sample = {"image": torch.ones(3, 4, 6), "views": [torch.zeros(1)], "size": (4, 6), "instances": instances}
    back = from_plain(to_plain([sample]))[0]
    assert list(back) == list(sample)
    assert back["size"] == (4, 6)
    fields = back["instances"].get_fields()
    assert {name: type(value) for name, value in fields.items()} == {
        name: type(value) for name, value in instances.get_fields().items()
    }
    assert back["instances"].image_size == (4, 6)
    assert fields["gt_masks"].polygons[0][0].tolist() == [0, 0, 2, 0, 2, 2]
    assert fields["gt_keypoints"].tensor.tolist() == [[[1, 1, 1], [1, 1, 1]]]
    assert fields["gt_rotated"].tensor.tolist() == [[0, 1, 2, 3, 45]]


def test_object_that_no_file_can_hold_is_refused_by_its_class_when_it_is_read():
    with pytest.raises(CheckpointError, match=r"class .*Batches"):
        from_plain(to_plain([{"x": Batches(1)}]))


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)"),
    MemoryError("Unable to allocate 3 GiB"),
]


@pytest.mark.parametrize("cause", OUT_OF_MEMORY, ids=["cuda", "cpu", "mps", "python"])
def test_lack_of_memory_is_reported_with_images_objects_and_peak(cause):
    trainer = toy_trainer(1)

    def fail(batch):
        raise cause

    trainer.model.forward = fail
    boxes = Instances((8, 6), gt_boxes=Boxes(torch.zeros(5, 4)))
    sample = {"image": torch.zeros(3, 8, 6), "instances": boxes}
    trainer.data_loader = [[sample, {"image": torch.zeros(3, 4, 4)}]]
    error = error_of(trainer)
    assert isinstance(error, TrainingMemoryError)
    assert isinstance(error, torch.OutOfMemoryError)
    assert error.__cause__ is cause
    assert f"out of memory in iteration 0: {str(cause).splitlines()[0].rstrip('.')}.\n" in str(error)
    assert "2 images, 3 x 8 x 6 with 5 objects, 3 x 4 x 4." in str(error)
    assert "GiB" in str(error)


def memory_error(cfg):
    trainer = toy_trainer(1)
    trainer.cfg = cfg
    trainer.last_batch = []
    return str(explain(trainer, OUT_OF_MEMORY[0])).split("What helps: ")[1].split("; ")


def test_three_options_that_save_memory_are_those_that_the_config_has_left(cfg):
    cfg.MODEL.DEVICE = "cuda"
    cfg.SOLVER.IMS_PER_BATCH = 6
    keys = [text.split("=")[0].split(",")[0] for text in memory_error(cfg)]
    assert keys == ["SOLVER.AMP.ENABLED", "SOLVER.ACCUMULATION_STEPS", "MODEL.ACTIVATION_CHECKPOINT"]
    assert "SOLVER.ACCUMULATION_STEPS=2, " in memory_error(cfg)[1]
    cfg.SOLVER.AMP.ENABLED = True
    cfg.SOLVER.ACCUMULATION_STEPS = 6
    cfg.MODEL.ACTIVATION_CHECKPOINT = ["backbone.*"]
    images, rois, batch = memory_error(cfg)
    assert images == "smaller images: INPUT.MIN_SIZE_TRAIN=(600,) INPUT.MAX_SIZE_TRAIN=999"
    assert rois == "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE=256"
    assert batch == "SOLVER.IMS_PER_BATCH=3 with SOLVER.BASE_LR=0.0005, which are scaled alike"


def test_other_errors_stay_as_they_are():
    trainer, cause = toy_trainer(1), RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert explain(trainer, cause) is cause
    assert explain(object(), OUT_OF_MEMORY[0]) is OUT_OF_MEMORY[0]


def test_death_of_a_process_that_loads_data_is_told_wherever_torch_tells_it():
    trainer = toy_trainer(1)
    trainer.data_loader = build_batch_data_loader([{"x": 1}], TrainingSampler(1), 1, num_workers=1)
    trainer.register_hooks([FailInStep(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))])
    with pytest.raises(LoadingError, match=r"process that loads data died: .* Killed\. Often"):
        trainer.train(0, 1)


class FailInStep(HookBase):
    def __init__(self, error):
        self.error = error

    def before_step(self):
        raise self.error


def test_numbers_of_unused_parameters_become_names():
    trainer = toy_trainer(1)
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module, wrapped.parameters_to_ignore = Net(), set()
    wrapped.module.root.register_parameter("frozen", nn.Parameter(torch.zeros(1), requires_grad=False))
    trainer.model, trainer.iter = wrapped, 1
    error = explain(
        trainer,
        RuntimeError(
            "Expected to have finished reduction in the prior iteration before starting a new one. Parameter indices "
            "which did not receive grad for rank 0: 1 2\n In addition, you can set"
        ),
    )
    assert isinstance(error, UnusedParametersError)
    assert "2 parameters of Net had no part in the loss of process 0 in iteration 0" in str(error)
    assert "unused.weight, unused.bias. " in str(error)


class Selective(Net):
    """Uses its last layer only for 16."""

    def forward(self, batch):
        losses = super().forward(batch)
        return {"loss": losses["loss"] + self.unused(batch[0]["x"].view(1, 1)).sum()} if batch[0]["x"] == 16 else losses


def fail_twice(folder):
    logging.getLogger("detlib").setLevel(logging.CRITICAL)
    is_second = comm.get_rank() == 1
    cfg = get_cfg()
    cfg.OUTPUT_DIR = folder
    model = Net()
    model.unused = nn.Identity()
    trainer = trainer_of(4, -9 if is_second else 4, model=create_ddp_model(model), cfg=cfg)
    (Path(folder) / f"error{comm.get_rank()}").write_text(str(error_of(trainer)))
    trainer_of(4 if is_second else 16, model=create_ddp_model(Selective())).train(0, 3)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder that they wrote to, and the error that they ended with."""
    folder = tmp_path_factory.mktemp("two_processes")
    with pytest.raises(DetlibError) as caught:
        launch(fail_twice, 2, args=(str(folder),))
    return folder, caught.value


@needs_no_gpu
def test_process_that_is_not_finite_is_told_by_all_and_writes_its_step(two_processes):
    folder, _ = two_processes
    text = (folder / "error0").read_text()
    assert text == (folder / "error1").read_text()
    assert "iteration 1: loss=nan" in text
    assert "Process 1: First module whose output is not finite: root (Root)" in text
    assert "Process 1: Batch: 1.jpg" in text
    assert "Process 0" not in text
    assert [path.name for path in (folder / "faults").iterdir()] == ["iteration_0000001_rank1.pth"]


@needs_no_gpu
def test_parameters_that_one_process_does_not_use_are_named_in_place_of_waiting_for_them(two_processes):
    _, error = two_processes
    assert isinstance(error, UnusedParametersError)
    assert "2 parameters of Selective had no part in the loss of process 1 in iteration 0" in str(error)
    assert "unused.weight, unused.bias. " in str(error)


def test_samples_are_named_by_file_or_else_by_number():
    batch = [{"file_name": "a.jpg", "image_id": 3}, {"image_id": 3}, {"sample_idx": 7}, {}]
    assert samples_of(batch) == ["a.jpg", "image_id 3", "sample_idx 7", "?"]
    assert samples_of(torch.zeros(2)) == []
