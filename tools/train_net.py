#!/usr/bin/env python
"""Train or evaluate any config.

To give a project its own training program, copy this file and change what is special: override a ``build_*`` method
of the Trainer, or add the project's options to the config in ``setup``. ``plain_train_net.py`` shows the same without
a trainer class.
"""

import argparse
import logging
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from detlib.checkpoint import DetectionCheckpointer
from detlib.config import CfgNode, get_cfg
from detlib.config.config import format_with_origins
from detlib.engine import DefaultTrainer, default_argument_parser, default_setup, hooks, launch
from detlib.engine.checkpoint_metadata import checkpoint_metadata
from detlib.engine.ema import load_averages
from detlib.engine.setup import run_tool
from detlib.evaluation import DatasetEvaluator, build_evaluator, verify_results
from detlib.evaluation.test_time_augmentation import with_test_time_augmentation
from detlib.utils import comm
from detlib.utils.errors import ConfigError

logger = logging.getLogger("detlib.train_net")


class Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        """The evaluator that fits the dataset; it writes predictions to ``OUTPUT_DIR/inference``."""
        output_folder = output_folder or os.path.join(cfg.OUTPUT_DIR, "inference")
        if len(cfg.DATASETS.TEST) > 1:
            output_folder = os.path.join(output_folder, dataset_name)
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        """Evaluate with the augmentation of ``TEST.AUG``; predictions go to ``OUTPUT_DIR/inference_TTA``.

        Returns:
            What ``test`` returns, with ``_TTA`` behind each name.
        """
        logger.info("Evaluating with test-time augmentation.")
        cfg = cfg.clone()
        cfg.defrost()
        # Copies are made of the image as it is stored: resized twice, it would be blurred.
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.AUGMENTATIONS_TEST = 0, []
        model = with_test_time_augmentation(cfg, model)
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        return {f"{name}_TTA": metrics for name, metrics in cls.test(cfg, model, evaluators).items()}

    def build_hooks(self) -> list[hooks.HookBase | None]:
        built = super().build_hooks()
        if self.cfg.TEST.AUG.ENABLED:
            with_test_time_augmentation(self.cfg, self.model)  # What cannot be done shall fail before training.
            place, evaluation = next((i, hook) for i, hook in enumerate(built) if isinstance(hook, hooks.EvalHook))
            built.insert(place + 1, hooks.EvalHook(0, self._evaluate_with_TTA, record=evaluation.record))
        return built

    def _evaluate_with_TTA(self) -> Mapping[str, Any]:
        with self._weights_for_evaluation():
            results = self.test_with_TTA(self.cfg, self.model)
        self._last_eval_results = {**(self._last_eval_results or {}), **results}
        return results


def setup(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args)
    default_setup(cfg, args)
    return cfg


def load_config(args: argparse.Namespace) -> CfgNode:
    if not args.config_file:
        raise ConfigError("no config was given; add --config-file FILE, or see --help for examples")
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    return cfg


def main(args: argparse.Namespace) -> Mapping[str, Any] | None:
    cfg = setup(args)
    if args.eval_only:
        return evaluate(cfg, args.resume)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if comm.is_main_process():
        report_files(cfg)
    return results


def evaluate(cfg: CfgNode, resume: bool) -> Mapping[str, Any]:
    if not cfg.DATASETS.TEST:
        raise ConfigError("--eval-only needs a dataset: set DATASETS.TEST")
    model = Trainer.build_model(cfg)
    if not (cfg.MODEL.WEIGHTS or resume or getattr(model, "part_weights", {})):
        raise ConfigError(
            "--eval-only needs weights: add MODEL.WEIGHTS=FILE, or --resume for the last checkpoint in OUTPUT_DIR"
        )
    if cfg.TEST.AUG.ENABLED:
        with_test_time_augmentation(cfg, model)  # What cannot be done shall fail before the first evaluation.
    checkpointer = DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR)
    checkpointer.metadata = checkpoint_metadata(cfg, cfg.DATASETS.TEST)
    load_averages(cfg, model, checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume))
    results = Trainer.test(cfg, model)
    if cfg.TEST.AUG.ENABLED:
        results = {**results, **Trainer.test_with_TTA(cfg, model)}
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def report_files(cfg: CfgNode) -> None:
    names = {
        "Weights": "model_final.pth",
        "Best": "model_best.pth",
        "Averages": "model_ema_final.pth",
        "Config": "config.yaml",
        "Metrics": "metrics.json",
        "Results": "results.csv",
        "Curves": "curves.png",
        "Log": "log.txt",
        "Predictions": "inference",
    }
    paths = {what: os.path.join(cfg.OUTPUT_DIR, name) for what, name in names.items()}
    logger.info(
        "Done.\n%s", "\n".join(f"  {what + ':':13}{path}" for what, path in paths.items() if os.path.exists(path))
    )


def run() -> None:
    parser = default_argument_parser()
    parser.description = "Train or evaluate any config."
    args = parser.parse_args()
    if args.print_config:
        print(format_with_origins(load_config(args)))
        return
    launch(main, args.num_gpus, args.num_machines, args.machine_rank, args.dist_url, args=(args,))


if __name__ == "__main__":
    run_tool(run)
