"""What the COCO evaluator asks of pycocotools, made quiet and with errors that name the cause."""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detlib.structures import BoxMode
from detlib.utils.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["COCOevalMaxDets", "evaluate_on_coco", "evaluation_class", "load_ground_truth"]

logger = logging.getLogger(__name__)


class COCOevalMaxDets(COCOeval):
    """``COCOeval`` whose summary uses the largest of ``params.maxDets``, where the original insists on 100."""

    def summarize(self) -> None:
        """Set ``stats``: AP, AP50, AP75, APs, APm, APl, then the average recalls in the usual order."""
        self.stats = _summarize_boxes(self.eval, self.params)


def load_ground_truth(json_file: str, rotated: bool = False) -> COCO:
    """Read a COCO file and fill in what files in the wild lack: ``area``, ``iscrowd``, ``num_keypoints``, ``info``.

    Args:
        json_file: path of the file.
        rotated: whether boxes of five numbers stay rotated; else they become the upright boxes around them.
    """
    with _prints_to_log():
        coco = COCO(json_file)
        coco.dataset.setdefault("info", {})  # Some versions of pycocotools read it.
        for annotation in coco.dataset.get("annotations", ()):
            annotation.setdefault("iscrowd", 0)
            if "area" not in annotation and "bbox" in annotation:
                annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            if len(annotation.get("bbox", ())) == 5 and not rotated:
                box_xyxy = BoxMode.convert(annotation["bbox"], BoxMode.XYWHA_ABS, BoxMode.XYXY_ABS)
                annotation["bbox"] = BoxMode.convert(box_xyxy, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
            if "keypoints" in annotation:
                annotation.setdefault("num_keypoints", sum(v > 0 for v in annotation["keypoints"][2::3]))
        if 0 in coco.anns:  # An object matched by a detection is noted by its id, where 0 stands for no match.
            coco.anns[0]["id"] = max(coco.anns) + 1
            coco.createIndex()
    return coco


def evaluate_on_coco(
    coco_gt: COCO,
    predictions: list[dict[str, Any]],
    iou_type: str,
    *,
    max_dets: int = 100,
    kpt_oks_sigmas: Sequence[float] = (),
    img_ids: Sequence[int] | None = None,
    evaluation_class: type[COCOeval] = COCOeval,
) -> COCOeval:
    """Compare predictions with the ground truth.

    Args:
        predictions: in COCO's result format. Without any, the AP of all that has objects is 0.
        iou_type: ``"bbox"``, ``"segm"`` or ``"keypoints"``.
        max_dets: detections that count per image and class. COCO's rule of 20 holds for keypoints instead.
        img_ids: evaluate on these images only.
        evaluation_class: what matches detections and objects.

    Returns:
        The evaluation, with ``eval`` and ``stats`` filled in.
    """
    _check_image_ids(coco_gt, predictions)
    _check_fields(coco_gt, predictions, iou_type)
    # Given a box, pycocotools would take the area of a mask from it. And it writes into what it is given.
    dropped = {"bbox"} if iou_type == "segm" else set()
    predictions = [{k: v for k, v in prediction.items() if k not in dropped} for prediction in predictions]
    with _prints_to_log():
        evaluation = evaluation_class(coco_gt, _load_predictions(coco_gt, predictions), iou_type)
        if iou_type == "keypoints":
            _set_sigmas(evaluation, predictions, kpt_oks_sigmas)
        else:
            evaluation.params.maxDets = [1, min(10, max_dets), max_dets]
        if img_ids is not None:
            evaluation.params.imgIds = list(img_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        if iou_type != "keypoints" and max_dets != 100:
            evaluation.stats = _summarize_boxes(evaluation.eval, evaluation.params)
        else:
            evaluation.summarize()
    return evaluation


def _load_predictions(coco_gt: COCO, predictions: list[dict[str, Any]]) -> COCO:
    if predictions:
        return coco_gt.loadRes(predictions)
    # pycocotools looks at the first prediction for their kind.
    empty = type(coco_gt)()
    empty.dataset = {
        "images": coco_gt.dataset["images"],
        "categories": coco_gt.dataset["categories"],
        "annotations": [],
    }
    empty.createIndex()
    return empty


def evaluation_class(use_fast_impl: bool = True) -> type[COCOeval]:
    """COCO's own, or the fast one if it is installed; the numbers are the same."""
    if not use_fast_impl:
        return COCOeval
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        logger.info("faster_coco_eval is not installed; pycocotools computes the same numbers, more slowly")
        return COCOeval
    from detlib.evaluation.fast_eval_api import COCOeval_opt

    return COCOeval_opt


def _set_sigmas(evaluation: COCOeval, predictions: list[dict[str, Any]], sigmas: Sequence[float]) -> None:
    if len(sigmas):
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    if not predictions:
        return
    num_sigmas = len(evaluation.params.kpt_oks_sigmas)
    num_keypoints = len(predictions[0]["keypoints"]) // 3
    if num_keypoints != num_sigmas:
        raise ConfigError(
            f"Predictions have {num_keypoints} keypoints each, but there are {num_sigmas} sigmas to compare them with; "
            f"set TEST.KEYPOINT_OKS_SIGMAS to {num_keypoints} numbers (COCO's own {num_sigmas} are the default)"
        )


def _check_image_ids(coco_gt: COCO, predictions: list[dict[str, Any]]) -> None:
    unknown = sorted({prediction["image_id"] for prediction in predictions} - coco_gt.imgs.keys(), key=str)
    if unknown:
        known = ", ".join(map(repr, list(coco_gt.imgs)[:3]))
        raise DatasetError(
            f"{len(unknown)} images with predictions are not in the ground truth, the first with image_id "
            f"{unknown[0]!r}; it has {len(coco_gt.imgs)} images such as {known}. "
            "Was the model run on another dataset than the evaluator was made for?"
        )


def _check_fields(coco_gt: COCO, predictions: list[dict[str, Any]], iou_type: str) -> None:
    field = {"segm": "segmentation", "keypoints": "keypoints"}.get(iou_type)
    if field is None or not predictions:
        return
    if field not in predictions[0]:
        raise ConfigError(
            f"Task {iou_type!r} was asked for, but the model predicts no {field}; leave it out or switch it on in "
            "the model (MODEL.MASK_ON, MODEL.KEYPOINT_ON)"
        )
    lacking = [annotation["id"] for annotation in coco_gt.anns.values() if field not in annotation]
    if lacking:
        raise DatasetError(
            f"{len(lacking)} of {len(coco_gt.anns)} annotations have no {field!r}, the first with id {lacking[0]}, so "
            f"{iou_type!r} cannot be evaluated; add them, or evaluate with tasks=['bbox']"
        )


def _summarize_boxes(accumulated: dict[str, Any], params: Any) -> np.ndarray:
    """COCO's 12 numbers from ``precision`` (T, R, K, A, M) and ``recall`` (T, K, A, M); -1 where undefined."""
    precision, recall = accumulated["precision"], accumulated["recall"]
    at = {threshold: np.isclose(params.iouThrs, threshold) for threshold in (0.5, 0.75)}
    values: Iterable[np.ndarray] = (
        precision[..., 0, -1],
        precision[at[0.5], ..., 0, -1],
        precision[at[0.75], ..., 0, -1],
        *(precision[..., area, -1] for area in (1, 2, 3)),
        *(recall[..., 0, limit] for limit in range(3)),
        *(recall[..., area, -1] for area in (1, 2, 3)),
    )
    return np.array([value[value > -1].mean() if (value > -1).any() else -1.0 for value in values])


@contextlib.contextmanager
def _prints_to_log() -> Iterator[None]:
    """pycocotools reports with ``print``; that goes to the debug log."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        logger.debug("%s", printed.getvalue().strip())
