"""Pictures of overlapping shapes on textured ground, with everything in them known to the pixel.

Coordinates are of the plane in which pixel (0, 0) covers [0, 1) x [0, 1); y points down.
"""

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["CLASSES", "HANDLE_NAMES", "TEXTURES", "Scene", "Thing", "draw_scene"]

SHORT_SIDE = (112, 144)  # Image sizes, both ends included.
LONG_SIDE = (144, 176)
PORTRAIT_PROBABILITY = 0.3
EMPTY_PROBABILITY = 0.08
NUM_THINGS = (1, 5)  # Before those that nearly vanish behind others are left out.
SMALLEST, LARGEST = 9.0, 90.0  # Longer side of a shape before it is turned.
SIZE_EXPONENT = 0.18  # 1 spreads the logarithm of the size evenly, less favours large shapes.
TINY_PROBABILITY, TINY_SIZE = 0.01, (8.5, 14.0)
FILL_PROBABILITY = 0.02  # A shape as large as the image.
MAX_ASPECT = 1.25
MAX_TURN = math.radians(15)
MIN_VISIBLE = 0.85  # A shape of which less shows, behind others or beyond the border, is not drawn.
MIN_VISIBLE_SIDE = 8  # The same for one of which no side of the visible box has as many pixels.
# Most shapes have roughly the hue of their class, as things in the world do: it makes them learnable within minutes,
# and a model that mixes up the color channels shows. The others have any color, so that shapes must be learnt too.
TYPICAL_COLOR_PROBABILITY = 0.97
HUE_SPREAD = 0.03  # Standard deviation, in turns; classes are 1/6 apart.
MIN_CONTRAST = 90.0  # Distance of a shape's color from what is behind it, of 441 possible.
CROWD_PROBABILITY = 0.06
CROWD_SIZE = (5.0, 9.0)
CROWD_COUNT = (12, 24)
STROKE_PROBABILITY = 0.15  # Lines that belong to no class.
TEXTURE_CONTRAST = (5.0, 18.0)
NOISE = 5.0
SUPERSAMPLING = 4

TEXTURES = ("smooth", "stripes", "checker", "grain")
HANDLE_NAMES = ("top", "right", "bottom", "left")


def _circle(radius: float) -> np.ndarray:
    angles = np.arange(48) * (2 * math.pi / 48)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _star(points: int, inner: float) -> np.ndarray:
    angles = np.arange(2 * points) * (math.pi / points) - math.pi / 2
    radii = np.where(np.arange(2 * points) % 2, inner, 1.0)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cross(half_width: float) -> np.ndarray:
    w = half_width
    right_half = [(w, -1), (w, -w), (1, -w), (1, w), (w, w), (w, 1)]
    return np.array(right_half + [(-x, y) for x, y in reversed(right_half)], dtype=float)


@dataclass(frozen=True)
class _Template:
    """A shape in the square [-1, 1] x [-1, 1], symmetric in x so that a mirrored one is of the same class."""

    outline: np.ndarray  # (V, 2)
    handles: tuple[tuple[float, float], ...]  # The keypoints, in the order of HANDLE_NAMES.
    hole: np.ndarray | None = None
    is_turned: bool = True  # A round shape is not, for nobody could see where its handles went.


_STAR = _star(5, 0.42)
_TEMPLATES = {
    "circle": _Template(_circle(1.0), ((0, -1), (1, 0), (0, 1), (-1, 0)), is_turned=False),
    "square": _Template(np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)]), ((0, -1), (1, 0), (0, 1), (-1, 0))),
    "triangle": _Template(np.array([(0.0, -1), (1, 1), (-1, 1)]), ((0, -1), (1, 1), (0, 1), (-1, 1))),
    "star": _Template(_STAR, tuple(map(tuple, _STAR[[0, 2, 5, 8]]))),
    "cross": _Template(_cross(0.33), ((0, -1), (1, 0), (0, 1), (-1, 0))),
    "ring": _Template(_circle(1.0), ((0, -1), (1, 0), (0, 1), (-1, 0)), hole=_circle(0.58), is_turned=False),
}
CLASSES = tuple(_TEMPLATES)


