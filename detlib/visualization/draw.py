"""Boxes, masks, keypoints and text on one image: what :class:`Visualizer` is made of."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from detlib.utils.colormap import random_color
from detlib.visualization.colors import lighten, text_color_on, to_rgb
from detlib.visualization.labels import place_labels
from detlib.visualization.masks import interior_point, mask_rings, polygon_points, to_bitmask
from detlib.visualization.vis_image import VisImage, as_uint8_rgb

__all__ = ["Canvas", "rotated_box_corners"]

# Labels lie above boxes and masks in whichever order these are drawn.
SHAPE_LAYER = 2
TEXT_LAYER = 10
# Pixels per line of text, below which letters cannot be told apart.
SMALLEST_LETTERS = 8.5
# With more labels than this on an image, letters become smaller.
NUM_FULL_SIZE_LABELS = 12
# Labels cover at most this part of an image, as nothing would be left of a small one with many objects.
LARGEST_LABELED_PART = 0.2
# Lines about the whole image take at most this part of its height, as long as their letters can be read.
LARGEST_PART_OF_LINES = 0.5


class Canvas:
    """A copy of an image with methods that draw one thing each and return the :class:`VisImage`.

    Coordinates are pixels of the image. Widths of lines and sizes of letters are in points of the output, and their
    defaults follow its size.

    Args:
        img_rgb: (H, W, 3) RGB image in [0, 255].
        scale: size of the output relative to the image.
        font_size_scale: makes letters larger or smaller.
    """

    def __init__(self, img_rgb: np.ndarray, scale: float = 1.0, font_size_scale: float = 1.0) -> None:
        self.img = as_uint8_rgb(img_rgb)
        self.output = VisImage(self.img, scale=scale)
        side = float(np.sqrt(np.prod(self.output.output_size)))
        self._default_font_size = self._to_points(max(side * 0.018, 11.0)) * font_size_scale
        self._line_width = self._to_points(1 + side / 420)

    def get_output(self) -> VisImage:
        """What is drawn so far."""
        return self.output

    def draw_box(
        self, box_coord: Sequence[float], alpha: float = 0.5, edge_color: Any = "g", line_style: str = "-"
    ) -> VisImage:
        """Draw the outline of a box.

        Args:
            box_coord: x0, y0, x1, y1.
            alpha: opacity.
            edge_color: any of matplotlib's notations.
            line_style: matplotlib's, such as "-" or "--".
        """
        x0, y0, x1, y1 = (float(value) for value in box_coord)
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
        return self._draw_outlines([corners], edgecolor=(*to_rgb(edge_color), alpha), linestyle=line_style)

    def draw_rotated_box_with_label(
        self,
        rotated_box: Sequence[float],
        alpha: float = 0.5,
        edge_color: Any = "g",
        line_style: str = "-",
        label: str | None = None,
    ) -> VisImage:
        """Draw a rotated box, its lower side dashed to show which way is up.

        Args:
            rotated_box: centre x, centre y, width, height, and the angle in degrees by which the box is turned
                counter-clockwise as seen in the image.
            alpha: opacity.
            edge_color: any of matplotlib's notations.
            line_style: matplotlib's.
            label: written next to the box.
        """
        corners = rotated_box_corners(rotated_box)
        for side, (start, end) in enumerate(zip(corners, np.roll(corners, -1, axis=0), strict=True)):
            style = "--" if side == 2 else line_style
            self.draw_line([start[0], end[0]], [start[1], end[1]], color=(*to_rgb(edge_color), alpha), linestyle=style)
        if label:
            self._draw_rotated_box_labels([label], [rotated_box], [edge_color])
        return self.output

    def draw_line(
        self,
        x_data: Sequence[float],
        y_data: Sequence[float],
        color: Any,
        linestyle: str = "-",
        linewidth: float | None = None,
    ) -> VisImage:
        """Draw a line through points.

        Args:
            x_data: x of each point.
            y_data: y of each point.
            color: any of matplotlib's notations.
            linestyle: matplotlib's.
            linewidth: in points; None for one that suits the size of the image.
        """
        from matplotlib.lines import Line2D

        width = self._line_width if linewidth is None else linewidth
        self.output.ax.add_line(
            Line2D(x_data, y_data, color=color, linestyle=linestyle, linewidth=width, zorder=SHAPE_LAYER)
        )
        return self.output

    def draw_circle(self, circle_coord: Sequence[float], color: Any, radius: float = 3) -> VisImage:
        """Draw a filled circle.

        Args:
            circle_coord: x and y of its middle.
            color: any of matplotlib's notations.
            radius: in pixels of the image.
        """
        from matplotlib.patches import Circle

        x, y = (float(value) for value in circle_coord)
        self.output.ax.add_patch(Circle((x, y), radius=radius, color=color, linewidth=0, zorder=SHAPE_LAYER + 1))
        return self.output

    def draw_polygon(self, segment: Any, color: Any, edge_color: Any = None, alpha: float = 0.5) -> VisImage:
        """Draw a filled polygon.

        Args:
            segment: (N, 2) x and y.
            color: of the inside.
            edge_color: of the outline; None for a darker shade of the inside.
            alpha: opacity of the inside.
        """
        return self._draw_filled([polygon_points(segment)], color, edge_color, alpha)

    def draw_binary_mask(
        self,
        binary_mask: np.ndarray,
        color: Any = None,
        *,
        edge_color: Any = None,
        text: str | None = None,
        alpha: float = 0.5,
        area_threshold: float = 10,
    ) -> VisImage:
        """Draw a mask with its outline.

        Args:
            binary_mask: (H, W).
            color: of the inside; None for a random one.
            edge_color: of the outline; None for a darker shade of the inside.
            text: written in the mask's thickest part.
            alpha: opacity of the inside.
            area_threshold: connected parts with fewer pixels are not drawn.
        """
        mask = to_bitmask(binary_mask, self.output.height, self.output.width)
        color = random_color(rgb=True, maximum=1) if color is None else color
        rings = mask_rings(mask, *mask.shape, area_threshold)
        if not rings:
            return self.output
        self._draw_filled(rings, color, edge_color, alpha)
        if text is not None:
            self._draw_mask_labels([text], [mask], [color])
        return self.output

    def draw_soft_mask(
        self, soft_mask: np.ndarray, color: Any = None, *, text: str | None = None, alpha: float = 0.5
    ) -> VisImage:
        """Lay a colour over the image, as strongly as the mask says.

        Args:
            soft_mask: (H, W) in [0, 1].
            color: None for a random one.
            text: written in the thickest part of what exceeds 0.5.
            alpha: opacity where the mask is 1.
        """
        soft_mask = np.asarray(soft_mask, dtype=np.float32)
        bitmask = to_bitmask(soft_mask, self.output.height, self.output.width)
        color = random_color(rgb=True, maximum=1) if color is None else color
        layer = np.empty((*soft_mask.shape, 4), dtype=np.float32)
        layer[..., :3] = to_rgb(color)
        layer[..., 3] = soft_mask * alpha
        extent = (0, self.output.width, self.output.height, 0)
        self.output.ax.imshow(layer, extent=extent, aspect="auto", zorder=SHAPE_LAYER)
        if text is not None and bitmask.any():
            self._draw_mask_labels([text], [bitmask], [color])
        return self.output

    def draw_text(
        self,
        text: str,
        position: Sequence[float],
        *,
        font_size: float | None = None,
        color: Any = "g",
        horizontal_alignment: str = "center",
        rotation: float = 0,
    ) -> VisImage:
        """Write text on a dark box.

        Args:
            text: taken as it is, also with "$" and "_".
            position: x and y of the middle of its upper edge, or of a corner for the other alignments.
            font_size: in points; None for one that suits the size of the image.
            color: of the letters; lightened when it is too dark for the box.
            horizontal_alignment: "left", "center" or "right" of the position.
            rotation: in degrees, counter-clockwise.
        """
        size = self._default_font_size if font_size is None else font_size
        readable = lighten(color, 0.5) if text_color_on(color) == "white" else color
        artist = self._add_text(text, size, readable, background="black", alpha=0.7)
        artist.set(position=position, horizontalalignment=horizontal_alignment, rotation=rotation)
        return self.output

    def _draw_mask_labels(self, labels: Sequence[str], masks: Sequence[np.ndarray], colors: Sequence[Any]) -> None:
        """Write labels in the thickest parts of masks (H, W), of which none is empty."""
        points = np.array([interior_point(mask) for mask in masks])
        sides = [float(np.sqrt(np.count_nonzero(mask))) for mask in masks]
        self._draw_labels(labels, np.concatenate([points, points], axis=1), colors, sides)

    def _draw_rotated_box_labels(
        self, labels: Sequence[str], rotated_boxes: Sequence[Sequence[float]], colors: Sequence[Any]
    ) -> None:
        """Write labels next to the uppermost sides of rotated boxes, as the upright boxes around them may be larger."""
        sides = []
        for box in rotated_boxes:
            corners = rotated_box_corners(box)
            upper = corners[np.argsort(corners[:, 1], kind="stable")[:2]]
            sides.append(np.concatenate([upper.min(axis=0), upper.max(axis=0)]))
        sizes = [float(np.sqrt(box[2] * box[3])) for box in rotated_boxes]
        self._draw_labels(labels, np.array(sides).reshape(-1, 4), colors, sizes)

    def _draw_labels(
        self,
        labels: Sequence[str],
        boxes_xyxy: np.ndarray,
        colors: Sequence[Any],
        sides: Sequence[float] | None = None,
    ) -> None:
        """Write labels next to their boxes, on their boxes' colours; where there are too many, on the largest alone.

        Args:
            labels: N texts.
            boxes_xyxy: (N, 4); a label is centred on a box without an area.
            colors: N colours of the objects.
            sides: N rough sizes of the objects, as small ones have smaller letters; None for those of the boxes.
        """
        if sides is None:
            sides = np.sqrt((boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(axis=1))
        artists, sizes = [], []
        renderer = self.output.canvas.get_renderer()
        for label, side, color in zip(labels, sides, colors, strict=True):
            artist = self._add_text(
                label, self._label_font_size(side, len(labels)), text_color_on(color), color, alpha=0.85
            )
            extent = artist.get_window_extent(renderer)
            artists.append(artist)
            sizes.append((extent.width, extent.height))
        if not artists:
            return
        padding = np.array([[self._to_pixels(_padding(artist.get_fontsize()))] for artist in artists])
        sizes_wh = (np.array(sizes) + 2 * padding) / self.output.scale
        kept = self._labels_with_room(sizes_wh, np.asarray(sides))
        corners = place_labels(sizes_wh[kept], boxes_xyxy[kept], (self.output.width, self.output.height))
        for i, position in zip(kept, corners + padding[kept] / self.output.scale, strict=True):
            artists[i].set_position(position)
        for i in set(range(len(artists))) - set(kept.tolist()):
            artists[i].remove()

    def _draw_lines(self, lines: Sequence[str], colors: Sequence[Any]) -> VisImage:
        """Write lines below each other from the top left corner on, on their colours, in letters that fit the image.

        Where even the smallest letters are too large, the last lines are left out.
        """
        if not lines:
            return self.output
        out_height, out_width = self.output.output_size
        full, smallest = self._default_font_size, self._to_points(SMALLEST_LETTERS)
        width, height = self._size_of_lines(lines, full)
        shrunk = full * min(1.0, out_width / width, LARGEST_PART_OF_LINES * out_height / (height * len(lines)))
        size = max(shrunk, min(smallest, full))
        padding = self._to_pixels(_padding(size))
        height = self._size_of_lines(lines, size)[1]
        num_lines = max(int(out_height / height), 1)
        for i, (line, color) in enumerate(zip(lines[:num_lines], colors, strict=False)):
            artist = self._add_text(line, size, text_color_on(color), color, alpha=0.85)
            artist.set_position((padding / self.output.scale, (i * height + padding) / self.output.scale))
        return self.output

    def _size_of_lines(self, lines: Sequence[str], font_size: float) -> tuple[float, float]:
        """Width of the longest line and height of the highest, with their boxes, in pixels of the output."""
        renderer = self.output.canvas.get_renderer()
        artists = [self._add_text(line, font_size, "black", "white", alpha=1.0) for line in lines]
        extents = [artist.get_window_extent(renderer) for artist in artists]
        for artist in artists:
            artist.remove()
        padding = 2 * self._to_pixels(_padding(font_size))
        return max(e.width for e in extents) + padding, max(e.height for e in extents) + padding

    def _labels_with_room(self, sizes_wh: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """Numbers of the labels to write: that of the largest object, and as many as there is room for."""
        order = np.argsort(-sides, kind="stable")
        covered = sizes_wh.prod(axis=1)[order].cumsum() / (self.output.width * self.output.height)
        return np.sort(order[: max(int((covered <= LARGEST_LABELED_PART).sum()), 1)])

    def _label_font_size(self, object_side: float, num_labels: int) -> float:
        """Full size on large objects, six lines of text or more, that are few; else smaller but never unreadable."""
        full, smallest = self._default_font_size, self._to_points(SMALLEST_LETTERS)
        side = self._to_points(object_side * self.output.scale)
        crowded = min((NUM_FULL_SIZE_LABELS / num_labels) ** 0.4, 1.0)
        return max(min(side / 6, full * crowded), 0.55 * full, min(smallest, full))

    def _add_text(self, text: str, font_size: float, color: Any, background: Any, alpha: float) -> Any:
        box = {"facecolor": background, "alpha": alpha, "pad": _padding(font_size), "edgecolor": "none"}
        return self.output.ax.text(
            0,
            0,
            text,
            size=font_size,
            color=color,
            bbox=box,
            verticalalignment="top",
            zorder=TEXT_LAYER,
            parse_math=False,
        )

    def _draw_filled(
        self, rings: list[np.ndarray], color: Any, edge_color: Any, alpha: float, hatch: str | None = None
    ) -> VisImage:
        edge = lighten(color, -0.3) if edge_color is None else to_rgb(edge_color)
        face = (*to_rgb(color), alpha)
        return self._draw_outlines(rings, fill=True, facecolor=face, edgecolor=edge, width=0.6, hatch=hatch)

    def _draw_outlines(self, rings: list[np.ndarray], width: float = 1.0, **style: Any) -> VisImage:
        """Draw closed outlines as one shape, in which rings inside of others are holes.

        Args:
            rings: (N, 2) x and y of each.
            width: of the lines, relative to that of boxes.
            **style: options of matplotlib's Patch.
        """
        from matplotlib.patches import PathPatch
        from matplotlib.path import Path

        paths = [Path(np.concatenate([ring, ring[:1]]), closed=True) for ring in rings]
        options = {"fill": False, "linewidth": self._line_width * width, "joinstyle": "round", "zorder": SHAPE_LAYER}
        self.output.ax.add_patch(PathPatch(Path.make_compound_path(*paths), **(options | style)))
        return self.output

    def _to_points(self, pixels: float) -> float:
        return float(pixels) * 72 / self.output.dpi

    def _to_pixels(self, points: float) -> float:
        return points * self.output.dpi / 72


def rotated_box_corners(rotated_box: Sequence[float]) -> np.ndarray:
    """The corners (4, 2) of a rotated box: those that are top left, top right, bottom right and bottom left at angle 0.

    Args:
        rotated_box: centre x, centre y, width, height, angle in degrees counter-clockwise as seen in the image.
    """
    center_x, center_y, width, height, angle = (float(value) for value in rotated_box)
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    # This turns row vectors counter-clockwise, as y points down.
    return corners @ np.array([(cos, -sin), (sin, cos)]) + np.array([center_x, center_y])


def _padding(font_size: float) -> float:
    return 0.15 * font_size
