"""Hostile input: values of any kind, and real files with something changed."""

import copy
import functools

from hypothesis import strategies as st

NUMBERS = st.one_of(
    st.integers(-5, 5),
    st.integers(),
    st.floats(),
    st.sampled_from([10**400, -(2**63), 2**32, 1e308, -0.0, float("nan"), float("inf"), 1e9]),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["", "1", "0.5", "nan", "../x", "/etc/passwd", "a\0b", "\ud800", "http://x/y", "null", "[1", "é"]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)


def places(tree, path=()):
    """Paths of all values of a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def mutated(draw, tree, values=VALUES, most=3):
    """A tree with up to ``most`` values replaced, removed or repeated."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        known = list(places(tree))
        if not known:
            break
        *path, key = draw(st.sampled_from(known))
        parent = functools.reduce(lambda part, name: part[name], path, tree)
        change = draw(st.sampled_from(["replace", "replace", "replace", "remove", "repeat"]))
        if change == "remove":
            del parent[key]
        elif change == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = draw(values)
    return tree


@st.composite
def damaged(draw, data):
    """Bytes with some flipped, cut out, put in or cut off."""
    data = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        if not data:
            break
        start = draw(st.integers(0, len(data) - 1))
        change = draw(st.sampled_from(["flip", "flip", "cut off", "cut out", "put in", "zero"]))
        if change == "flip":
            data[start] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut off":
            del data[start:]
        elif change == "cut out":
            del data[start : start + draw(st.integers(1, 16))]
        elif change == "put in":
            data[start:start] = draw(st.binary(min_size=1, max_size=16))
        else:
            length = min(draw(st.integers(1, 16)), len(data) - start)
            data[start : start + length] = bytes(length)
    return bytes(data)
