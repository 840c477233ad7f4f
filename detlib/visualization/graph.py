"""Pictures of module graphs: a box for each node, and arrows with what flows between them."""

import os
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from detlib.modeling.meta_arch.graph.summary import FeatureSummary, GraphSummary, NodeSummary
from detlib.utils.errors import ConfigError
from detlib.visualization.colors import lighten
from detlib.visualization.graph_layout import Point, Size, lay_out
from detlib.visualization.graph_table import wrapped

__all__ = ["PICTURE_SUFFIXES", "check_picture_path", "draw_graph"]

PICTURE_SUFFIXES = (".png", ".svg", ".pdf")
DPI = 150

COLORS = {"backbone": "#2f6db5", "neck": "#2e8b7a", "head": "#c9741a", "loss": "#b5395c"}
GRAY = "#5a6068"
ARROW_COLOR = "#777d85"

# All sizes are in inches, except those of letters, which are in points.
POINT = 1 / 72
LINE = 1.3  # height of a line of text, in sizes of its letters
PADDING = 0.1
MARGIN = 0.25
SWATCH = 0.16
LABEL_WIDTH = 28  # characters
TEXT_WIDTH = 34


class _Line(NamedTuple):
    """A line of text in a box."""

    text: str
    size: float = 8.0
    bold: bool = False
    color: str = "black"

    @property
    def height(self) -> float:
        return self.size * LINE * POINT

    @property
    def width(self) -> float:
        from matplotlib.font_manager import FontProperties
        from matplotlib.textpath import TextPath

        font = FontProperties(weight="bold" if self.bold else "normal")
        return TextPath((0, 0), self.text, size=self.size, prop=font).get_extents().x1 * POINT if self.text else 0.0


def check_picture_path(path: str) -> None:
    """
    Raises:
        ConfigError: no picture can be written there.
    """
    file = Path(path)
    if file.suffix.lower() not in PICTURE_SUFFIXES:
        known = ", ".join(PICTURE_SUFFIXES)
        raise ConfigError(f"the picture can be one of {known}, but not {path!r}; change its suffix")
    if not file.parent.is_dir():
        raise ConfigError(f"there is no folder {str(file.parent)!r} for the picture {path!r}; make it first")
    if file.is_dir() or not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"the picture cannot be written to {path!r}; take another file")


def draw_graph(summary: GraphSummary, path: str, title: str = "Module graph") -> None:
    """Write a picture of a graph.

    Args:
        path: .png, .svg or .pdf, in a folder that exists.

    Raises:
        ConfigError: no picture can be written there.
    """
    check_picture_path(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    texts = {node.name: list(_lines(node, summary)) for node in summary.nodes}
    arrows = {(giver, node.name): _flow(giver, node, summary) for node in summary.nodes for giver in node.takes}
    width = max(line.width for lines in texts.values() for line in lines) + 2 * PADDING
    layout = lay_out(
        {name: (width, sum(line.height for line in lines) + 2 * PADDING) for name, lines in texts.items()},
        list(arrows),
        [_size(lines) for lines in arrows.values()],
    )
    header, keys = _header(summary, title), _keys(summary)
    top = sum(line.height for line in header) + 3.5 * SWATCH
    inner = max(layout.size[0], *(line.width for line in header), sum(_key_width(kind) for kind, _ in keys))
    # Text in an SVG stays text, so that it can be searched.
    with rc_context({"svg.fonttype": "none"}):
        figure = Figure(figsize=(inner + 2 * MARGIN, top + layout.size[1] + 2 * MARGIN), dpi=DPI)
        ax = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        ax.set(xlim=(-MARGIN, inner + MARGIN), ylim=(layout.size[1] + MARGIN, -top - MARGIN))
        ax.axis("off")
        _draw_lines(ax, header, (0.0, -top), "left")
        _draw_keys(ax, keys, -2.5 * SWATCH)
        left = (inner - layout.size[0]) / 2
        for points in layout.arrows:
            _draw_arrow(ax, [(x + left, y) for x, y in points])
        for (x, y), lines in zip(layout.labels, arrows.values()):
            _draw_label(ax, lines, (x + left, y))
        for node in summary.nodes:
            x, y = layout.boxes[node.name]
            _draw_box(ax, node, texts[node.name], (x + left, y), width)
        figure.savefig(Path(path))


def _header(summary: GraphSummary, title: str) -> list[_Line]:
    trained = summary.num_trained != summary.num_parameters
    counts = f"{short_count(summary.num_parameters)} parameters"
    counts += f" ({short_count(summary.num_trained)} trained)" if trained else ""
    lines = [_Line(line, 12.0, bold=True) for line in textwrap.wrap(title, TEXT_WIDTH + 16)]
    return [
        *lines,
        _Line(f"{counts}, {short_count(summary.flops)} FLOPs", 9.0),
        _Line("A multiplication with its addition counts as one", 7.5, color=GRAY),
    ]


def _keys(summary: GraphSummary) -> list[tuple[str, bool]]:
    """The kinds of nodes that there are, and whether the swatch stands for frozen ones."""
    keys = [(kind, False) for kind in COLORS if any(node.kind == kind for node in summary.nodes)]
    return keys + [("frozen", True)] * any(node.frozen for node in summary.nodes)


def _key_width(kind: str) -> float:
    return _Line(kind).width + 3.5 * SWATCH


def _lines(node: NodeSummary, summary: GraphSummary) -> Iterator[_Line]:
    """What stands in the box of a node."""
    yield _Line(node.name, 10.5, bold=True)
    yield from (_Line(line, color=GRAY) for line in wrapped(node.type, TEXT_WIDTH))
    if node.num_parameters:
        state = ""
        if node.frozen:
            state = ", frozen"
        elif node.num_trained != node.num_parameters:
            state = f", {short_count(node.num_trained)} trained"
        yield _Line(f"{short_count(node.num_parameters)} parameters{state}")
    yield _Line("runs when training" if node.flops is None else f"{short_count(node.flops)} FLOPs")
    for note in node.notes:
        yield from (_Line(line, color=COLORS["loss"]) for line in wrapped(note, TEXT_WIDTH))
    taken = {entry for other in summary.nodes for entry in other.takes.get(node.name, ())}
    kept = [entry for entry in node.entries if entry not in taken]
    if kept:
        yield from (_Line(line) for line in wrapped(f"gives {', '.join(kept)}", TEXT_WIDTH))


def _flow(giver: str, taker: NodeSummary, summary: GraphSummary) -> list[_Line]:
    """The label of an arrow."""
    source = next(node for node in summary.nodes if node.name == giver)
    lines = []
    for entry in taker.takes[giver]:
        texts = feature_span(source.features) if entry == "features" else [entry]
        lines += [_Line(line) for text in texts for line in wrapped(text, LABEL_WIDTH)]
        if entry in source.entries:
            lines += [_Line(line, 7.5, color=GRAY) for line in wrapped(source.entries[entry], LABEL_WIDTH)]
    return lines


def _size(lines: Sequence[_Line]) -> Size:
    return max((line.width for line in lines), default=0.0), sum(line.height for line in lines)


def feature_span(features: Sequence[FeatureSummary]) -> list[str]:
    """Names and channels of features, as "p3-p7, 256 ch", in two lines if it is long."""
    runs: list[list[str]] = []
    for name in (feature.name for feature in features):
        if runs and _follows(runs[-1][-1], name):
            runs[-1].append(name)
        else:
            runs.append([name])
    # Two in a row are as short with a comma.
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(run) for run in runs]
    names = ", ".join(parts)
    channels = "/".join(dict.fromkeys(str(feature.channels) for feature in features if feature.channels))
    if not channels:
        return [names]
    return [f"{names}, {channels} ch"] if len(names) + len(channels) + 5 <= LABEL_WIDTH else [names, f"{channels} ch"]


