"""Numbers that detectron2 gives on defined inputs and weights; the json file of each case states its tolerance."""

from pathlib import Path

import pytest

from tests.golden import cases, units

HERE = Path(__file__).parent
UNIT_CASES = [
    pytest.param(spec["name"], *case[1:], id=f"{spec['name']}-{case[0]}")
    for path in sorted((HERE / "units").glob("*.json"))
    for spec, file_cases in [units.load(str(path))]
    for case in file_cases
]


@pytest.mark.parametrize(("unit", "params", "inputs", "expected", "tolerance"), UNIT_CASES)
def test_unit_gives_the_golden_numbers(unit, params, inputs, expected, tolerance):
    found = units.UNITS[unit]("detlib", params, inputs)
    assert units.compare(expected, found, tolerance) == []


@pytest.mark.parametrize("path", sorted((HERE / "models").glob("*.json")), ids=lambda path: path.stem)
def test_model_gives_the_golden_detections_losses_and_gradients(path):
    assert cases.check("detlib", str(path)) == []
