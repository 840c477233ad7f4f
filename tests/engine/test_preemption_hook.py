import multiprocessing
import os
import signal
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch

from detlib.checkpoint import DetectionCheckpointer
from detlib.engine import launch, preemption_hook
from detlib.engine.hooks import CallbackHook, EvalHook, PreemptionHook
from detlib.engine.preemption_hook import TrainingPreempted
from detlib.utils import comm
from tests.engine.toy import toy_trainer


def train(folder, *hooks, signals=(signal.SIGTERM,), iteration=2):
    """Trains to iteration 5; in ``iteration``, the signals come."""

    def send(trainer):
        if trainer.iter == iteration:
            for number in signals:
                os.kill(os.getpid(), number)

    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(folder), trainer=trainer)
    trainer.register_hooks([CallbackHook(before_step=send), PreemptionHook(checkpointer), *hooks])
    trainer.train(0, 5)
    return trainer


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_signal_ends_the_training_after_the_step_and_saves_it(tmp_path, log, name, status):
    with pytest.raises(TrainingPreempted) as ended:
        train(tmp_path, signals=[getattr(signal, name)])
    assert ended.value.code == status
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000002.pth"
    checkpoint = torch.load(tmp_path / "model_0000002.pth")
    assert checkpoint["iteration"] == checkpoint["trainer"]["iteration"] == 2
    assert checkpoint["model"]["weight"] == pytest.approx(1 - 3 * 0.1)  # Three steps with gradient 1 and rate 0.1.
    assert f"{name}: the training ends after iteration 2, which is saved. To go on, add --resume" in log.text


def test_hooks_end_as_usual_and_nothing_is_evaluated(tmp_path):
    ended, evaluated = [], []
    hooks = [
        CallbackHook(after_train=lambda trainer: ended.append(trainer.iter)),
        EvalHook(3, lambda: evaluated.append(1)),
    ]
    with pytest.raises(TrainingPreempted):
        train(tmp_path, *hooks)
    assert ended == [2]
    assert not evaluated


def test_training_that_goes_on_is_the_one_that_was_never_ended(tmp_path):
    with pytest.raises(TrainingPreempted):
        train(tmp_path)
    trainer = toy_trainer(1)
    DetectionCheckpointer(trainer.model, str(tmp_path), trainer=trainer).resume_or_load("")
    trainer.train(trainer.iter + 1, 5)
    assert torch.equal(trainer.model.weight, train(tmp_path / "other", signals=()).model.weight)


def test_handlers_are_restored_also_after_a_failure(tmp_path):
    before = [signal.getsignal(number) for number in preemption_hook.SIGNALS]

    def fail(trainer):
        assert signal.getsignal(signal.SIGTERM) not in before
        raise ValueError("a hook fails")

    with pytest.raises(ValueError, match="a hook fails"):
        train(tmp_path, CallbackHook(after_step=fail), signals=())
    assert [signal.getsignal(number) for number in preemption_hook.SIGNALS] == before


def test_handler_of_the_program_is_left_to_it(tmp_path):
    came = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        train(tmp_path, signals=[signal.SIGUSR1])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert came == [signal.SIGUSR1]
    assert not list(tmp_path.iterdir())


def test_signal_that_comes_on_two_ways_counts_once(tmp_path):
    with pytest.raises(TrainingPreempted):
        train(tmp_path, signals=[signal.SIGTERM, signal.SIGTERM, signal.SIGINT])
    assert (tmp_path / "model_0000002.pth").exists()


def test_checkpoint_that_was_just_saved_is_not_saved_again(tmp_path):
    trainer = toy_trainer(1)
    checkpointer = DetectionCheckpointer(trainer.model, str(tmp_path))
    saved = []
    save = checkpointer.save
    checkpointer.save = lambda name, **kwargs: (saved.append(name), save(name, **kwargs))

    def save_and_signal(trainer):
        checkpointer.save(f"model_{trainer.iter:07d}")
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.register_hooks([CallbackHook(after_step=save_and_signal), PreemptionHook(checkpointer)])
    with pytest.raises(TrainingPreempted):
        trainer.train(0, 5)
    assert saved == ["model_0000000"]


def test_training_in_a_thread_does_without(tmp_path):
    thread = threading.Thread(target=train, args=(tmp_path,), kwargs={"signals": ()})
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


def train_as_program(folder):
    """Waits in iteration 2, as in a long step, for a file that tells it to go on."""

    def wait(trainer):
        if trainer.iter == 2:
            (folder / "waits").touch()
            while not (folder / "go_on").exists():
                time.sleep(0.01)

    train(folder, CallbackHook(after_step=wait), signals=())


def start(folder):
    folder.mkdir()
    program = multiprocessing.get_context("fork").Process(target=train_as_program, args=(folder,))
    program.start()
    while not (folder / "waits").exists():
        time.sleep(0.01)
    return program


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_first_signal_to_a_program_saves_and_a_second_one_ends_it_at_once(tmp_path, capfd):
    patient, impatient = start(tmp_path / "patient"), start(tmp_path / "impatient")
    try:
        for program in (patient, impatient):
            os.kill(program.pid, signal.SIGTERM)
        time.sleep(preemption_hook.SAME_SIGNAL_SECONDS + 0.1)
        os.kill(impatient.pid, signal.SIGTERM)
        impatient.join(20)
        assert impatient.exitcode == -signal.SIGTERM
        assert not list((tmp_path / "impatient").glob("*.pth"))

        (tmp_path / "patient" / "go_on").touch()
        patient.join(20)
        assert patient.exitcode == 143
        assert (tmp_path / "patient" / "model_0000003.pth").exists()  # It waited when iteration 2 was over.
    finally:
        for program in (patient, impatient):
            program.kill()
    told = capfd.readouterr().err
    assert "SIGTERM: saving a checkpoint after this iteration" in told
    assert "SIGTERM again: ending at once" in told


def train_in_this_process(folder):
    """Process 1 alone is told to end, in iteration 2."""
    signals = (signal.SIGTERM,) if comm.get_rank() == 1 else ()
    train(
        folder, CallbackHook(after_train=lambda trainer: (folder / f"ended{comm.get_rank()}").touch()), signals=signals
    )


def test_signal_to_one_process_ends_all_of_them_after_the_same_step(tmp_path):
    with pytest.raises(SystemExit) as ended:
        launch(train_in_this_process, 2, args=(tmp_path,), timeout=timedelta(minutes=2))
    assert ended.value.code == 143
    assert {file.name for file in tmp_path.iterdir()} == {"model_0000002.pth", "last_checkpoint", "ended0", "ended1"}
