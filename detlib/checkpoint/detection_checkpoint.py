"""Saving and loading models, with optimizer and other state of a training."""

import logging
import os
import re
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from detlib.checkpoint.c2_model_loading import align_and_update_state_dicts
from detlib.checkpoint.files import missing_checkpoint, read_checkpoint, unreadable_types, write_atomically
from detlib.checkpoint.report import loading_report
from detlib.checkpoint.torchvision_names import from_torchvision_names, torchvision_family
from detlib.utils import comm
from detlib.utils.errors import CheckpointError, DetlibError
from detlib.utils.file_io import PathManager

__all__ = ["DetectionCheckpointer"]

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile put these before every name.

# Older detectron2 saved these, which are made from the config, and batch counters that frozen layers do not have.
NOT_WEIGHTS = re.compile(r"(^|\.)(pixel_mean|pixel_std|anchor_generator\.cell_anchors\.\d+|num_batches_tracked)$")

MIN_SHARE_LOADED = 0.1  # of the weights that could match, be it the file or the model that has fewer.

# A backbone with a neck on top has the first prefix, one without, such as that of a classifier, the second.
BOTTOM_UP, BACKBONE = "backbone.bottom_up.", "backbone."

HEURISTICS_SUFFIX = "?matching_heuristics=True"


