"""What a training or evaluation program does before and around its work."""

import argparse
import inspect
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import IterableDataset

from detlib.config import CfgNode, import_custom_modules, set_global_cfg
from detlib.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detlib.data.datasets.register import register_datasets
from detlib.engine.fsdp import is_sharded
from detlib.modeling.meta_arch.build import ClassOption, class_options
from detlib.modeling.self_supervised import MEMORY_REGISTRY
from detlib.utils import comm
from detlib.utils.collect_env import collect_env_info
from detlib.utils.env import seed_all_rng
from detlib.utils.errors import ConfigError, DatasetError, DetlibError
from detlib.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from detlib.utils.file_io import PathManager
from detlib.utils.logger import setup_logger

__all__ = [
    "add_overrides",
    "check_num_classes",
    "classes_of_dataset",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
    "run_tool",
    "with_memory_length",
]

logger = logging.getLogger(__name__)

EXAMPLES = """
Examples:
  train on one GPU, or on the CPU if there is none:
      python {prog} --config-file config.yaml
  with options of the config changed, in either way of writing:
      python {prog} --config-file config.yaml SOLVER.BASE_LR 0.001 MODEL.DEVICE=cpu
  on the 8 GPUs of this machine:
      python {prog} --config-file config.yaml --num-gpus 8
      torchrun --nproc-per-node 8 {prog} --config-file config.yaml
  starting again from the last checkpoint, up to 3 times, when a process dies:
      torchrun --nproc-per-node 8 --max-restarts 3 {prog} --config-file config.yaml
  in a job of Slurm, one task per GPU:
      srun python {prog} --config-file config.yaml
  with a model that outgrows a GPU:
      torchrun --nproc-per-node 8 {prog} --config-file config.yaml SOLVER.PARALLEL fsdp
  on two machines with 8 GPUs each:
      (machine 0) python {prog} --config-file config.yaml --num-gpus 8 --num-machines 2 --machine-rank 0 \
                  --dist-url tcp://ADDRESS_OF_MACHINE_0:PORT
      (machine 1) the same with --machine-rank 1
  go on after an interruption:
      python {prog} --config-file config.yaml --resume
  evaluate a checkpoint:
      python {prog} --config-file config.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
"""


def default_argument_parser(epilog: str | None = None) -> argparse.ArgumentParser:
    """The options of training programs.

    Args:
        epilog: end of the help text; None for examples.
    """
    parser = argparse.ArgumentParser(
        usage="%(prog)s --config-file FILE [options] [KEY VALUE | KEY=VALUE ...]",
        epilog=EXAMPLES.format(prog=sys.argv[0]) if epilog is None else epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", default="", metavar="FILE", help="YAML file with the config")
    parser.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR, if there is one"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and do not train")
    parser.add_argument(
        "--print-config", action="store_true", help="print the resolved config, with the origin of each value, and exit"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="processes on this machine, one per GPU (default: 1)")
    parser.add_argument("--num-machines", type=int, default=1, help="machines that take part (default: 1)")
    parser.add_argument("--machine-rank", type=int, default=0, help="number of this machine, from 0 (default: 0)")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="where the processes meet; 'auto' (default) finds a free port, and does for one machine",
    )
    add_overrides(parser)
    return parser


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let ``opts``, all that follows the options, be changes of the config."""
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE | KEY=VALUE",
        help="changes of the config, after all options",
    )


def default_setup(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Prepares the output folder, logs, datasets declared in the config, random numbers and float precision.

    ``OUTPUT_DIR/config.yaml`` gets the full config; an evaluation leaves it alone if it is there. Where torchrun or
    Slurm has restarted a training that had saved a checkpoint, ``args.resume`` is set.

    Args:
        args: of :func:`default_argument_parser`; all are logged.
    """
    rank = comm.get_rank()
    eval_only = getattr(args, "eval_only", False)
    num_restarts = 0 if eval_only else _num_restarts()
    if num_restarts and comm.all_gather(_has_saved(cfg.OUTPUT_DIR))[0]:
        args.resume = True
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        PathManager.mkdirs(cfg.OUTPUT_DIR)
    for name in ("fvcore", "detlib"):
        setup_logger(cfg.OUTPUT_DIR or None, distributed_rank=rank, name=name)
    command = shlex.join([os.path.basename(sys.executable), *sys.argv])
    logger.info("Process %d of %d, started with: %s", rank, comm.get_world_size(), command)
    logger.info("Environment:\n%s", collect_env_info())
    logger.info("Arguments: %s", args)
    if num_restarts:
        resumes = getattr(args, "resume", False)
        what = "it goes on from its last checkpoint" if resumes else "it had not saved anything, and begins anew"
        logger.warning("This is restart %d of the training; %s.", num_restarts, what)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        _save_config(cfg, command, keep=eval_only or num_restarts > 0)
    set_global_cfg(cfg)
    import_custom_modules(cfg)
    register_datasets(cfg)
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    if not eval_only:  # images of an evaluation have many sizes, for each of which cuDNN would search anew
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    if cfg.FLOAT32_PRECISION:
        torch.set_float32_matmul_precision(cfg.FLOAT32_PRECISION)


