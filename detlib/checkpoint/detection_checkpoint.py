"""Saving and loading models, with optimizer and other state of a training."""

import logging
import os
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import Checkpointer, _IncompatibleKeys
from torch import nn

from detlib.checkpoint.c2_model_loading import align_and_update_state_dicts
from detlib.checkpoint.dealt_out import DealtOut, load_dealt_out
from detlib.checkpoint.files import (
    local_path,
    read_checkpoint,
    read_in_all_processes,
    write_atomically,
    write_checkpoint,
)
from detlib.checkpoint.hand_over import extract_backbone, fold_branches, remove_wrappers, resize_positions
from detlib.checkpoint.metadata import METADATA_KEY, warn_of_differences, with_versions
from detlib.checkpoint.parts import find_part, from_torchvision_names_anywhere, names_of_backbone
from detlib.checkpoint.refusal import HEURISTICS_SUFFIX, refuse_other_backbone, refuse_other_model
from detlib.checkpoint.report import loading_report, without_parts
from detlib.checkpoint.resume import files_to_resume, load_first_whole, remove_leftovers
from detlib.checkpoint.torchvision_names import from_torchvision_names, tell_of_torchvision, torchvision_family
from detlib.utils import comm
from detlib.utils.errors import CheckpointError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = ["DetectionCheckpointer"]

# What is made from the config, also where published weights hold it: positions and masks of Swin's windows.
COMPUTED = ("relative_position_index", "attn_mask")

# Older detectron2 saved these, which are made from the config, and batch counters that frozen layers do not have.
NOT_WEIGHTS = re.compile(
    rf"(^|\.)(pixel_mean|pixel_std|anchor_generator\.cell_anchors\.\d+|num_batches_tracked|{'|'.join(COMPUTED)})$"
)

# Ends of many names, which do not tell where a weight belongs: a ViT's last norm is none of a detector's heads.
VAGUE_NAMES = {"weight", "bias", "norm.weight", "norm.bias"}

PREFIX_SUFFIX = re.compile(r"\?prefix=([^?&/]+)$")


