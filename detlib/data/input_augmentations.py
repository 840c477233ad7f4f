"""What the section ``INPUT`` of a config asks for, as augmentations."""

from detlib.config import CfgNode
from detlib.data import transforms as T
from detlib.utils.errors import ConfigError

__all__ = ["build_augmentation", "build_crop", "cuts_objects"]


def build_augmentation(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build ``INPUT.AUGMENTATIONS_TRAIN`` or ``INPUT.AUGMENTATIONS_TEST``; where the list is empty, what the other keys
    say: resizing (or large scale jitter) and, in training, flipping.

    Raises:
        ConfigError: a key has a wrong value, or the list comes with keys that it replaces.
    """
    key = "AUGMENTATIONS_TRAIN" if is_train else "AUGMENTATIONS_TEST"
    if cfg.INPUT[key]:
        if is_train:
            _check_alone(cfg)
        return T.build_augmentations(cfg.INPUT[key], cfg.INPUT.FORMAT, f"INPUT.{key}")
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "vertical", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP must be 'horizontal', 'vertical' or 'none', got {flip!r}")
    resize = _build_resize(cfg)
    if flip == "none":
        return resize
    return [*resize, T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def _check_alone(cfg: CfgNode) -> None:
    for section, name in (("CROP", "RandomCrop"), ("LARGE_SCALE_JITTER", "ResizeScale")):
        if cfg.INPUT[section].ENABLED:
            raise ConfigError(
                f"INPUT.AUGMENTATIONS_TRAIN is the whole list, but INPUT.{section}.ENABLED is set, too; turn that off, "
                f"and add {{NAME: {name}, ...}} to the list if you want both"
            )


def _build_resize(cfg: CfgNode) -> list[T.Augmentation]:
    jitter = cfg.INPUT.LARGE_SCALE_JITTER
    if jitter.ENABLED:
        return [
            T.ResizeScale(jitter.MIN_SCALE, jitter.MAX_SCALE, *jitter.SIZE),
            T.FixedSizeCrop(tuple(jitter.SIZE), pad=jitter.PAD, seg_pad_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE),
        ]
    lengths, sampling = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    return [T.ResizeShortestEdge(lengths, cfg.INPUT.MAX_SIZE_TRAIN, sampling)]


def build_crop(cfg: CfgNode) -> T.Augmentation:
    """Build what ``INPUT.CROP`` asks for, whether it is enabled or not."""
    crop = cfg.INPUT.CROP
    if crop.SINGLE_CATEGORY_MAX_AREA >= 1:
        return T.RandomCrop(crop.TYPE, crop.SIZE)
    return T.RandomCrop_CategoryAreaConstraint(
        crop.TYPE, crop.SIZE, crop.SINGLE_CATEGORY_MAX_AREA, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    )


def cuts_objects(cfg: CfgNode) -> bool:
    """Tell whether training images may be cropped, so that boxes are to be made tight around what is left of masks.

    Of augmentations by name it is assumed: some of them crop, and others may be the user's own.
    """
    return cfg.INPUT.CROP.ENABLED or cfg.INPUT.LARGE_SCALE_JITTER.ENABLED or bool(cfg.INPUT.AUGMENTATIONS_TRAIN)
