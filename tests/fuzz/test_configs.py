"""Whatever is in a config file or behind KEY=, it is merged or refused by an error of detlib's, and runs no code."""

import glob
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from detlib.config import get_cfg
from detlib.config.suggest import all_keys
from detlib.utils.errors import ConfigError, DetlibError
from tests.fuzz.hostile import TEXTS, VALUES, damaged, mutated

ROOT = Path(__file__).parents[2]
REAL = [Path(path).read_bytes() for path in sorted(glob.glob(str(ROOT / "configs/**/*.yaml"), recursive=True))]
TREES = [tree for tree in map(yaml.safe_load, [text for text in REAL if b"!!python" not in text]) if tree]
KEYS = sorted(all_keys(get_cfg()))
MARKER = "it_ran"


def merge_or_refuse(folder, content):
    path = folder / "a.yaml"
    path.write_bytes(content)
    cfg = get_cfg()
    try:
        cfg.merge_from_file(str(path))
    except DetlibError as error:
        assert str(error)
    else:
        again = folder / "again.yaml"
        again.write_text(cfg.dump(), encoding="utf-8", errors="surrogatepass")
    assert not os.path.exists(folder / MARKER)


def without_imports(content):
    """An import runs code, and is meant to."""
    return content.replace(b"CUSTOM_IMPORTS", b"CUSTOM_EXPORTS")


@given(
    data=st.one_of(st.binary(max_size=80), st.text(max_size=80).map(lambda text: text.encode("utf-8", "surrogatepass")))
)
def test_random_text_is_merged_or_refused(folder, data):
    merge_or_refuse(folder, without_imports(data))


@given(data=st.sampled_from(REAL).flatmap(damaged))
def test_damaged_files_are_merged_or_refused(folder, data):
    merge_or_refuse(folder, without_imports(data))


@given(tree=st.sampled_from(TREES).flatmap(mutated))
def test_mutated_files_are_merged_or_refused(folder, tree):
    merge_or_refuse(folder, without_imports(yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")))


@given(
    key=st.sampled_from(KEYS),
    value=st.one_of(VALUES, VALUES.map(lambda value: yaml.safe_dump(value)), st.text(max_size=20)),
    rest=st.lists(st.sampled_from(["0", "-1", "NAME", "__class__", "_DELETE_", "", "9" * 30]), max_size=2),
)
def test_overrides_are_merged_or_refused(key, value, rest):
    key = ".".join([key.replace("CUSTOM_IMPORTS", "MODEL"), *rest])
    for pairs in ([key, value], [f"{key}={value}"]):
        cfg = get_cfg()
        try:
            cfg.merge_from_list(pairs)
        except DetlibError as error:
            assert str(error)
        else:
            cfg.dump()


@given(pairs=st.lists(TEXTS, max_size=4))
def test_random_overrides_are_merged_or_refused(pairs):
    try:
        get_cfg().merge_from_list(pairs)
    except DetlibError as error:
        assert str(error)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        "MODEL: " + "[" * 5000 + "]" * 5000,
        "MODEL: " + "{a: " * 5000 + "}" * 5000,
        "a: &a {b: *a}",
        "MODEL: &m {<<: *m}",
        "SEED: " + "9" * 5000,
        "SEED: 1e99999",
        "SEED: 0x" + "f" * 5000,
        "SEED: 1:" + "59:" * 5000 + "1",
        "SEED: !!bool maybe",
        "SEED: !!int ''",
        "SEED: !!timestamp x",
        "SOLVER: {BASE_LR: '" + "(" * 500 + ")" * 500 + "'}",
        "SOLVER: {BASE_LR: '" + "-" * 20000 + "1'}",
        "SOLVER: {STEPS: '" + "[" * 3000 + "'}",
        "SEED: 2001-99-99",
        "SEED: 2001-01-01",
        "SEED: !!binary '='",
        "SEED: !!set {1, 2}",
        "? [1, 2]\n: 3",
        "? {a: b}\n: 3",
        "1: 2",
        "null: 2",
        "MODEL: {true: 1}",
        "_BASE_: a.yaml",
        "_BASE_: [a.yaml, a.yaml]",
        "_BASE_: {a: b}",
        "_BASE_: .",
        '_BASE_: "a\\0b"',
        "_BASE_: http://[/x.yaml",
        "_BASE_: 'no://where'",
        "--- 1\n--- 2",
        "VERSION: [1]",
        "VERSION: 1\nMODEL: 5",
        "VERSION: 1\nMODEL: {RPN: {ANCHOR_SIZES: 3}, ANCHOR_GENERATOR: 5}",
        "%YAML 9.9\n---\na: 1",
        "CUSTOM_IMPORTS: {IMPORTS: [5]}",
    ],
)
def test_hostile_file_is_refused(folder, content):
    (folder / "a.yaml").write_text(content)
    with pytest.raises(DetlibError) as caught:
        get_cfg().merge_from_file(str(folder / "a.yaml"))
    assert "a.yaml" in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:os.system ["touch MARKER"]',
        "!!python/object/apply:builtins.eval [\"open('MARKER', 'w')\"]",
        "!!python/object/apply:eval [\"open('MARKER', 'w')\"]",
        '!!python/object/apply:subprocess.check_call [["touch", "MARKER"]]',
        '!!python/object/new:os.system ["touch MARKER"]',
        "!!python/object:pathlib.Path {}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!local 5",
    ],
)
@pytest.mark.parametrize(
    "within", ["SEED: {}", "MODEL: {{WEIGHTS: {}}}", "_BASE_: {}", "? {}\n: 1", "DATASETS: {{TRAIN: [{}]}}"]
)
def test_no_tag_runs_code(folder, tag, within):
    content = within.format(tag.replace("MARKER", str(folder / MARKER)))
    (folder / "a.yaml").write_text(content)
    with pytest.raises(ConfigError):
        get_cfg().merge_from_file(str(folder / "a.yaml"))
    assert not os.path.exists(folder / MARKER)


@pytest.mark.parametrize(
    "value", ["__import__('os').system('touch MARKER')", "open('MARKER', 'w')", "!!python/name:os.system"]
)
@pytest.mark.parametrize("key", ["SEED", "SOLVER.BASE_LR", "MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.REGISTER"])
def test_no_override_runs_code(folder, key, value):
    try:
        get_cfg().merge_from_list([key, value.replace("MARKER", str(folder / MARKER))])
    except DetlibError as error:
        assert key in str(error)
    assert not os.path.exists(folder / MARKER)
