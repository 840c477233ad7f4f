import random
from itertools import combinations, pairwise

import pytest

from detlib.visualization.graph_layout import lay_out


def rectangle(center, size):
    (x, y), (width, height) = center, size
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def overlap(one, other, margin=1e-6):
    return (
        one[0] < other[2] - margin
        and other[0] < one[2] - margin
        and one[1] < other[3] - margin
        and other[1] < one[3] - margin
    )


def random_graph(seed):
    """From 2 to 15 boxes, each of which takes from up to three earlier ones."""
    rng = random.Random(seed)
    names = [f"node{index}" for index in range(rng.randint(2, 15))]
    boxes = {name: (rng.uniform(1, 3), rng.uniform(0.5, 1.5)) for name in names}
    arrows = [
        (start, name)
        for index, name in enumerate(names)
        for start in rng.sample(names[:index], min(index, rng.randint(0, 3)))
    ]
    return boxes, arrows, [(rng.uniform(0.3, 2), rng.choice([0.15, 0.3])) for _ in arrows]


@pytest.mark.parametrize("seed", range(25))
def test_boxes_and_labels_of_random_graphs_do_not_overlap_and_lie_inside(seed):
    boxes, arrows, labels = random_graph(seed)
    layout = lay_out(boxes, arrows, labels)
    places = [rectangle(layout.boxes[name], size) for name, size in boxes.items()]
    places += [rectangle(center, size) for center, size in zip(layout.labels, labels)]
    assert not [pair for pair in combinations(places, 2) if overlap(*pair)]
    assert min(place[0] for place in places) >= -1e-6 and max(place[2] for place in places) <= layout.size[0] + 1e-6
    assert min(place[1] for place in places) >= -1e-6 and max(place[3] for place in places) <= layout.size[1] + 1e-6


@pytest.mark.parametrize("seed", range(25))
def test_arrows_of_random_graphs_lead_downwards_past_other_boxes_and_labels(seed):
    boxes, arrows, labels = random_graph(seed)
    layout = lay_out(boxes, arrows, labels)
    for index, ((start, end), points) in enumerate(zip(arrows, layout.arrows)):
        others = [rectangle(layout.boxes[name], size) for name, size in boxes.items() if name not in (start, end)]
        others += [rectangle(*pair) for i, pair in enumerate(zip(layout.labels, labels)) if i != index]
        # Whatever is bent lies between the smallest and the largest x, and between the rows.
        for (x0, y0), (x1, y1) in pairwise(points):
            assert y0 <= y1 + 1e-6
            part = (min(x0, x1), y0, max(x0, x1), y1)
            assert not [other for other in others if overlap(part, other, margin=1e-3)]


def test_arrow_starts_below_its_box_and_ends_above_the_other_one():
    layout = lay_out({"a": (2.0, 1.0), "b": (2.0, 0.5)}, [("a", "b")], [(1.0, 0.2)])
    (points,) = layout.arrows
    assert layout.boxes["a"] == pytest.approx((1.0, 0.5))
    assert points[0] == pytest.approx((1.0, 1.0))
    assert points[-1] == pytest.approx((1.0, layout.boxes["b"][1] - 0.25))
    assert points[0][1] < layout.labels[0][1] - 0.1 and layout.labels[0][1] + 0.1 < points[-1][1]


def test_chain_is_straight():
    names = [f"n{index}" for index in range(12)]
    arrows = list(pairwise(names))
    layout = lay_out(dict.fromkeys(names, (2.0, 1.0)), arrows, [(0.5 + 0.1 * i, 0.2) for i in range(11)])
    assert {round(x, 3) for x, _ in layout.boxes.values()} == {1.0}


def test_boxes_change_places_so_that_arrows_do_not_cross():
    layout = lay_out(dict.fromkeys("abcd", (1.0, 1.0)), [("a", "d"), ("b", "c")], [(0.5, 0.2)] * 2)
    x = {name: place[0] for name, place in layout.boxes.items()}
    assert (x["a"] - x["b"]) * (x["d"] - x["c"]) > 0


def test_what_takes_nothing_stands_right_above_what_takes_from_it():
    arrows = [("a", "b"), ("b", "c"), ("late", "c")]
    layout = lay_out(dict.fromkeys(["a", "b", "late", "c"], (1.0, 1.0)), arrows, [(0.5, 0.2)] * 3)
    assert layout.boxes["late"][1] == layout.boxes["b"][1] > layout.boxes["a"][1]


def test_boxes_without_arrows_stand_side_by_side():
    layout = lay_out({"a": (1.0, 1.0), "b": (1.0, 1.0)}, [], [])
    assert layout.boxes["a"][1] == layout.boxes["b"][1]
    assert layout.size == pytest.approx((2.3, 1.0))  # with the space of 0.3 between
