"""Errors when a checkpoint is for another model, of which loading would leave most as initialised."""

from collections.abc import Mapping, Sequence

from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor
from torch.nn.parameter import is_lazy

from detlib.checkpoint.parts import backbone_prefix, prefixes_of_backbones
from detlib.utils.errors import CheckpointError

__all__ = ["HEURISTICS_SUFFIX", "refuse_other_backbone", "refuse_other_model"]

HEURISTICS_SUFFIX = "?matching_heuristics=True"

MIN_SHARE_LOADED = 0.1  # of the weights that could match, be it the file or the model that has fewer.
MAX_SHARE_OF_OTHER_SHAPE = 0.1  # of the layers of a backbone: more than a first one for another kind of images.


def refuse_other_model(path: str, incompatible: _IncompatibleKeys, names: Sequence[str], part: str = "") -> None:
    """
    Args:
        path: of the checkpoint.
        incompatible: what did not fit.
        names: of the weights that were to be loaded.
        part: of the model, that has these names; "" for the whole.

    Raises:
        CheckpointError: almost nothing was loaded.
    """
    num_other = len(incompatible.incorrect_shapes)
    num_loaded = len(names) - len(incompatible.missing_keys) - num_other
    num_in_file = num_loaded + num_other + len(incompatible.unexpected_keys)
    # A file may hold a little of a model, but that of a part is there for the part.
    if num_loaded >= MIN_SHARE_LOADED * (len(names) if part else min(num_in_file, len(names))):
        return
    examples = [name for name, _, _ in incompatible.incorrect_shapes] or incompatible.unexpected_keys
    what = f"the part {part} of this model" if part else "this model"
    raise CheckpointError(
        f"{path} is for another model: of its {num_in_file} weights, {num_loaded} fit {what}, which has "
        f"{len(names)}, and {num_other} have another shape. Names in the file: {', '.join(examples[:3])}; in the "
        f"model: {', '.join(names[:3])}. Check the config. {_remedy(incompatible.unexpected_keys, names, part)}"
    )


def refuse_other_backbone(path: str, incompatible: _IncompatibleKeys, model: Mapping[str, Tensor]) -> None:
    """
    Args:
        path: of the checkpoint.
        incompatible: what of it did not fit the whole model.
        model: the ``state_dict`` of that.

    Raises:
        CheckpointError: the file has the model's backbone in another width, depth or kind.
    """
    prefix = backbone_prefix(model)
    other = [shapes for shapes in incompatible.incorrect_shapes if shapes[0].startswith(prefix)]
    if not other:
        return
    for name, in_file, in_model in other:
        if name == f"{prefix}stem.conv1.weight" and in_file[1] == 2 != in_model[1]:
            raise CheckpointError(
                f"The backbone in {path} looks at the edges of images, not at colours: {name} is for 2 channels, as "
                f"DeepCluster's build_sobel_resnet_backbone has, but here for {in_model[1]}. Detectors have no such "
                "edges; pre-train with MODEL.BACKBONE.NAME: build_resnet_backbone, or set "
                "build_sobel_resnet_backbone here in an ImageClassifier"
            )
    # Scales and biases say little of a layer's kind: there are as many for kernels of any size.
    not_loaded = {*incompatible.missing_keys, *(name for name, _, _ in other)}
    layers = [name for name, x in model.items() if name.startswith(prefix) and not is_lazy(x) and x.dim() > 1]
    num_loaded = sum(name not in not_loaded for name in layers)
    num_other = sum(len(in_model) > 1 for _, _, in_model in other)
    if num_other > MAX_SHARE_OF_OTHER_SHAPE * (num_loaded + num_other):
        name, in_file, in_model = other[0]
        raise CheckpointError(
            f"{path} has another backbone: {num_other} of its layers have another shape, such as {name}, which is "
            f"{list(in_file)} in the file and {list(in_model)} here; {num_loaded} fit. Give the backbone the kind, "
            "width and depth that it had: MODEL.BACKBONE, and MODEL.RESNETS, VIT or SWIN"
        )


def _remedy(unexpected: Sequence[str], names: Sequence[str], part: str) -> str:
    prefix = "" if part else backbone_prefix(names)
    found = prefixes_of_backbones((n.removeprefix(prefix) for n in names if n.startswith(prefix)), unexpected)
    if found and not part:
        return f"Its backbone seems to be {found[0]}*; then write ?prefix={found[0]} after its path"
    holds = "it" if part else "a part of the model, such as its backbone,"
    return f"If the file holds {holds} under shorter names, write {HEURISTICS_SUFFIX} after its path"