class DetectionCheckpointer(Checkpointer):
    """Checkpointer that reads detlib's and detectron2's files, Caffe2's, and backbones of torchvision (ResNet, RegNet,
    Swin, ViT) and timm (ResNet).

    Files of its own have the keys ``model``, those of ``checkpointables`` and those given to :meth:`save`. A file is
    complete when it appears under its name, and ``last_checkpoint`` names it only after that.

    Args:
        save_to_disk: by default, the main process alone writes.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, by the key they are saved under.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self.logger = logging.getLogger(__name__)

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` into the folder and make it the last checkpoint.

        Args:
            kwargs: more to save, such as ``iteration``.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"The name of a checkpoint must not contain a folder; got {name!r}")
        states = {key: obj.state_dict() for key, obj in self.checkpointables.items()}
        data = {"model": self.model.state_dict(), **states, **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_atomically(self.path_manager, path, lambda f: torch.save(data, f))
        self._warn_if_unreadable(path)
        self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file, at once and entirely."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(self.path_manager, path, lambda f: f.write(last_filename_basename.encode()))

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the model and, unless told otherwise, all checkpointables that the file has; log what went where.

        Args:
            path: a file, a URL, ``detectron2://...`` or ``catalog://...``. With ``?matching_heuristics=True`` after
                it, weights go to the names of the model that end with theirs. Empty: nothing is loaded.
            args, kwargs: ``checkpointables``, a list of keys to load; ``None`` for all.

        Returns:
            what else is in the file, such as ``iteration``.

        Raises:
            MissingFileError: there is no such file.
            CheckpointError: it cannot be read, or almost nothing in it fits the model.
        """
        if not path:
            return super().load(path, *args, **kwargs)
        self.logger.info("Loading checkpoint %s", path)
        address = path.removesuffix(HEURISTICS_SUFFIX)
        checkpoint = self._read(self._local_path(address))
        if address != path:
            checkpoint["matching_heuristics"] = True
        incompatible = self._load_model(checkpoint)
        if incompatible is not None:  # Subclasses may return nothing.
            self._refuse_other_model(address, incompatible)
            self._log_incompatible_keys(incompatible)
        self._load_checkpointables(address, checkpoint, *args, **kwargs)
        return checkpoint

    def _load_file(self, f: str) -> dict[str, Any]:
        """Read a local file; the place for a subclass to read other formats.

        Returns:
            as :func:`~detlib.checkpoint.files.read_checkpoint` does.
        """
        return read_checkpoint(f)

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        """Load what fits; the weights are taken out of ``checkpoint``.

        Returns:
            names missing in the checkpoint, unexpected names, and (name, shape in the checkpoint, shape in the model)
            of what has another shape. What is no weight (``NOT_WEIGHTS``) is not mentioned.
        """
        state = checkpoint["model"]
        self._convert_ndarray_to_tensor(state)
        for prefix in WRAPPER_PREFIXES:
            consume_prefix_in_state_dict_if_present(state, prefix)
        model_state = self.model.state_dict(keep_vars=True)
        state = self._use_names_of_backbone(model_state, state)
        state = self._use_names_of_model(model_state, state, checkpoint)
        for name in [name for name in state if name not in model_state and NOT_WEIGHTS.search(name)]:
            del state[name]
        checkpoint["model"] = state
        incompatible = super()._load_model(checkpoint)
        mismatched = {name for name, _, _ in incompatible.incorrect_shapes}
        not_loaded = mismatched.union(incompatible.missing_keys)
        loaded_tensors = {id(tensor) for name, tensor in model_state.items() if name not in not_loaded}
        missing = [
            name
            for name in incompatible.missing_keys
            # A tensor with two names is loaded under either.
            if not (name in mismatched or NOT_WEIGHTS.search(name) or id(model_state[name]) in loaded_tensors)
        ]
        return incompatible._replace(missing_keys=missing)

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        mismatched = {name for name, _, _ in incompatible.incorrect_shapes}
        not_loaded = mismatched.union(incompatible.missing_keys)
        loaded = [name for name in self._names_of_weights() if name not in not_loaded]
        table = loading_report(
            loaded, incompatible.missing_keys, incompatible.incorrect_shapes, incompatible.unexpected_keys
        )
        if mismatched:
            table += "\nThose of another shape stay as initialised, as they have to when the number of classes changed."
        # A predictor in a notebook has no logging set up, where warnings alone are seen.
        log = self.logger.warning if not_loaded else self.logger.info
        log("Loaded %d of the model's %d weights:\n%s", len(loaded), len(loaded) + len(not_loaded), table)

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        """Make tensors of arrays, in place."""
        for name, value in state_dict.items():
            if isinstance(value, (np.ndarray, np.generic)):
                native = np.array(value, dtype=value.dtype.newbyteorder("="))
                state_dict[name] = torch.from_numpy(native)
            elif not isinstance(value, torch.Tensor):
                raise CheckpointError(f"{name!r} of the checkpoint is a {type(value).__name__}, not a tensor or array")

    def _use_names_of_backbone(self, model_state: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
        """Rename the backbone of a classifier for a detector that has a neck on top of it, and the reverse."""
        names = {}
        for name in state:
            own, other = (BOTTOM_UP, BACKBONE) if name.startswith(BOTTOM_UP) else (BACKBONE, BOTTOM_UP)
            renamed = other + name.removeprefix(own)
            if name.startswith(own) and name not in model_state and renamed in model_state and renamed not in state:
                names[name] = renamed
        if names:
            first = next(iter(names))
            self.logger.info("%d weights of the backbone are renamed, as %s to %s", len(names), first, names[first])
        return {names.get(name, name): value for name, value in state.items()}

    def _use_names_of_model(
        self, model_state: dict[str, Any], state: dict[str, Any], checkpoint: dict[str, Any]
    ) -> dict[str, Any]:
        if checkpoint.get("matching_heuristics"):
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            return align_and_update_state_dicts(model_state, state, c2_conversion=from_caffe2)
        family = torchvision_family(state)
        if family is not None and not state.keys() & model_state.keys():
            self.logger.info(
                "These are %s weights with the names of torchvision. They need INPUT.FORMAT: RGB, %susually "
                "MODEL.PIXEL_MEAN: [123.675, 116.28, 103.53] and MODEL.PIXEL_STD: [58.395, 57.12, 57.375]",
                family,
                "MODEL.RESNETS.STRIDE_IN_1X1: False, " if family == "ResNet" else "",
            )
            renamed = {new: state[name] for name, new in from_torchvision_names(state).items()}
            return align_and_update_state_dicts(model_state, renamed, c2_conversion=False)
        return state

    def _names_of_weights(self) -> list[str]:
        return [name for name in self.model.state_dict() if not NOT_WEIGHTS.search(name)]

    def _local_path(self, path: str) -> str:
        if os.path.isfile(path):
            return path
        try:
            return self.path_manager.get_local_path(path)
        except DetlibError:
            raise
        except Exception as error:  # Each kind of address fails in its own way.
            raise CheckpointError(
                f"Could not fetch {path}: {error}. Without a network, put the file on this machine and set "
                "MODEL.WEIGHTS to its path"
            ) from error

    def _read(self, file: str) -> dict[str, Any]:
        present = comm.all_gather(os.path.isfile(file))
        if not present[0]:
            raise missing_checkpoint(file)
        if all(present):
            return self._load_file(file)
        self.logger.warning("%s is not on every machine; the main process sends it to all", file)
        return comm.all_gather(self._load_file(file) if comm.is_main_process() else None)[0]

    def _load_checkpointables(
        self, path: str, checkpoint: dict[str, Any], checkpointables: list[str] | None = None
    ) -> None:
        for key in self.checkpointables if checkpointables is None else checkpointables:
            if key not in checkpoint:
                continue
            self.logger.info("Loading %s from %s", key, path)
            try:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            except (KeyError, RuntimeError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"The state of {key!r} in {path} does not fit this training: {error}. Resume with the config that "
                    "wrote it, or start anew from its weights alone: MODEL.WEIGHTS and no --resume"
                ) from error

    def _refuse_other_model(self, path: str, incompatible: _IncompatibleKeys) -> None:
        names = self._names_of_weights()
        num_other = len(incompatible.incorrect_shapes)
        num_loaded = len(names) - len(incompatible.missing_keys) - num_other
        num_in_file = num_loaded + num_other + len(incompatible.unexpected_keys)
        if num_loaded >= MIN_SHARE_LOADED * min(num_in_file, len(names)):
            return
        examples = [name for name, _, _ in incompatible.incorrect_shapes] or incompatible.unexpected_keys
        raise CheckpointError(
            f"{path} is for another model: of its {num_in_file} weights, {num_loaded} fit this model, which has "
            f"{len(names)}, and {num_other} have another shape. Names in the file: {', '.join(examples[:3])}; in the "
            f"model: {', '.join(names[:3])}. Check the config. If the file holds a part of the model, such as its "
            f"backbone, under shorter names, write {HEURISTICS_SUFFIX} after its path"
        )

    def _warn_if_unreadable(self, path: str) -> None:
        types = unreadable_types(path) if os.path.isfile(path) else []
        if types:
            self.logger.warning(
                "%s holds objects of types that will be refused when it is loaded: %s; save numbers, strings, lists, "
                "dicts and tensors only",
                path,
                ", ".join(types),
            )
