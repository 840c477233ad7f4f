import json
import os
import re
import subprocess
import sys
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from detlib.config import get_cfg
from detlib.engine import default_argument_parser
from detlib.engine.run_comparison import compare_runs
from detlib.engine.setup import run_tool
from detlib.utils.errors import ConfigError
from tests.faults.training import FORK, verify_resume

RUN = subprocess.run


@pytest.fixture
def two_runs(tmp_path):
    """Folders of two trainings of three iterations that are alike."""
    folders = [tmp_path / "uninterrupted", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
        write_records(folder, [{}, {}, {}])
        write_checkpoint(folder)
    return folders


def write_records(folder, changes):
    values = {"samples": ["a.jpg"], "batch": "b", "losses": {"loss": 1.0}, "weights": "w", "random": "r"}
    lines = [json.dumps({"iteration": i, **values, **change}) for i, change in enumerate(changes)]
    (folder / "rank0.jsonl").write_text("\n".join(lines))


def write_checkpoint(folder, **changes):
    trainer = {"optimizer": {"state": {0: torch.zeros(2)}}, "processes": [{"random": torch.zeros(2), "data": {}}]}
    state = {"model": {"weight": torch.ones(2)}, "trainer": {"_trainer": trainer}, "detlib": {"folder": str(folder)}}
    torch.save({**state, **changes}, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")


def differing(folders):
    return {row.what: row.differences for row in compare_runs(*folders) if row.differences}


def test_runs_that_are_alike_differ_in_nothing_but_their_folders(two_runs):
    rows = compare_runs(*two_runs)
    assert {row.what: row.num_compared for row in rows} == {
        **{f"{what} of each iteration": 3 for what in ("samples", "batch", "losses", "weights", "random states")},
        **{f"final {what}": 1 for what in ("weights", "optimizer", "random states")},
    }
    assert not differing(two_runs)


def test_first_difference_names_iteration_and_both_values(two_runs, capsys):
    write_records(two_runs[1], [{}, {"losses": {"loss": 2.0}, "weights": "x"}, {"samples": ["b.jpg"]}])
    verify_resume.print_table(compare_runs(*two_runs))
    assert capsys.readouterr().out.endswith(
        "First difference, in the losses of each iteration:\n"
        '  iteration 1: {"loss": 1.0} uninterrupted, {"loss": 2.0} resumed\n'
    )


def test_iteration_that_was_left_out_is_a_difference(two_runs):
    write_records(two_runs[1], [{}, {}])
    assert differing(two_runs)["samples of each iteration"] == ['iteration 2: ["a.jpg"] uninterrupted, null resumed']


@pytest.mark.parametrize("weight", [torch.tensor([1.0, 1.0000001]), torch.ones(1), None])
def test_other_and_missing_weights_are_found_in_the_final_checkpoint(two_runs, weight):
    write_checkpoint(two_runs[1], model={} if weight is None else {"weight": weight})
    differences = differing(two_runs)["final weights"]
    assert differences[-1] == "last checkpoint: model > weight"


def test_kills_are_at_the_places_asked_for_and_repeat_with_the_seed():
    args = SimpleNamespace(kills="step,between,write", iters=13, seed=3)
    kills = verify_resume.plan_kills(args, seconds=0.5)
    assert sorted(kill.place for kill in kills) == ["between", "step", "write"]
    assert [(kill.iteration - 1) // 4 for kill in kills] == [0, 1, 2]
    assert kills == verify_resume.plan_kills(args, seconds=0.5)
    args.kills = "step,noon"
    with pytest.raises(ConfigError, match="--kills has noon; expected between, step, write, or none"):
        verify_resume.plan_kills(args, seconds=0.5)


def test_tool_proves_a_tiny_training(call_tool, config_file, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", run_forked)
    options = ["--iters", "4", "--checkpoint-period", "2", "--kills", "step", "--workers", "0"]
    done = call_tool("verify_resume", "--config-file", config_file, *options, "--output-dir", tmp_path / "runs")
    assert done.status == 0, done.out + done.err
    lines = done.out.splitlines()
    assert lines[-1] == "The resumed run is the uninterrupted one, to the last bit."
    assert "samples of each iteration" in done.out and "killed (step)" in done.out


def run_forked(command, stdout=None, **kwargs):
    """Instead of ``subprocess.run``, as imports take seconds."""
    if "--record" not in command:
        return RUN(command, stdout=stdout, **kwargs)
    process = FORK.Process(target=start, args=(command[1:], stdout))
    process.start()
    process.join()
    return SimpleNamespace(returncode=process.exitcode)


def start(arguments, stdout):
    os.setsid()
    torch.set_num_threads(1)
    sys.argv = arguments
    sys.stdout = sys.stderr = stdout
    run_tool(sys.modules["verify_resume"].run)


def test_page_on_resuming_names_options_tools_and_keys_that_exist(capsys, monkeypatch):
    root = Path(verify_resume.__file__).parents[1]
    text = (root / "docs/tutorials/resuming.md").read_text(encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["verify_resume.py", "--help"])
    with pytest.raises(SystemExit):
        verify_resume.run()
    options = capsys.readouterr().out + default_argument_parser().format_help()
    assert all(option in options for option in re.findall(r"--[a-z][a-z-]+", text))
    assert all((root / path).exists() for path in re.findall(r"(?:tools|configs)/[\w/.]+", text))
    cfg = get_cfg()
    for key in re.findall(r"`([A-Z_]+\.[A-Z_.]+)`", text):
        assert reduce(getitem, key.split("."), cfg) is not None
