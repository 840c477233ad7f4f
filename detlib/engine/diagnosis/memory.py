"""What to do when a step does not fit into memory."""

import re
import resource
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from detlib.config import CfgNode
from detlib.engine.diagnosis.trace import tensors_in
from detlib.utils import comm
from detlib.utils.errors import DetlibError

__all__ = ["TrainingMemoryError", "explain_memory", "is_out_of_memory"]

NUM_KEYS = 3
GIB = 2**30

_MESSAGES = re.compile(
    r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED", re.IGNORECASE
)


class TrainingMemoryError(DetlibError, torch.OutOfMemoryError):
    """A step needs more memory than there is."""


def is_out_of_memory(error: BaseException) -> bool:
    """Of CUDA, MPS, or the main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and _MESSAGES.search(str(error)) is not None


def explain_memory(trainer: Any, cfg: CfgNode | None, error: BaseException) -> TrainingMemoryError:
    """The error with the batch, the memory that was in use, and the options that help.

    Args:
        trainer: a SimpleTrainer.
    """
    reason = (str(error).strip().splitlines() or ["no details"])[0].rstrip(".")
    lines = [
        f"out of memory in iteration {trainer.iter}: {reason}",
        f"Batch: {describe_batch(trainer.last_batch)}",
        f"Memory: {_memory_in_use()}",
    ]
    if cfg is not None:
        lines.append(f"What helps: {'; '.join(list(_remedies(cfg))[:NUM_KEYS])}")
    return TrainingMemoryError(".\n".join(lines))


def describe_batch(batch: Any) -> str:
    """The size of each image, with the number of its objects."""
    if not isinstance(batch, (list, tuple)) or not all(isinstance(sample, Mapping) for sample in batch):
        return ", ".join(_shape(tensor) for _, tensor in tensors_in(batch)) or f"a {type(batch).__name__}"
    texts = []
    for sample in batch:
        images = [t for name, t in tensors_in(sample) if t.dim() == 3 and name.startswith(("image", "views"))]
        text = _shape(images[0]) if images else "?"
        if len(images) > 1:
            text = f"{len(images)} views of {text}"
        if "instances" in sample:
            text += f" with {len(sample['instances'])} objects"
        texts.append(text)
    return f"{len(batch)} images, {', '.join(texts)}"


def _shape(image: torch.Tensor) -> str:
    return " x ".join(map(str, image.shape))


def _memory_in_use() -> str:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return (
            f"at most {torch.cuda.max_memory_allocated() / GIB:.2f} GiB of tensors, "
            f"{torch.cuda.max_memory_reserved() / GIB:.2f} GiB reserved by this process, of the {total / GIB:.2f} GiB "
            "that the GPU has"
        )
    if torch.backends.mps.is_available():
        return f"{torch.mps.driver_allocated_memory() / GIB:.2f} GiB allocated by Metal"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return f"at most {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB:.2f} GiB in this process"


def _remedies(cfg: CfgNode) -> Iterator[str]:
    """Options that this config has not used up, those that change the result least first."""
    solver, model = cfg.SOLVER, cfg.MODEL
    images = max(solver.IMS_PER_BATCH // comm.get_world_size(), 1)
    if not solver.AMP.ENABLED and model.DEVICE != "cpu":
        yield "SOLVER.AMP.ENABLED=True, which halves most activations"
    if images > solver.ACCUMULATION_STEPS:
        steps = next(n for n in range(solver.ACCUMULATION_STEPS + 1, images + 1) if images % n == 0)
        yield f"SOLVER.ACCUMULATION_STEPS={steps}, which takes the batch in parts of {images // steps} per process"
    if not model.ACTIVATION_CHECKPOINT:
        yield "MODEL.ACTIVATION_CHECKPOINT, with the names of the largest modules, which trades time for memory"
    yield from _smaller_images(cfg)
    if model.META_ARCHITECTURE == "GeneralizedRCNN":
        yield f"MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE={model.ROI_HEADS.BATCH_SIZE_PER_IMAGE // 2}"
    if images > 1:
        yield (
            f"SOLVER.IMS_PER_BATCH={solver.IMS_PER_BATCH // 2} with SOLVER.BASE_LR={solver.BASE_LR / 2:.4g}, which are "
            "scaled alike"
        )


def _smaller_images(cfg: CfgNode) -> Iterator[str]:
    options = cfg.INPUT
    if options.VIEWS:
        yield "smaller sizes in INPUT.VIEWS"
    elif options.AUGMENTATIONS_TRAIN:
        yield "smaller sizes in INPUT.AUGMENTATIONS_TRAIN"
    elif options.LARGE_SCALE_JITTER.ENABLED:
        yield f"INPUT.LARGE_SCALE_JITTER.SIZE={[side // 4 * 3 for side in options.LARGE_SCALE_JITTER.SIZE]}"
    else:
        sizes = tuple(size // 4 * 3 for size in options.MIN_SIZE_TRAIN)
        yield f"smaller images: INPUT.MIN_SIZE_TRAIN={sizes} INPUT.MAX_SIZE_TRAIN={options.MAX_SIZE_TRAIN // 4 * 3}"
