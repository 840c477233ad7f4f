"""Exact polygons and run lengths of a boolean mask."""

import numpy as np

__all__ = ["mask_to_polygons", "mask_to_rle"]

Corner = tuple[int, int]  # x, y of a corner of pixels
Direction = tuple[int, int]  # dx, dy to the next corner


def mask_to_polygons(mask: np.ndarray) -> list[list[float]]:
    """Return polygons along the edges of pixels that enclose exactly the mask.

    COCO's polygons know no holes, so a part with a hole is cut in two through it.

    Args:
        mask: (H, W) bool.

    Returns:
        Flat lists [x0, y0, x1, y1, ...] in the plane in which pixel (0, 0) covers [0, 1) x [0, 1).
    """
    polygons = []
    for corners in _trace(mask):
        x, y = corners.T
        if (x * np.roll(y, -1) - y * np.roll(x, -1)).sum() < 0:  # Counterclockwise: the border of a hole.
            cut = int(x.min() + x.max()) // 2
            right = [[value + cut * (i % 2 == 0) for i, value in enumerate(p)] for p in mask_to_polygons(mask[:, cut:])]
            return mask_to_polygons(mask[:, :cut]) + right
        polygons.append(corners.reshape(-1).astype(float).tolist())
    return polygons


def _trace(mask: np.ndarray) -> list[np.ndarray]:
    """Follow all borders with the mask on the right; return the corners of each, (V, 2) integers."""
    edges = _border_edges(mask)
    loops = []
    while edges:
        start = next(iter(edges))
        loops.append(np.array(_follow(edges, start)))
    return loops


def _follow(edges: dict[Corner, list[Direction]], start: Corner) -> list[Corner]:
    """Take one closed border out of the edges and return its corners."""
    first = edges[start][0]
    point, direction, corners = start, first, []
    while True:
        edges[point].remove(direction)
        if not edges[point]:
            del edges[point]
        x, y = direction
        point = (point[0] + x, point[1] + y)
        ways = edges.get(point, []) + [first] * (point == start)
        # Turning right where there is a choice keeps apart pixels that touch at a corner only.
        ahead = next(way for way in ((-y, x), (x, y), (y, -x)) if way in ways)
        if ahead != direction:
            corners.append(point)
        if point == start and ahead == first:
            return corners
        direction = ahead


def _border_edges(mask: np.ndarray) -> dict[Corner, list[Direction]]:
    """Return the directions (dx, dy) in which borders leave each corner of a pixel (x, y)."""
    inside = np.pad(mask.astype(bool), 1)
    edges: dict[Corner, list[Direction]] = {}
    # Of each direction: the pixel to the right of the edge is inside, the other is not. Offsets are those of the
    # edge's start from the corner of the right pixel with the smallest x and y.
    for direction, (left_dx, left_dy), (start_x, start_y) in (
        ((1, 0), (0, -1), (0, 0)),
        ((0, 1), (1, 0), (1, 0)),
        ((-1, 0), (0, 1), (1, 1)),
        ((0, -1), (-1, 0), (0, 1)),
    ):
        is_border = inside & ~np.roll(inside, (-left_dy, -left_dx), axis=(0, 1))
        rows, columns = np.nonzero(is_border)
        for x, y in zip((columns - 1 + start_x).tolist(), (rows - 1 + start_y).tolist(), strict=True):
            edges.setdefault((x, y), []).append(direction)
    return edges


def mask_to_rle(mask: np.ndarray) -> dict[str, list[int]]:
    """Return COCO's uncompressed RLE: lengths of runs down the columns, the first one of background."""
    pixels = np.concatenate([[False], mask.astype(bool).reshape(-1, order="F")])
    starts = np.flatnonzero(pixels[1:] != pixels[:-1])
    return {"counts": np.diff(starts, prepend=0, append=mask.size).tolist(), "size": list(mask.shape)}
