import json
import logging
import re

import pytest
import torch

from detlib.utils import event_storage
from detlib.utils.errors import DetlibError, UnknownNameError
from detlib.utils.event_writers import waiting_share
from detlib.utils.events import (
    CommonMetricPrinter,
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
    has_event_storage,
    log_scalar,
)


def test_storage_is_current_inside_its_block_only():
    assert not has_event_storage()
    with EventStorage() as outer:
        with EventStorage() as inner:
            assert get_event_storage() is inner
        assert get_event_storage() is outer
    with pytest.raises(DetlibError, match="no EventStorage is open"):
        get_event_storage()


def test_storage_closes_when_its_block_fails():
    with pytest.raises(ZeroDivisionError), EventStorage():
        1 / 0  # noqa: B018
    assert not has_event_storage()


def test_log_scalar_needs_no_storage():
    log_scalar("a", 1.0)
    with EventStorage(3) as storage:
        log_scalar("a", 2.0)
    assert storage.latest() == {"a": (2.0, 3)}


def test_values_are_recorded_by_iteration():
    storage = EventStorage(5)
    storage.put_scalars(a=1, b=2.5)
    storage.step()
    storage.put_scalar("a", 3)
    storage.put_scalar("b", 4.0, cur_iter=9)
    assert storage.iter == storage.iteration == 6
    assert storage.history("a").values() == [(1.0, 5), (3.0, 6)]
    assert storage.latest() == {"a": (3.0, 6), "b": (4.0, 9)}


def test_tensors_are_read_as_they_were_when_put_and_in_order():
    storage = EventStorage()
    value = torch.tensor([1.0], requires_grad=True)
    storage.put_scalar("a", value)
    storage.step()
    with torch.no_grad():
        value += 1
    storage.put_scalar("a", value)
    storage.step()
    storage.put_scalar("a", 3.0)
    storage.put_scalar("count", torch.tensor(7))
    assert storage.history("a").values() == [(1.0, 0), (2.0, 1), (3.0, 2)]
    assert storage.latest()["count"] == (7.0, 2)


def test_tensor_of_several_values_is_refused_where_it_is_put():
    with pytest.raises(RuntimeError):
        EventStorage().put_scalar("a", torch.zeros(2))


def test_unknown_scalar_names_the_known():
    storage = EventStorage()
    storage.put_scalar("loss", 1.0)
    with pytest.raises(UnknownNameError, match="known: loss"):
        storage.history("los")


def test_smoothing_is_the_median_of_the_last_iterations():
    storage = EventStorage()
    for value in (100.0, 1.0, 5.0, 3.0):
        storage.put_scalar("smooth", value)
        storage.put_scalar("plain", value, smoothing_hint=False)
        storage.step()
    assert storage.latest_with_smoothing_hint(3) == {"smooth": (3.0, 3), "plain": (3.0, 3)}
    assert storage.latest_with_smoothing_hint(4)["smooth"] == (4.0, 3)  # Between 3 and 5.
    assert storage.smoothing_hints() == {"smooth": True, "plain": False}


def test_samples_are_counted_within_the_window_of_iterations():
    storage = EventStorage()
    for iteration in (0, 10, 20, 30):
        storage.put_scalar("a", 1.0, cur_iter=iteration)
    assert storage.count_samples("a", 20) == 2  # 20 and 30; 10 is 20 iterations back.


def test_smoothing_hint_of_a_name_is_fixed():
    storage = EventStorage()
    storage.put_scalar("a", 1.0)
    with pytest.raises(ValueError, match="smoothing_hint=True"):
        storage.put_scalar("a", 1.0, smoothing_hint=False)


def test_name_scope_prefixes_names():
    storage = EventStorage()
    with storage.name_scope("rpn"):
        storage.put_scalar("loss", 1.0)
    storage.put_scalar("loss", 2.0)
    assert storage.latest() == {"rpn/loss": (1.0, 0), "loss": (2.0, 0)}


def test_json_writer_writes_each_iteration_once(tmp_path):
    path = tmp_path / "metrics.json"
    writer = JSONWriter(str(path), window_size=1)
    with EventStorage(7) as storage:
        storage.put_scalars(a=1.0, b=torch.tensor(0.5))
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("a", 2.0)
        writer.write()
    writer.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"iteration": 7, "a": 1.0, "b": 0.5},
        {"iteration": 8, "a": 2.0},
    ]


def test_json_writer_appends_after_a_resume(tmp_path):
    path = tmp_path / "metrics.json"
    for start in (0, 1):
        with EventStorage(start) as storage:
            writer = JSONWriter(str(path))
            storage.put_scalar("a", 1.0)
            writer.write()
            writer.close()
    assert [json.loads(line)["iteration"] for line in path.read_text().splitlines()] == [0, 1]


