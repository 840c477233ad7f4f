"""tools/new_project.py: the project that it makes passes its tests and trains; names and places that cannot be."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# One process for both, as each would spend seconds on imports.
TEST_AND_TRAIN = """
import runpy, sys
import pytest
project, *command = sys.argv[1:]
assert pytest.main([project, "-q", "-p", "no:cacheprovider"]) == 0
sys.argv = command
runpy.run_path(command[0], run_name="__main__")
"""


@pytest.fixture
def new_project(call_tool):
    return lambda *args: call_tool("new_project", *args)


def test_a_new_project_passes_its_own_tests_and_trains(new_project, tmp_path):
    assert new_project("FreshIdea").status == 0
    config = "projects/FreshIdea/configs/fresh_idea.yaml"
    train = [str(ROOT / "tools/train_net.py"), "--config-file", config]
    # shapes_val is smaller than shapes_train, which would have to be drawn on a new machine.
    changes = ["SOLVER.MAX_ITER=2", "DATALOADER.NUM_WORKERS=0", "DATASETS.TRAIN=[shapes_val]", "DATASETS.TEST=[]"]
    done = subprocess.run(
        [sys.executable, "-c", TEST_AND_TRAIN, "projects/FreshIdea", *train, *changes],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout
    assert (tmp_path / "output/fresh_idea/model_final.pth").is_file()


def test_files_and_classes_have_the_names_of_the_project(new_project, tmp_path):
    new_project("fresh_idea")
    folder = tmp_path / "projects" / "FreshIdea"
    files = {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert set(files) == {
        "README.md",
        "configs/fresh_idea.yaml",
        "fresh_idea/__init__.py",
        "fresh_idea/box_loss.py",
        "fresh_idea/detector.py",
        "fresh_idea/neck.py",
        "tests/test_fresh_idea.py",
    }
    assert "class FreshIdeaBoxLoss(" in files["fresh_idea/box_loss.py"]
    assert "cfg.MODEL.FRESH_IDEA = " in files["fresh_idea/__init__.py"]
    assert 'IMPORTS: ["detlib.projects.fresh_idea"]' in files["configs/fresh_idea.yaml"]
    assert not [name for name, text in files.items() if "my_project" in text.lower() or "MyProject" in text]


def test_next_commands_are_printed_for_the_folder_that_was_named(new_project, tmp_path):
    done = new_project("FreshIdea", "--dir", tmp_path / "my code" / "projects")
    project = f"{tmp_path}/my code/projects/FreshIdea"
    assert f"python {ROOT}/tools/train_net.py --config-file '{project}/configs/fresh_idea.yaml'\n" in done.out
    assert f"python -m pytest '{project}'\n" in done.out
    assert Path(project, "configs/fresh_idea.yaml").is_file()


@pytest.mark.parametrize(
    ("name", "title", "package"),
    [
        ("MyIdea", "MyIdea", "my_idea"),
        ("my_idea", "MyIdea", "my_idea"),
        ("DETR", "DETR", "detr"),
        ("RTDetr2", "RTDetr2", "rt_detr2"),
    ],
)
def test_names_of_folder_and_package(new_project, tmp_path, name, title, package):
    new_project(name)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("projects/*/*/__init__.py")] == [
        f"projects/{title}/{package}/__init__.py"
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my-idea", "'my-idea' is no name for a project; write it as MyIdea or my_idea, of letters and digits: MyIdea"),
        ("2fast", "write it as MyIdea or my_idea, of letters and digits: Fast"),
        ("../up", "'../up' is no name for a project"),
        ("", "'' is no name for a project"),
        ("Lambda", "'lambda' is a word of Python"),
        ("Backbone", "MODEL.BACKBONE is a section of detlib's own; choose another name than Backbone"),
    ],
)
def test_name_that_cannot_be_is_refused(new_project, tmp_path, name, message):
    done = new_project(name)
    assert done.status == 2 and done.err.startswith("error: ") and message in done.err
    assert not (tmp_path / "projects").exists()


def test_folder_that_exists_is_left_as_it_is(new_project, tmp_path):
    (tmp_path / "projects/FreshIdea").mkdir(parents=True)
    done = new_project("FreshIdea")
    assert done.status == 2 and "'projects/FreshIdea' exists already and is left as it is" in done.err
    assert not any((tmp_path / "projects/FreshIdea").iterdir())


def test_package_of_another_project_is_refused(new_project, tmp_path):
    (tmp_path / "projects/Older/fresh_idea").mkdir(parents=True)
    (tmp_path / "projects/Older/fresh_idea/__init__.py").touch()
    done = new_project("FreshIdea")
    assert done.status == 2
    assert "detlib.projects.fresh_idea is" in done.err and "Older/fresh_idea' already" in done.err


def test_folder_that_detlib_would_not_search_is_refused(new_project):
    done = new_project("FreshIdea", "--dir", "research")
    assert done.status == 2
    assert "projects are found in folders named 'projects', so use --dir research/projects" in done.err


def test_file_in_place_of_the_folder_is_refused(new_project, tmp_path):
    (tmp_path / "projects").touch()
    done = new_project("FreshIdea")
    assert done.status == 2 and "'projects' is a file" in done.err