@dataclass(frozen=True)
class Thing:
    """An object, or a crowd of one class."""

    class_index: int
    mask: np.ndarray  # (H, W) bool: the pixels of which it covers at least half and which nothing in front covers.
    keypoints: np.ndarray  # (4, 3): x, y, and 2 = visible, 1 = behind something, 0 = beyond the border.
    is_crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """An image and its truth. Things are listed from back to front; their masks do not overlap."""

    image: np.ndarray  # (H, W, 3) uint8 RGB
    textures: np.ndarray  # (H, W) uint8: index into TEXTURES of the ground, also below things.
    things: list[Thing]


@dataclass(frozen=True)
class _Placed:
    """A shape with its place in the image."""

    class_index: int
    coverage: np.ndarray  # (H, W) float: share of each pixel
    area: float  # Also of what lies beyond the border.
    handles: np.ndarray  # (4, 2)

    @property
    def mask(self) -> np.ndarray:
        return self.coverage >= 0.5


def draw_scene(rng: Generator) -> Scene:
    """Draw one picture; all of it is decided by the state of ``rng``."""
    height, width = _image_size(rng)
    image, textures = _draw_ground(rng, height, width)
    crowd = _place_crowd(rng, height, width) if rng.random() < CROWD_PROBABILITY else []
    is_empty = rng.random() < EMPTY_PROBABILITY
    num_things = 0 if is_empty else rng.integers(*NUM_THINGS, endpoint=True)
    candidates = [_place(rng, height, width) for _ in range(num_things)]
    # Mostly large behind small, or little would remain to be seen; the factor lets some cover smaller ones.
    candidates.sort(key=lambda placed: placed.area * math.exp(rng.normal(0.0, 0.7)))
    placed_things, visible_masks = _keep_visible(candidates)
    for placed in crowd + placed_things:
        _paint(rng, image, placed)
    things = _crowd_thing(crowd, visible_masks)
    for placed, mask in zip(placed_things, visible_masks, strict=True):
        things.append(Thing(placed.class_index, mask, _keypoints(placed.handles, mask)))
    noisy = image + rng.normal(0.0, NOISE, image.shape)
    return Scene(np.clip(np.rint(noisy), 0, 255).astype(np.uint8), textures, things)


def _image_size(rng: Generator) -> tuple[int, int]:
    short, long = rng.integers(*SHORT_SIDE, endpoint=True), rng.integers(*LONG_SIDE, endpoint=True)
    return (int(long), int(short)) if rng.random() < PORTRAIT_PROBABILITY else (int(short), int(long))


