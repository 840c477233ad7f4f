"""A hook that draws what modules inside the model give.

Shapes: C channels of a feature map of h x w cells; H x W pixels of the image, of which the map may cover more.
"""

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from detlib.engine.model_hooks import rgb_image
from detlib.engine.train_loop import HookBase
from detlib.engine.training_state import unwrap_model
from detlib.utils.file_io import PathManager

__all__ = ["VisualizeFeatures"]

NUM_CHANNELS = 8
NUM_COLUMNS = 5
TILE_SIDE = 256  # pixels of the longer side
GAP = 2  # white pixels after each tile

logger = logging.getLogger(__name__)


class VisualizeFeatures(HookBase):
    """Draws the feature maps that modules give for the first image of the batch.

    Each picture has the image, the mean absolute activation as a heat map over it, and the first 8 channels. It goes to
    the storage as "features/<module>/<map>", and into the folder.

    The maps are those of the training step itself: the model does not run once more, so that neither random numbers nor
    statistics of norms differ from those of a training without this hook.
    """

    def __init__(self, period: int, modules: Sequence[str], output_dir: str = "", image_format: str = "BGR") -> None:
        """
        Args:
            period: in iterations.
            modules: their names in the model. An output is a tensor (N, C, h, w), or a list or dict with such.
            output_dir: gets ``features/<module>.<map>_<iteration>.png``; "" for no files.
            image_format: of the images that the model takes, as ``INPUT.FORMAT``.
        """
        self._period = period
        self._modules = modules
        self._output_dir = output_dir
        self._image_format = image_format
        self._handles: list[RemovableHandle] = []
        self._maps: dict[str, dict[str, Tensor]] = {}  # by module and name
        self._warned: set[str] = set()

    def before_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0:
            model = unwrap_model(self.trainer.model)
            self._handles = [model.get_submodule(n).register_forward_hook(self._keeper(n)) for n in self._modules]

    def after_step(self) -> None:
        if not self._handles:
            return
        self._stop_watching()
        for module in self._modules:
            if module not in self._maps:
                self._warn(module, "did not run, or by other methods than forward(); then name a part of it")
            elif not self._maps[module]:
                self._warn(module, "gives no feature maps: tensors of shape (images, channels, height, width)")
        if any(self._maps.values()):
            self._draw()
        self._maps = {}

    def after_train(self) -> None:
        self._stop_watching()  # A step that failed has left them.

    def _stop_watching(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _keeper(self, name: str) -> Callable[[nn.Module, Any, Any], None]:
        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            kept = self._maps.setdefault(name, {})
            for key, x in _maps_in(output):
                if len(x) != len(self.trainer.last_batch):
                    continue  # Of regions, for instance.
                calls = sum(known.partition("#")[0] == key for known in kept)  # Heads run on each level.
                # Now, and as a copy, as later layers may work in place.
                kept[f"{key}#{calls}" if calls else key] = x[0].detach().to("cpu", torch.float32, copy=True)

        return keep

    def _draw(self) -> None:
        batch = self.trainer.last_batch
        rgb = rgb_image(batch[0], self._image_format)
        model = unwrap_model(self.trainer.model)
        padded = rgb.shape[:2]
        if hasattr(model, "preprocess_image"):
            padded = model.preprocess_image(batch).tensor.shape[-2:]
        for module, maps in self._maps.items():
            for name, x in maps.items():
                picture = draw_features(rgb, x, padded)
                self.trainer.storage.put_image(f"features/{module}/{name}", picture.transpose(2, 0, 1))
                if self._output_dir:
                    self._save(picture, f"{module}.{name}_{self.trainer.iter:07d}.png")

    def _save(self, picture: np.ndarray, name: str) -> None:
        folder = os.path.join(self._output_dir, "features")
        PathManager.mkdirs(folder)
        with PathManager.open(os.path.join(folder, name.replace("/", "_")), "wb") as f:
            Image.fromarray(picture).save(f, format="PNG")

    def _warn(self, module: str, problem: str) -> None:
        if module not in self._warned:
            self._warned.add(module)
            logger.warning("Nothing is drawn of %r in iteration %d: it %s.", module, self.trainer.iter, problem)


def draw_features(rgb: np.ndarray, maps: Tensor, padded: Sequence[int]) -> np.ndarray:
    """Tiles of an image, of the activation over it in gray, and of the first channels, in rows.

    Args:
        rgb: (H, W, 3) uint8.
        maps: (C, h, w), which cover the padded image.
        padded: its height and width.

    Returns:
        ((tile height + GAP) * rows, (tile width + GAP) * columns, 3) uint8.
    """
    maps = torch.nan_to_num(maps)
    image_size = rgb.shape[:2]
    scale = TILE_SIDE / max(image_size)
    tile_size = [max(1, round(side * scale)) for side in image_size]

    def tiles_of(x: Tensor, mode: str) -> Tensor:
        """From (K, h, w) to (K, tile height, tile width), of what is not padding."""
        x = F.interpolate(x[None], tuple(padded), mode=mode)[..., : image_size[0], : image_size[1]]
        return F.interpolate(x, tile_size, mode=mode)[0]

    image = F.interpolate(torch.from_numpy(rgb).float().permute(2, 0, 1)[None] / 255, tile_size, mode="bilinear")[0]
    heat = tiles_of(maps.abs().mean(dim=0, keepdim=True), "bilinear")[0]
    channels = tiles_of(maps[:NUM_CHANNELS], "nearest")
    tiles = [image, 0.5 * image.mean(dim=0) + 0.5 * _heat_colors(_to_unit(heat, lowest=0.0))]
    tiles += [_to_unit(channel, lowest=channel.min().item()).expand(3, -1, -1) for channel in channels]
    num_rows = math.ceil(len(tiles) / NUM_COLUMNS)
    tiles += [torch.zeros_like(image)] * (num_rows * NUM_COLUMNS - len(tiles))
    tiles = [F.pad(tile, (0, GAP, 0, GAP), value=1.0) for tile in tiles]
    rows = [torch.cat(tiles[i * NUM_COLUMNS : (i + 1) * NUM_COLUMNS], dim=2) for i in range(num_rows)]
    return (torch.cat(rows, dim=1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _maps_in(output: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Feature maps in the output of a module, with the keys on the way to them joined by dots."""
    if isinstance(output, Tensor):
        if output.dim() == 4:
            yield name or "output", output
    elif isinstance(output, Mapping | list | tuple):
        for key, value in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from _maps_in(value, f"{name}.{key}" if name else str(key))


def _to_unit(x: Tensor, lowest: float) -> Tensor:
    """Scale to [0, 1], from the lowest value to the greatest."""
    return (x - lowest) / max(x.max().item() - lowest, torch.finfo(torch.float32).tiny)


def _heat_colors(x: Tensor) -> Tensor:
    """(3, H, W) colours of (H, W) values in [0, 1]: from black over red and yellow to white."""
    return torch.stack([(3 * x - channel).clamp(0, 1) for channel in range(3)])
