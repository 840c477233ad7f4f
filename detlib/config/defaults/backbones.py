"""MODEL: what turns images into features."""

from typing import Any

__all__ = ["BACKBONES"]

BACKBONES: dict[str, Any] = {
    "BACKBONE": {
        # Builder, by its name in BACKBONE_REGISTRY.
        "NAME": "build_resnet_backbone",
        # Stem and stages before this one stay as loaded: 0 trains all, 1 freezes the stem, 2 also res2, ...
        "FREEZE_AT": 2,
    },
    "FPN": {
        # Stages of the bottom-up network to build on.
        "IN_FEATURES": [],
        "OUT_CHANNELS": 256,
        # Normalisation of lateral and output convolutions; "" for none.
        "NORM": "",
        # How the top-down and the lateral features are joined: "sum" or "avg".
        "FUSE_TYPE": "sum",
    },
    "RESNETS": {
        # 18, 34, 50, 101 or 152.
        "DEPTH": 50,
        # Stages to return: "stem", "res2", ..., "res5", or "linear" for class scores.
        "OUT_FEATURES": ["res4"],
        # ResNeXt: groups of the 3x3 convolutions, and channels per group in res2.
        "NUM_GROUPS": 1,
        # "FrozenBN", "BN", "SyncBN", "GN", "LN" or "".
        "NORM": "FrozenBN",
        "WIDTH_PER_GROUP": 64,
        # Where a bottleneck strides: its first 1x1 convolution (the original weights) or the 3x3 (torchvision's).
        "STRIDE_IN_1X1": True,
        # A dilation of 2 keeps res5 at stride 16.
        "RES5_DILATION": 1,
        "RES2_OUT_CHANNELS": 256,
        "STEM_OUT_CHANNELS": 64,
        # Deformable convolution in res2 to res5, with modulation (version 2) or without, and its groups.
        "DEFORM_ON_PER_STAGE": [False, False, False, False],
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
    },
}
