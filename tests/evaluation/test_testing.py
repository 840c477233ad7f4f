import logging

import pytest

from detlib.config import get_cfg
from detlib.evaluation import print_csv_format, verify_results
from detlib.evaluation.testing import flatten_results_dict


def test_overall_metrics_are_printed_as_table_and_to_paste(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"bbox": {"AP": 37.5, "AP50": float("nan"), "AP-person": 50.0}})
    messages = [record.getMessage() for record in caplog.records]
    assert messages[1:] == ["copypaste: Task: bbox", "copypaste: AP,AP50", "copypaste: 37.5000,nan"]
    assert "| bbox   | 37.5000 | nan    |" in messages[0]


def test_result_that_is_one_number_is_printed(caplog):
    with caplog.at_level(logging.INFO):
        print_csv_format({"recall": 0.5})
    assert caplog.messages == ["copypaste: recall=0.5"]


def expecting(*results):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = list(results)
    return cfg


def test_results_within_the_tolerance_are_accepted():
    assert verify_results(expecting(["bbox", "AP", 38.0, 0.5]), {"bbox": {"AP": 37.6}})
    assert verify_results(expecting(), {})


@pytest.mark.parametrize("results", [{"bbox": {"AP": 37.4}}, {"bbox": {"AP": float("nan")}}, {"bbox": {}}, {}])
def test_results_that_are_off_or_missing_end_the_program(results, caplog):
    with pytest.raises(SystemExit) as stop:
        verify_results(expecting(["bbox", "AP", 38.0, 0.5]), results)
    assert stop.value.code == 1
    assert "bbox/AP" in caplog.text


def test_nested_results_are_flattened():
    assert flatten_results_dict({"bbox": {"AP": 1, "by": {"car": 2}}, "time": 3}) == {
        "bbox/AP": 1,
        "bbox/by/car": 2,
        "time": 3,
    }
