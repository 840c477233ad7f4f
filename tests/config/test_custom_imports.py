import logging
import pickle
import subprocess
import sys

import pytest

from detlib.config import get_cfg, import_custom_modules
from detlib.config.origins import places
from detlib.utils.errors import ConfigError, ConfigTypeError, CustomImportError

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


# Clumsy ways to ask


@pytest.mark.parametrize("section", ["null", "json", "[json]"])
def test_section_that_is_none_is_refused_also_over_a_base(write, section):
    write("parts.py", "")
    write("base.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./parts.py]}")
    with pytest.raises(
        ConfigTypeError, match=r"a\.yaml:2: CUSTOM_IMPORTS must be a section, as {IMPORTS: \[my_module\]}"
    ):
        merged(write("a.yaml", f"_BASE_: base.yaml\nCUSTOM_IMPORTS: {section}"))


@pytest.mark.parametrize("name", ["''", ".", "..parts"])
def test_what_cannot_be_a_name_is_an_error_of_the_import(write, name):
    with pytest.raises(CustomImportError, match=r"a\.yaml:1: .* it is no name of a module"):
        merged(write("a.yaml", f"CUSTOM_IMPORTS: {{IMPORTS: [{name}]}}"))


def test_no_list_names_its_line(write):
    with pytest.raises(ConfigTypeError, match=r"a\.yaml:2: CUSTOM_IMPORTS.IMPORTS must be a list of names"):
        merged(write("a.yaml", "\nCUSTOM_IMPORTS: {IMPORTS: null}"))


def test_allowing_failures_takes_a_boolean(write):
    with pytest.raises(ConfigError, match=r"ALLOW_FAILED_IMPORTS expects bool, as in False; got int 3"):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [no_such_module], ALLOW_FAILED_IMPORTS: 3}"))


def test_file_that_has_moved_gets_a_hint(write):
    with pytest.raises(
        CustomImportError, match=r"there is no such Python file\. If it has moved, write where it is now"
    ):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [/no/such/parts.py]}"))


def test_command_line_takes_one_name_and_files_of_the_current_directory(write, tmp_path, monkeypatch):
    write("parts.py", "def add_config(cfg):\n    cfg.MODEL.FROM_COMMAND_LINE = 1\n")
    monkeypatch.chdir(tmp_path)
    cfg = get_cfg()
    cfg.merge_from_list(["CUSTOM_IMPORTS.IMPORTS=./parts.py", "MODEL.FROM_COMMAND_LINE=2"])
    assert cfg.MODEL.FROM_COMMAND_LINE == 2
    assert list(cfg.CUSTOM_IMPORTS.IMPORTS) == [str(tmp_path / "parts.py")]


def test_command_line_and_further_files_add_to_the_imports(write):
    # A saved config has to ask for all that it needs.
    for name in ("one", "two"):
        write(f"{name}.py", "")
        write(f"{name}.yaml", f"CUSTOM_IMPORTS: {{IMPORTS: [./{name}.py]}}")
    cfg = merged(write("a.yaml", "_BASE_: one.yaml"))
    cfg.merge_from_file(write("b.yaml", "_BASE_: two.yaml"))
    cfg.merge_from_list(["CUSTOM_IMPORTS.IMPORTS", "json"])
    assert [name.rpartition("/")[2] for name in cfg.CUSTOM_IMPORTS.IMPORTS] == ["one.py", "two.py", "json"]
    assert places(cfg.CUSTOM_IMPORTS)["IMPORTS"].endswith("two.yaml:1, command line")


def test_command_line_refuses_what_is_no_list():
    with pytest.raises(ConfigTypeError, match=r"command line: CUSTOM_IMPORTS\.IMPORTS must be a list of names"):
        get_cfg().merge_from_list(["CUSTOM_IMPORTS.IMPORTS=null"])


def test_delete_marker_drops_the_imports_of_the_bases(write, on_path):
    write("base.yaml", "CUSTOM_IMPORTS: {IMPORTS: [no_such_module]}")
    cfg = merged(write("a.yaml", "_BASE_: base.yaml\nCUSTOM_IMPORTS: {_DELETE_: true, IMPORTS: [json]}"))
    assert cfg.CUSTOM_IMPORTS.IMPORTS == ["json"]


def test_module_that_failed_half_way_can_be_imported_again(write, on_path):
    on_path("my_registry", "from detlib.utils.registry import Registry\nPARTS = Registry('PART')")
    text = "from my_registry import PARTS\n\n@PARTS.register()\nclass MyPart: pass\n\n"
    path = write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./half.py]}")
    write("half.py", text + "import no_such_module")
    with pytest.raises(CustomImportError, match=r"No module named 'no_such_module'$"):
        merged(path)
    write("half.py", text)
    merged(path)


def test_options_are_added_again_if_adding_them_failed(write):
    path = write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./fails.py]}")
    write("fails.py", "def add_config(cfg):\n    1 / 0\n")
    cfg = get_cfg()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            cfg.merge_from_file(path)


def test_parts_of_a_file_can_be_sent_to_another_process(write):
    # As to the processes that load data, where these are not forked.
    write("my-parts.py", "class MyPart:\n    def __repr__(self):\n        return 'my part'\n")
    merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [./my-parts.py]}"))
    module = next(module for name, module in sys.modules.items() if name.startswith("detlib.projects.my_parts_"))
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer))"
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, input=pickle.dumps(module.MyPart()), capture_output=True, check=True)
    assert result.stdout.strip() == b"my part"


def test_unknown_project_says_how_to_make_it_known(write):
    with pytest.raises(
        CustomImportError, match="set the environment variable DETLIB_PROJECTS to the folder 'projects'"
    ):
        merged(write("a.yaml", "CUSTOM_IMPORTS: {IMPORTS: [detlib.projects.baz]}"))
