#!/usr/bin/env python
"""Train or evaluate a config with the whole loop in sight.

It does what ``train_net.py`` does, with neither trainer nor hooks: a place to start from for training that differs
in the loop itself. Missing here are mixed precision, accumulated gradients, averaged weights, precise batch norm
statistics, drawings, and what follows from evaluations: the best model, early stopping, results.csv and curves.
"""

import argparse
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from detlib.checkpoint import DetectionCheckpointer, PeriodicCheckpointer
from detlib.config import CfgNode, get_cfg
from detlib.config.config import format_with_origins
from detlib.data import build_detection_test_loader, build_detection_train_loader
from detlib.engine import default_argument_parser, default_setup, default_writers, launch
from detlib.engine.prepare_model import prepare_model
from detlib.engine.schedule import with_iterations
from detlib.engine.setup import check_num_classes, create_ddp_model, run_tool
from detlib.engine.train_loop import NonFiniteLossError
from detlib.engine.training_state import ProcessStates, TrainingState, unwrap_model
from detlib.evaluation import (
    build_evaluator,
    evaluate_neighbours,
    inference_on_dataset,
    print_csv_format,
    verify_results,
)
from detlib.evaluation.testing import flatten_results_dict
from detlib.modeling import build_model
from detlib.modeling.self_supervised import SelfSupModel
from detlib.solver import build_lr_scheduler, build_optimizer
from detlib.utils import comm
from detlib.utils.env import preserved_random_states
from detlib.utils.errors import ConfigError
from detlib.utils.events import EventStorage

logger = logging.getLogger("detlib.plain_train_net")

WRITE_PERIOD = 20


def do_train(
    cfg: CfgNode, model: nn.Module, resume: bool = False, data_loader: Iterable | None = None
) -> Mapping[str, Any]:
    """Returns the results of the evaluation at the end."""
    model.train()
    optimizer = build_optimizer(cfg, model)
    scheduler = build_lr_scheduler(cfg, optimizer)
    data_loader = build_detection_train_loader(cfg) if data_loader is None else data_loader
    process_states = ProcessStates(model, data_loader)
    checkpointer = DetectionCheckpointer(
        model,
        cfg.OUTPUT_DIR,
        optimizer=optimizer,
        scheduler=scheduler,
        training_state=TrainingState(model),
        process_states=process_states,
    )
    resuming = resume and checkpointer.has_checkpoint()
    checkpoint = checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    start_iter = checkpoint["iteration"] + 1 if resuming else 0
    max_iter = cfg.SOLVER.MAX_ITER
    periodic_checkpointer = PeriodicCheckpointer(checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_iter=max_iter)
    writers = default_writers(cfg.OUTPUT_DIR, max_iter) if comm.is_main_process() else []

    check_num_classes(cfg)
    logger.info("Training from iteration %d to %d.", start_iter, max_iter)
    process_states.restore_random_states()
    with EventStorage(start_iter) as storage:
        for batch, iteration in zip(data_loader, range(start_iter, max_iter), strict=False):
            storage.iter = iteration

            losses = model(batch)
            total_loss = sum(losses.values())
            optimizer.zero_grad()
            total_loss.backward()

            means = mean_losses(losses)
            if not math.isfinite(sum(means.values())):
                raise NonFiniteLossError(f"the loss is not finite in iteration {iteration}: {means}")
            optimizer.step()
            storage.put_scalar("lr", optimizer.param_groups[0]["lr"], smoothing_hint=False)
            scheduler.step()

            done = iteration + 1
            if comm.is_main_process():
                storage.put_scalars(total_loss=sum(means.values()), **means)
            if cfg.TEST.EVAL_PERIOD > 0 and done % cfg.TEST.EVAL_PERIOD == 0 and done != max_iter:
                with preserved_random_states():
                    store_results(storage, do_test(cfg, model))
                comm.synchronize()
            if done % WRITE_PERIOD == 0 or done == max_iter:
                for writer in writers:
                    writer.write()
            if done % cfg.SOLVER.CHECKPOINT_PERIOD == 0 or done == max_iter:
                process_states.gather()
            periodic_checkpointer.step(iteration)

        storage.iter = max_iter
        results = do_test(cfg, model)
        store_results(storage, results)
        for writer in writers:
            writer.write()
            writer.close()
    return results


def store_results(storage: EventStorage, results: Mapping[str, Any]) -> None:
    storage.put_scalars(smoothing_hint=False, **flatten_results_dict(results))


def mean_losses(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """Means over all processes; where one has no such loss, as its batch is of another task, it counts as 0."""
    gathered = comm.all_gather({name: loss.item() for name, loss in losses.items()})
    names = dict.fromkeys(name for own in gathered for name in own)
    return {name: sum(own.get(name, 0.0) for own in gathered) / len(gathered) for name in names}


def do_test(cfg: CfgNode, model: nn.Module) -> Mapping[str, Any]:
    """Results by dataset; only the results if there is one dataset."""
    model = unwrap_model(model)
    if isinstance(model, SelfSupModel):  # It predicts nothing that could be right or wrong.
        evaluations = evaluate_neighbours(cfg, model)
    else:
        evaluations = evaluate_predictions(cfg, model)
    results = {}
    for name, metrics in evaluations:
        results[name] = metrics
        if metrics and comm.is_main_process():
            logger.info("Results on %s:", name)
            print_csv_format(metrics)
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_predictions(cfg: CfgNode, model: nn.Module) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in cfg.DATASETS.TEST:
        evaluator = build_evaluator(cfg, name, os.path.join(cfg.OUTPUT_DIR, "inference", name))
        yield name, inference_on_dataset(model, build_detection_test_loader(cfg, name), evaluator)


def load_config(args: argparse.Namespace) -> CfgNode:
    if not args.config_file:
        raise ConfigError("no config was given; add --config-file FILE, or see --help for examples")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> Mapping[str, Any]:
    cfg = load_config(args)
    default_setup(cfg, args)
    if cfg.SOLVER.ACCUMULATION_STEPS != 1:
        raise ConfigError("plain_train_net.py takes a batch at once; set SOLVER.ACCUMULATION_STEPS: 1")
    if not args.eval_only:
        data_loader = build_detection_train_loader(cfg)
        cfg = with_iterations(cfg, data_loader)
    model = build_model(cfg)
    if args.eval_only and not (cfg.MODEL.WEIGHTS or args.resume or getattr(model, "part_weights", {})):
        raise ConfigError("--eval-only needs weights: add MODEL.WEIGHTS=FILE, or --resume")
    if args.eval_only:
        DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        results = do_test(cfg, model)
    else:
        model = create_ddp_model(prepare_model(cfg, model), broadcast_buffers=False)
        results = do_train(cfg, model, args.resume, data_loader)
    if comm.is_main_process():
        verify_results(cfg, results)
        logger.info("Done. Weights, config, metrics and predictions are in %s", cfg.OUTPUT_DIR)
    return results


def run() -> None:
    parser = default_argument_parser()
    parser.description = "Train or evaluate a config with the whole loop in sight, in this one file."
    args = parser.parse_args()
    if args.print_config:
        print(format_with_origins(load_config(args)))
        return
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == "__main__":
    run_tool(run)