def test_tensorboard_files_hold_scalars_images_and_histograms(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage(4) as storage:
        storage.put_scalar("a", 0.5)
        storage.put_image("image", torch.zeros(3, 4, 5))
        storage.put_histogram("weights", torch.tensor([0.0, 1.0, 1.0, 4.0]), bins=4)
        writer.write()
        writer.write()  # Nothing is new.
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("a")] == [(4, 0.5)]
    assert [(e.step, e.width, e.height) for e in events.Images("image")] == [(4, 5, 4)]
    (histogram,) = events.Histograms("weights")
    value = histogram.histogram_value
    assert (value.min, value.max, value.num, value.sum, value.sum_squares) == (0.0, 4.0, 4.0, 6.0, 18.0)
    assert list(value.bucket_limit) == [1.0, 2.0, 3.0, 4.0]
    assert list(value.bucket) == [1.0, 2.0, 0.0, 1.0]


def test_histogram_of_equal_empty_or_infinite_values(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    writer = TensorboardXWriter(str(tmp_path))
    with EventStorage() as storage:
        storage.put_histogram("equal", torch.full((3,), 2.0), bins=2)
        storage.put_histogram("empty", torch.zeros(0))
        storage.put_histogram("infinite", torch.tensor([0.0, float("inf"), float("nan"), 1.0]), bins=2)
        writer.write()
    writer.close()
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    assert events.Tags()["histograms"] == ["equal", "infinite"]
    assert list(events.Histograms("equal")[0].histogram_value.bucket_limit) == [2.0, 2.5]
    assert events.Histograms("infinite")[0].histogram_value.num == 2.0


def test_tensorboard_writer_makes_no_file_before_it_writes(tmp_path):
    TensorboardXWriter(str(tmp_path)).close()
    assert list(tmp_path.iterdir()) == []


def test_printed_line_tells_eta_losses_times_and_rate(caplog):
    printer = CommonMetricPrinter(max_iter=101, window_size=20)
    with EventStorage(0) as storage, caplog.at_level(logging.INFO):
        for _ in range(3):
            storage.put_scalars(
                total_loss=1.25,
                loss_cls=torch.tensor(1.0),
                top1_acc=50.0,
                embedding_spread=0.9,
                num_fg=3,
                images_per_second=4.0,
                time=2.0,
                data_time=0.5,
            )
            storage.put_scalar("lr", 0.01, smoothing_hint=False)
            storage.step()
        storage.iter = 2
        printer.write()
    (record,) = caplog.records
    line = _without_memory(record).split("  ")
    assert line == [
        " eta: 0:03:16",  # 98 iterations of 2 seconds
        "iter: 2",
        "total_loss: 1.25",
        "loss_cls: 1",
        "top1_acc: 50",
        "embedding_spread: 0.9",
        "time: 2.0000",
        "last_time: 2.0000",
        "data_time: 0.5000",
        "last_data_time: 0.5000",
        "img/s: 4.0",
        "data_wait: 25%",
        "lr: 0.01",
    ]


def test_line_is_printed_without_any_scalars_and_not_after_the_end(caplog):
    printer = CommonMetricPrinter(max_iter=2)
    with EventStorage(1) as storage, caplog.at_level(logging.INFO):
        printer.write()
        storage.step()
        printer.write()
    assert [_without_memory(record) for record in caplog.records] == [" iter: 1"]


def test_line_tells_the_memory_in_use_and_no_results_of_evaluations(caplog):
    with EventStorage(1) as storage, caplog.at_level(logging.INFO):
        storage.put_scalar("validation_loss", 1.0, smoothing_hint=False)
        CommonMetricPrinter().write()
    (record,) = caplog.records
    assert int(re.search(r"ram: (\d+)M", record.message).group(1)) > 50  # torch alone takes that
    assert "loss" not in record.message


def _without_memory(record):
    return re.sub(r"  (max_mem|ram): \d+M", "", record.message)


def test_waiting_share_leaves_out_the_iterations_in_which_workers_start():
    storage = EventStorage()
    storage.put_scalar("data_time", 30.0)  # IterationTimer stores no "time" for the first ones.
    storage.step()
    assert waiting_share(storage, 20) is None
    for seconds in (0.5, 0.25):
        storage.put_scalars(data_time=seconds, time=1.5)
        storage.step()
    assert waiting_share(storage, 20) == 0.25  # 0.75 of 3 seconds


def test_history_of_a_scalar_keeps_its_last_values_only(monkeypatch):
    monkeypatch.setattr(event_storage, "_MAX_HISTORY", 3)
    storage = EventStorage()
    for value in range(5):
        storage.put_scalar("a", value)
        storage.step()
    history = storage.history("a")
    assert history.values() == [(2.0, 2), (3.0, 3), (4.0, 4)]
    assert history.global_avg() == 2.0


def test_event_writer_is_a_contract():
    with pytest.raises(NotImplementedError):
        EventWriter().write()
    EventWriter().close()
