"""Places for the boxes of a graph and for the labels of its arrows: in layers from top to bottom, without overlap.

A layered drawing after Sugiyama et al., "Methods for Visual Understanding of Hierarchical System Structures" (1981):
rows of boxes alternate with rows of labels, an arrow has a slot in each row that it goes through, and slots are moved
within their rows so that few arrows cross and most are straight.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

__all__ = ["GraphLayout", "lay_out"]

STARTS = 12
SWEEPS = 24
MAX_MOVES = 1000
STRAIGHT = 8.0
SLOT_WIDTH = 0.1  # of an arrow that passes a row
SPACE = 0.3  # between the slots of a row
ROW_SPACE = 0.22  # between rows at least; arrows that go far aside get more
SLOPE = 0.16
MAX_ROW_SPACE = 0.75
HEAD_SPACE = 0.12  # straight before a box, for the head of the arrow
PORT_SPACE = 0.4  # between arrows at a box

Point = tuple[float, float]
Size = tuple[float, float]


@dataclass
class GraphLayout:
    """Where things are; x grows to the right and y downwards, and sizes are in the unit of the boxes.

    Attributes:
        size: width and height of all.
        boxes: the centre of each box.
        labels: the centre of each label.
        arrows: of each arrow, the points that it goes through; between an even and an odd one it is straight.
    """

    size: Size
    boxes: dict[str, Point]
    labels: list[Point]
    arrows: list[list[Point]]


@dataclass(eq=False)
class _Slot:
    """The place of a box, a label, or an arrow in a row."""

    width: float
    height: float = 0.0
    x: float = 0.0
    above: list["_Slot"] = field(default_factory=list)
    below: list["_Slot"] = field(default_factory=list)


def lay_out(boxes: Mapping[str, Size], arrows: Sequence[tuple[str, str]], labels: Sequence[Size]) -> GraphLayout:
    """Place boxes and labels.

    Args:
        boxes: width and height of each; arrows lead from earlier to later ones.
        arrows: names of the box where each starts, and of that where it ends; no two have both in common.
        labels: width and height of the label of each arrow.
    """
    row_of = _rows_of(list(boxes), arrows)
    slots = {name: _Slot(*size) for name, size in boxes.items()}
    rows: list[list[_Slot]] = [[] for _ in range(max(row_of.values()) + 1)]
    for name, slot in slots.items():
        rows[row_of[name]].append(slot)
    chains = []
    for (start, end), size in zip(arrows, labels):
        middle = [_Slot(SLOT_WIDTH) for _ in range(row_of[start] + 1, row_of[end])]
        middle[-1] = _Slot(max(size[0], SLOT_WIDTH), size[1])  # Beside the box that takes it, it tells most.
        for row, slot in enumerate(middle, start=row_of[start] + 1):
            rows[row].append(slot)
        chain = [slots[start], *middle, slots[end]]
        for upper, lower in pairwise(chain):
            upper.below.append(lower)
            lower.above.append(upper)
        chains.append(chain)
    rows = _with_few_crossings(rows)
    _set_x(rows)
    return _result(slots, chains, rows)


def _rows_of(names: Sequence[str], arrows: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The row of each box: below all that it takes from, with a row for labels between."""
    row_of = dict.fromkeys(names, 0)
    for name in names:
        row_of[name] = max((row_of[start] + 2 for start, end in arrows if end == name), default=0)
    # What takes nothing stands above the first that takes from it, not far up at the top.
    targets = {end for _, end in arrows}
    for name in names:
        if name not in targets:
            row_of[name] = min((row_of[end] - 2 for start, end in arrows if start == name), default=0)
    return row_of


def _with_few_crossings(rows: list[list[_Slot]]) -> list[list[_Slot]]:
    """The rows, each in an order in which arrows cross little: the best that is found from several first orders."""
    rng = random.Random(0)  # The same graph shall look the same every time.
    best, fewest = rows, math.inf
    for _ in range(STARTS):
        found = _swapped(_sorted_by_neighbors(rows))
        if (count := _crossings(found)) < fewest:
            best, fewest = found, count
        if not fewest:
            break
        rows = [rng.sample(row, len(row)) for row in rows]
    return best


