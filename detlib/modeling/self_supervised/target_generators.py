"""What hidden patches are to be told by, where that is not their pixels: the registry, and the words of DALL-E.

Shapes: N images of H x W pixels, V words.
"""

import logging

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.utils.errors import CheckpointError, ConfigError, MissingFileError
from detlib.utils.file_io import PathManager
from detlib.utils.registry import Registry

__all__ = ["TARGET_GENERATOR_REGISTRY", "DALLEEncoder"]

TARGET_GENERATOR_REGISTRY = Registry("TARGET_GENERATOR")
TARGET_GENERATOR_REGISTRY.__doc__ = """
Frozen networks that give the targets of masked images: modules built by `build_component`, called with images
(N, 3, H, W) in the range 0 to 255. Those that give words have ``vocab_size`` and ``stride``, the pixels of a word.
"""

NUM_GROUPS = 4
BLOCKS_PER_GROUP = 2


@TARGET_GENERATOR_REGISTRY.register()
class DALLEEncoder(nn.Module):
    """The encoder of the discrete VAE of DALL-E (https://arxiv.org/abs/2102.12092, app. A.2), frozen.

    Its published weights are somebody else's and not part of detlib.

    Attributes:
        stride: pixels of a word.
    """

    stride = 2 ** (NUM_GROUPS - 1)

    def __init__(self, weights: str = "", vocab_size: int = 8192, hid_channels: int = 256, seed: int = 0) -> None:
        """
        Args:
            weights: a file with the state dict, under the published names or those of this class; without one the
                network is random, for which it still tells images apart.
            vocab_size: V.
            hid_channels: of the first group; they double from group to group.
            seed: of random weights.
        """
        super().__init__()
        if hid_channels % 4:
            raise ConfigError(f"MODEL.SSL.TARGET_GENERATOR.HID_CHANNELS is {hid_channels}; it must be a multiple of 4")
        self.vocab_size = vocab_size
        self.blocks = nn.ModuleDict({"input": nn.Conv2d(3, hid_channels, 7, padding=3)})
        in_channels = hid_channels
        for group in range(NUM_GROUPS):
            channels = hid_channels * 2**group
            widths = [in_channels] + [channels] * BLOCKS_PER_GROUP
            self.blocks[f"group_{group + 1}"] = nn.ModuleDict(
                {f"block_{i + 1}": _Block(widths[i], channels) for i in range(BLOCKS_PER_GROUP)}
            )
            in_channels = channels
        self.blocks["output"] = nn.ModuleDict({"conv": nn.Conv2d(in_channels, vocab_size, 1)})
        if weights:
            self.load_state_dict(_read(weights, self.state_dict()))
        else:
            self._init_random(seed)
            logging.getLogger(__name__).warning(
                "MODEL.SSL.TARGET_GENERATOR.WEIGHTS is empty: the words to predict are those of a random network."
            )
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The words of images (N, 3, H, W), RGB in 0 to 255: (N, H / 8, W / 8)."""
        x = images / 255 * 0.8 + 0.1  # The VAE learned on this range (app. A.3).
        # The best scores lie so close to each other that in half precision other words would win.
        with torch.autocast(images.device.type, enabled=False):
            return self._scores(x.to(self.blocks["input"].weight.dtype)).argmax(dim=1)

    def _scores(self, x: Tensor) -> Tensor:
        x = self.blocks["input"](x)
        for group in range(1, NUM_GROUPS + 1):
            for block in self.blocks[f"group_{group}"].values():
                x = block(x)
            if group < NUM_GROUPS:
                x = F.max_pool2d(x, 2)
        return self.blocks["output"]["conv"](F.relu(x))

    def _init_random(self, seed: int) -> None:
        if self.blocks["input"].weight.is_meta:
            return
        generator = torch.Generator().manual_seed(seed)  # Apart, so that each training has the same words.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_in = module.in_channels * module.kernel_size[0] ** 2
                weight = torch.randn(module.weight.shape, generator=generator, device="cpu") / fan_in**0.5
                module.weight.data.copy_(weight)
                nn.init.zeros_(module.bias)


class _Block(nn.Module):
    """The input, and a branch of four convolutions of a quarter of the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        hid_channels = out_channels // 4
        self.id_path = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        self.res_path = nn.Sequential()
        widths = [in_channels, hid_channels, hid_channels, hid_channels]
        for i, width in enumerate(widths, start=1):
            self.res_path.add_module(f"relu_{i}", nn.ReLU())
            last = i == len(widths)
            conv = nn.Conv2d(width, out_channels, 1) if last else nn.Conv2d(width, hid_channels, 3, padding=1)
            self.res_path.add_module(f"conv_{i}", conv)

    def forward(self, x: Tensor) -> Tensor:
        # So small that 8 branches on top of each other keep the variance in bounds.
        return self.id_path(x) + self.res_path(x) / (NUM_GROUPS * BLOCKS_PER_GROUP) ** 2


def _read(path: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file, which cannot run code, with ``w`` and ``b`` of the published names spelled out."""
    try:
        with PathManager.open(path, "rb") as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingFileError(f"MODEL.SSL.TARGET_GENERATOR.WEIGHTS: {path} does not exist") from error
    except Exception as error:  # A damaged file, or one with objects, can raise anything.
        raise CheckpointError(
            f"MODEL.SSL.TARGET_GENERATOR.WEIGHTS: {path} holds no weights that are safe to read. Where the file is "
            f"trusted, save the weights alone with what made it: torch.save(encoder.state_dict(), path)"
        ) from error
    weights = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else {}
    endings = {"w": "weight", "b": "bias"}
    renamed = {}
    for name, weight in weights.items():
        prefix, _, last = str(name).removeprefix("encoder.").rpartition(".")
        renamed[f"{prefix}.{endings.get(last, last)}"] = weight
    wrong = [name for name, weight in expected.items() if getattr(renamed.get(name), "shape", None) != weight.shape]
    if wrong:
        raise CheckpointError(
            f"MODEL.SSL.TARGET_GENERATOR.WEIGHTS: {path} lacks {len(wrong)} of {len(expected)} weights, or has them in "
            f"other shapes, {wrong[0]} first; VOCAB_SIZE and HID_CHANNELS must be those of the file"
        )
    return {name: renamed[name] for name in expected}
