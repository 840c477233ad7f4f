"""The trainer that follows a config, with the behaviour most projects want."""

import logging
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode
from detlib.data import MetadataCatalog, build_detection_test_loader, build_detection_train_loader
from detlib.data.check import check_briefly
from detlib.data.datasets.register import register_datasets
from detlib.engine import hooks
from detlib.engine.checkpoint_metadata import checkpoint_metadata
from detlib.engine.clustering_hook import build_clustering_hook
from detlib.engine.ema import ModelEMA, build_ema
from detlib.engine.evaluation_hooks import build_selection
from detlib.engine.evaluation_record import EvaluationRecord
from detlib.engine.fsdp import build_for_processes, is_sharded, shard_optimizer_state, whole_weights
from detlib.engine.predictor import DefaultPredictor
from detlib.engine.prepare_model import prepare_model
from detlib.engine.schedule import auto_scale_workers, num_samples_of, uses_epochs, with_iterations
from detlib.engine.setup import (
    check_num_classes,
    create_ddp_model,
    default_argument_parser,
    default_setup,
    default_writers,
    with_memory_length,
)
from detlib.engine.step import check_parts, step_options
from detlib.engine.train_loop import AMPTrainer, HookBase, SimpleTrainer, TrainerBase
from detlib.engine.training_state import unwrap_model
from detlib.evaluation import (
    DatasetEvaluator,
    evaluate_neighbours,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detlib.evaluation.validation_loss import build_validation_loader, check_validation_loss, evaluate_losses
from detlib.modeling import build_model
from detlib.modeling.self_supervised import SelfSupModel
from detlib.solver import build_lr_scheduler, build_optimizer
from detlib.utils import comm
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventWriter
from detlib.utils.logger import setup_logger

__all__ = [
    "DefaultPredictor",
    "DefaultTrainer",
    "create_ddp_model",
    "default_argument_parser",
    "default_setup",
    "default_writers",
]

logger = logging.getLogger(__name__)


def _attribute_of_trainer(name: str) -> property:
    return property(lambda self: getattr(self._trainer, name), lambda self, value: setattr(self._trainer, name, value))


class DefaultTrainer(TrainerBase):
    """Builds everything from a config and trains.

    >>> trainer = DefaultTrainer(cfg)
    >>> trainer.resume_or_load(resume=False)  # or True, to go on from the last checkpoint in OUTPUT_DIR
    >>> trainer.train()

    Override a ``build_*`` method to replace a part. The iteration itself is that of ``_trainer``, a
    :class:`SimpleTrainer` or :class:`AMPTrainer`, which a subclass may replace, too.

    Attributes:
        scheduler, checkpointer, cfg
        start_iter, max_iter: the iterations to run.
    """

    model = _attribute_of_trainer("model")
    data_loader = _attribute_of_trainer("data_loader")
    optimizer = _attribute_of_trainer("optimizer")
    last_batch = _attribute_of_trainer("last_batch")
    step_batches = _attribute_of_trainer("step_batches")
    accumulation_steps = _attribute_of_trainer("accumulation_steps")

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        if not logging.getLogger("detlib").isEnabledFor(logging.INFO):  # Nobody called default_setup.
            setup_logger()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        register_datasets(cfg)
        cfg = with_memory_length(cfg)
        data_loader = None
        if uses_epochs(cfg):  # Model, optimizer and schedule are built of iterations, so the data is asked first.
            data_loader = self.build_train_loader(cfg)
            cfg = with_iterations(cfg, data_loader)
        model = build_for_processes(cfg, self.build_model)
        prepare_model(cfg, model)
        optimizer = self.build_optimizer(cfg, model)
        if is_sharded(model):
            shard_optimizer_state(optimizer)
        if data_loader is None:
            data_loader = self.build_train_loader(cfg)
        check_num_classes(cfg)
        model = create_ddp_model(model, broadcast_buffers=False)
        trainer_class = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        self._trainer = trainer_class(model, data_loader, optimizer, **step_options(cfg, model))
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        # A strong reference would be a cycle that keeps the model in memory after the trainer is gone.
        self.checkpointer = DetectionCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.checkpointer.metadata = checkpoint_metadata(cfg)
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self._last_eval_results: Mapping[str, Any] | None = None
        self.register_hooks(self.build_hooks())

    def resume_or_load(self, resume: bool = True) -> None:
        """Loads ``MODEL.WEIGHTS``; or, to resume, the last checkpoint in ``OUTPUT_DIR`` and everything in it.

        Args:
            resume: use the last checkpoint if there is one.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and comm.all_gather(self.checkpointer.has_checkpoint())[0]:  # Machines need not share a disk.
            self.start_iter = self.iter + 1  # A checkpoint holds the iteration that was finished.
        elif not self.cfg.MODEL.WEIGHTS:
            _warn_of_frozen_layers(unwrap_model(self.model))

    def train(self) -> Mapping[str, Any] | None:
        """Trains to ``SOLVER.MAX_ITER``.

        Returns:
            the results of the last evaluation, if there was one; checked against ``TEST.EXPECTED_RESULTS``.
        """
        if self.start_iter == 0:
            check_briefly(self.cfg, self.data_loader)
        super().train(self.start_iter, self.max_iter)
        if self.cfg.TEST.EXPECTED_RESULTS and comm.is_main_process():
            verify_results(self.cfg, self._last_eval_results or {})
        return self._last_eval_results

    def run_step(self) -> None:
        if is_sharded(self.model):
            self.checkpointer.dealt_out.forget()
        # The held trainer is part of this loop: every event in it, also after_backward, reaches the same hooks.
        self._trainer._hooks = self._hooks
        self._trainer.storage = self.storage
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def after_step(self) -> None:
        check_parts(self._trainer, self.cfg.SOLVER.ACCUMULATION_STEPS)
        super().after_step()

    def after_train(self) -> None:
        try:
            if isinstance(self._trainer, SimpleTrainer):
                self._trainer.finish_metrics()
        finally:
            super().after_train()
            if is_sharded(self.model):
                self.checkpointer.dealt_out.forget()

    def state_dict(self) -> dict[str, Any]:
        inner = self._trainer.state_dict()
        inner.pop("hooks", None)  # The hooks are shared, so they are in the outer part already.
        return {**super().state_dict(), "_trainer": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._trainer.load_state_dict(state_dict["_trainer"])

    def reset_data_loader(self, data_loader_builder: Callable[[], Iterable]) -> None:
        """See :meth:`SimpleTrainer.reset_data_loader`."""
        self._trainer.reset_data_loader(data_loader_builder)

    def gather_states(self) -> None:
        """See :meth:`SimpleTrainer.gather_states`."""
        if isinstance(self._trainer, SimpleTrainer):
            self._trainer.gather_states()
        if is_sharded(self.model):
            self.checkpointer.gather()

    def build_hooks(self) -> list[HookBase | None]:
        """Timing, rate, averages, labels, statistics, checkpoints, evaluation, drawings, warnings, bar, writers.

        The order counts: labels and statistics before checkpoints before evaluation, and writers at the end, to write
        it all.
        """
        cfg = self.cfg
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            build_ema(cfg, self.checkpointer),
            build_clustering_hook(cfg, self.model),
            self._build_precise_bn() if cfg.TEST.PRECISE_BN.ENABLED else None,
            hooks.GatherStates(cfg.SOLVER.CHECKPOINT_PERIOD, cfg.TEST.EVAL_PERIOD),
            self._build_checkpoints() if main else None,
            hooks.PreemptionHook(self.checkpointer),
            *self._build_evaluation(),
            *(self._build_drawings() if cfg.VIS_PERIOD > 0 and main else ()),
            hooks.CollapseWarning() if main and isinstance(unwrap_model(self.model), SelfSupModel) else None,
            hooks.DataWaitWarning(cfg.DATALOADER.NUM_WORKERS) if main else None,
            hooks.ProgressBar() if main else None,
            hooks.PeriodicWriter(self.build_writers(), period=20) if main else None,
        ]

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.cfg.OUTPUT_DIR, self.max_iter)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = build_model(cfg)
        logger.info("Model:\n%s", model)
        return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable:
        return build_detection_train_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        return build_detection_test_loader(cfg, dataset_name)

    @classmethod
    def build_validation_loader(cls, cfg: CfgNode, dataset_name: str) -> Iterable:
        """The loader of TEST.VALIDATION_LOSS: a test dataset with its annotations."""
        return build_validation_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """Override it; tools/train_net.py has one for the datasets that detlib knows."""
        raise NotImplementedError(f"{cls.__name__} must define build_evaluator(cfg, dataset_name) to evaluate")

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | Sequence[DatasetEvaluator] | None = None,
    ) -> dict[str, Any]:
        """Evaluates the model on each dataset of ``DATASETS.TEST``.

        Args:
            evaluators: one per dataset; None for those of ``build_evaluator``, and for
                :func:`~detlib.evaluation.evaluate_neighbours` of a self-supervised model, which predicts no classes.

        Returns:
            the results by dataset; only the results if there is one dataset.
        """
        if isinstance(evaluators, DatasetEvaluator):
            evaluators = [evaluators]
        num_names = len(cfg.DATASETS.TEST)
        if evaluators is not None and len(evaluators) != num_names:
            raise ConfigError(f"{len(evaluators)} evaluators came for the {num_names} datasets of DATASETS.TEST")
        if evaluators is None and isinstance(unwrap_model(model), SelfSupModel):
            evaluations = evaluate_neighbours(cfg, unwrap_model(model))
        else:
            evaluations = cls._evaluate_predictions(cfg, model, evaluators)
        results: OrderedDict[str, Any] = OrderedDict()
        for name, metrics in evaluations:
            results[name] = metrics
            if metrics and comm.is_main_process():
                logger.info("Results on %s:", name)
                print_csv_format(metrics)
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def _evaluate_predictions(
        cls, cfg: CfgNode, model: nn.Module, evaluators: Sequence[DatasetEvaluator] | None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for i, name in enumerate(cfg.DATASETS.TEST):
            try:
                evaluator = cls.build_evaluator(cfg, name) if evaluators is None else evaluators[i]
            except NotImplementedError as error:
                logger.warning("%r is not evaluated: %s", name, error)
                yield name, {}
                continue
            yield name, inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Adapts batch size, learning rate and lengths to a number of processes other than the config was made for.

        The batch per process stays, and the learning rate follows the batch ("Accurate, Large Minibatch SGD",
        section 2.1). Lengths count images, so they shrink as the batch grows.

        Args:
            num_workers: processes of this training; with ``SOLVER.REFERENCE_WORLD_SIZE`` of 0, nothing is changed.
        """
        return auto_scale_workers(cfg, num_workers)

    def _weights_for_evaluation(self) -> AbstractContextManager[Any]:
        """A context in which the model has the weights that are evaluated."""
        averages = [hook for hook in self._hooks if isinstance(hook, ModelEMA)]
        return averages[0].applied() if averages and self.cfg.MODEL_EMA.USE_FOR_EVAL else nullcontext()

    def _evaluate(self) -> Mapping[str, Any]:
        with self._weights_for_evaluation(), whole_weights(self.model):
            results = self.test(self.cfg, self.model)
            if self.cfg.TEST.VALIDATION_LOSS:
                losses = evaluate_losses(self.cfg, unwrap_model(self.model), self.build_validation_loader)
                results = {**results, **losses} if len(self.cfg.DATASETS.TEST) == 1 else _merged(results, losses)
        self._last_eval_results = results
        return results

    def _build_evaluation(self) -> list[HookBase | None]:
        cfg = self.cfg
        if cfg.TEST.VALIDATION_LOSS:
            check_validation_loss(cfg, unwrap_model(self.model))
        num_samples = num_samples_of(self.data_loader)
        record = EvaluationRecord(cfg.OUTPUT_DIR, num_samples and num_samples / cfg.SOLVER.IMS_PER_BATCH)
        evaluation = hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self._evaluate, record=record)
        return [evaluation, *build_selection(cfg, self.checkpointer, self._weights_for_evaluation)]

    def _build_checkpoints(self) -> HookBase:
        solver = self.cfg.SOLVER
        return hooks.PeriodicCheckpointer(
            self.checkpointer, solver.CHECKPOINT_PERIOD, max_to_keep=solver.CHECKPOINT_KEEP or None
        )

    def _build_precise_bn(self) -> HookBase:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.DATALOADER.NUM_WORKERS = 0  # It runs rarely; idle workers would hold memory all the time.
        loader = self.build_train_loader(cfg)
        return hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER)

    def _build_drawings(self) -> list[HookBase]:
        cfg = self.cfg
        if is_sharded(self.model):
            logger.warning("VIS_PERIOD draws nothing with SOLVER.PARALLEL: fsdp, as no process has the whole model.")
            return []
        metadata = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else None
        drawings: list[HookBase] = [hooks.VisualizePredictions(cfg.VIS_PERIOD, cfg.INPUT.FORMAT, metadata)]
        if tapped := getattr(unwrap_model(self.model), "tapped_modules", []):
            drawings.append(hooks.VisualizeFeatures(cfg.VIS_PERIOD, tapped, cfg.OUTPUT_DIR, cfg.INPUT.FORMAT))
        return drawings


