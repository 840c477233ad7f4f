"""Writes the tables of docs/tutorials/self_supervised.md: the parts of each algorithm, and its recipes.

They are made of the registries and of configs/SelfSupervised/*.yaml; ``make docs`` runs this.
"""

import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detlib.config import CfgNode, get_cfg
from detlib.data import ViewMapper
from detlib.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    LOSS_REGISTRY,
    META_ARCH_REGISTRY,
    NECK_REGISTRY,
    build_model,
)
from detlib.modeling.self_supervised import MEMORY_REGISTRY, SelfSupModel
from detlib.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/tutorials/self_supervised.md"
RECIPES = ROOT / "configs/SelfSupervised"
HEADER = re.compile(
    r"# .+ \((?P<paper>https://arxiv\.org/abs/[\d.]+)\).*: (?P<epochs>\d+) epochs in batches of (?P<batch>\d+)\.\n"
    r"# ImageNet top-1: (?P<top1>.+)\.\n"
)
ABSENT = "-"


class Recipe(NamedTuple):
    """A config, and what its first lines say."""

    path: Path
    cfg: CfgNode
    paper: str
    epochs: str
    batch: str
    top1: str


def algorithms() -> dict[str, type[SelfSupModel]]:
    """detlib's own, by name in the order of the alphabet."""
    own = {
        name: cls
        for name, cls in META_ARCH_REGISTRY
        if inspect.isclass(cls) and issubclass(cls, SelfSupModel) and cls.__module__.startswith("detlib.")
    }
    return dict(sorted(own.items(), key=lambda item: item[0].lower()))


def recipes() -> list[Recipe]:
    """Those of each algorithm, in the order of :func:`algorithms`.

    Raises:
        ValueError: a config does not begin as it should, or an algorithm has none.
    """
    paths = [path for path in sorted(RECIPES.glob("*.yaml")) if not path.name.startswith("Base-")]
    order = list(algorithms())
    found = sorted(map(read_recipe, paths), key=lambda recipe: order.index(recipe.cfg.MODEL.META_ARCHITECTURE))
    if missing := set(order) - {recipe.cfg.MODEL.META_ARCHITECTURE for recipe in found}:
        raise ValueError(f"{', '.join(sorted(missing))}: no config in {RECIPES.relative_to(ROOT)}")
    return found


def read_recipe(path: Path) -> Recipe:
    header = HEADER.match(path.read_text(encoding="utf-8"))
    if header is None:
        raise ValueError(
            f"{path.relative_to(ROOT)} must begin with the lines '# NAME (https://arxiv.org/abs/...): N epochs in "
            "batches of N.' and '# ImageNet top-1: ....'"
        )
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return Recipe(path, cfg, **header.groupdict())


def table_of_parts() -> str:
    """A row for each combination of parts, with a link to the file of each."""
    links: dict[str, str] = {}

    def link(registry: Registry, name: str) -> str:
        if not name:
            return ABSENT
        path = Path(inspect.getfile(registry.get(name)))
        links[name] = f"[{name}]: {_from_page(path)}"
        return f"[{name}]"

    rows = []
    for recipe in recipes():
        model, ssl = recipe.cfg.MODEL, recipe.cfg.MODEL.SSL
        row = [
            link(META_ARCH_REGISTRY, model.META_ARCHITECTURE),
            f"[{recipe.paper.split('/')[-1]}]({recipe.paper})",
            link(BACKBONE_REGISTRY, model.BACKBONE.NAME),
            link(NECK_REGISTRY, ssl.NECK.get("NAME")),
            link(HEAD_REGISTRY, ssl.HEAD.get("NAME")),
            link(LOSS_REGISTRY, loss_of(recipe.cfg)),
            link(MEMORY_REGISTRY, ssl.MEMORY.get("NAME")),
        ]
        if row not in rows:
            rows.append(row)
    headers = ["algorithm", "paper", "backbone", "neck", "head", "loss", "memory"]
    return "\n".join([markdown_table(headers, rows), "", *(links[name] for name in sorted(links, key=str.lower))])


def loss_of(cfg: CfgNode) -> str:
    """The name of the loss that the head calls, which it may have by default."""
    cfg = cfg.clone()
    cfg.merge_from_list(["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        head = build_model(cfg).head
    names = {target: name for name, target in LOSS_REGISTRY}
    (loss,) = {names[type(module)] for module in head.modules() if type(module) in names}
    return loss


def table_of_recipes() -> str:
    rows = [
        [f"[{recipe.path.stem}]({_from_page(recipe.path)})", views_of(recipe.cfg), *recipe[3:]] for recipe in recipes()
    ]
    return markdown_table(["recipe", "views", "epochs", "batch", "ImageNet top-1"], rows)


def views_of(cfg: CfgNode) -> str:
    """How many views an image has, and of which size: ``2 x 224, 6 x 96``."""
    views = ViewMapper(cfg)({"image": np.zeros((512, 512, 3), np.uint8)})["views"]
    sizes = Counter(view.shape[-1] for view in views)
    return ", ".join(f"{count} x {size}" for size, count in sizes.items())


def markdown_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def with_tables(text: str) -> str:
    """The text with each table between its markers, ``<!-- make docs: NAME -->`` and ``<!-- end -->``."""
    for name, table in (("parts", table_of_parts()), ("recipes", table_of_recipes())):
        start, end = f"<!-- make docs: {name} -->\n", "\n<!-- end -->"
        before, marker, rest = text.partition(start)
        if not marker or end not in rest:
            raise ValueError(f"{PAGE.relative_to(ROOT)} lacks the lines {start.strip()} and {end.strip()}")
        text = f"{before}{start}{table}{end}{rest.split(end, 1)[1]}"
    return text


def _from_page(path: Path) -> str:
    return f"../../{path.resolve().relative_to(ROOT).as_posix()}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