def default_writers(output_dir: str, max_iter: int | None = None) -> list[EventWriter]:
    """Writers to the console, to ``metrics.json``, and to TensorBoard if that is installed.

    Args:
        max_iter: for the remaining time on the console.
    """
    PathManager.mkdirs(output_dir)
    writers = [CommonMetricPrinter(max_iter), JSONWriter(os.path.join(output_dir, "metrics.json"))]
    if find_spec("tensorboard"):
        writers.append(TensorboardXWriter(output_dir))
    else:
        logger.info("No TensorBoard files are written: the package tensorboard is not installed.")
    return writers


def create_ddp_model(model: nn.Module, *, fp16_compression: bool = False, **kwargs: Any) -> nn.Module:
    """``DistributedDataParallel`` around the model; the model itself if there is one process, or FSDP deals it out.

    Args:
        fp16_compression: send gradients in half precision.
        kwargs: of ``DistributedDataParallel``. A model may say that it ``has_unused_parameters`` in some batches.
    """
    if comm.get_world_size() == 1 or is_sharded(model):
        return model
    kwargs.setdefault("find_unused_parameters", getattr(model, "has_unused_parameters", False))
    device = next(model.parameters()).device
    if device.type == "cuda":
        kwargs.setdefault("device_ids", [device])
    with warnings.catch_warnings():
        # torch's successor of broadcast_buffers=False, forward_sync_buffers=False, still sends buffers at the start.
        warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
        ddp = DistributedDataParallel(model, **kwargs)
    if fp16_compression:
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

        ddp.register_comm_hook(state=None, hook=fp16_compress_hook)
    return ddp


def check_num_classes(cfg: CfgNode) -> None:
    """Compares the number of classes of the model with that of each training dataset.

    Of classes of whole images also with that of each test dataset: where a folder of a class is missing, the numbers of
    the others shift.

    Models that do not tell it (:func:`~detlib.modeling.meta_arch.build.class_options`), and datasets whose metadata has
    no classes of that kind, are passed over.

    Raises:
        ConfigError: they differ.
    """
    for option in class_options(cfg):
        _check_num_classes(cfg, option)


def _check_num_classes(cfg: CfgNode, option: ClassOption) -> None:
    names = (*cfg.DATASETS.TRAIN, *(cfg.DATASETS.TEST if option.kind == "classes" else ()))
    fitting: tuple[str, Sequence[str]] | None = None  # The first dataset that fits the model.
    for name in names:
        classes = classes_of_dataset(name, option)
        if classes is None:
            continue
        if len(classes) == option.num_classes:
            fitting = fitting or (name, classes)
            if list(classes) != list(fitting[1]):
                logger.warning(
                    "Classes of %r (%s) are not named as those of %r (%s)",
                    name,
                    _listed(classes),
                    fitting[0],
                    _listed(fitting[1]),
                )
        elif fitting and option.kind == "classes":
            raise ConfigError(
                f"the dataset {name!r} has {len(classes)} classes ({_listed(classes)}), but {fitting[0]!r} has "
                f"{option.num_classes} ({_listed(fitting[1])}). Labels are the places of the names, so both need the "
                f"same names; a class without images needs an empty folder"
            )
        else:
            raise ConfigError(
                f"{option.name} is {option.num_classes}, but the dataset {name!r} has {len(classes)} classes "
                f"({_listed(classes)}). Write in the config: {_yaml_line(option.key, len(classes))}"
            )