def _sorted_by_neighbors(rows: Sequence[Sequence[_Slot]]) -> list[list[_Slot]]:
    """Rows, sorted again and again by the mean place of what is connected in the row before, or in that behind."""
    rows = [list(row) for row in rows]
    best, fewest = [list(row) for row in rows], _crossings(rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            places = {slot: index for other in rows for index, slot in enumerate(other)}
            means = {}
            for slot in row:
                near = slot.above if down else slot.below
                means[slot] = sum(places[other] for other in near) / len(near) if near else places[slot]
            row.sort(key=means.__getitem__)
        if (count := _crossings(rows)) < fewest:
            best, fewest = [list(row) for row in rows], count
    return best


def _swapped(rows: list[list[_Slot]]) -> list[list[_Slot]]:
    """Rows, with neighbours swapped as long as this leaves fewer crossings."""
    improved = True
    while improved:
        improved = False
        for number, row in enumerate(rows):
            near = rows[max(number - 1, 0) : number + 2]
            for index in range(len(row) - 1):
                before = _crossings(near)
                row[index : index + 2] = row[index + 1], row[index]
                if _crossings(near) < before:
                    improved = True
                else:
                    row[index : index + 2] = row[index + 1], row[index]
    return rows


def _crossings(rows: Sequence[Sequence[_Slot]]) -> int:
    """How many pairs of arrows cross between rows that follow one another."""
    count = 0
    for upper, lower in pairwise(rows):
        places = {slot: index for index, slot in enumerate(lower)}
        ends = [[places[other] for other in slot.below] for slot in upper]
        for index, lefts in enumerate(ends):
            count += sum(left > right for rights in ends[index + 1 :] for left in lefts for right in rights)
    return count


def _set_x(rows: Sequence[Sequence[_Slot]]) -> None:
    """Move slots towards their neighbours, as far as those beside them let them."""
    for row in rows:
        for slot, right in zip(row, accumulate(slot.width + SPACE for slot in row)):
            slot.x = right - SPACE - slot.width / 2
        middle = (row[0].x + row[-1].x) / 2
        for slot in row:
            slot.x -= middle
    for sweep in range(MAX_MOVES):
        moved = 0.0
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            offsets = list(accumulate(((a.width + b.width) / 2 + SPACE for a, b in pairwise(row)), initial=0.0))
            wanted = [_wanted_x(slot) for slot in row]
            places = _not_falling([(x - offset, weight) for (x, weight), offset in zip(wanted, offsets)])
            for slot, place, offset in zip(row, places, offsets):
                moved = max(moved, abs(place + offset - slot.x))
                slot.x = place + offset
        if moved < 1e-4:
            break


def _wanted_x(slot: _Slot) -> tuple[float, float]:
    """The weighted mean of the neighbours, and the sum of the weights: arrows that are alone should be straight."""
    pairs = [(other, len(other.below) == len(slot.above) == 1) for other in slot.above]
    pairs += [(other, len(other.above) == len(slot.below) == 1) for other in slot.below]
    weights = [STRAIGHT if alone else 1.0 for _, alone in pairs]
    if not pairs:
        return slot.x, 1.0
    return sum(weight * other.x for weight, (other, _) in zip(weights, pairs)) / sum(weights), sum(weights)


def _not_falling(values: Sequence[tuple[float, float]]) -> list[float]:
    """The closest sequence in which no value is less than the one before (pool adjacent violators).

    Args:
        values: each with the weight of its squared distance.
    """
    pools: list[tuple[float, float, int]] = []  # mean, weight, number of values
    for value, weight in values:
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, weight, count), (other_mean, other_weight, other_count) = pools.pop(), pools.pop()
            total = weight + other_weight
            pools.append(((mean * weight + other_mean * other_weight) / total, total, count + other_count))
    return [mean for mean, _, count in pools for _ in range(count)]


def _result(slots: Mapping[str, _Slot], chains: Sequence[list[_Slot]], rows: Sequence[list[_Slot]]) -> GraphLayout:
    left = min(slot.x - slot.width / 2 for row in rows for slot in row)
    for row in rows:
        for slot in row:
            slot.x -= left
    top, bottom, y = {}, {}, 0.0
    for index, row in enumerate(rows):
        end = y + max(slot.height for slot in row)
        for slot in row:
            top[slot], bottom[slot] = y, end
        aside = max((abs(slot.x - other.x) for slot in row for other in slot.below), default=0.0)
        y = end + min(max(ROW_SPACE, SLOPE * aside), MAX_ROW_SPACE) + (HEAD_SPACE if index % 2 else 0.0)
    arrows = []
    for chain in chains:
        start, *passed, end = chain
        x = _port(start, passed[0], start.below)
        points = [(x, top[start] + start.height), (x, bottom[start])]
        for slot in passed:
            points += [(slot.x, top[slot]), (slot.x, bottom[slot])]
        x = _port(end, passed[-1], end.above)
        arrows.append([*points, (x, top[end] - HEAD_SPACE), (x, top[end])])
    return GraphLayout(
        size=(max(slot.x + slot.width / 2 for row in rows for slot in row), max(bottom.values())),
        boxes={name: (slot.x, top[slot] + slot.height / 2) for name, slot in slots.items()},
        labels=[(chain[-2].x, (top[chain[-2]] + bottom[chain[-2]]) / 2) for chain in chains],
        arrows=arrows,
    )


def _port(box: _Slot, neighbor: _Slot, neighbors: Sequence[_Slot]) -> float:
    """Where an arrow touches a box: arrows stand side by side, in the order in which they come."""
    order = sorted(neighbors, key=lambda slot: slot.x)
    space = min(PORT_SPACE, 0.8 * box.width / len(order))
    return box.x + (order.index(neighbor) - (len(order) - 1) / 2) * space
