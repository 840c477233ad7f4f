"""Module graphs as text: a row for each node, and one with totals."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from detlib.modeling.meta_arch.graph.summary import FeatureSummary, GraphSummary, NodeSummary

__all__ = ["graph_table", "wrapped"]

COLUMNS = ("node", "type, settings", "from", "gives", "parameters", "trained", "10^9 FLOPs")
NUMBERS = ("parameters", "trained", "10^9 FLOPs")
SEPARATOR = "  "
# Where lines would be too long, the other columns become narrower: down to these widths, then further.
NARROW = (
    {"node": 12, "type, settings": 16, "from": 12, "gives": 36},
    {"node": 10, "type, settings": 10, "from": 10, "gives": 36},
    {"node": 6, "type, settings": 6, "from": 6, "gives": 6},
)

Row = Mapping[str, Sequence[str]]  # lines of each cell


def graph_table(summary: GraphSummary, max_width: int = 120) -> str:
    """A table of the nodes in the order in which they run; texts that are too long for a line go on in the next.

    FLOPs are in billions, and a multiplication with its addition counts as one.
    """
    decimals = _decimals([node.flops for node in summary.nodes if node.flops])
    rows = [_row(node, decimals) for node in summary.nodes]
    total = {
        "node": ["total"],
        "parameters": [f"{summary.num_parameters:,}"],
        "trained": [f"{summary.num_trained:,}"],
        "10^9 FLOPs": [_billions(summary.flops, decimals)],
    }
    titles = [title for title in COLUMNS if any(row[title] for row in rows)]
    table = [{title: [title] for title in titles}, *rows, total]
    widths = _fitted(
        {title: max(len(line) for row in table for line in row.get(title, [])) for title in titles}, max_width
    )
    header, *body, last = ("\n".join(_drawn(row, widths)) for row in table)
    rule = SEPARATOR.join("-" * width for width in widths.values())
    return "\n".join([header, rule, *body, rule, last])


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """A text in lines, which may also break inside the names of modules: after dots, and where words begin.

    Args:
        indent: before all lines but the first.
    """
    lines = [""]
    for part in re.findall(r"(?:[A-Z]+|[^A-Z\s._/,])[^A-Z\s._/,]*[._/,]*\s*|[._/,]+\s*", text):
        if lines[-1].strip() and len((lines[-1] + part).rstrip()) > width:
            lines.append(indent)
        lines[-1] += part
        while len(lines[-1].rstrip()) > width:
            lines[-1:] = lines[-1][:width], indent + lines[-1][width:]
    return [line.rstrip() for line in lines]


def _row(node: NodeSummary, decimals: int) -> Row:
    return {
        "node": [node.name],
        "type, settings": [node.type, *node.notes],
        "from": list(_sources(node)) or ["-"],
        "gives": [*_feature_lines(node.features), *(f"{name}: {what}" for name, what in node.entries.items())],
        "parameters": [f"{node.num_parameters:,}"],
        "trained": [f"{node.num_trained:,}", *(["frozen"] if node.frozen else [])],
        "10^9 FLOPs": ["-" if node.flops is None else _billions(node.flops, decimals)],
    }


def _sources(node: NodeSummary) -> Iterator[str]:
    """``prev``, and the nodes from which other entries come."""
    yield from node.prev
    for giver, entries in node.takes.items():
        others = [entry for entry in entries if entry != "features" or giver not in node.prev]
        if others:
            yield f"{', '.join(others)} of {giver}"


def _feature_lines(features: Sequence[FeatureSummary]) -> list[str]:
    """A line for each: name, channels, height x width, stride; these stand below each other."""
    cells = []
    for feature in features:
        channels = f"{feature.channels} ch" if feature.channels else ""
        stride = f"stride {feature.stride}" if feature.stride else ""
        cells.append((f"{feature.name}:", channels, " x ".join(map(str, feature.size)), stride))
    widths = [max(map(len, column)) for column in zip(*cells)]
    # Sizes and channels are numbers, which end below each other.
    return [
        f"{name:<{widths[0]}} {channels:>{widths[1]}}  {size:>{widths[2]}}  {stride}".rstrip()
        for name, channels, size, stride in cells
    ]


def _decimals(counts: Sequence[int]) -> int:
    """So many that the smallest count has two digits that are not 0, as far as it has two."""
    return min(max(10 - math.floor(math.log10(min(counts, default=10**9))), 3), 9)


def _billions(count: int, decimals: int) -> str:
    return f"{count / 1e9:.{decimals}f}" if count else "0"


def _fitted(widths: Mapping[str, int], max_width: int) -> dict[str, int]:
    """The widths of the columns, less what is too much of those that can be narrower."""
    fitted = dict(widths)
    for floors in NARROW:
        while sum(fitted.values()) + len(SEPARATOR) * (len(fitted) - 1) > max_width:
            spare = {title: width - floors[title] for title, width in fitted.items() if title in floors}
            widest = max(spare, key=spare.__getitem__)
            if spare[widest] <= 0:
                break
            fitted[widest] -= 1
    return fitted


def _drawn(row: Row, widths: Mapping[str, int]) -> Iterator[str]:
    """The lines of a row."""
    cells = {
        title: [line for text in row.get(title, []) for line in wrapped(text, width, indent=" ")]
        for title, width in widths.items()
    }
    for index in range(max(map(len, cells.values()))):
        line = ""
        for title, width in widths.items():
            text = cells[title][index] if index < len(cells[title]) else ""
            line += (f"{text:>{width}}" if title in NUMBERS else f"{text:<{width}}") + SEPARATOR
        yield line.rstrip()
