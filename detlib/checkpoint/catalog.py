"""Short names, ``catalog://...``, of weights that were published for Caffe2 Detectron."""

import difflib
from typing import Any

from iopath.common.file_io import PathHandler

from detlib.utils.errors import UnknownNameError
from detlib.utils.file_io import PathManager

__all__ = ["ModelCatalog", "ModelCatalogHandler"]


class ModelCatalog:
    """Addresses of published weights. Other names can be added to both dicts."""

    S3_C2_DETECTRON_PREFIX = "https://dl.fbaipublicfiles.com/detectron"

    # name after "ImageNetPretrained/" -> path below the prefix
    C2_IMAGENET_MODELS: dict[str, str] = {
        "MSRA/R-50": "ImageNetPretrained/MSRA/R-50.pkl",
        "MSRA/R-101": "ImageNetPretrained/MSRA/R-101.pkl",
        "FAIR/R-50-GN": "ImageNetPretrained/47261647/R-50-GN.pkl",
        "FAIR/R-101-GN": "ImageNetPretrained/47592356/R-101-GN.pkl",
        "FAIR/X-101-32x8d": "ImageNetPretrained/20171220/X-101-32x8d.pkl",
        "FAIR/X-101-64x4d": "ImageNetPretrained/FBResNeXt/X-101-64x4d.pkl",
        "FAIR/X-152-32x8d-IN5k": "ImageNetPretrained/25093814/X-152-32x8d-IN5k.pkl",
    }

    C2_DETECTRON_PATH_FORMAT = "{prefix}/{url}/output/train/{dataset}/{type}/model_final.pkl"
    C2_DATASET_COCO = "coco_2014_train%3Acoco_2014_valminusminival"
    C2_DATASET_COCO_KEYPOINTS = "keypoints_coco_2014_train%3Akeypoints_coco_2014_valminusminival"

    # name after "Caffe2Detectron/COCO/" -> the "url" of the format above, as the model zoo of Detectron lists it
    C2_DETECTRON_MODELS: dict[str, str] = {}

    @staticmethod
    def get(name: str) -> str:
        """The address of ``ImageNetPretrained/<name>`` or ``Caffe2Detectron/COCO/<name>``."""
        if name.startswith("Caffe2Detectron/COCO/"):
            return ModelCatalog._detectron_address(name.removeprefix("Caffe2Detectron/COCO/"))
        path = _look_up(ModelCatalog.C2_IMAGENET_MODELS, name.removeprefix("ImageNetPretrained/"))
        return f"{ModelCatalog.S3_C2_DETECTRON_PREFIX}/{path}"

    @staticmethod
    def _detectron_address(name: str) -> str:
        url = _look_up(ModelCatalog.C2_DETECTRON_MODELS, name)
        return ModelCatalog.C2_DETECTRON_PATH_FORMAT.format(
            prefix=ModelCatalog.S3_C2_DETECTRON_PREFIX,
            url=url,
            dataset=ModelCatalog.C2_DATASET_COCO_KEYPOINTS if "keypoint" in name else ModelCatalog.C2_DATASET_COCO,
            type="rpn" if name.split("/")[-1].startswith("rpn") else "generalized_rcnn",
        )


class ModelCatalogHandler(PathHandler):
    """Opens ``catalog://ImageNetPretrained/MSRA/R-50``."""

    PREFIX = "catalog://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, **kwargs: Any) -> str:
        return PathManager.get_local_path(ModelCatalog.get(path.removeprefix(self.PREFIX)), **kwargs)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        return PathManager.open(self._get_local_path(path), mode, **kwargs)


def _look_up(models: dict[str, str], name: str) -> str:
    if name in models:
        return models[name]
    near = difflib.get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UnknownNameError(f"The model catalog has no {name!r}; {hint}Known: {', '.join(models) or 'none'}")


PathManager.register_handler(ModelCatalogHandler())
