"""What is dealt out to the processes of a training, as by FSDP, and how it comes into a checkpoint and out of it.

The file has the weights, whole, for all that reads checkpoints. The rest of what is dealt out, above all the state of
the optimizer, goes to a folder beside it, ``<name>.<token>.shards``: each process writes its part, and any number of
processes reads them. In the file, stand-ins tell where it belongs.
"""

import copy
import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from detlib.utils import comm
from detlib.utils.errors import CheckpointError, DamagedCheckpointError, DetlibError

__all__ = ["DealtOut", "load_dealt_out"]

KEY = "shards"  # in the file, for the name of the folder and the digests of what is in it
STAND_IN = "in the folder of shards as"


class DealtOut:
    """Collects the parts of all processes, so that the main process can save them, and puts them into what it saves."""

    def __init__(self) -> None:
        self._weights: dict[tuple, Tensor] = {}
        self._keys: dict[tuple, str] = {}
        self._folder = ""
        self._digests: dict[str, str] = {}

    def forget(self) -> None:
        """To be called when the training goes on, after which what was gathered is out of date."""
        if self._folder and comm.is_main_process():  # What was saved of it has a name of its own.
            shutil.rmtree(self._folder, ignore_errors=True)
        self.__init__()

    def gather(self, data: dict[str, Any], save_dir: str) -> None:
        """Collect the weights in the main process, and write the rest to a folder; all processes have to call it.

        Args:
            data: what is to be saved, with the weights under "model".
        """
        self.forget()
        rest = {}
        for place, part in _parts_in(data):
            if place[0] == "model":
                whole = part.detach().full_tensor()  # One at a time, as a device need not have the memory for all.
                if comm.is_main_process():
                    self._weights[place] = whole.cpu()
            else:
                self._keys[place] = "/".join(map(str, place))
                rest[self._keys[place]] = part.detach()
        if rest:
            self._write(rest, save_dir)

    @contextmanager
    def in_file(self, data: dict[str, Any], path: str) -> Iterator[dict[str, Any]]:
        """What to write to the file ``path`` in this block: ``data`` with whole weights, and stand-ins for the rest."""
        data = _replaced(data, _is_part, self._stand_in)
        if not self._folder:
            yield data
            return
        stem = path.removesuffix(".pth")
        # A new name each time: until the file is replaced, the old one needs its own folder.
        folder = f"{stem}.{os.path.basename(self._folder).strip('.')}"
        shutil.copytree(self._folder, folder, copy_function=_link_or_copy, dirs_exist_ok=True)
        yield {**data, KEY: {"folder": os.path.basename(folder), "digests": self._digests}}
        _remove_unused(path, folder)

    def _stand_in(self, place: tuple, part: Tensor) -> Any:
        if place in self._weights:
            return self._weights[place]
        if place in self._keys:
            return {STAND_IN: self._keys[place]}
        raise CheckpointError(
            f"{'.'.join(map(str, place))} is dealt out to {comm.get_world_size()} processes and was not gathered; let "
            "trainer.gather_states() be called in all of them, before one saves"
        )

    def _write(self, rest: dict[str, Tensor], save_dir: str) -> None:
        from detlib.checkpoint.shard_folder import write_shards  # torch's part of it takes a while to import.

        if "://" in save_dir:
            raise CheckpointError(f"OUTPUT_DIR is {save_dir}; FSDP needs a folder on a disk that all machines share")
        if comm.is_main_process():
            for pending in glob.glob(os.path.join(glob.escape(save_dir), ".*.shards")):
                shutil.rmtree(pending, ignore_errors=True)
        # Not from the random generators of the training, whose numbers would then depend on when it saves.
        self._folder = os.path.join(save_dir, f".{comm.all_gather(secrets.token_hex(4))[0]}.shards")
        self._digests = write_shards(self._folder, rest)


def load_dealt_out(checkpoint: dict[str, Any], folder: str, model: nn.Module) -> None:
    """Put what the folder of shards has in the place of its stand-ins; all processes have to call it.

    Args:
        checkpoint: changed in place.
        folder: that of the checkpoint.
        model: if its weights are dealt out, each process reads its part only.

    Raises:
        DamagedCheckpointError: the folder is missing, or not what was written; in all processes.
    """
    from detlib.checkpoint.shard_folder import read_shards

    shards = checkpoint.pop(KEY, None)
    if shards is None:
        return
    folder = os.path.join(folder, os.path.basename(shards["folder"]))
    error, state = None, {}
    try:
        mesh = next((parameter.device_mesh for parameter in model.parameters() if _is_part(parameter)), None)
        state = read_shards(folder, shards["digests"], mesh)
    except DetlibError as caught:
        error = caught
    except Exception as caught:  # A damaged folder can lead to any.
        error = DamagedCheckpointError(f"{folder} could not be read: {type(caught).__name__}: {caught}")
    if errors := [other for other in comm.all_gather(error) if other is not None]:
        raise errors[0] from error
    checkpoint.update(_replaced(checkpoint, _is_stand_in, lambda place, stand_in: state[stand_in[STAND_IN]]))


def _is_part(value: Any) -> bool:
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")  # A DTensor, whose module is slow to import.


def _is_stand_in(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {STAND_IN}


def _parts_in(data: Any, place: tuple = ()) -> Iterator[tuple[tuple, Tensor]]:
    if _is_part(data):
        yield place, data
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from _parts_in(value, (*place, key))
    elif isinstance(data, (list, tuple)):
        for i, value in enumerate(data):
            yield from _parts_in(value, (*place, i))


def _replaced(
    data: Any, is_meant: Callable[[Any], bool], replace: Callable[[tuple, Any], Any], place: tuple = ()
) -> Any:
    """Nested containers with other values in the place of those that are meant."""
    if is_meant(data):
        return replace(place, data)
    if isinstance(data, dict):
        copied = copy.copy(data)  # The weights of a model are a dict with versions of its layers as an attribute.
        copied.update({key: _replaced(value, is_meant, replace, (*place, key)) for key, value in data.items()})
        return copied
    if type(data) in (list, tuple):
        return type(data)(_replaced(value, is_meant, replace, (*place, i)) for i, value in enumerate(data))
    return data


def _remove_unused(path: str, used: str) -> None:
    """Delete earlier folders of a checkpoint, and those of checkpoints that are not there any more."""
    for folder in glob.glob(os.path.join(glob.escape(os.path.dirname(path)), "*.shards")):
        stem = re.sub(r"\.[0-9a-f]{8}\.shards$", "", folder)
        if folder not in (stem, used) and (f"{stem}.pth" == path or not os.path.exists(f"{stem}.pth")):
            shutil.rmtree(folder, ignore_errors=True)


def _link_or_copy(source: str, target: str) -> None:
    with suppress(FileExistsError):  # A second save of the same name after the same step.
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # Not every file system has hard links.
            shutil.copy2(source, target)
