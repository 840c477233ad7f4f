import pytest

from detlib.config.suggest import all_keys, closest_keys, did_you_mean, misplaced

TREE = {
    "SOLVER": {"BASE_LR": 1, "BASE_LR_END": 0, "STEPS": ()},
    "MODEL": {"A": {"NORM": 1}, "B": {"NORM": 2, "RES5": 1}},
}
KEYS = list(all_keys(TREE))


def test_all_keys_lists_sections_and_options():
    assert list(all_keys({"A": {"B": 1}, "C": 2})) == ["A", "A.B", "C"]


@pytest.mark.parametrize(
    ("key", "closest"),
    [
        ("BASE_LR", ["SOLVER.BASE_LR"]),
        ("solver.base_lr", ["SOLVER.BASE_LR"]),
        ("SOLVERS", ["SOLVER"]),
        ("SOLVER.STEP", ["SOLVER.STEPS"]),
        ("MODEL.B.NORMS", ["MODEL.B.NORM", "MODEL.A.NORM"]),
        ("ZEBRA", []),
    ],
)
def test_closest_keys(key, closest):
    assert closest_keys(key, KEYS) == closest


def test_question_names_the_keys():
    assert did_you_mean("NORM", KEYS) in (
        "did you mean MODEL.A.NORM or MODEL.B.NORM?",
        "did you mean MODEL.B.NORM or MODEL.A.NORM?",
    )


def test_without_a_close_key_there_is_advice():
    assert "nothing is called like it" in did_you_mean("ZEBRA", KEYS)


def test_misplaced_ignores_sections_beside_each_other_and_series():
    assert misplaced("MODEL.C", "NORM", KEYS) is None
    assert misplaced("MODEL.B", "RES4", KEYS) is None
    assert misplaced("MODEL", "NORM", KEYS) in ("MODEL.A.NORM", "MODEL.B.NORM")
    assert misplaced("SOLVER", "STEP", KEYS) == "SOLVER.STEPS"
