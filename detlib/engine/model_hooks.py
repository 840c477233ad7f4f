"""Hooks that run or look into the model: batch-norm statistics, profiles, memory, collapse, drawings of predictions."""

import itertools
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from detlib.data import detection_utils
from detlib.data.catalog import Metadata
from detlib.engine.train_loop import HookBase, TrainerBase
from detlib.engine.training_state import TrainingState, unwrap_model
from detlib.evaluation.evaluator import inference_context
from detlib.utils.env import preserved_random_states, seed_all_generators
from detlib.utils.events import EventStorage
from detlib.utils.file_io import PathManager
from detlib.visualization import Visualizer, readable_scale

__all__ = [
    "AutogradProfiler",
    "CollapseWarning",
    "PreciseBN",
    "TorchMemoryStats",
    "TorchProfiler",
    "VisualizePredictions",
    "rgb_image",
]

logger = logging.getLogger(__name__)


class PreciseBN(HookBase):
    """Replaces the running statistics of batch norm by true averages over ``num_iter`` batches.

    From "Rethinking Batch in BatchNorm", section 3. Register it before the hooks that save or evaluate. The batches are
    the first of the loader each time, so that they do not depend on whether the training was resumed.
    """

    def __init__(self, period: int, model: nn.Module, data_loader: Iterable, num_iter: int) -> None:
        """
        Args:
            period: in iterations; 0 for only after the last one.
            model: layers in evaluation mode, and frozen ones, stay as they are.
            data_loader: endless; of the same batches that training uses.
        """
        from fvcore.nn.precise_bn import get_bn_modules

        self._period = period
        self._model = model
        self._data_loader = data_loader
        self._num_iter = num_iter
        self._disabled = not get_bn_modules(model)
        if self._disabled:
            logger.info("PreciseBN has nothing to do: the model has no batch norm layer in training mode.")

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self.update_stats()

    def update_stats(self) -> None:
        """Runs the model over the next batches."""
        if self._disabled:
            return
        from fvcore.nn.precise_bn import update_bn_stats

        logger.info("Collecting batch norm statistics over %d batches.", self._num_iter)
        # Only batch norm may change: neither metrics nor running values of the losses, nor random numbers to come.
        training_state = TrainingState(self._model)
        before = training_state.state_dict()
        number = 0 if self.trainer is None else self.trainer.iter + 1
        if hasattr(self._data_loader, "restart"):
            self._data_loader.restart(number)
        with EventStorage(), preserved_random_states():
            seed_all_generators(number)
            batches = itertools.islice(iter(self._data_loader), self._num_iter)
            update_bn_stats(self._model, batches, self._num_iter)
        training_state.load_state_dict(before)

    def state_dict(self) -> dict[str, Any]:
        """The seeds of the loader."""
        state = self._data_loader.state_dict() if hasattr(self._data_loader, "state_dict") else {}
        return {"data_loader": state} if state and not self._disabled else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if hasattr(self._data_loader, "load_state_dict"):
            self._data_loader.load_state_dict(state_dict["data_loader"])


class TorchProfiler(HookBase):
    """Profiles the iterations that ``enable_predicate`` selects with ``torch.profiler``."""

    def __init__(
        self,
        enable_predicate: Callable[[TrainerBase], bool],
        output_dir: str,
        *,
        activities: Sequence[torch.profiler.ProfilerActivity] | None = None,
        save_tensorboard: bool = True,
    ) -> None:
        """
        Args:
            enable_predicate: such as ``lambda trainer: 10 < trainer.iter < 20``.
            output_dir: gets a file per profiled iteration.
            activities: None for all that the machine offers.
            save_tensorboard: write for TensorBoard's profile plugin to ``output_dir/log``, rather than a trace for
                chrome://tracing to ``output_dir``.
        """
        self._enable_predicate = enable_predicate
        self._output_dir = output_dir
        self._activities = activities
        self._save_tensorboard = save_tensorboard
        self._profiler: Any = None

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            self._profiler = torch.profiler.profile(
                activities=self._activities,
                on_trace_ready=self._tensorboard_handler() if self._save_tensorboard else None,
                record_shapes=True,
                profile_memory=True,
                with_stack=True,
            )
            self._profiler.__enter__()

    def after_step(self) -> None:
        if self._profiler is None:
            return
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        PathManager.mkdirs(self._output_dir)
        name = f"profiler-trace-iter{self.trainer.iter}"
        if not self._save_tensorboard:
            self._write_trace(profiler, f"{name}.json")
        table = profiler.key_averages().table(sort_by="cpu_time_total", row_limit=50, max_name_column_width=100)
        with PathManager.open(os.path.join(self._output_dir, f"{name}.txt"), "w") as f:
            f.write(table)

    def _tensorboard_handler(self) -> Callable[..., None]:
        return torch.profiler.tensorboard_trace_handler(
            os.path.join(self._output_dir, "log"), worker_name=f"profiler-tensorboard-iter{self.trainer.iter}"
        )

    def _write_trace(self, profiler: Any, name: str) -> None:
        # torch writes to local paths only.
        with tempfile.TemporaryDirectory(prefix="detlib_profile") as folder:
            local = os.path.join(folder, name)
            profiler.export_chrome_trace(local)
            with open(local) as source, PathManager.open(os.path.join(self._output_dir, name), "w") as target:
                target.write(source.read())


