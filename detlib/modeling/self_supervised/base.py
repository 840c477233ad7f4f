"""What all self-supervised algorithms share: images to views, views to features, and the three modes of a model.

Shapes: N samples, V views of each, of H x W pixels; C channels of the features, d of the embeddings.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, build_component, configurable
from detlib.modeling.backbone import Backbone, build_backbone
from detlib.modeling.head import HEAD_REGISTRY
from detlib.modeling.neck import NECK_REGISTRY
from detlib.modeling.preprocessing import ImagePreprocessor, PreprocessesImages
from detlib.utils.errors import ConfigError, DatasetError
from detlib.utils.events import log_scalar

__all__ = ["SelfSupModel", "build_ssl_head", "build_ssl_neck", "log_spread", "sample_indices", "ssl_parts"]

MODES = ("tensor", "loss", "predict")


class SelfSupModel(PreprocessesImages, nn.Module):
    """Backbone, a neck that makes embeddings, and a head that has the loss.

    A subclass writes :meth:`loss`, and :meth:`predict` if the algorithm predicts something. Attribute names are those
    of the published checkpoints.

    Attributes:
        num_views: how many views of each sample the loss needs.
        views_example: what gives them in INPUT.VIEWS, for the message of an error.
        compares_samples: whether the loss of a sample depends on the others of its batch, as on negatives.
        needs: sections of MODEL.SSL that must name something.
    """

    num_views = 1
    compares_samples = False
    views_example = "{{COUNT: {num_views}, AUGMENTATIONS: [...]}}"
    needs: tuple[str, ...] = ()

    @configurable
    def __init__(
        self,
        *,
        preprocessor: ImagePreprocessor,
        backbone: Backbone,
        in_feature: str,
        neck: nn.Module | None = None,
        head: nn.Module | None = None,
    ) -> None:
        """
        Args:
            in_feature: the output of the backbone that the neck takes.
        """
        super().__init__()
        self.preprocessor = preprocessor
        self.backbone = backbone
        self.in_feature = in_feature
        self.neck = neck
        self.head = head

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return ssl_parts(cfg, cls.needs)

    def forward(self, batched_inputs: list[dict[str, Any]], mode: str | None = None) -> Any:
        """
        Args:
            batched_inputs: for each sample a dict with ``views``, a list of V tensors (3, H, W) in the channel order
                and range of ``INPUT.FORMAT``, or ``image``, one such tensor; views at the same place in the list have
                the same size. Some algorithms need more, as ``sample_idx``, the place of the sample in the dataset.
            mode: "tensor", "loss" or "predict"; by default "loss" when training and else "tensor".

        Returns:
            In mode "tensor" what :meth:`tensor` says, in "loss" a dict of losses, in "predict" a dict for each sample.

        Raises:
            RuntimeError: there is no such mode.
            NotImplementedError: the algorithm predicts nothing.
            DatasetError: the views do not fit together, or are too few for the loss.
        """
        mode = ("loss" if self.training else "tensor") if mode is None else mode
        if mode not in MODES:
            raise RuntimeError(f"mode is {mode!r}; {type(self).__name__} has the modes {', '.join(MODES)}")
        views = self.preprocess_views(batched_inputs)
        if mode == "tensor":
            return self.tensor(views, batched_inputs)
        if mode == "predict":
            return self.predict(views, batched_inputs)
        if len(views) < self.num_views:
            raise DatasetError(
                f"{type(self).__name__} learns from {self.num_views} views of each image, got {len(views)}; set "
                f"INPUT.VIEWS, as in [{self.views_example.format(num_views=self.num_views)}]"
            )
        return self.loss(views, batched_inputs)

    def extract_feat(self, images: Tensor) -> dict[str, Tensor]:
        """The backbone's feature maps by name, of normalised images (N, 3, H, W)."""
        return self.backbone(images)

    def tensor(self, views: list[Tensor], samples: list[dict[str, Any]]) -> Any:
        """What the network gives without a loss: by default the features of the first view.

        Arguments are those of :meth:`loss`.
        """
        return self.extract_feat(views[0])

    def loss(self, views: list[Tensor], samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses by name, which the trainer sums.

        Args:
            views: V normalised batches (N, 3, H, W).
            samples: what came with the images.
        """
        raise NotImplementedError(f"{type(self).__name__} needs loss(views, samples)")

    def predict(self, views: list[Tensor], samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A dict for each sample; arguments are those of :meth:`loss`."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing; it has the modes 'tensor' and 'loss'")

    def feature_map(self, images: Tensor) -> Tensor:
        """The map (N, C, h, w) that the neck takes."""
        return self.backbone(images)[self.in_feature]

    def preprocess_views(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        """V normalised batches (N, 3, H, W).

        Raises:
            DatasetError: samples have different numbers of views, or views at one place have different sizes.
        """
        views = [_views_of(sample) for sample in batched_inputs]
        if len({len(images) for images in views}) > 1:
            raise DatasetError(f"samples of a batch have {[len(images) for images in views]} views; set INPUT.VIEWS")
        return [self._batch(images, place) for place, images in enumerate(zip(*views))]

    def _batch(self, images: tuple[Tensor, ...], place: int) -> Tensor:
        sizes = sorted({tuple(image.shape[-2:]) for image in images})
        if len(sizes) > 1:
            raise DatasetError(
                f"views[{place}] come in the sizes {sizes[:5]}; all must have one. Use an augmentation in INPUT.VIEWS "
                f"that gives a fixed size, such as RandomResizedCrop"
            )
        return self.preprocessor([{"image": image} for image in images]).tensor


def ssl_parts(cfg: CfgNode, needs: Sequence[str] = ()) -> dict[str, Any]:
    """The arguments that every algorithm has: what MODEL.BACKBONE and MODEL.SSL name.

    Args:
        needs: sections of MODEL.SSL that must name something.
    """
    if missing := [f"MODEL.SSL.{part}" for part in needs if not cfg.MODEL.SSL[part].get("NAME")]:
        raise ConfigError(
            f"{cfg.MODEL.META_ARCHITECTURE} needs {', '.join(missing)}, as {{NAME: ...}}; the configs in "
            "configs/SelfSupervised have an example"
        )
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    in_feature = cfg.MODEL.SSL.IN_FEATURE or list(shapes)[-1]
    if in_feature not in shapes:
        raise ConfigError(f"MODEL.SSL.IN_FEATURE is {in_feature!r}, but the backbone gives {', '.join(shapes)}")
    offers = {name: getattr(backbone, name) for name in ("patch_size", "grid_size") if hasattr(backbone, name)}
    neck = build_ssl_neck(cfg.MODEL.SSL.NECK, shapes[in_feature].channels, stride=shapes[in_feature].stride, **offers)
    channels = shapes[in_feature].channels if neck is None else getattr(neck, "out_channels", None)
    return {
        "preprocessor": ImagePreprocessor(cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD),
        "backbone": backbone,
        "in_feature": in_feature,
        "neck": neck,
        "head": build_ssl_head(cfg, channels, **offers),
    }


def build_ssl_neck(node: Any, in_channels: int, **offers: Any) -> nn.Module | None:
    """What MODEL.SSL.NECK, or another such section, names; None if it names nothing.

    Args:
        offers: further arguments, for those that take them.
    """
    return build_component(NECK_REGISTRY, node, in_channels=in_channels, **offers) if node.get("NAME") else None


def build_ssl_head(cfg: CfgNode, in_channels: int | None, **offers: Any) -> nn.Module | None:
    """What MODEL.SSL.HEAD names, with the loss of MODEL.SSL.LOSS; None if it names nothing.

    Args:
        offers: further arguments, for those that take them.
    """
    ssl = cfg.MODEL.SSL
    if not ssl.HEAD.get("NAME"):
        return None
    if ssl.LOSS.get("NAME"):
        offers["loss"] = ssl.LOSS
    return build_component(HEAD_REGISTRY, ssl.HEAD, in_channels=in_channels, **offers)


def sample_indices(samples: list[dict[str, Any]], num_samples: int, device: torch.device) -> Tensor:
    """The places (N,) of the samples in the dataset, for what is remembered of each.

    Args:
        num_samples: how many the memory holds.

    Raises:
        DatasetError: a sample has no ``sample_idx``, or one that is not below ``num_samples``.
    """
    for sample in samples:
        index = sample.get("sample_idx")
        if index is None:
            raise DatasetError(f"a sample has no 'sample_idx', but {', '.join(sorted(sample))}; set INPUT.VIEWS")
        if not 0 <= index < num_samples:
            raise DatasetError(
                f"a sample_idx is {index}, but MODEL.SSL.MEMORY remembers {num_samples} samples; set its LENGTH to the "
                f"number of samples of DATASETS.TRAIN"
            )
    return torch.tensor([sample["sample_idx"] for sample in samples]).to(device, non_blocking=True)


@torch.no_grad()
def log_spread(embeddings: Tensor, name: str = "embedding_spread") -> None:
    """Log how different the embeddings of a batch are: about 1 if they are spread over the sphere, 0 if all are equal.

    It is the standard deviation of each channel of the normalised embeddings, averaged, times sqrt(d), for which 1 is
    the value of a uniform distribution (SimSiam, arXiv:2011.10566, sec. 4.1).

    Args:
        embeddings: (n, d).
    """
    normalized = F.normalize(embeddings.detach().float(), dim=1)
    log_scalar(name, normalized.std(dim=0, unbiased=False).mean() * normalized.shape[1] ** 0.5)


def _views_of(sample: dict[str, Any]) -> list[Tensor]:
    if sample.get("views"):
        return sample["views"]
    if "image" in sample:
        return [sample["image"]]
    raise DatasetError(
        f"{sample.get('file_name', 'a sample')!r} has neither 'views' nor 'image', but {', '.join(sorted(sample))}; "
        f"set INPUT.VIEWS"
    )
