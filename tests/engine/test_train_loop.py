import gc
import weakref

import pytest
import torch
from torch import nn

from detlib.engine import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detlib.engine.train_loop import NonFiniteLossError
from detlib.utils import comm
from detlib.utils.errors import DatasetError, DetlibError
from detlib.utils.events import EventStorage

from .toy import Batches, KeepStorage, ToyModel, toy_trainer


class Recorder(HookBase):
    def __init__(self):
        self.events = []

    def before_train(self):
        self.events.append("before_train")

    def before_step(self):
        self.events.append("before_step")

    def after_backward(self):
        self.events.append("after_backward")

    def after_step(self):
        self.events.append(f"after_step {self.trainer.iter}")

    def after_train(self):
        self.events.append(f"after_train {self.trainer.iter}")


class Counter(HookBase):
    count = 0

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_hooks_get_each_event_in_order():
    trainer, hook = toy_trainer(1), Recorder()
    trainer.register_hooks([hook, None])
    trainer.train(3, 5)
    step = ["before_step", "after_backward"]
    assert hook.events == ["before_train", *step, "after_step 3", *step, "after_step 4", "after_train 5"]


def test_after_train_comes_after_a_failure_too_and_sees_where_it_was():
    class Failing(TrainerBase):
        def run_step(self):
            raise RuntimeError("broken step")

    trainer, hook = Failing(), Recorder()
    trainer.register_hooks([hook])
    with pytest.raises(RuntimeError, match="broken step"):
        trainer.train(0, 2)
    assert hook.events[-1] == "after_train 0"


def test_register_hooks_refuses_what_is_no_hook():
    with pytest.raises(TypeError, match=r"HookBase.*str"):
        TrainerBase().register_hooks(["timer"])


def test_hooks_do_not_keep_the_trainer_in_memory():
    trainer, hook = toy_trainer(1), Recorder()
    trainer.register_hooks([hook])
    gone = weakref.ref(trainer)
    del trainer
    gc.collect()
    assert gone() is None


def test_simple_trainer_steps_down_the_gradient():
    trainer = toy_trainer(1, 2, lr=0.25)
    trainer.train(0, 3)
    assert trainer.model.weight.item() == 1 - 0.25 * (1 + 2 + 1)


@pytest.mark.parametrize("zero_first", [False, True])
def test_gradients_do_not_add_up_over_iterations(zero_first):
    trainer = toy_trainer(1, zero_grad_before_forward=zero_first, lr=0.25)
    trainer.train(0, 2)
    assert trainer.model.weight.grad.item() == 1


def test_last_batch_is_there_for_hooks():
    trainer, seen = toy_trainer(5, 7), []

    class Look(HookBase):
        def after_step(self):
            seen.append(self.trainer.last_batch[0]["x"].item())

    trainer.register_hooks([Look()])
    trainer.train(0, 3)
    assert seen == [5, 7, 5]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_losses_are_stored_by_iteration(asynchronous):
    trainer, keep = toy_trainer(1, 2, lr=0.25, async_write_metrics=asynchronous), KeepStorage()
    trainer.register_hooks([keep])
    trainer.train(0, 2)
    assert keep.storage.history("total_loss").values() == [(1.0, 0), (1.5, 1)]
    assert len(keep.storage.history("data_time").values()) == 2


def test_metrics_are_written_in_every_nth_iteration_only():
    trainer, keep = toy_trainer(1, gather_metric_period=2), KeepStorage()
    trainer.register_hooks([keep])
    trainer.train(0, 5)
    assert [iteration for _, iteration in keep.storage.history("total_loss").values()] == [1, 3]


def test_write_metrics_stores_each_term_and_the_sum():
    losses = {"loss_cls": torch.tensor(1.5, requires_grad=True), "loss_box": torch.tensor(2.0)}
    with EventStorage() as storage:
        SimpleTrainer.write_metrics(losses, 0.25, 7, prefix="val_")
    assert storage.latest() == {
        "data_time": (0.25, 7),
        "val_total_loss": (3.5, 7),
        "loss_cls": (1.5, 7),
        "loss_box": (2.0, 7),
    }


def test_loss_that_alternates_with_another_is_stored_by_its_name_and_iteration():
    with EventStorage() as storage:
        for iteration, name in enumerate(["det.loss", "cls.loss", "det.loss"]):
            SimpleTrainer.write_metrics({name: torch.tensor(float(iteration))}, 0.25, iteration)
    assert storage.history("det.loss").values() == [(0.0, 0), (2.0, 2)]
    assert storage.history("cls.loss").values() == [(1.0, 1)]
    assert storage.history("total_loss").values() == [(0.0, 0), (1.0, 1), (2.0, 2)]


def test_losses_of_processes_with_other_tasks_are_divided_by_all_processes(monkeypatch):
    other = {"cls.loss": 4.0, "data_time": 0.5}
    monkeypatch.setattr(comm, "all_gather", lambda own: [own, dict(other)])
    with EventStorage() as storage:
        SimpleTrainer.write_metrics({"det.loss": torch.tensor(1.0)}, 0.25, 0)
    latest = {name: value for name, (value, _) in storage.latest().items()}
    assert latest == {"data_time": 0.5, "total_loss": 2.5, "det.loss": 0.5, "cls.loss": 2.0}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_loss_that_is_not_finite_stops_training_and_names_iteration_and_terms(asynchronous):
    trainer = toy_trainer(1, float("nan"), async_write_metrics=asynchronous)
    with pytest.raises(NonFiniteLossError, match="iteration 1: loss=nan"):
        trainer.train(0, 5)
    assert issubclass(NonFiniteLossError, (DetlibError, FloatingPointError))