def _draw_ground(rng: Generator, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one texture, or two with a straight border between them, and perhaps strokes on it."""
    first, second = rng.choice(len(TEXTURES), size=2, replace=False)
    ys, xs = np.mgrid[:height, :width] + 0.5
    angle, offset = rng.uniform(0, 2 * math.pi), rng.uniform(-0.5, 0.5) * height
    is_second = (xs - width / 2) * math.cos(angle) + (ys - height / 2) * math.sin(angle) > offset
    is_second &= rng.random() < 0.5
    textures = np.where(is_second, second, first).astype(np.uint8)
    image = np.where(is_second[..., None], _texture(rng, second, xs, ys), _texture(rng, first, xs, ys))
    if rng.random() < STROKE_PROBABILITY:
        for _ in range(rng.integers(1, 4)):
            ends = rng.uniform((0, 0), (width, height), size=(2, 2))
            image = _blend(image, _rasterize_line(ends, rng.uniform(1, 3), height, width), rng.uniform(0, 255, 3))
    return image, textures


def _texture(rng: Generator, kind: int, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) colors: a ground color, varied along a pattern in [-1, 1]."""
    angle, phase = rng.uniform(0, math.pi), rng.uniform(0, 2 * math.pi)
    along, across = xs * math.cos(angle) + ys * math.sin(angle), ys * math.cos(angle) - xs * math.sin(angle)
    frequency = 2 * math.pi / rng.uniform(8, 24)
    match TEXTURES[kind]:
        case "smooth":
            pattern = (along - along.mean()) / np.abs(along - along.mean()).max()
        case "stripes":
            pattern = np.sin(along * frequency + phase)
        case "checker":
            pattern = np.sign(np.sin(along * frequency + phase) * np.sin(across * frequency + phase))
        case "grain":
            grains = rng.uniform(-1, 1, (xs.shape[0] // 3 + 1, xs.shape[1] // 3 + 1))
            pattern = grains.repeat(3, axis=0).repeat(3, axis=1)[: xs.shape[0], : xs.shape[1]]
    direction = rng.uniform(-1, 1, 3)
    direction *= rng.uniform(*TEXTURE_CONTRAST) / max(np.linalg.norm(direction), 1e-3)
    return rng.uniform(30, 225, 3) + pattern[..., None] * direction


def _place(rng: Generator, height: int, width: int) -> _Placed:
    """Choose a class, a place and a size."""
    class_index = int(rng.integers(len(CLASSES)))
    if rng.random() < FILL_PROBABILITY:
        half_size = np.array([width, height]) / 2 * rng.uniform(0.9, 1.02)
        return _transform(class_index, np.array([width, height]) / 2, half_size, 0.0, height, width)
    size = SMALLEST * (LARGEST / SMALLEST) ** (rng.random() ** SIZE_EXPONENT)
    if rng.random() < TINY_PROBABILITY:
        size = rng.uniform(*TINY_SIZE)
    aspect = MAX_ASPECT ** rng.uniform(-1, 1)
    half_size = size / 2 * np.array([min(aspect, 1.0), min(1 / aspect, 1.0)])
    # Up to a quarter of its size may lie beyond the border; one larger than the image is near the middle.
    margin = np.minimum(half_size / 2, np.array([width, height]) / 2)
    center = rng.uniform(margin, np.array([width, height]) - margin)
    return _transform(class_index, center, half_size, rng.uniform(-MAX_TURN, MAX_TURN), height, width)


def _place_crowd(rng: Generator, height: int, width: int) -> list[_Placed]:
    """Scatter many small shapes of one class."""
    class_index = int(rng.integers(len(CLASSES)))
    spread = rng.uniform(8, 16, 2)
    center = rng.uniform(2 * spread, np.array([width, height]) - 2 * spread)
    return [
        _transform(
            class_index,
            center + rng.uniform(-1.5, 1.5, 2) * spread,
            np.full(2, rng.uniform(*CROWD_SIZE) / 2),
            rng.uniform(-MAX_TURN, MAX_TURN),
            height,
            width,
        )
        for _ in range(rng.integers(*CROWD_COUNT, endpoint=True))
    ]


def _transform(
    class_index: int, center: np.ndarray, half_size: np.ndarray, turn: float, height: int, width: int
) -> _Placed:
    template = _TEMPLATES[CLASSES[class_index]]
    turn *= template.is_turned
    rotation = np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])

    def to_image(points: np.ndarray) -> np.ndarray:
        return points * half_size @ rotation + center

    outline = to_image(template.outline)
    coverage, area = _rasterize(outline, height, width), _area(outline)
    if template.hole is not None:
        hole = to_image(template.hole)
        coverage, area = coverage - _rasterize(hole, height, width), area - _area(hole)
    return _Placed(class_index, coverage, area, to_image(np.array(template.handles)))


def _area(polygon: np.ndarray) -> float:
    x, y = polygon.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _rasterize(polygon: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the share of each pixel that lies within the polygon."""
    canvas = Image.new("L", (width * SUPERSAMPLING, height * SUPERSAMPLING))
    # To Pillow the coordinate 0 is the center of the first pixel.
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in (polygon * SUPERSAMPLING - 0.5).tolist()], fill=255)
    return np.asarray(canvas.reduce(SUPERSAMPLING), dtype=np.float64) / 255


def _rasterize_line(ends: np.ndarray, thickness: float, height: int, width: int) -> np.ndarray:
    along = ends[1] - ends[0]
    across = np.array([-along[1], along[0]]) * (thickness / 2 / max(np.linalg.norm(along), 1.0))
    return _rasterize(np.stack([ends[0] - across, ends[1] - across, ends[1] + across, ends[0] + across]), height, width)


def _keep_visible(candidates: list[_Placed]) -> tuple[list[_Placed], list[np.ndarray]]:
    """Take candidates from front to back while enough of each shows; return them from back to front."""
    kept: list[_Placed] = []
    masks: list[np.ndarray] = []
    for placed in candidates:
        mask = placed.mask & ~np.any([other.mask for other in kept], axis=0) if kept else placed.mask
        side = max(np.ptp(np.nonzero(mask), axis=1)) + 1 if mask.any() else 0
        if mask.sum() >= MIN_VISIBLE * placed.area and side >= MIN_VISIBLE_SIDE:
            kept.append(placed)
            masks.append(mask)
    return kept[::-1], masks[::-1]


def _paint(rng: Generator, image: np.ndarray, placed: _Placed) -> None:
    """Paint a shape in a color that stands out from what is there, slightly shaded from one side to the other."""
    behind = image[placed.mask].mean(axis=0) if placed.mask.any() else np.full(3, 127.0)
    colors = _color_candidates(rng, placed.class_index)
    distances = np.linalg.norm(colors - behind, axis=1)
    color = colors[np.argmax(distances >= min(MIN_CONTRAST, distances.max()))]
    shade = np.linspace(-1, 1, image.shape[1])[None, :, None] * rng.uniform(-20, 20)
    image[:] = _blend(image, placed.coverage, color + shade)


def _color_candidates(rng: Generator, class_index: int) -> np.ndarray:
    """Return (16, 3) RGB colors to choose from."""
    if rng.random() >= TYPICAL_COLOR_PROBABILITY:
        return rng.uniform(0, 255, (16, 3))
    hue = rng.normal(class_index / len(CLASSES), HUE_SPREAD, 16)
    saturation, value = rng.uniform(0.45, 1.0, 16), rng.uniform(0.35, 1.0, 16)
    hsv = zip(hue % 1.0, saturation, value)
    return 255 * np.array([colorsys.hsv_to_rgb(*color) for color in hsv])


def _blend(image: np.ndarray, coverage: np.ndarray, color: np.ndarray) -> np.ndarray:
    return image + coverage[..., None] * (color - image)


def _crowd_thing(crowd: list[_Placed], masks_in_front: list[np.ndarray]) -> list[Thing]:
    """Return the crowd as one region with a rim of two pixels, as people outline crowds, or nothing."""
    if not crowd:
        return []
    region = _dilate(np.any([placed.mask for placed in crowd], axis=0))
    for mask in masks_in_front:
        region = region & ~mask
    return [Thing(crowd[0].class_index, region, np.zeros((4, 3)), is_crowd=True)] if region.any() else []


def _dilate(mask: np.ndarray) -> np.ndarray:
    """Add a rim of two pixels."""
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(5))) > 0


def _keypoints(handles: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mark as visible the handles next to which something of the shape shows."""
    height, width = mask.shape
    columns, rows = np.floor(handles).astype(int).T
    is_inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    is_shown = _dilate(mask)[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    visibility = np.where(is_inside, np.where(is_shown, 2, 1), 0)
    return np.concatenate([np.where(is_inside[:, None], handles, 0.0), visibility[:, None]], axis=1)
