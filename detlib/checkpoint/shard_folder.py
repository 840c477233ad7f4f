"""A folder of tensors to which each process writes its part, in the format of torch.distributed.checkpoint."""

import glob
import os
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor import empty as empty_dtensor

from detlib.checkpoint.digest import digest_of
from detlib.utils import comm, safe_pickle
from detlib.utils.errors import CheckpointError, DamagedCheckpointError

__all__ = ["read_shards", "write_shards"]

# What the description of a folder, which is a pickle, may hold.
DESCRIPTION: Mapping[str, Any] = {
    **{
        f"{kind.__module__}.{kind.__name__}": kind
        for kind in (
            metadata.Metadata,
            metadata.TensorStorageMetadata,
            metadata.TensorProperties,
            metadata.ChunkStorageMetadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata._MEM_FORMAT_ENCODING,
            filesystem._StorageInfo,
            torch.serialization._get_layout,
            torch.Size,
        )
    },
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    **{f"{m}.{name}": pathlib.PurePath for m in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")},
}


def write_shards(folder: str, parts: dict[str, Tensor]) -> dict[str, str]:
    """Write tensors that are dealt out; all processes have to call it.

    Returns:
        digests of the files by their names, those of all processes in each.
    """
    try:
        dcp.save(parts, storage_writer=dcp.FileSystemWriter(folder))
    except dcp.CheckpointException as error:  # in all processes
        failure = next(iter(error.failures.values()))[0]
        raise CheckpointError(
            f"Could not write {folder}: {failure}. Is there space left, and is the folder writable, in all processes?"
        ) from error
    own = glob.glob(os.path.join(glob.escape(folder), f"__{comm.get_rank()}_*"))
    own += [os.path.join(folder, ".metadata")] if comm.is_main_process() else []
    gathered = comm.all_gather({os.path.basename(file): digest_of(file) for file in own})
    return {name: digest for digests in gathered for name, digest in digests.items()}


def read_shards(folder: str, digests: Mapping[str, str], mesh: DeviceMesh | None) -> dict[str, Tensor]:
    """The tensors of a folder, dealt out anew by their first dimension, or whole.

    Args:
        digests: those that :func:`write_shards` returned. Each process checks some of the files, so that all are
            checked in about the time that a part takes.
        mesh: of the processes to deal out to; None for whole tensors.
    """
    _check_digests(folder, digests)
    reader = _Reader(folder)
    parts = {}
    for key, described in reader.read_metadata().state_dict_metadata.items():
        size, dtype = described.size, described.properties.dtype
        if mesh is None:
            parts[key] = torch.empty(size, dtype=dtype)
        else:
            parts[key] = empty_dtensor(size, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # Meant: each process reads by itself.
        dcp.load(parts, storage_reader=reader, no_dist=True)
    return parts


class _Reader(dcp.FileSystemReader):
    """torch's, but no code runs from the description, and no file outside the folder is read."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> metadata.Metadata:
        path = os.path.join(self.path, ".metadata")
        described = safe_pickle.load(path, allowed=DESCRIPTION)
        files = {info.relative_path for info in described.storage_data.values()}
        if not all(re.fullmatch(r"__\d+_\d+\.distcp", file) for file in files):
            raise CheckpointError(f"{path} names files that are none of this folder: {', '.join(sorted(files))}")
        if not all(isinstance(d, metadata.TensorStorageMetadata) for d in described.state_dict_metadata.values()):
            raise CheckpointError(f"{path} describes something else than tensors, which would be read as a pickle")
        return described


def _check_digests(folder: str, digests: Mapping[str, str]) -> None:
    if not os.path.isdir(folder):
        raise DamagedCheckpointError(
            f"{folder}, which belongs to the checkpoint, does not exist; copy it along, to a disk that all machines "
            "share"
        )
    for file in sorted(digests)[comm.get_rank() :: comm.get_world_size()]:
        path = os.path.join(folder, os.path.basename(file))
        if not os.path.isfile(path) or digest_of(path) != digests[file]:
            raise DamagedCheckpointError(f"{path} is missing or damaged: it is not what was written, by its digest")