class AutogradProfiler(TorchProfiler):
    """:class:`TorchProfiler` with the older, lighter ``torch.autograd.profiler``."""

    def __init__(
        self, enable_predicate: Callable[[TrainerBase], bool], output_dir: str, *, use_cuda: bool = True
    ) -> None:
        """
        Args:
            use_cuda: also time CUDA kernels, if there is such a device.
        """
        super().__init__(enable_predicate, output_dir, save_tensorboard=False)
        self._use_cuda = use_cuda

    def before_step(self) -> None:
        if self._enable_predicate(self.trainer):
            device = "cuda" if self._use_cuda and torch.cuda.is_available() else None
            self._profiler = torch.autograd.profiler.profile(use_device=device)
            self._profiler.__enter__()


class TorchMemoryStats(HookBase):
    """Logs how much CUDA memory is in use, every ``period`` iterations, ``max_runs`` times at most."""

    def __init__(self, period: int = 20, max_runs: int = 10) -> None:
        self._period = period
        self._max_runs = max_runs
        self._runs = 0

    def after_step(self) -> None:
        if self._runs >= self._max_runs or not torch.cuda.is_available():
            return
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter or (self._period > 0 and done % self._period == 0):
            self._runs += 1
            peak, now = torch.cuda.max_memory_allocated() // 2**20, torch.cuda.memory_allocated() // 2**20
            reserved = torch.cuda.memory_reserved() // 2**20
            logger.info(
                "CUDA memory in iteration %d: %d MiB in use, %d at most since the last report, %d MiB reserved.",
                self.trainer.iter,
                now,
                peak,
                reserved,
            )
            torch.cuda.reset_peak_memory_stats()


class CollapseWarning(HookBase):
    """Warns, once, when a self-supervised model has given nearly the same embedding to all images for a while.

    That is when the median of ``embedding_spread``, see :func:`~detlib.modeling.self_supervised.base.log_spread`, is
    below ``min_spread``. Where all channels vary alike, the mean cosine similarity of embeddings is 1 - spread^2, so
    that 0.1 means 0.99.
    """

    def __init__(self, period: int = 100, min_spread: float = 0.1) -> None:
        """
        Args:
            period: how many iterations are looked at together.
        """
        self._period = period
        self._min_spread = min_spread
        self._has_warned = False

    def after_step(self) -> None:
        if self._has_warned or (self.trainer.iter + 1) % self._period:
            return
        history = self.trainer.storage.histories().get("embedding_spread")
        if history is None or history.median(self._period) >= self._min_spread:
            return
        self._has_warned = True
        logger.warning(
            "embedding_spread was about %.2g in the last %d iterations: all images have nearly the same embedding. If "
            "it does not rise, the training has collapsed, or the images look too much alike; a lower SOLVER.BASE_LR, "
            "a longer warm-up or other augmentations in INPUT.VIEWS may help",
            history.median(self._period),
            self._period,
        )