def _merged(results: Mapping[str, Any], losses: Mapping[str, Any]) -> dict[str, Any]:
    """Results of several datasets with the losses on them, and what these have beside."""
    joined = {name: {**metrics, **losses.get(name, {})} for name, metrics in results.items()}
    return {**joined, **{name: value for name, value in losses.items() if name not in joined}}


def _warn_of_frozen_layers(model: nn.Module) -> None:
    """Warn of those that no checkpoint is given for, other than in modules that are ``frozen_on_purpose``.

    These are, for instance, momentum encoders.
    """
    loaded = tuple(f"{name}." for name in getattr(model, "part_weights", {}))
    modules = [module for module in model.modules() if getattr(module, "frozen_on_purpose", False)]
    meant = {parameter for module in modules for parameter in module.parameters()}
    frozen = [
        name
        for name, p in model.named_parameters()
        if not p.requires_grad and p not in meant and not name.startswith(loaded)
    ]
    if not frozen:
        return
    if hasattr(model, "part_weights"):
        advice = "Give their node weights of its own; or write freeze: false, and in a backbone kwargs: {FREEZE_AT: 0}"
    else:
        advice = "To train all layers from scratch, set MODEL.BACKBONE.FREEZE_AT=0"
    logger.warning(
        "%d parameters are frozen, but MODEL.WEIGHTS is empty: they stay random. They are %s. %s.",
        len(frozen),
        ", ".join(frozen[:3]) + (", ..." if len(frozen) > 3 else ""),
        advice,
    )
