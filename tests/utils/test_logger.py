import io
import logging
import sys

import pytest

from detlib.utils.logger import create_small_table, log_every_n, log_every_n_seconds, log_first_n, setup_logger


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def name(request):
    """A logger of its own for each test."""
    name = request.node.name
    yield name
    for handler in logging.getLogger(name).handlers:
        handler.close()


def test_messages_go_to_console_and_file(name, capsys, tmp_path):
    setup_logger(str(tmp_path), name=name)
    logging.getLogger(f"{name}.part").info("hello")
    logging.getLogger(name).warning("careful")
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert capsys.readouterr().out.splitlines() == lines
    assert lines[0].endswith(f" {name}.part]: hello")
    assert lines[1].endswith(f" {name}]: WARNING careful")


def test_second_call_repeats_nothing_and_may_add_a_file(name, capsys, tmp_path):
    setup_logger(name=name)
    setup_logger(str(tmp_path), name=name)
    setup_logger(str(tmp_path / "log.txt"), name=name)
    logging.getLogger(name).info("once")
    assert capsys.readouterr().out.count("once") == 1
    assert (tmp_path / "log.txt").read_text().count("once") == 1


def test_other_ranks_write_to_their_own_file_only(name, capsys, tmp_path):
    setup_logger(str(tmp_path / "sub" / "a.log"), 2, name=name)
    logging.getLogger(name).info("hello")
    assert capsys.readouterr().out == ""
    assert "hello" in (tmp_path / "sub" / "a.log.rank2").read_text()


def test_colours_are_for_terminals_only(name, monkeypatch, tmp_path):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    setup_logger(str(tmp_path), name=name)
    logging.getLogger(name).error("red")
    assert "\x1b[31m" in terminal.getvalue()
    assert "\x1b" not in (tmp_path / "log.txt").read_text()


def test_pipe_gets_no_colours(name, capsys):
    setup_logger(name=name)
    logging.getLogger(name).error("plain")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(("abbrev_name", "shown"), [("d", " d.part]"), ("", " part]")])
def test_abbreviation_stands_for_the_name_on_the_console(name, capsys, abbrev_name, shown):
    setup_logger(name=name, abbrev_name=abbrev_name)
    logging.getLogger(f"{name}.part").info("hello")
    assert shown in capsys.readouterr().out


def test_console_and_propagation_can_be_chosen(name, capsys, caplog):
    setup_logger(name=name, configure_stdout=False, enable_propagation=True)
    logging.getLogger(name).info("up")
    assert capsys.readouterr().out == ""
    assert caplog.messages == ["up"]


def test_exceptions_are_written_with_their_traceback(name, capsys):
    setup_logger(name=name)
    try:
        1 / 0  # noqa: B018
    except ZeroDivisionError:
        logging.getLogger(name).exception("failed")
    assert "ZeroDivisionError" in capsys.readouterr().out


def test_small_table_has_names_over_numbers():
    assert create_small_table({"AP": 40.0, "AP50": 60.12345}).splitlines() == [
        "|   AP   |  AP50  |",
        "|:------:|:------:|",
        "| 40.000 | 60.123 |",
    ]


def test_first_n_of_a_line_are_logged(caplog):
    for i in range(4):
        log_first_n(logging.WARNING, f"a{i}", n=2)
    assert caplog.messages == ["a0", "a1"]
    assert caplog.records[0].name == __name__


def test_first_n_of_a_message_are_logged(caplog):
    for message in ("b0", "b1", "b0"):
        log_first_n(logging.WARNING, message, key="message")
    log_first_n(logging.WARNING, "b1", key="message")
    log_first_n(logging.WARNING, "b1", key=("caller", "message"))
    assert caplog.messages == ["b0", "b1", "b1"]


def test_unknown_key_is_refused():
    with pytest.raises(ValueError, match="expected 'caller', 'message'"):
        log_first_n(logging.WARNING, "x", key="line")


def test_every_n_th_is_logged(caplog):
    for i in range(5):
        log_every_n(logging.WARNING, str(i), n=2, name="other")
    assert caplog.messages == ["0", "2", "4"]
    assert caplog.records[0].name == "other"


def test_seconds_between_messages(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    for seconds in (0, 4, 5, 6):
        now[0] = float(seconds)
        log_every_n_seconds(logging.WARNING, str(seconds), n=5)
    assert caplog.messages == ["0", "5"]