def test_weights_survive_a_loss_that_is_not_finite():
    trainer = toy_trainer(1, float("inf"), lr=0.25)
    with pytest.raises(FloatingPointError):
        trainer.train(0, 5)
    assert trainer.model.weight.item() == 0.75


def test_model_may_return_a_single_loss():
    model = nn.Linear(1, 1)
    model.forward = lambda batch: model.weight.sum()
    trainer = SimpleTrainer(model, Batches(1), torch.optim.SGD(model.parameters(), lr=0.1))
    keep = KeepStorage()
    trainer.register_hooks([keep])
    trainer.train(0, 1)
    assert set(keep.storage.latest()) == {"data_time", "total_loss"}


@pytest.mark.parametrize("output", [[], {}])
def test_model_that_returns_no_losses_is_refused(output):
    trainer = toy_trainer(1)
    trainer.model.forward = lambda batch: output
    with pytest.raises(TypeError, match="ToyModel must return a dict of losses"):
        trainer.train(0, 1)


def test_model_left_in_evaluation_mode_is_noticed():
    trainer = toy_trainer(1)
    trainer.model.eval()
    with pytest.raises(RuntimeError, match=r"model\.train"):
        trainer.train(0, 1)


def test_data_loader_that_ends_is_an_error_that_says_so():
    model = ToyModel()
    trainer = SimpleTrainer(model, [[{"x": torch.tensor(1.0)}]], torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(DatasetError, match="ended before iteration 1"):
        trainer.train(0, 2)


def test_reset_data_loader_starts_with_the_new_data():
    trainer = toy_trainer(1, lr=0.25)
    trainer.train(0, 1)
    trainer.reset_data_loader(lambda: Batches(2))
    trainer.train(1, 2)
    assert trainer.model.weight.item() == 1 - 0.25 * (1 + 2)


def test_resumed_trainer_goes_on_with_optimizer_hooks_and_training_state():
    first, counter = toy_trainer(1), Counter()
    first.optimizer.param_groups[0]["lr"] = 0.5
    first.register_hooks([counter])
    first.train(0, 3)
    second, resumed_counter = toy_trainer(1), Counter()
    second.register_hooks([resumed_counter])
    second.load_state_dict(first.state_dict())
    assert second.iter == 3
    assert resumed_counter.count == 3
    assert second.optimizer.param_groups[0]["lr"] == 0.5
    assert second.model.num_calls == 3
    assert "num_calls" not in second.model.state_dict()


def test_state_has_the_names_of_older_checkpoints():
    trainer = toy_trainer(1)
    trainer.register_hooks([Counter()])
    assert set(trainer.state_dict()) == {"iteration", "hooks", "optimizer", "training_state", "processes"}
    assert trainer.state_dict()["hooks"] == {"Counter": {"count": 0}}


def test_state_of_an_older_checkpoint_without_training_state_loads():
    trainer = toy_trainer(1)
    state = {"iteration": 7, "hooks": {"Gone": {"x": 1}}, "optimizer": trainer.optimizer.state_dict()}
    trainer.load_state_dict(state)
    assert trainer.iter == 7


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_amp_trainer_trains_like_the_simple_one_with_the_forward_pass_under_autocast(precision):
    trainer = toy_trainer(1, 2, trainer_class=AMPTrainer, precision=precision, lr=0.25)
    seen = []
    forward = trainer.model.forward

    def spy(batch):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)
        return forward(batch)

    trainer.model.forward = spy
    trainer.train(0, 3)
    assert trainer.model.weight.item() == pytest.approx(1 - 0.25 * (1 + 2 + 1))
    assert seen == [precision] * 3
    assert not torch.is_autocast_enabled("cpu")


def test_amp_hooks_see_gradients_at_their_own_scale():
    trainer, seen = toy_trainer(2, trainer_class=AMPTrainer), []

    class Look(HookBase):
        def after_backward(self):
            seen.append(self.trainer.model.weight.grad.item())

    trainer.register_hooks([Look()])
    trainer.train(0, 1)
    assert seen == [2.0]


def test_amp_state_holds_the_scale_of_float16_only():
    trainer = toy_trainer(1, trainer_class=AMPTrainer, grad_scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    other = toy_trainer(1, trainer_class=AMPTrainer)
    other.load_state_dict(trainer.state_dict())
    assert other.grad_scaler.get_scale() == 64.0
    assert "grad_scaler" not in toy_trainer(1, trainer_class=AMPTrainer, precision=torch.bfloat16).state_dict()


def test_amp_trainer_can_store_the_scale():
    trainer, keep = toy_trainer(1, trainer_class=AMPTrainer, log_grad_scaler=True), KeepStorage()
    trainer.register_hooks([keep])
    trainer.train(0, 1)
    assert keep.storage.latest()["[metric]grad_scaler"] == (65536.0, 0)
