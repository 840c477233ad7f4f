"""DeepCluster: cluster the features of all images, learn the clusters as classes, and start again.

Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features" (https://arxiv.org/abs/1807.05520).
Shapes: n samples of the dataset, C channels of the features, K clusters.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detlib.config import CfgNode, configurable
from detlib.layers import ShapeSpec
from detlib.modeling.backbone import BACKBONE_REGISTRY, ResNet, build_resnet_backbone
from detlib.modeling.meta_arch.build import META_ARCH_REGISTRY
from detlib.modeling.self_supervised.clustering import check_num_samples, class_weights, kmeans, pca_whiten
from detlib.modeling.self_supervised.distributed import broadcast
from detlib.modeling.self_supervised.memories import MEMORY_REGISTRY
from detlib.modeling.self_supervised.pseudo_labels import PseudoLabelModel
from detlib.utils import comm

__all__ = ["DeepCluster", "PseudoLabels", "build_sobel_resnet_backbone", "sobel"]


@META_ARCH_REGISTRY.register()
class DeepCluster(PseudoLabelModel):
    """Its memory is a PseudoLabels, filled before each epoch; the sampler should be a UniformClusterSampler."""

    clusters_every_epoch = True

    @configurable
    def __init__(self, **parts: Any) -> None:
        """
        Args:
            parts: of :class:`PseudoLabelModel`.
        """
        super().__init__(**parts)

    def cluster(self, features: Tensor | None) -> list[nn.Parameter]:
        """See :class:`PseudoLabelModel`; the head starts anew, as clusters have other numbers each time."""
        super().cluster(features)
        self.head.reset_parameters()
        parameters = list(self.head.parameters())
        broadcast(*parameters)
        return parameters


@MEMORY_REGISTRY.register()
class PseudoLabels(nn.Module):
    """The cluster of each sample of the dataset: k-means of whitened features of length 1 (sec. 4.1).

    Attributes:
        label_bank: (n,), -1 before the first clustering.
        class_weights: (K,) of the clusters, which sum to 1.
        num_clusterings: so far; each draws its first centroids anew.
    """

    def __init__(
        self,
        length: int,
        num_classes: int,
        num_components: int = 256,
        num_iters: int = 20,
        reweight: bool = False,
    ) -> None:
        """
        Args:
            length: n, the number of samples of the dataset; 0 where there is no loss.
            num_classes: K.
            num_components: of the features that k-means takes.
            num_iters: of k-means.
            reweight: give small clusters more weight in the loss.
        """
        super().__init__()
        check_num_samples(length, num_classes)
        self.num_classes = num_classes
        self.num_components = num_components
        self.num_iters = num_iters
        self.reweight = reweight
        self.register_buffer("label_bank", torch.full((length,), -1))
        self.register_buffer("class_weights", torch.full((num_classes,), 1 / num_classes))
        self.register_buffer("num_clusterings", torch.tensor(0))

    @torch.no_grad()
    def cluster(self, features: Tensor | None) -> None:
        """Fill the labels; arguments as for :meth:`PseudoLabelModel.cluster`."""
        if comm.is_main_process():
            whitened = pca_whiten(features, self.num_components, device=self.label_bank.device)
            seed = int(self.num_clusterings)
            labels = kmeans(F.normalize(whitened, dim=1), self.num_classes, self.num_iters, seed)
            self.label_bank.copy_(labels)
        broadcast(self.label_bank)
        if self.reweight:
            self.class_weights.copy_(class_weights(self.label_bank, self.num_classes))
        self.num_clusterings += 1


@BACKBONE_REGISTRY.register()
def build_sobel_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """The ResNet of ``MODEL.RESNETS`` on the edges of images, as colours lead to trivial clusters (sec. 4.1)."""
    backbone = build_resnet_backbone(cfg, ShapeSpec(channels=2))
    backbone.register_forward_pre_hook(_on_edges)  # The names of the weights stay those of a ResNet.
    return backbone


def _on_edges(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (sobel(args[0]),)


def sobel(images: Tensor) -> Tensor:
    """From images (N, C, H, W) to (N, 2, H, W): how much their grey falls to the right, and downwards."""
    gray = F.pad(images.mean(dim=1, keepdim=True), (1, 1, 1, 1))  # (N, 1, H + 2, W + 2)
    rows = gray[..., :-2, :] + 2 * gray[..., 1:-1, :] + gray[..., 2:, :]
    columns = gray[..., :-2] + 2 * gray[..., 1:-1] + gray[..., 2:]
    return torch.cat([rows[..., :-2] - rows[..., 2:], columns[..., :-2, :] - columns[..., 2:, :]], dim=1)
