"""Checkpoint files: read without running code, written so that a kill at any moment leaves a whole file behind."""

import contextlib
import difflib
import json
import logging
import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from iopath.common.file_io import PathManager as PathManagerBase

from detlib.checkpoint.digest import check_digest, write_with_digest
from detlib.checkpoint.metadata import METADATA_KEY
from detlib.utils import comm, safe_pickle
from detlib.utils.errors import CheckpointError, DamagedCheckpointError, DetlibError, MissingFileError
from detlib.utils.file_io import PathManager

__all__ = [
    "local_path",
    "missing_checkpoint",
    "read_checkpoint",
    "read_in_all_processes",
    "source_of_copy",
    "unreadable_types",
    "write_atomically",
    "write_checkpoint",
    "write_safetensors",
]

logger = logging.getLogger(__name__)

SUFFIXES = (".pth", ".pt", ".pyth", ".pkl", ".safetensors")

# Metrics that are saved along with weights are often numpy scalars; building one runs no code.
_NUMPY_TYPES = [
    np.ndarray,
    np.dtype,
    np._core.multiarray.scalar,
    np._core.multiarray._reconstruct,
    (np._core.multiarray.scalar, "numpy.core.multiarray.scalar"),
    (np._core.multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefd"),
]


def local_path(path_manager: PathManagerBase, path: str) -> str:
    """Where a file, or what an address names, is on this machine."""
    if os.path.isfile(path):
        return path
    try:
        return path_manager.get_local_path(path)
    except DetlibError:
        raise
    except Exception as error:  # Each kind of address fails in its own way.
        raise CheckpointError(
            f"Could not fetch {path}: {error}. Without a network, put the file on this machine and give its path"
        ) from error


def source_of_copy(address: str, output: str) -> str:
    """The local file of a checkpoint of which a tool writes a part or another form to ``output``.

    Args:
        address: file, URL or address as MODEL.WEIGHTS takes it.

    Raises:
        MissingFileError: there is no such file.
        CheckpointError: it is ``output`` itself.
    """
    source = local_path(PathManager, address)
    if not os.path.isfile(source):
        raise missing_checkpoint(source)
    if os.path.exists(output) and os.path.samefile(source, output):
        raise CheckpointError(f"{output} is the checkpoint itself; write to another file")
    return source


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a local checkpoint, by its suffix: ``.pkl``, ``.safetensors``, otherwise what ``torch.save`` wrote.

    Returns:
        with the weights under ``"model"``, arrays or tensors by name. ``"__author__": "Caffe2"`` and
        ``"matching_heuristics": True`` say how their names are to be read.

    Raises:
        DamagedCheckpointError: the file is cut short, or otherwise not what was written.
        CheckpointError: it holds no weights, or objects of types that are not admitted.
    """
    suffix = Path(path).suffix.lower()
    read = {".pkl": _read_pickle, ".safetensors": _read_safetensors}.get(suffix, _read_torch)
    loaded = _with_model_key(read(path), path)
    others = [name for name in loaded["model"] if not isinstance(name, str)]
    if others:
        raise CheckpointError(f"{path} has {others[0]!r:.80} among the names of weights, which are text")
    return loaded


def read_in_all_processes(path: str, read: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Read a local file in each process; where it is not on every machine, the main process sends it to all.

    Args:
        read: :func:`read_checkpoint`, or what does the same.

    Raises:
        MissingFileError: the main process has no such file.
        CheckpointError: one of the processes could not read it; the same error in all of them.
    """
    present = comm.all_gather(os.path.isfile(path))
    if not present[0]:
        raise missing_checkpoint(path)
    checkpoint, error = None, None
    try:
        if all(present) or comm.is_main_process():
            checkpoint = read(path)
    except CheckpointError as caught:
        error = caught
    if errors := [other for other in comm.all_gather(error) if other is not None]:
        raise errors[0] from error
    if all(present):
        return checkpoint
    logger.warning("%s is not on every machine; the main process sends it to all", path)
    return comm.all_gather(checkpoint)[0]


def write_atomically(path_manager: PathManagerBase, path: str, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that appears under its name only once it is complete and on the disk.

    A path with a scheme (``s3://``) is left to its handler.

    Args:
        write: called with the open file.
    """
    if "://" in path:
        with path_manager.open(path, "wb") as f:
            write(f)
        return
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, f".{name}.tmp")  # A fixed name, so that the next try overwrites a leftover.
    try:
        os.makedirs(folder or ".", exist_ok=True)
        with open(temporary, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(folder or ".")
    except (OSError, RuntimeError) as error:  # torch.save turns the error of a full disk into a RuntimeError.
        with contextlib.suppress(OSError):
            os.remove(temporary)
        reason = error if isinstance(error, OSError) else error.__context__ or error
        raise CheckpointError(
            f"Could not write {path}: {reason}. Is there space left, and is the folder writable? What was in it is "
            "unchanged"
        ) from error


def write_checkpoint(path_manager: PathManagerBase, path: str, data: dict[str, Any]) -> None:
    """Save to a file as :func:`write_atomically` does, with a digest by which :func:`read_checkpoint` knows damage."""
    write_atomically(path_manager, path, lambda f: write_with_digest(f, lambda digesting: torch.save(data, digesting)))
    if types := unreadable_types(path) if os.path.isfile(path) else []:
        logger.warning(
            "%s holds objects of types that will be refused when it is loaded: %s; save numbers, strings, lists, "
            "dicts and tensors only",
            path,
            ", ".join(types),
        )


def write_safetensors(
    path_manager: PathManagerBase, path: str, weights: Mapping[str, torch.Tensor], metadata: Mapping[str, Any]
) -> None:
    """Write weights alone to a ``.safetensors`` file, which other software reads too.

    Args:
        metadata: values that JSON has; what :func:`read_checkpoint` gives under :data:`~metadata.METADATA_KEY`.
    """
    _check_safetensors(path)
    from safetensors.torch import save

    # Those that share memory, as under two names, are not admitted.
    tensors = {name: weight.detach().cpu().contiguous().clone() for name, weight in weights.items()}
    content = save(tensors, {"format": "pt", METADATA_KEY: json.dumps(metadata)})
    write_atomically(path_manager, path, lambda f: f.write(content))


def unreadable_types(path: str) -> list[str]:
    """Names of the types in a ``torch.save`` file that :func:`read_checkpoint` would refuse."""
    with torch.serialization.safe_globals(_NUMPY_TYPES):
        return torch.serialization.get_unsafe_globals_in_checkpoint(path)


def missing_checkpoint(path: str) -> MissingFileError:
    """The error to raise when there is no such file; it names those in the same folder that come closest."""
    folder, name = os.path.split(path)
    if not os.path.isdir(folder or "."):
        return MissingFileError(f"Checkpoint {path} does not exist, nor does the folder {folder}")
    if os.path.isdir(path):
        return MissingFileError(f"Checkpoint {path} is a folder; name one of its files")
    files = [entry.name for entry in os.scandir(folder or ".") if entry.name.endswith(SUFFIXES)]
    near = difflib.get_close_matches(name, sorted(files), n=3, cutoff=0.3)
    hint = f"closest in that folder: {', '.join(near)}" if near else f"that folder has {len(files)} other checkpoints"
    return MissingFileError(f"Checkpoint {path} does not exist; {hint}")


def _read_pickle(path: str) -> Any:
    with open(path, "rb") as f:
        return safe_pickle.load(f)


def _read_safetensors(path: str) -> Any:
    _check_safetensors(path)
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (It is no dict.)
            if METADATA_KEY not in metadata:
                return weights
            return {"model": weights, METADATA_KEY: json.loads(metadata[METADATA_KEY])}
    except Exception as error:  # SafetensorError is not exported from a stable place.
        raise _damaged(path, error) from error


def _check_safetensors(path: str) -> None:
    if find_spec("safetensors") is None:
        raise CheckpointError(f"{path} needs the package safetensors; install it: pip install safetensors")


def _read_torch(path: str) -> Any:
    try:
        check_digest(path)
        with torch.serialization.safe_globals(_NUMPY_TYPES):
            return torch.load(path, map_location="cpu", weights_only=True)
    except DamagedCheckpointError:
        raise
    except Exception as error:  # A damaged file can raise anything.
        raise _refusal_of_types(path) or _damaged(path, error) from error


def _refusal_of_types(path: str) -> CheckpointError | None:
    try:
        types = unreadable_types(path)
    except Exception:  # Not even that much can be read: the file is damaged.
        return None
    if not types:
        return None
    return CheckpointError(
        f"{path} holds objects that could run code when loaded: {', '.join(types)}. Where the file is trusted, read it "
        "with the software that made it and save the weights alone: torch.save({'model': model.state_dict()}, path)"
    )


def _damaged(path: str, error: Exception) -> DamagedCheckpointError:
    size = os.path.getsize(path)
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DamagedCheckpointError(
        f"{path} ({size} bytes) is not a checkpoint that can be read: {reason}. It may be cut short or be another kind "
        "of file; copy or download it again, or use an earlier one"
    )


def _with_model_key(loaded: Any, path: str) -> dict[str, Any]:
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{path} holds a {type(loaded).__name__}, not a dict of weights")
    if isinstance(loaded.get("model"), Mapping):
        return dict(loaded)
    if isinstance(loaded.get("blobs"), Mapping):
        return _as_caffe2(loaded["blobs"])
    for key in ("model_state", "state_dict"):  # What pycls, and most trainers of classifiers, write.
        if isinstance(loaded.get(key), Mapping):
            return {"model": loaded[key], "matching_heuristics": key == "model_state"}
    if any(not isinstance(value, (torch.Tensor, np.ndarray)) for value in loaded.values()):
        keys = ", ".join(map(repr, list(loaded)[:8]))
        raise CheckpointError(
            f"{path} holds no weights that are known to be such; expected 'model' among its keys {keys}"
        )
    return _as_caffe2(loaded) if any(str(name).endswith("_w") for name in loaded) else {"model": loaded}


def _as_caffe2(blobs: Mapping[str, Any]) -> dict[str, Any]:
    weights = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}


def _sync_folder(folder: str) -> None:
    """Make a rename permanent; Windows neither needs nor offers this."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
