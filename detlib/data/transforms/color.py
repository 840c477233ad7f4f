"""Random changes of brightness, contrast, saturation and lighting."""

import numpy as np
from fvcore.transforms.transform import BlendTransform, Transform

from detlib.data.transforms.augmentation import Augmentation

__all__ = ["RandomBrightness", "RandomContrast", "RandomLighting", "RandomSaturation"]

_LUMA_OF_RGB = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601


class _RandomIntensity(Augmentation):
    def __init__(self, intensity_min: float, intensity_max: float) -> None:
        """
        Args:
            intensity_min: lower end of the range that the intensity is drawn from; 1 keeps the image, less weakens
                and more strengthens the property.
            intensity_max: its upper end.
        """
        super().__init__()
        self.intensity_min, self.intensity_max = intensity_min, intensity_max

    def _blend(self, image: np.ndarray | float) -> BlendTransform:
        """Move away from, or towards, an image that lacks the property altogether."""
        weight = np.random.uniform(self.intensity_min, self.intensity_max)
        return BlendTransform(src_image=image, src_weight=1 - weight, dst_weight=weight)


class RandomContrast(_RandomIntensity):
    """Scale the differences to the mean of the image."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._blend(image.mean())


class RandomBrightness(_RandomIntensity):
    """Scale all values."""

    def get_transform(self, image: np.ndarray) -> Transform:
        return self._blend(0)


class RandomSaturation(_RandomIntensity):
    """Scale the differences to the gray image. Channels are taken as red, green, blue."""

    def get_transform(self, image: np.ndarray) -> Transform:
        if image.shape[2:] != (3,):
            raise ValueError(f"RandomSaturation needs an RGB image (H, W, 3), got the shape {image.shape}")
        return self._blend(image.dot(_LUMA_OF_RGB)[:, :, None])


class RandomLighting(Augmentation):
    """Shift colors along the principal components of ImageNet's colors (AlexNet, NIPS 2012, sec. 4.1).

    Channels are taken as red, green, blue.
    """

    def __init__(self, scale: float) -> None:
        """
        Args:
            scale: standard deviation of the shift in units of a component's own; 0.1 in the paper for images in
                [0, 1], so 25.5 for images in [0, 255].
        """
        super().__init__()
        self.scale = scale
        self.eigen_vecs = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
        self.eigen_vals = np.array([0.2175, 0.0188, 0.0045])

    def get_transform(self, image: np.ndarray) -> Transform:
        if image.shape[2:] != (3,):
            raise ValueError(f"RandomLighting needs an RGB image (H, W, 3), got the shape {image.shape}")
        shift = self.eigen_vecs @ (np.random.normal(scale=self.scale, size=3) * self.eigen_vals)
        return BlendTransform(src_image=shift, src_weight=1.0, dst_weight=1.0)
