import logging

import pytest

from detlib.config.origins import places
from detlib.config.safe_yaml import evaluate, load
from detlib.utils.errors import ConfigError


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("3", 3),
        ("-2.5", -2.5),
        ("(1, 2)", (1, 2)),
        ("[1 + 2, 7 - 2, 2 * 3, 1 / 4, 2 ** 3]", [3, 5, 6, 0.25, 8]),
        ("[x * 2 for x in [1, 2, 3]]", [2, 4, 6]),
        ("[(x, y) for x in (1, 2)]".replace("y", "-x"), [(1, -1), (2, -2)]),
        ("[[x * y for y in [1, 10]] for x in [1, 2]]", [[1, 10], [2, 20]]),
        ("[[x, x * 4**(1.0/2)] for x in [32, 64]]", [[32, 64.0], [64, 128.0]]),
    ],
)
def test_arithmetic_is_computed(expression, value):
    assert evaluate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('echo')",
        "open('x')",
        "().__class__",
        "[1, 2][0]",
        "'a' * 3",
        "True + 1",
        "1j",
        "lambda: 1",
        "[x for x in range(3)]",
        "[x for x in [1, 2] if x]",
        "{1: 2}",
        "f'{1}'",
        "x",
        "1 if 2 else 3",
        "[1] * 3",
        "(y := 2)",
        "7 // 2",
        "1 << 9",
        "[x for x in [[1], [2]]]",
        "(-1) ** 0.5",
        "",
        "1 +",
    ],
)
def test_anything_else_is_refused(expression):
    with pytest.raises(ConfigError):
        evaluate(expression)


@pytest.mark.parametrize(
    "expression",
    [
        "9 ** 9 ** 9",
        "2 ** 10000",
        "10 ** 12 * 10 ** 12",
        "1e300 * 1e300",
        "2.0 ** -100000",
        "1 / 0",
        "-" * 4000 + "1",
        "(" * 300 + "1" + ")" * 300,
        "[" + "1," * 4000 + "]",
        "[" * 8 + "0" + "".join(f" for {c} in [{'1,' * 10}]]" for c in "abcdefgh"),
    ],
)
def test_work_is_bounded(expression):
    with pytest.raises(ConfigError):
        evaluate(expression)


def test_arithmetic_tag_of_anchor_sizes_is_read():
    text = 'SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3)] for x in [32, 64]]"]'
    assert load(text, "x.yaml") == {"SIZES": [[32, 32 * 2 ** (1 / 3)], [64, 64 * 2 ** (1 / 3)]]}


@pytest.mark.parametrize(
    "value",
    [
        '!!python/object/apply:os.system ["touch pwned"]',
        "!!python/name:os.system",
        "!!python/object/new:tuple [[1]]",
        "!!python/tuple [1, 2]",
        "!!python/module:os",
        "!anything 1",
        "!!python/object/apply:eval [\"__import__('os').getcwd()\"]",
        "!!python/object/apply:eval {a: 1}",
        '!!python/object/apply:eval ["1", "2"]',
    ],
)
def test_tags_that_make_objects_are_refused_with_file_line_and_source(value):
    with pytest.raises(ConfigError) as caught:
        load(f"A: 1\nB:\n  C: {value}\n", "x.yaml")
    assert str(caught.value).startswith("x.yaml:3: ")
    assert value in str(caught.value)


def test_invalid_yaml_names_the_line():
    with pytest.raises(ConfigError, match=r"x\.yaml:2: not valid YAML"):
        load("A: [1,\nB: }", "x.yaml")


def test_keys_remember_their_line():
    tree = load("A: 1\nB:\n  C: 2\n", "x.yaml")
    assert places(tree) == {"A": "x.yaml:1", "B": "x.yaml:2"}
    assert places(tree["B"]) == {"C": "x.yaml:3"}


def test_merge_keys_and_aliases_work():
    tree = load("A: &a {X: 1, Y: 2}\nB:\n  <<: *a\n  Y: 3\n", "x.yaml")
    assert tree["B"] == {"X": 1, "Y": 3}


def test_aliases_that_multiply_or_contain_themselves_are_refused():
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for name, last in zip("bcdefgh", "abcdefg", strict=True):
        bomb += f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n"
    for text in (bomb, "a: &a [*a]"):
        with pytest.raises(ConfigError, match="more than"):
            load(text, "x.yaml")


def test_repeated_key_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        assert load("A: 1\nA: 2\n", "x.yaml") == {"A": 2}
    assert "x.yaml:2: A stands here again" in caplog.text


def test_empty_file_is_none():
    assert load("# nothing\n", "x.yaml") is None
