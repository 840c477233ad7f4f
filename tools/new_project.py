#!/usr/bin/env python
"""Start a project: a folder with parts of your own, a config that uses them and trains at once, and tests.

The parts are examples to replace: a box loss, a neck and a detector, trained on shapes that detlib draws itself.
"""

import argparse
import keyword
import re
import shlex
import sys
from pathlib import Path

from detlib import projects
from detlib.config import get_cfg
from detlib.engine.setup import run_tool
from detlib.utils.errors import ConfigError, MissingFileError

EXAMPLES = """
Examples:
  projects/MyIdea with the package my_idea, which configs know as detlib.projects.my_idea:
      {prog} MyIdea
  the same, as names may be written either way:
      {prog} my_idea
  in a repository of its own, next to code that is not detlib's:
      {prog} MyIdea --dir ~/research/projects
"""

TEMPLATE = Path(__file__).resolve().parent / "project_template"
# detlib looks for projects in folders of this name.
FOLDER = "projects"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="of the project, as MyIdea or my_idea")
    parser.add_argument(
        "--dir",
        default=FOLDER,
        metavar="DIR",
        help=f"where to make it, a folder named {FOLDER!r} (default: {FOLDER})",
    )
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    title, package = names_of(args.name)
    target = Path(args.dir).expanduser() / title
    check_place(target)
    check_is_new(target, package)
    for source in template_files():
        write(source, target, title, package)
    print_next_steps(target, package)


def names_of(name: str) -> tuple[str, str]:
    """Names of the folder and of the package, MyIdea and my_idea, of a name in either form."""
    if re.fullmatch(r"[A-Z][A-Za-z0-9]*", name):
        # A word begins where a capital follows a small letter, and at the last of several capitals: RT, Detr.
        title, package = name, re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    elif re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        title, package = "".join(word.capitalize() for word in name.split("_")), name
    else:
        words = re.findall(r"[A-Za-z0-9]+", name.lstrip("0123456789_-. "))
        proposal = "".join(word[0].upper() + word[1:] for word in words) or "MyIdea"
        raise ConfigError(
            f"{name!r} is no name for a project; write it as MyIdea or my_idea, of letters and digits: {proposal}"
        )
    if keyword.iskeyword(package):
        raise ConfigError(f"{package!r} is a word of Python, so no package can have the name; add another word")
    return title, package


def check_place(target: Path) -> None:
    if target.parent.absolute().name != FOLDER:
        raise ConfigError(
            f"--dir is {str(target.parent)!r}; projects are found in folders named {FOLDER!r}, so use "
            f"--dir {target.parent / FOLDER}"
        )
    if target.parent.exists() and not target.parent.is_dir():
        raise ConfigError(f"{str(target.parent)!r} is a file; move it, or name another folder with --dir")
    if target.exists():
        raise ConfigError(f"{str(target)!r} exists already and is left as it is; choose another name, or remove it")


def check_is_new(target: Path, package: str) -> None:
    """Refuse names that something else has, as the config would then mean that, or change it."""
    title = target.name
    neighbours = [path.parent for path in target.parent.glob(f"*/{package}/__init__.py")]
    others = [*projects.available().get(package, []), *neighbours]
    if others:
        raise ConfigError(f"detlib.projects.{package} is {str(others[0])!r} already; choose another name than {title}")
    if package.upper() in get_cfg().MODEL:
        raise ConfigError(f"MODEL.{package.upper()} is a section of detlib's own; choose another name than {title}")


def template_files() -> list[Path]:
    files = sorted(path for path in TEMPLATE.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    if not files:
        raise MissingFileError(f"{str(TEMPLATE)!r} has no files; copy detlib's whole folder tools, not this file alone")
    return files


def write(source: Path, target: Path, title: str, package: str) -> None:
    """Copy a file of the template under the names of the project."""

    def renamed(text: str) -> str:
        names = {"MyProject": title, "my_project": package, "MY_PROJECT": package.upper()}
        return re.sub("|".join(names), lambda match: names[match[0]], text)

    path = target / renamed(source.relative_to(TEMPLATE).as_posix())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(renamed(source.read_text(encoding="utf-8")), encoding="utf-8")


def print_next_steps(target: Path, package: str) -> None:
    train_net = TEMPLATE.parent / "train_net.py"
    if train_net.is_relative_to(Path.cwd()):
        train_net = train_net.relative_to(Path.cwd())
    config = target / "configs" / f"{package}.yaml"
    print(
        f"{target} is there; its parts are examples to replace, see {target / 'README.md'}.\n\n"
        f"Train it:\n    python {shlex.quote(str(train_net))} --config-file {shlex.quote(str(config))}\n"
        f"Test it:\n    python -m pytest {shlex.quote(str(target))}"
    )


if __name__ == "__main__":
    run_tool(run)