class VisualizePredictions(HookBase):
    """Draws the first image of the batch with its ground truth beside what the model predicts for it by now.

    Of self-supervised training, whose samples have views in place of an image, it draws these as they are.

    The drawing goes to the storage, from where TensorBoard shows it. Works for every model that follows the contract:
    what it draws depends on the fields in the input and in the output.
    """

    def __init__(
        self, period: int, image_format: str = "BGR", metadata: Metadata | None = None, max_predictions: int = 20
    ) -> None:
        """
        Args:
            period: in iterations.
            image_format: of the images that the model takes, as ``INPUT.FORMAT``.
            metadata: of the training data; gives names and colours.
            max_predictions: instances with the highest scores that are drawn.
        """
        self._period = period
        self._image_format = image_format
        self._metadata = metadata
        self._max_predictions = max_predictions

    def after_step(self) -> None:
        if self._period > 0 and (self.trainer.iter + 1) % self._period == 0 and self.trainer.last_batch:
            sample = self.trainer.last_batch[0]
            if "views" in sample:
                views = (rgb_image({"image": view}, self._image_format) for view in sample["views"])
                drawings = {f"view {i}": view for i, view in enumerate(views)}
            else:
                with preserved_random_states():
                    drawings = {"ground truth left, predictions right": self._draw(sample)}
            for name, drawing in drawings.items():
                self.trainer.storage.put_image(name, drawing.transpose(2, 0, 1))

    def _draw(self, sample: dict[str, Any]) -> np.ndarray:
        rgb = rgb_image(sample, self._image_format)
        output = self._predict(sample)
        # Classifiers take images that are too small to write on.
        scale = readable_scale(*rgb.shape[:2]) if "pred_score" in output else 1
        truth = self._draw_truth(Visualizer(rgb, self._metadata, scale), sample)
        prediction = self._draw_prediction(Visualizer(rgb, self._metadata, scale), output)
        return np.concatenate([truth, prediction], axis=1)

    def _predict(self, sample: dict[str, Any]) -> dict[str, Any]:
        model = unwrap_model(self.trainer.model)
        # Without the original size, results stay at the size of the image that is drawn on.
        sample = {name: value for name, value in sample.items() if name not in ("height", "width")}
        with inference_context(model), torch.no_grad(), EventStorage():
            return model([sample])[0]

    def _draw_truth(self, visualizer: Visualizer, sample: dict[str, Any]) -> np.ndarray:
        if "sem_seg" in sample:
            visualizer.draw_sem_seg(sample["sem_seg"].cpu(), alpha=0.5)
        if "instances" in sample:
            instances = sample["instances"].to("cpu")
            names = (self._metadata.get("thing_classes") if self._metadata else None) or ()
            visualizer.overlay_instances(
                boxes=instances.gt_boxes if instances.has("gt_boxes") else None,
                masks=instances.gt_masks if instances.has("gt_masks") else None,
                keypoints=instances.gt_keypoints if instances.has("gt_keypoints") else None,
                labels=[names[c] if c < len(names) else str(c) for c in instances.gt_classes.tolist()]
                if instances.has("gt_classes")
                else None,
            )
        visualizer.draw_image_labels(sample)
        return visualizer.get_output().get_image()

    def _draw_prediction(self, visualizer: Visualizer, output: dict[str, Any]) -> np.ndarray:
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            visualizer.draw_panoptic_seg_predictions(segments.cpu(), info)
        elif "sem_seg" in output:
            visualizer.draw_sem_seg(output["sem_seg"].argmax(dim=0).cpu())
        elif "instances" in output:
            instances = output["instances"].to("cpu")
            if instances.has("scores"):
                instances = instances[instances.scores.argsort(descending=True)[: self._max_predictions]]
            visualizer.draw_instance_predictions(instances)
        elif "proposals" in output:
            visualizer.overlay_instances(
                boxes=output["proposals"].proposal_boxes[: self._max_predictions].tensor.cpu().numpy()
            )
        elif "pred_score" in output:
            visualizer.draw_classification(output["pred_score"], output.get("pred_label"))
        return visualizer.get_output().get_image()


def rgb_image(sample: dict[str, Any], image_format: str) -> np.ndarray:
    """(H, W, 3) uint8, of the image of a sample in the format of ``INPUT.FORMAT``."""
    image = sample["image"].detach().cpu().permute(1, 2, 0).numpy()  # (H, W, C)
    return np.asarray(detection_utils.convert_image_to_rgb(image, image_format)).clip(0, 255).astype(np.uint8)
