"""Necks: from feature maps to feature maps."""

from detlib.modeling.neck.bifpn import BiFPN, fast_normalized_fusion
from detlib.modeling.neck.build import NECK_REGISTRY, build_neck
from detlib.modeling.neck.pafpn import PAFPN
from detlib.modeling.neck.pooling import GlobalAveragePooling

__all__ = ["NECK_REGISTRY", "PAFPN", "BiFPN", "GlobalAveragePooling", "build_neck", "fast_normalized_fusion"]