class DetectionCheckpointer(Checkpointer):
    """Checkpointer that reads detlib's and detectron2's files, Caffe2's, and backbones of torchvision (ResNet, RegNet,
    Swin, ViT) and timm (ResNet).

    Files of its own have the keys ``model``, those of ``checkpointables``, those given to :meth:`save` and ``detlib``,
    which is :attr:`metadata`. A file is complete when it appears under its name, and ``last_checkpoint`` names it only
    after that. A file that is not what was written is not loaded; to resume, an earlier one is then taken.

    A model may have ``part_weights``, files of single parts by their names. Such a file is read by :meth:`load` unless
    the checkpoint has all weights of the part, or the state of a training, which goes on with what it had.

    Args:
        save_to_disk: by default, the main process alone writes.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``, by the key they are saved under.

    Attributes:
        metadata: of the training, see :mod:`detlib.checkpoint.metadata`; compared with that of a file that is loaded.
        dealt_out: what :meth:`gather` collected.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, save_to_disk: bool | None = None, **checkpointables: Any
    ) -> None:
        save_to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.path_manager = PathManager
        self.logger = logging.getLogger(__name__)
        self.metadata: dict[str, Any] = {}
        self.dealt_out = DealtOut()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` into the folder and make it the last checkpoint.

        Args:
            kwargs: more to save, such as ``iteration``.
        """
        if self.save_dir and self.save_to_disk:
            self.save_aside(name, **kwargs)
            self.tag_last_checkpoint(f"{name}.pth")

    def save_aside(self, name: str, **kwargs: Any) -> None:
        """Write a file as :meth:`save` does, but go on from the last checkpoint as before."""
        if not self.save_dir or not self.save_to_disk:
            return
        if os.path.basename(name) != name:
            raise ValueError(f"The name of a checkpoint must not contain a folder; got {name!r}")
        data = {**self._states(), METADATA_KEY: with_versions(self.metadata), **kwargs}
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        remove_leftovers(self.save_dir)
        with self.dealt_out.in_file(data, path) as whole:
            write_checkpoint(self.path_manager, path, whole)

    def gather(self) -> None:
        """Collect what is dealt out to the processes, as by FSDP; to be called in all, before one of them saves."""
        self.dealt_out.gather(self._states(), self.save_dir)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make ``last_checkpoint`` name this file, at once and entirely."""
        path = os.path.join(self.save_dir, "last_checkpoint")
        write_atomically(self.path_manager, path, lambda f: f.write(last_filename_basename.encode()))

    def get_checkpoint_file(self) -> str:
        """The file that ``last_checkpoint`` names, which need not be there; empty if it names none."""
        try:
            with self.path_manager.open(os.path.join(self.save_dir, "last_checkpoint"), "rb") as f:
                name = f.read().decode(errors="replace").strip()
        except OSError:
            return ""
        return os.path.join(self.save_dir, name) if name.isprintable() and name else ""

    def has_checkpoint(self) -> bool:
        """Whether there is one to resume from, or ``last_checkpoint`` says so."""
        return super().has_checkpoint() or bool(self._files_to_resume())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the last checkpoint in the folder, if there is one; else load the model from ``path`` alone.

        Where the last one is missing or damaged, that of the iteration before is taken, in all processes, and an error
        is logged.

        Raises:
            CheckpointError: none of those in the folder can be read.
        """
        if not (resume and comm.all_gather(self.has_checkpoint())[0]):
            return self.load(path, checkpointables=[])
        last, files = comm.all_gather((self.get_checkpoint_file(), self._files_to_resume()))[0]
        missing = last or f"What {os.path.join(self.save_dir, 'last_checkpoint')} should name"
        return load_first_whole(files, self.load, [] if last in files else [f"{missing} does not exist"])

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load the model and, unless told otherwise, all checkpointables that the file has; log what went where.

        Args:
            path: a file, a URL, ``detectron2://...`` or ``catalog://...``. With ``?matching_heuristics=True`` after
                it, weights go to the names of the model that end with theirs. With ``?prefix=encoder_q.`` after it,
                the weights below this prefix alone are read, as those of the backbone. Empty: only files of parts are.
            args, kwargs: ``checkpointables``, a list of keys to load; ``None`` for all.

        Returns:
            what else is in the file, such as ``iteration``.

        Raises:
            MissingFileError: there is no such file.
            CheckpointError: it cannot be read, almost nothing in it fits the model, or it has another backbone.
        """
        if not path:
            rest = super().load(path, *args, **kwargs)
            self._load_parts(self._part_weights())
            return rest
        address, checkpoint = self._open(path)
        states = self._states_to_load(checkpoint, *args, **kwargs)
        warn_of_differences(checkpoint.get(METADATA_KEY), self.metadata, resumes=bool(states))
        if states:
            load_dealt_out(checkpoint, os.path.dirname(address), self.model)
        incompatible = self._load_model(checkpoint)
        parts = {}
        if incompatible is not None:  # Subclasses may return nothing.
            names = self._names_of_weights()
            refuse_other_backbone(address, incompatible, self.model.state_dict())
            refuse_other_model(address, incompatible, names)
            parts = {} if states else self._incomplete_parts(incompatible)
            inside = tuple(f"{name}." for name in parts)
            self._log_incompatible_keys(*without_parts(inside, incompatible, names))
        self._load_checkpointables(address, checkpoint, states)
        self._load_parts(parts)
        return checkpoint

    def load_part(self, module_name: str, path: str) -> None:
        """Load a part of the model from a checkpoint of that part alone, or of any model that has one like it.

        The weights may have any prefix in the file, and names of Caffe2 or torchvision.

        Args:
            module_name: such as ``backbone.bottom_up``.
            path: as of :meth:`load`.

        Raises:
            ValueError: the model has no such part.
            MissingFileError: there is no such file.
            CheckpointError: it cannot be read, or has almost nothing of the part.
        """
        own_prefix = f"{module_name}."
        part = self._state_of_part(module_name)
        names = [name for name in self._names_of_weights() if name.startswith(own_prefix)]
        try:
            address, checkpoint = self._open(path)
        except (CheckpointError, MissingFileError) as error:
            # One that is damaged is no reason to resume from an earlier checkpoint of the whole.
            kind = MissingFileError if isinstance(error, MissingFileError) else CheckpointError
            raise kind(f"The weights of {module_name}: {error}") from error
        found = self._find_part(part, own_prefix, checkpoint)
        if found:
            incompatible = self._load_model({"model": {own_prefix + name: weight for name, weight in found.items()}})
        else:
            unexpected = list(checkpoint["model"])
            incompatible = _IncompatibleKeys(missing_keys=names, unexpected_keys=unexpected, incorrect_shapes=[])
        if incompatible is not None:
            missing = [name for name in incompatible.missing_keys if name.startswith(own_prefix)]
            incompatible = incompatible._replace(missing_keys=missing)
            refuse_other_backbone(address, incompatible, self.model.state_dict())
            refuse_other_model(address, incompatible, names, module_name)
            self._log_incompatible_keys(incompatible, names, module_name)

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
        state = self._with_plain_names(checkpoint["model"])
        model_state = self.model.state_dict(keep_vars=True)
        fold_branches(state, model_state)
        names = names_of_backbone(model_state, state)
        if checkpoint.get("matching_heuristics"):
            names |= names_of_backbone(model_state, state, has_prefix=False)
        elif names:
            first = next(iter(names))
            self.logger.info("%d weights of the backbone are renamed, as %s to %s", len(names), first, names[first])
        state = {names.get(name, name): value for name, value in state.items()}
        state = self._use_names_of_model(model_state, state, checkpoint)
        for name in [name for name in state if NOT_WEIGHTS.search(name)]:
            if name not in model_state or name.endswith(COMPUTED):
                del state[name]
        if resized := resize_positions(state, model_state):
            self.logger.info("%d tensors of positions are resized, as %s", len(resized), resized[0])
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

    def _log_incompatible_keys(
        self, incompatible: _IncompatibleKeys, names: Sequence[str] | None = None, what: str = "the model"
    ) -> None:
        """Log a table of what went where.

        Args:
            names: of the weights that were to be loaded; None for all.
            what: those are.
        """
        names = self._names_of_weights() if names is None else names
        mismatched = {name for name, _, _ in incompatible.incorrect_shapes}
        not_loaded = mismatched.union(incompatible.missing_keys)
        loaded = [name for name in names if name not in not_loaded]
        table = loading_report(
            loaded, incompatible.missing_keys, incompatible.incorrect_shapes, incompatible.unexpected_keys
        )
        if mismatched:
            table += "\nThose of another shape stay as initialised, as they have to when the number of classes changed."
        # A predictor in a notebook has no logging set up, where warnings alone are seen.
        log = self.logger.warning if not_loaded else self.logger.info
        log("Loaded %d of %s's %d weights:\n%s", len(loaded), what, len(loaded) + len(not_loaded), table)

    def _convert_ndarray_to_tensor(self, state_dict: dict[str, Any]) -> None:
        """Make tensors of arrays, in place."""
        for name, value in state_dict.items():
            if isinstance(value, (np.ndarray, np.generic)):
                native = np.array(value, dtype=value.dtype.newbyteorder("="))
                try:
                    state_dict[name] = torch.from_numpy(native)
                except TypeError as error:
                    raise CheckpointError(f"{name!r} of the checkpoint cannot be a weight: {error}") from error
            elif not isinstance(value, torch.Tensor):
                raise CheckpointError(f"{name!r} of the checkpoint is a {type(value).__name__}, not a tensor or array")

    def _use_names_of_model(
        self, model_state: dict[str, Any], state: dict[str, Any], checkpoint: dict[str, Any]
    ) -> dict[str, Any]:
        if checkpoint.get("matching_heuristics"):
            from_caffe2 = checkpoint.get("__author__") == "Caffe2"
            vague = {name: state.pop(name) for name in VAGUE_NAMES & state.keys()}
            return vague | align_and_update_state_dicts(model_state, state, c2_conversion=from_caffe2)
        family = torchvision_family(state)
        if family is not None and not state.keys() & model_state.keys():
            tell_of_torchvision(family)
            renamed = {new: state[name] for name, new in from_torchvision_names(state).items()}
            return align_and_update_state_dicts(model_state, renamed, c2_conversion=False)
        return state

    def _find_part(self, part: dict[str, Any], own_prefix: str, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """What a checkpoint has of a part, by the names of the part; empty if nothing."""
        state = self._with_plain_names(checkpoint["model"])
        if checkpoint.get("matching_heuristics"):
            return self._use_names_of_model(part, state, checkpoint)
        prefixes, found = find_part(part, state, own_prefix)
        if not found:
            state, family = from_torchvision_names_anywhere(state)
            prefixes, found = find_part(part, state, own_prefix)
            if found and family is not None:
                tell_of_torchvision(family)
        if len(prefixes) > 1:
            self.logger.warning(
                "The checkpoint has weights as those of %s under each of the prefixes %s; the first is taken",
                own_prefix.rstrip("."),
                ", ".join(map(repr, prefixes)),
            )
        elif found:
            self.logger.info("The weights of %s are %s* there", own_prefix.rstrip("."), prefixes[0])
        return found

    def _with_plain_names(self, state: dict[str, Any]) -> dict[str, Any]:
        """The weights as tensors, without the prefixes of wrappers; changed in place."""
        self._convert_ndarray_to_tensor(state)
        remove_wrappers(state)
        return state

    def _part_weights(self) -> dict[str, str]:
        return getattr(self.model, "part_weights", {})

    def _load_parts(self, parts: dict[str, str]) -> None:
        for name, path in parts.items():
            self.load_part(name, path)

    def _incomplete_parts(self, incompatible: _IncompatibleKeys) -> dict[str, str]:
        """Files of the parts of which something was not loaded."""
        not_loaded = [*incompatible.missing_keys, *(name for name, _, _ in incompatible.incorrect_shapes)]
        parts = self._part_weights()
        incomplete = {n: path for n, path in parts.items() if any(name.startswith(f"{n}.") for name in not_loaded)}
        for name in parts.keys() - incomplete.keys():
            self.logger.info("All weights of %s are in the checkpoint; %s is not read", name, parts[name])
        return incomplete

    def _state_of_part(self, module_name: str) -> dict[str, torch.Tensor]:
        try:
            state = self.model.get_submodule(module_name).state_dict(keep_vars=True)
        except AttributeError:
            parts = ", ".join(name for name, _ in self.model.named_children())
            raise ValueError(f"the model has no part {module_name!r}; its first parts are {parts}") from None
        if not state:
            raise CheckpointError(f"{module_name} has no weights, so that none can be loaded")
        return state

    def _names_of_weights(self) -> list[str]:
        return [name for name in self.model.state_dict() if not NOT_WEIGHTS.search(name)]

    def _open(self, path: str) -> tuple[str, dict[str, Any]]:
        """The path without its suffix, and what is in the file."""
        self.logger.info("Loading checkpoint %s", path)
        prefix = PREFIX_SUFFIX.search(path)
        address = PREFIX_SUFFIX.sub("", path).removesuffix(HEURISTICS_SUFFIX)
        checkpoint = read_in_all_processes(local_path(self.path_manager, address), self._load_file)
        if prefix is not None:
            backbone = extract_backbone(self._with_plain_names(dict(checkpoint["model"])), prefix[1])
            return address, {"model": backbone, "matching_heuristics": True}
        if address != path:
            checkpoint["matching_heuristics"] = True
        return address, checkpoint

    def _states(self) -> dict[str, Any]:
        states = {key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()}
        return {"model": self.model.state_dict(), **states}

    def _files_to_resume(self) -> list[str]:
        if not self.save_dir or not self.path_manager.isdir(self.save_dir):
            return []
        return files_to_resume(self.get_checkpoint_file(), self.get_all_checkpoint_files())

    def _states_to_load(self, checkpoint: dict[str, Any], checkpointables: list[str] | None = None) -> list[str]:
        keys = self.checkpointables if checkpointables is None else checkpointables
        return [key for key in keys if key in checkpoint]

    def _load_checkpointables(self, path: str, checkpoint: dict[str, Any], checkpointables: list[str]) -> None:
        for key in checkpointables:
            self.logger.info("Loading %s from %s", key, path)
            try:
                self.checkpointables[key].load_state_dict(checkpoint.pop(key))
            except Exception as error:  # What is in the file may be anything.
                raise CheckpointError(
                    f"The state of {key!r} in {path} does not fit this training: {error}. Resume with the config that "
                    "wrote it, or start anew from its weights alone: MODEL.WEIGHTS and no --resume"
                ) from error
