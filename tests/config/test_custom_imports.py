import logging
import sys

import pytest

from detlib.config import get_cfg, import_custom_modules
from detlib.utils.errors import ConfigTypeError, CustomImportError

MODULE = """
IMPORTED = True

def add_config(cfg):
    cfg.MODEL.MY_OPTION = getattr(cfg.MODEL, "MY_OPTION", 0) + 1
"""


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Writes a module that can be imported, and takes all of them out of the way after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(name, text=MODULE):
        (tmp_path / f"{name}.py").write_text(text)

    yield make
    for name in set(sys.modules) - before:
        del sys.modules[name]


def merged(path, **kwargs):
    cfg = get_cfg()
    cfg.merge_from_file(path, **kwargs)
    return cfg


def test_module_is_imported_before_values_are_read_and_may_add_options(write, on_path):
    on_path("my_parts_a")
    cfg = merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my_parts_a]}\nMODEL: {MY_OPTION: 5}"))
    assert sys.modules["my_parts_a"].IMPORTED
    assert cfg.MODEL.MY_OPTION == 5
    assert cfg.CUSTOM_IMPORTS.IMPORTS == ["my_parts_a"]


def test_options_are_added_once(write, on_path):
    on_path("my_parts_b")
    path = write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my_parts_b]}")
    cfg = merged(path)
    cfg.merge_from_file(path)
    import_custom_modules(cfg.clone())
    assert cfg.MODEL.MY_OPTION == 1


def test_single_name_needs_no_list(write, on_path):
    on_path("my_parts_c")
    assert merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: my_parts_c}")).CUSTOM_IMPORTS.IMPORTS == ["my_parts_c"]


def test_file_beside_the_config_is_found_from_anywhere(write, tmp_path, monkeypatch):
    write("parts/my_losses.py", "def add_config(cfg):\n    cfg.MODEL.FROM_FILE = 1\n")
    path = write("parts/a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./my_losses.py]}\nMODEL: {FROM_FILE: 2}")
    monkeypatch.chdir("/")
    cfg = merged(path)
    assert cfg.MODEL.FROM_FILE == 2
    # A config that is saved elsewhere still finds it.
    saved = write("output/config.yaml", cfg.dump())
    assert merged(saved).MODEL.FROM_FILE == 2


def test_files_of_the_same_name_do_not_meet(write):
    write("one/parts.py", "def add_config(cfg):\n    cfg.MODEL.ONE = 1\n")
    write("two/parts.py", "def add_config(cfg):\n    cfg.MODEL.TWO = 2\n")
    write("one/a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./parts.py]}")
    cfg = merged(write("two/b.yaml", "_BASE_: ../one/a.yaml\nCUSTOM_IMPORTS: {IMPORTS: [./parts.py]}"))
    assert (cfg.MODEL.ONE, cfg.MODEL.TWO) == (1, 2)


def test_imports_of_bases_come_first_and_once(write, on_path):
    for name in ("my_parts_d", "my_parts_e"):
        on_path(name)
    write("base.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my_parts_d]}")
    cfg = merged(write("a.yaml", "_BASE_: base.yaml\nCUSTOM_IMPORTS: {IMPORTS: [my_parts_e, my_parts_d]}"))
    assert cfg.CUSTOM_IMPORTS.IMPORTS == ["my_parts_d", "my_parts_e"]


def test_command_line_imports_before_other_options_are_set(on_path):
    on_path("my_parts_f")
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.MY_OPTION=7", "CUSTOM_IMPORTS.IMPORTS=['my_parts_f']"])
    assert cfg.MODEL.MY_OPTION == 7


def test_imports_can_be_switched_off(write, on_path):
    on_path("my_parts_g")
    merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my_parts_g]}"), import_custom_modules=False)
    assert "my_parts_g" not in sys.modules


def test_log_says_what_was_imported_and_who_asked(write, on_path, caplog):
    on_path("my_parts_h")
    with caplog.at_level(logging.INFO, "detlib"):
        merged(write("a.yaml", "\nCUSTOM_IMPORTS: {IMPORTS: [my_parts_h]}"))
    assert "Imported my_parts_h" in caplog.text and "a.yaml:2 asks for" in caplog.text


def test_missing_module_is_an_error_that_names_it_and_the_config(write):
    with pytest.raises(CustomImportError, match=r"a\.yaml:1: CUSTOM_IMPORTS asks for 'no_such_module'") as error:
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [no_such_module]}"))
    assert isinstance(error.value, ImportError)
    assert "./file.py" in str(error.value)


def test_missing_module_may_be_left_out(write, caplog):
    merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [no_such_module], ALLOW_FAILED_IMPORTS: true}"))
    assert "no_such_module" in caplog.text and "left out" in caplog.text


def test_other_errors_of_a_module_are_raised_even_when_failed_imports_are_allowed(write, on_path):
    on_path("my_parts_i", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my_parts_i], ALLOW_FAILED_IMPORTS: true}"))


def test_name_with_py_gets_a_hint(write):
    with pytest.raises(CustomImportError, match=r"Write 'my\.necks\.pafpn' for a module, or './my\.necks\.pafpn\.py'"):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [my.necks.pafpn.py]}"))


def test_name_that_is_no_text_is_refused(write):
    with pytest.raises(ConfigTypeError, match=r"a\.yaml:1: CUSTOM_IMPORTS.IMPORTS must be a list of names"):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [3]}"))


# Projects


def test_package_of_a_project_is_found_beside_the_config(write, tmp_path, monkeypatch):
    monkeypatch.setenv("DETLIB_PROJECTS", "")
    monkeypatch.chdir("/")
    write("projects/Foo/foo_of_test/__init__.py", "def add_config(cfg):\n    cfg.MODEL.FOO = 1\n")
    path = write(
        "projects/Foo/configs/foo.yaml",
        "CUSTOM_IMPORTS: {IMPORTS: [detlib.projects.foo_of_test]}\nMODEL: {FOO: 3}",
    )
    assert merged(path).MODEL.FOO == 3
    from detlib.projects import foo_of_test

    assert foo_of_test.__file__.startswith(str(tmp_path))


def test_package_of_a_project_is_found_from_the_current_directory(write, tmp_path, monkeypatch):
    monkeypatch.setenv("DETLIB_PROJECTS", "")
    write("projects/Bar/bar_of_test/__init__.py", "")
    write("projects/Bar/bar_of_test/deep.py", "VALUE = 4\n")
    monkeypatch.chdir(tmp_path)
    from detlib.projects.bar_of_test.deep import VALUE

    assert VALUE == 4


def test_unknown_project_lists_the_known(write, tmp_path, monkeypatch):
    write("projects/Bar/bar_of_test_2/__init__.py", "")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CustomImportError, match=r"no project has a package 'baz'; found: .*bar_of_test_2"):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [detlib.projects.baz]}"))