def _listed(classes: Sequence[str]) -> str:
    return ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")


def with_memory_length(cfg: CfgNode) -> CfgNode:
    """The config with ``MODEL.SSL.MEMORY.LENGTH``, the number of samples of DATASETS.TRAIN, if a memory is to have it.

    Raises:
        ConfigError: the config says another number.
        DatasetError: the data is a stream.
    """
    memory = cfg.MODEL.SSL.MEMORY
    name, length = memory.get("NAME"), memory.get("LENGTH", 0)
    if name not in MEMORY_REGISTRY or "length" not in inspect.signature(MEMORY_REGISTRY.get(name)).parameters:
        return cfg
    is_known = cfg.DATASETS.TRAIN and set(cfg.DATASETS.TRAIN) <= set(DatasetCatalog.list())
    if length and not is_known:  # A project may feed its own loader.
        return cfg
    dataset = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False, check_consistency=False)
    if isinstance(dataset, IterableDataset):
        raise DatasetError(f"{name} remembers samples by their place in the dataset, got an IterableDataset")
    if length not in (0, len(dataset)):
        raise ConfigError(
            f"MODEL.SSL.MEMORY.LENGTH is {length}, but DATASETS.TRAIN has {len(dataset)} samples; leave it out"
        )
    filled = cfg.clone()
    filled.defrost()
    filled.MODEL.SSL.MEMORY.LENGTH = len(dataset)
    if cfg.is_frozen():
        filled.freeze()
    return filled


def run_tool(main: Callable[[], Any]) -> None:
    """Runs a command line tool; a mistake of its user becomes one line, ``error: ...``, and exit status 2."""
    try:
        main()
    except DetlibError as error:
        # A worker of a data loader puts its whole traceback before the message.
        message = str(error).rsplit(f"{type(error).__name__}: ", 1)[-1]
        print("error:", " ".join(message.split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # what shells report for it


def _num_restarts() -> int:
    return sum(int(os.environ.get(name, 0)) for name in ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"))


def _has_saved(output_dir: str) -> bool:
    """Whether there is a checkpoint of this training, and not only of an earlier one in this folder."""
    config, last = (os.path.join(output_dir, name) for name in ("config.yaml", "last_checkpoint"))
    # A training begins with writing its config, which its restarts leave alone.
    return os.path.exists(last) and os.path.exists(config) and os.path.getmtime(last) > os.path.getmtime(config)


def _save_config(cfg: CfgNode, command: str, keep: bool) -> None:
    path = os.path.join(cfg.OUTPUT_DIR, "config.yaml")
    text = cfg.dump()
    logger.info("Config:\n%s", text)
    if keep and PathManager.exists(path):
        return
    with PathManager.open(path, "w") as f:
        f.write(f"# {command}\n{text}")
    logger.info("The config is in %s", path)


def classes_of_dataset(name: str, option: ClassOption) -> Sequence[str] | None:
    """The class names that an option of a model counts, for which the dataset may have to be read; None if unknown."""
    if name not in DatasetCatalog.list():  # A project may feed its own loader.
        return None
    metadata = MetadataCatalog.get(name)
    if option.tasks and metadata.get("task", option.tasks[0]) not in option.tasks:
        return None
    if all(metadata.get(kind) is None for kind in ("thing_classes", "classes", "stuff_classes")):
        DatasetCatalog.get(name)  # Datasets in COCO's format learn their classes from the file.
    return metadata.get(option.kind)


def _yaml_line(key: str, value: int) -> str:
    """``A.B`` and 1 become ``A: {B: 1}``."""
    first, *rest = key.split(".")
    return f"{first}: " + "".join(f"{{{part}: " for part in rest) + str(value) + "}" * len(rest)
