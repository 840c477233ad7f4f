"""The direction of imports: a file imports its own package and lower rows only."""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROWS = (
    {"utils", "projects"},
    {"config"},
    {"layers"},
    {"structures"},
    {"modeling", "data", "solver", "checkpoint"},
    {"evaluation", "visualization", "tracking"},
    {"engine"},
    {"export", "model_zoo"},
)

# Inside modeling; "" stands for the files at its top level.
MODELING_ROWS = (
    {"", "loss"},
    {"backbone", "neck"},
    {"proposal_generator", "roi_heads", "detr"},
    {"meta_arch", "self_supervised"},
)

# Old paths that lead upwards: they re-export, on first use, what lives in the package named here.
DOORS = {
    "detlib/utils/visualizer.py": "visualization",
    "detlib/utils/video_visualizer.py": "visualization",
    "detlib/utils/analysis.py": "export",
    "detlib/modeling/test_time_augmentation.py": "evaluation",
    # Not a path but a value: the federated loss needs to know how often each class occurs in the dataset.
    "detlib/modeling/roi_heads/fast_rcnn.py": "data",
}

MAX_LINES = 400
MAX_FUNCTION_LINES = 100
OPTIONAL = {"scipy", "lvis", "matplotlib", "timm", "onnx", "pycocotools", "faster_coco_eval", "tensorboard"}

FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "detlib").rglob("*.py"))


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text(encoding="utf-8"))


def imports_in(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that code in `package` imports, at any depth, also through importlib.import_module("...")."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def edges() -> Iterator[tuple[Path, str]]:
    """Each file with each module of detlib that it imports."""
    for file in FILES:
        for name in imports_in(tree_of(file), ".".join(file.parent.parts)):
            if name.startswith("detlib."):
                yield file, name


def package_of(file: Path) -> str:
    return file.parts[1] if len(file.parts) > 2 else ""


def is_door(file: Path, name: str) -> bool:
    return DOORS.get(file.as_posix()) == name.split(".")[1]


def row(package: str, rows: tuple[set[str], ...]) -> int:
    return next(i for i, names in enumerate(rows) if package in names)


def test_every_package_has_a_row():
    packages = {package_of(file) for file in FILES} - {""}
    assert packages <= set.union(*ROWS)


def test_files_import_their_own_package_and_lower_rows_only():
    wrong = []
    for file, name in edges():
        source, target = package_of(file), name.split(".")[1]
        known = set.union(*ROWS)
        if source not in known or target not in known or source == target or is_door(file, name):
            continue
        if row(target, ROWS) >= row(source, ROWS):
            wrong.append(f"{file} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_modeling_imports_leftwards_only():
    known = set.union(*MODELING_ROWS)

    def part(parts: tuple[str, ...]) -> str:
        return parts[2] if len(parts) > 2 and parts[2] in known else ""

    wrong = []
    for file, name in edges():
        # The package's own __init__ re-exports everything.
        if package_of(file) != "modeling" or not name.startswith("detlib.modeling.") or file.parts[2] == "__init__.py":
            continue
        source, target = part(file.parts), part(tuple(name.split(".")))
        if source != target and row(target, MODELING_ROWS) > row(source, MODELING_ROWS):
            wrong.append(f"{file} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_no_two_packages_import_each_other():
    pairs = {
        (package_of(file), name.split(".")[1])
        for file, name in edges()
        if package_of(file) not in ("", name.split(".")[1]) and not is_door(file, name)
    }
    assert not {(a, b) for a, b in pairs if (b, a) in pairs}


def test_doors_import_upwards_inside_a_function_only():
    for door in DOORS:
        if (ROOT / door).exists():
            top_level = [node for node in tree_of(Path(door)).body if isinstance(node, ast.Import | ast.ImportFrom)]
            names = [name for node in top_level for name in imports_in(node, ".".join(Path(door).parent.parts))]
            assert not [name for name in names if name.startswith(f"detlib.{DOORS[door]}")], door


def test_relative_imports_and_import_module_count_as_imports():
    tree = ast.parse("from ..structures import Boxes\ndef f():\n    importlib.import_module('detlib.engine')")
    assert list(imports_in(tree, "detlib.layers")) == ["detlib.structures.Boxes", "detlib.engine"]


def test_library_imports_no_tools_projects_or_tests():
    outer = {"tools", "projects", "tests"}
    wrong = [
        f"{file} imports {name}"
        for file in FILES
        for name in imports_in(tree_of(file), ".".join(file.parent.parts))
        if name.split(".")[0] in outer
    ]
    assert not wrong, "\n".join(wrong)


def test_files_stay_short():
    lengths = {str(file): len((ROOT / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    assert not {file: n for file, n in lengths.items() if n > MAX_LINES}


def test_functions_stay_short():
    long = [
        f"{file}:{node.lineno} {node.name}"
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


def test_public_modules_declare_all():
    def declares(file: Path) -> bool:
        targets = [
            target
            for node in tree_of(file).body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        ]
        return any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets)

    public = [file for file in FILES if file.name == "__init__.py" or not file.name.startswith("_")]
    assert not [str(file) for file in public if not declares(file)]


@pytest.mark.parametrize("statement", ["import detlib", "import detlib.engine, detlib.modeling, detlib.data"])
def test_import_loads_no_optional_package(statement):
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not OPTIONAL & {module.split(".")[0] for module in modules.split()}
