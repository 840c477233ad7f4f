"""The losses of a model on data that it is not trained with."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from detlib.config import CfgNode
from detlib.data import DatasetMapper, build_detection_test_loader
from detlib.modeling.backbone import Backbone
from detlib.modeling.batch_augmentation import RandomBatchAugment
from detlib.modeling.self_supervised import SelfSupModel
from detlib.utils import comm
from detlib.utils.env import preserved_random_states, seed_all_generators
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

__all__ = ["build_validation_loader", "check_validation_loss", "evaluate_losses", "validation_losses"]

logger = logging.getLogger(__name__)

# Where layers come from that compute, but do not know of losses: what they do else in training disturbs a measurement.
PACKAGES_OF_LAYERS = ("torch", "torchvision", "timm", "fvcore", "detlib.layers")

LABELS = ("sem_seg", "label", "labels", "score")  # of whole samples


def check_validation_loss(cfg: CfgNode, model: nn.Module) -> None:
    """Refuse, before the training, what has no validation loss.

    Raises:
        ConfigError: the model learns without labels, or there is no test dataset.
    """
    if isinstance(model, SelfSupModel):
        raise ConfigError(
            f"TEST.VALIDATION_LOSS is set, but {type(model).__name__} learns without labels: its loss compares samples "
            "with memories or averages of the training, and says little of other images. Set TEST.VALIDATION_LOSS: "
            "False; with labelled DATASETS.TEST it is evaluated by nearest neighbours"
        )
    if not cfg.DATASETS.TEST:
        raise ConfigError("TEST.VALIDATION_LOSS is set, but DATASETS.TEST names no dataset to measure the loss on")


def build_validation_loader(cfg: CfgNode, dataset_name: str) -> Iterable[list[dict[str, Any]]]:
    """Each sample of a test dataset once, resized as for testing, with its annotations, in batches as in training."""
    arguments = DatasetMapper.from_config(cfg, is_train=False)
    mapper = DatasetMapper(**{**arguments, "is_train": True})
    batch_size = max(cfg.SOLVER.IMS_PER_BATCH // (comm.get_world_size() * cfg.SOLVER.ACCUMULATION_STEPS), 1)
    return build_detection_test_loader(cfg, dataset_name, mapper=mapper, batch_size=batch_size)


def evaluate_losses(
    cfg: CfgNode, model: nn.Module, build_loader: Callable[[CfgNode, str], Iterable[list[dict[str, Any]]]]
) -> dict[str, Any]:
    """Measure the losses on each dataset of DATASETS.TEST; one without annotations is left out, with a warning.

    Args:
        model: not wrapped for several processes.
        build_loader: such as :func:`build_validation_loader`.

    Returns:
        ``validation_loss``, the sum, and its terms in ``validation``; of several datasets each under its name, and
        ``validation_loss``, their mean.
    """
    results: dict[str, Any] = {}
    for name in cfg.DATASETS.TEST:
        losses = validation_losses(model, build_loader(cfg, name))
        if not losses:
            logger.warning("%r has no annotations, hence no validation loss", name)
            continue
        results[name] = {"validation_loss": sum(losses.values()), "validation": losses}
        logger.info("The validation loss on %r is %.4g", name, results[name]["validation_loss"])
    if len(cfg.DATASETS.TEST) == 1:
        return next(iter(results.values()), {})
    totals = [losses["validation_loss"] for losses in results.values()]
    return {**results, "validation_loss": sum(totals) / len(totals)} if totals else {}


def validation_losses(model: nn.Module, data_loader: Iterable[list[dict[str, Any]]]) -> dict[str, float]:
    """The mean losses over all images, of all processes, with the layers as they are in testing.

    Nothing of the training changes: each batch finds the model as it is, so that the order does not count, and what is
    drawn, as the objects that a detector samples, is the same each time.

    Args:
        model: returns losses by name in training mode.
        data_loader: gives samples with annotations, each once in all processes together.

    Returns:
        The losses by name; nothing if no sample is annotated.
    """
    sums: dict[str, float] = {}
    num_images, is_annotated = 0, False
    with _measuring(model) as restore_buffers:
        for batch in data_loader:
            if not any(key in batch[0] for key in (*LABELS, "instances")):
                continue
            is_annotated |= any(key in sample for sample in batch for key in LABELS)
            is_annotated |= any(len(sample.get("instances", ())) > 0 for sample in batch)
            losses = model(batch)
            losses = {"total_loss": losses} if isinstance(losses, Tensor) else losses
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss) * len(batch)
            num_images += len(batch)
            restore_buffers()
    gathered = comm.all_gather((sums, num_images, is_annotated))
    if not any(found for _, _, found in gathered):  # Published test data may have images without any object.
        return {}
    total = sum(number for _, number, _ in gathered)
    names = dict.fromkeys(name for own, _, _ in gathered for name in own)
    return {name: sum(own.get(name, 0.0) for own, _, _ in gathered) / total for name in names}


@contextmanager
def _measuring(model: nn.Module) -> Iterator[Callable[[], None]]:
    """The model gives losses, and its layers do what they do in testing; afterwards all is as before.

    Yields:
        what makes running values those of the beginning again.
    """
    modes = {module: module.training for module in model.modules()}
    restore_buffers = _buffers_of(model)
    try:
        # A model that draws what it is trained with looks at the iteration: 1 is none to draw in.
        with preserved_random_states(), torch.no_grad(), EventStorage(1):
            seed_all_generators(0)
            torch.manual_seed(0)  # also of accelerators
            model.train()  # A model may keep parts of it in evaluation mode.
            for module in model.modules():
                if isinstance(module, (Backbone, RandomBatchAugment)):
                    module.eval()
                elif module is not model and _is_layer(module):
                    module.training = False
            yield restore_buffers
    finally:
        restore_buffers()
        for module, training in modes.items():
            module.training = training


def _is_layer(module: nn.Module) -> bool:
    return type(module).__module__.startswith(tuple(f"{package}." for package in PACKAGES_OF_LAYERS))


def _buffers_of(model: nn.Module) -> Callable[[], None]:
    """Remember the buffers, such as moving averages in losses; what is returned brings them back."""
    buffers = {module: dict(module._buffers) for module in model.modules() if module._buffers}
    values = {id(b): b.detach().clone() for own in buffers.values() for b in own.values() if b is not None}

    @torch.no_grad()
    def restore() -> None:
        for module in model.modules():
            own: Mapping[str, Tensor | None] = buffers.get(module, {})
            module._buffers.clear()  # Some are replaced rather than changed.
            module._buffers.update(own)
            for buffer in own.values():
                if buffer is not None:
                    buffer.copy_(values[id(buffer)])

    return restore
