"""MODEL: what turns images into features."""

from typing import Any

from detlib.config.defaults.part import Part

__all__ = ["BACKBONES"]

BACKBONES: dict[str, Any] = {
    "BACKBONE": Part(
        # By its name in BACKBONE_REGISTRY. A builder reads its options from a section of its own, such as RESNETS; a
        # class takes them here: {NAME: MobileNetV2, WIDTH_MULT: 0.5}.
        NAME="build_resnet_backbone",
        # Stem and stages before this one stay as loaded: 0 trains all, 1 freezes the stem, 2 also the first stage, ...
        # ViT and MViT train all.
        FREEZE_AT=2,
    ),
    # On top of the backbone, by its name in NECK_REGISTRY: {NAME: PAFPN, OUT_CHANNELS: 256}; "" for none.
    "NECK": Part(NAME=""),
    "FPN": {
        # Stages of the bottom-up network to build on.
        "IN_FEATURES": [],
        "OUT_CHANNELS": 256,
        # Normalisation of lateral and output convolutions; "" for none.
        "NORM": "",
        # How the top-down and the lateral features are joined: "sum" or "avg".
        "FUSE_TYPE": "sum",
        # Coarser levels: "LastLevelMaxPool" (p6, for R-CNN), "LastLevelP6P7" (for RetinaNet and FCOS) or "".
        # Builders of ResNet have it in their names instead.
        "TOP_BLOCK": "LastLevelMaxPool",
        # Pad the input to a square of this size; 0 for no square.
        "SQUARE_PAD": 0,
        # ViT: sizes of the pyramid's levels relative to its only map.
        "SCALE_FACTORS": [4.0, 2.0, 1.0, 0.5],
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
        # Let each residual branch start as 0, by the scale of its last norm.
        "ZERO_INIT_RESIDUAL": False,
        # Deformable convolution in res2 to res5, with modulation (version 2) or without, and its groups.
        "DEFORM_ON_PER_STAGE": [False, False, False, False],
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
    },
    "REGNET": {
        # "SimpleStem" (stride 2) or "ResStem" (stride 4).
        "STEM_CLASS": "SimpleStem",
        "STEM_WIDTH": 32,
        # "ResBottleneckBlock" (RegNetX and Y), "ResBasicBlock" or "VanillaBlock".
        "BLOCK_CLASS": "ResBottleneckBlock",
        # The values here make RegNetX-4.0GF. Number of blocks; slope, start and quantisation of their widths.
        "DEPTH": 23,
        "W_A": 38.65,
        "W_0": 96,
        "W_M": 2.43,
        # Channels per group of the 3x3 convolutions.
        "GROUP_WIDTH": 40,
        # Of each stage.
        "STRIDE": 2,
        "BOTTLENECK_RATIO": 1.0,
        # Width of squeeze-and-excitation relative to its block's input: 0.25 in RegNetY, 0 for none.
        "SE_RATIO": 0.0,
        "NORM": "FrozenBN",
        # Stages to return: "stem", "s1", ..., "s4".
        "OUT_FEATURES": ["s4"],
    },
    "VIT": {
        # Side of the input that relative positions are made for; others are interpolated.
        "IMG_SIZE": 1024,
        "PATCH_SIZE": 16,
        # The values here make ViT-B.
        "EMBED_DIM": 768,
        "DEPTH": 12,
        "NUM_HEADS": 12,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        # Largest rate at which a residual branch is dropped for an image; it rises linearly with depth.
        "DROP_PATH_RATE": 0.0,
        # Learned position of each patch; learned distance of patches within attention, and whether it starts with 0.
        "USE_ABS_POS": True,
        "USE_REL_POS": False,
        "REL_POS_ZERO_INIT": True,
        # Side of attention windows, in patches, and the blocks that use them; the others look at the whole image.
        "WINDOW_SIZE": 0,
        "WINDOW_BLOCK_INDEXES": [],
        # Blocks that end with a residual convolution, which carries information across windows.
        "RESIDUAL_BLOCK_INDEXES": [],
        # Compute blocks again in the backward pass, which takes time and saves memory.
        "USE_ACT_CHECKPOINT": False,
        # Side of the images in pretraining, and whether its positions begin with that of a class token.
        "PRETRAIN_IMG_SIZE": 224,
        "PRETRAIN_USE_CLS_TOKEN": True,
        # Name of the output.
        "OUT_FEATURE": "last_feat",
    },
    "SWIN": {
        # Side of the images in pretraining, for APE.
        "PRETRAIN_IMG_SIZE": 224,
        "PATCH_SIZE": 4,
        # The values here make Swin-T. Channels of the first stage; blocks and heads of each.
        "EMBED_DIM": 96,
        "DEPTHS": [2, 2, 6, 2],
        "NUM_HEADS": [3, 6, 12, 24],
        "WINDOW_SIZE": 7,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        # Factor on products of queries and keys; None: one over the square root of a head's channels.
        "QK_SCALE": None,
        "DROP_RATE": 0.0,
        "ATTN_DROP_RATE": 0.0,
        "DROP_PATH_RATE": 0.2,
        # Learned absolute positions.
        "APE": False,
        "PATCH_NORM": True,
        # Stages to return, named "p0" to "p3".
        "OUT_INDICES": [0, 1, 2, 3],
        # Compute blocks again in the backward pass.
        "USE_CHECKPOINT": False,
    },
    "MVIT": {
        # Side of the input that relative positions are made for.
        "IMG_SIZE": 224,
        "PATCH_KERNEL": [7, 7],
        "PATCH_STRIDE": [4, 4],
        "PATCH_PADDING": [3, 3],
        # The last blocks of the four stages and their number: MViTv2-T has [0, 2, 7, 9] of 10, S has [0, 2, 13, 15].
        "EMBED_DIM": 96,
        "DEPTH": 16,
        "NUM_HEADS": 1,
        "LAST_BLOCK_INDEXES": [0, 2, 11, 15],
        "QKV_POOL_KERNEL": [3, 3],
        # Stride of keys and values, and side of attention windows, in the first stage; both halve from stage to stage.
        "ADAPTIVE_KV_STRIDE": 4,
        "ADAPTIVE_WINDOW_SIZE": 56,
        # Add the queries to what attention gives.
        "RESIDUAL_POOLING": True,
        "MLP_RATIO": 4.0,
        "QKV_BIAS": True,
        "DROP_PATH_RATE": 0.0,
        "USE_ABS_POS": False,
        "USE_REL_POS": True,
        "REL_POS_ZERO_INIT": True,
        "USE_ACT_CHECKPOINT": False,
        "PRETRAIN_IMG_SIZE": 224,
        "PRETRAIN_USE_CLS_TOKEN": True,
        # Stages to return, with strides 4, 8, 16 and 32.
        "OUT_FEATURES": ["scale2", "scale3", "scale4", "scale5"],
    },
}
