"""`PathManager`: open and cache local files, URLs and the `detectron2://` paths that config files name."""

from typing import Any
from urllib.error import URLError

from iopath.common.file_io import HTTPURLHandler, PathHandler
from iopath.common.file_io import PathManager as _PathManager

from detlib.utils.errors import MissingFileError

__all__ = ["PathHandler", "PathManager"]


class _URLHandler(HTTPURLHandler):
    """Downloads once into the cache, and says plainly when it cannot."""

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        try:
            return super()._get_local_path(path, force=force, **kwargs)
        except (URLError, OSError) as error:
            raise MissingFileError(
                f"cannot download {path}: {error}. Without a network, copy the file to this machine and give its path."
            ) from error


class _PublicZooHandler(PathHandler):
    """`detectron2://...`, under which detectron2's authors publish weights and metrics."""

    PREFIX = "detectron2://"
    URL = "https://dl.fbaipublicfiles.com/detectron2/"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        return PathManager.get_local_path(self.URL + path.removeprefix(self.PREFIX), force=force, **kwargs)

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, buffering=buffering, **kwargs)


PathManager = _PathManager()
PathManager.register_handler(_URLHandler())
PathManager.register_handler(_PublicZooHandler())