def _follows(name: str, other: str) -> bool:
    """Whether names end in numbers that follow each other, as p3 and p4."""
    first, second = (re.fullmatch(r"(.*?)(\d+)", text) for text in (name, other))
    return bool(first and second) and first[1] == second[1] and int(second[2]) == int(first[2]) + 1


def short_count(count: int) -> str:
    """A count in about three digits: "6,725", "23.5 M"."""
    if count < 10_000:
        return f"{count:,}"
    power = 1 if count < 999_500 else 2 if count < 999_500_000 else 3
    scaled = count / 1000**power
    digits = 0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2
    return f"{scaled:,.{digits}f} {' kMG'[power]}"


def _draw_arrow(ax: Any, points: Sequence[Point]) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Curve

    vertices, codes = [points[0]], [Curve.MOVETO]
    for index, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        if index % 2 == 0:
            vertices.append((x1, y1))
            codes.append(Curve.LINETO)
        else:
            y = (y0 + y1) / 2
            vertices += [(x0, y), (x1, y), (x1, y1)]
            codes += [Curve.CURVE4] * 3
    style = {"arrowstyle": "-|>", "mutation_scale": 10, "color": ARROW_COLOR, "linewidth": 1.2, "zorder": 1}
    ax.add_patch(FancyArrowPatch(path=Curve(vertices, codes), **style))


def _draw_label(ax: Any, lines: Sequence[_Line], center: Point) -> None:
    from matplotlib.patches import Rectangle

    width, height = _size(lines)
    corner = (center[0] - width / 2, center[1] - height / 2)
    ax.add_patch(Rectangle(corner, width, height, facecolor="white", edgecolor="none", zorder=2))
    _draw_lines(ax, lines, (center[0], corner[1]), "center")


def _draw_box(ax: Any, node: NodeSummary, lines: Sequence[_Line], center: Point, width: float) -> None:
    height = _size(lines)[1] + 2 * PADDING
    corner = (center[0] - width / 2, center[1] - height / 2)
    _draw_frame(ax, corner, (width, height), COLORS[node.kind], node.frozen)
    _draw_lines(ax, lines, (center[0], corner[1] + PADDING), "center")


def _draw_keys(ax: Any, keys: Sequence[tuple[str, bool]], y: float) -> None:
    x = 0.0
    for kind, frozen in keys:
        _draw_frame(ax, (x, y), (1.5 * SWATCH, SWATCH), COLORS.get(kind, GRAY), frozen)
        _draw_lines(ax, [_Line(kind)], (x + 2 * SWATCH, y), "left")
        x += _key_width(kind)


def _draw_frame(ax: Any, corner: Point, size: Size, color: str, frozen: bool) -> None:
    from matplotlib.patches import FancyBboxPatch

    style = {"linestyle": (0, (4, 2.5))} if frozen else {}
    shape = FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.05", linewidth=1.5, zorder=3, **style)
    shape.set(edgecolor=color, facecolor=lighten(color, 0.95 if frozen else 0.82))
    ax.add_patch(shape)


def _draw_lines(ax: Any, lines: Sequence[_Line], top: Point, align: str) -> None:
    """Lines of text under each other.

    Args:
        top: where the first line begins.
    """
    x, y = top
    for line in lines:
        style = {"fontsize": line.size, "fontweight": "bold" if line.bold else "normal", "color": line.color}
        ax.text(x, y + line.height / 2, line.text, ha=align, va="center_baseline", parse_math=False, zorder=4, **style)
        y += line.height
