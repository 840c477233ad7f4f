#!/usr/bin/env python
"""Run a model on images, folders, datasets, a video or a webcam; get pictures, a video, or JSON."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from glob import glob
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from detlib import model_zoo
from detlib.config import CfgNode, get_cfg
from detlib.data import DatasetCatalog, Metadata
from detlib.data.datasets.register import register_datasets
from detlib.data.detection_utils import image_of
from detlib.engine import DefaultPredictor
from detlib.engine.setup import run_tool
from detlib.evaluation.prediction_record import describe_record, to_record
from detlib.utils.errors import ConfigError, DatasetError, DetlibError, MissingFileError
from detlib.utils.logger import setup_logger
from detlib.visualization import VisImage, Visualizer, readable_scale

EXAMPLES = """
Examples:
  your own model on some images and a folder; the pictures go to predictions/:
      {prog} --config-file output/config.yaml --input a.jpg b.jpg photos/ --opts MODEL.WEIGHTS=output/model_final.pth
  a published model, its config and weights by name (downloaded once, then taken from the cache):
      {prog} --zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml --input "photos/*.jpg" --output drawn/
  20 images of a dataset, and what was found in them as JSON:
      {prog} --config-file config.yaml --dataset shapes_val --limit 20 --json found.json --opts MODEL.WEIGHTS=model.pth
  JSON only, of all that the model is at least 30 % sure of:
      {prog} --zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml --input a.jpg --json found.json --confidence-threshold 0.3
  a video, or the first webcam in a window (Esc closes it):
      {prog} --zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml --video-input street.mp4 --output street_drawn.mp4
      {prog} --zoo COCO-Detection/retinanet_R_50_FPN_3x.yaml --webcam
  on the CPU, although there is a GPU:
      {prog} ... --opts MODEL.DEVICE=cpu

The JSON has an entry per image or frame, with its objects in COCO's format of results and the names of their classes:
  [{{"file_name": "a.jpg", "image_id": 1, "height": 480, "width": 640,
    "instances": [{{"category_id": 3, "category_name": "car", "bbox": [x, y, width, height], "score": 0.9}}]}}]
Of models that give a class to every pixel, an entry also has "stuff", the classes with their areas in pixels.
Of classifiers, it has no instances but the predicted class, or classes, and the five best ones with their scores:
  [{{"file_name": "a.jpg", "image_id": 1, "height": 480, "width": 640, "pred_label": 3,
    "classes": [{{"category_id": 3, "category_name": "cat", "score": 0.9}}]}}]
"""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
VIDEO_CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "XVID"}
DEFAULT_OUTPUT = "predictions"
ESCAPE_KEY = 27

Predictor = Callable[[np.ndarray], dict[str, Any]]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument(
        "--config-file", metavar="FILE", help="config of the model; --opts MODEL.WEIGHTS=... to go with it"
    )
    model.add_argument("--zoo", metavar="NAME", help="config and published weights, by the name below configs/")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input", nargs="+", metavar="PATH", help='images, folders, patterns such as "photos/*.jpg", URLs'
    )
    source.add_argument("--dataset", metavar="NAME", help="images of a registered dataset")
    source.add_argument("--video-input", metavar="FILE", help="a video")
    source.add_argument(
        "--webcam", type=int, nargs="?", const=0, metavar="NUMBER", help="a webcam (default: 0, the first)"
    )
    parser.add_argument("--output", metavar="PATH", help=f"folder, or file for one input (default: {DEFAULT_OUTPUT}/)")
    parser.add_argument("--json", metavar="FILE", help="write what is found; without --output, no pictures are made")
    parser.add_argument("--limit", type=int, metavar="N", help="stop after N images or frames")
    parser.add_argument(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="P",
        help="lowest score of objects that are shown (default: 0.5)",
    )
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes of the config; comes last"
    )
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    check_numbers(args)
    for name in ("fvcore", "detlib"):
        setup_logger(name=name)
    cfg = load_config(args)
    register_datasets(cfg)
    # Missing input should be reported before minutes of downloading weights.
    if args.input or args.dataset:
        images = (find_images(args.input) if args.input else images_of_dataset(args.dataset))[: args.limit]
        targets = plan_targets(images, args)
        predictor = DefaultPredictor(cfg)
        predict = confident(predictor, args.confidence_threshold)
        records = predict_images(predict, class_metadata(predictor), images, targets)
    else:
        capture = open_capture(args)
        predictor = DefaultPredictor(cfg)
        predict = confident(predictor, args.confidence_threshold)
        records = predict_video(predict, class_metadata(predictor), capture, args)
    if args.json:
        write_json(records, args.json)


def check_numbers(args: argparse.Namespace) -> None:
    if args.limit is not None and args.limit < 1:
        raise ConfigError(f"--limit is {args.limit}; expected 1 or more")
    if not 0 <= args.confidence_threshold <= 1:
        raise ConfigError(f"--confidence-threshold is {args.confidence_threshold}; expected a number from 0 to 1")


def load_config(args: argparse.Namespace) -> CfgNode:
    if args.zoo:
        cfg = model_zoo.get_config(args.zoo, trained=True)
    else:
        cfg = get_cfg()
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if not cfg.MODEL.WEIGHTS:
        raise ConfigError("MODEL.WEIGHTS is empty, so there is nothing to predict with; add --opts MODEL.WEIGHTS=FILE")
    for section in cfg.MODEL.values():
        if isinstance(section, CfgNode) and "SCORE_THRESH_TEST" in section:
            section.SCORE_THRESH_TEST = args.confidence_threshold
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = args.confidence_threshold
    cfg.freeze()
    return cfg


def class_metadata(predictor: DefaultPredictor) -> Metadata:
    """Names and colours of the classes; datasets in COCO's format have them in their file."""
    metadata = predictor.metadata
    has_names = any(metadata.get(kind) is not None for kind in ("thing_classes", "stuff_classes", "classes"))
    if not has_names and metadata.name in DatasetCatalog:
        try:
            DatasetCatalog.get(metadata.name)
        except DetlibError as error:
            print(f"Classes are shown as numbers, as their names cannot be read: {error}")
    return metadata


# Images


def find_images(patterns: list[str]) -> list[dict[str, Any]]:
    images: list[str] = []
    for pattern in patterns:
        path = Path(pattern).expanduser()
        if "://" in pattern or path.is_file():
            found = [pattern if "://" in pattern else str(path)]
        elif path.is_dir():
            found = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found = sorted(file for file in glob(str(path), recursive=True) if Path(file).is_file())
        if not found:
            what = f"has no image ({', '.join(IMAGE_SUFFIXES)})" if path.is_dir() else "does not exist"
            if path.is_dir() and any(file.is_dir() for file in path.iterdir()):
                what += f'; for those of its folders, write "{path}/**/*.jpg"'
            raise MissingFileError(f"--input {pattern} {what}")
        images += found
    return [{"file_name": image} for image in images]


def images_of_dataset(name: str) -> list[dict[str, Any]]:
    """The images of a dataset by "file_name"; with the "image" itself, and a name made up, where it has no files."""
    samples = DatasetCatalog.get(name)
    if len(samples) == 0:
        raise DatasetError(f"dataset {name!r} has no images")
    return [
        {"file_name": f"image_{sample.get('image_id', number)}"}
        | {field: sample[field] for field in ("file_name", "image") if field in sample}
        for number, sample in enumerate(samples, start=1)
    ]


def plan_targets(images: list[dict[str, Any]], args: argparse.Namespace) -> list[Path | None]:
    """Where the picture of each image goes; nowhere if only JSON is asked for."""
    if args.output is None and args.json:
        return [None] * len(images)
    output = Path(args.output or DEFAULT_OUTPUT).expanduser()
    if output.suffix.lower() in IMAGE_SUFFIXES:
        if len(images) > 1:
            raise ConfigError(f"--output {output} is one file, but there are {len(images)} images; give a folder")
        targets = [output]
    else:
        targets = [output / name for name in unique_names(images)]
    for image, target in zip(images, targets, strict=True):
        if target.exists() and target.resolve() == Path(image["file_name"]).resolve():
            raise ConfigError(f"the picture of {image['file_name']} would overwrite it; choose another --output")
    return targets


def unique_names(images: list[dict[str, Any]]) -> Iterator[str]:
    """PNG files to write to, as JPEG blurs thin lines; numbered where images of several folders have the same name."""
    used: set[str] = set()
    for image in images:
        stem = Path(image["file_name"]).stem
        name, number = f"{stem}.png", 1
        while name in used:
            number += 1
            name = f"{stem}_{number}.png"
        used.add(name)
        yield name


def confident(predictor: Predictor, threshold: float) -> Predictor:
    """Leaves out objects below a score, also where a node of a graph has a threshold of its own."""

    def predict(image_bgr: np.ndarray) -> dict[str, Any]:
        outputs = predictor(image_bgr)
        if "instances" not in outputs:
            return outputs
        instances = outputs["instances"]
        return {**outputs, "instances": instances[instances.scores >= threshold]}

    return predict


def predict_images(
    predictor: Predictor, metadata: Metadata, images: list[dict[str, Any]], targets: list[Path | None]
) -> list[dict[str, Any]]:
    records = []
    with tqdm(total=len(images), unit="image", disable=None) as bar:
        for number, (sample, target) in enumerate(zip(images, targets, strict=True), start=1):
            file_name, image = sample["file_name"], image_of(sample, format="BGR")
            start = time.perf_counter()
            outputs = predictor(image)
            seconds = time.perf_counter() - start
            records.append(to_record(outputs, metadata, file_name, number, *image.shape[:2]))
            line = f"[{number}/{len(images)}] {file_name}: {describe_record(records[-1])} in {seconds:.2f} s"
            if target is not None:
                target.parent.mkdir(parents=True, exist_ok=True)
                draw(image, outputs, metadata).save(str(target))
                line += f" -> {target}"
            tqdm.write(line, file=sys.stdout)
            bar.update()
    return records


def draw(image_bgr: np.ndarray, outputs: dict[str, Any], metadata: Metadata) -> VisImage:
    visualizer = Visualizer(image_bgr[:, :, ::-1], metadata, scale=readable_scale(*image_bgr.shape[:2]))
    if "panoptic_seg" in outputs:
        segments, info = outputs["panoptic_seg"]
        return visualizer.draw_panoptic_seg(segments.to("cpu"), info)
    if "sem_seg" in outputs:
        visualizer.draw_sem_seg(outputs["sem_seg"].argmax(dim=0).to("cpu"))
    if "instances" in outputs:
        visualizer.draw_instance_predictions(outputs["instances"])
    if "pred_score" in outputs:
        visualizer.draw_classification(outputs["pred_score"], outputs.get("pred_label"))
    return visualizer.get_output()


# Video


def open_capture(args: argparse.Namespace) -> cv2.VideoCapture:
    if args.video_input and not Path(args.video_input).expanduser().is_file():
        raise MissingFileError(f"--video-input {args.video_input} does not exist")
    source = str(Path(args.video_input).expanduser()) if args.video_input else args.webcam
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        what = f"the video {source}" if args.video_input else f"webcam {source}"
        raise MissingFileError(f"OpenCV cannot open {what}; is it in use, or of a kind that this OpenCV cannot read?")
    return capture


def read_frames(capture: cv2.VideoCapture, limit: int | None) -> Iterator[np.ndarray]:
    number = 0
    while limit is None or number < limit:
        is_read, frame = capture.read()
        if not is_read:
            return
        number += 1
        yield frame


def predict_video(
    predictor: Predictor, metadata: Metadata, capture: cv2.VideoCapture, args: argparse.Namespace
) -> list[dict[str, Any]]:
    source = args.video_input or f"webcam {args.webcam}"
    total = None if args.webcam is not None else int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) or None
    if args.limit:
        total = min(total or args.limit, args.limit)
    target = plan_video(args)
    show = target is None and not args.json
    records: list[dict[str, Any]] = []
    writer = None
    for number, frame in enumerate(with_progress(read_frames(capture, args.limit), total), start=1):
        outputs = predictor(frame)
        records.append(to_record(outputs, metadata, source, number, *frame.shape[:2]))
        if target is None and not show:
            continue
        drawn = np.ascontiguousarray(draw(frame, outputs, metadata).get_image()[:, :, ::-1])
        if show and not show_frame(drawn):
            break
        if target is not None:
            writer = writer or open_writer(target, capture, drawn)
            writer.write(drawn)
    capture.release()
    if not records:
        raise DatasetError(f"{source} has no frame that OpenCV can read")
    if writer is not None:
        writer.release()
        print(f"{len(records)} frames -> {target}")
    return records


def plan_video(args: argparse.Namespace) -> Path | None:
    """Where the video goes; None if it is shown, or if only JSON is asked for."""
    if args.output is None and (args.json or args.webcam is not None):
        return None
    output = Path(args.output or DEFAULT_OUTPUT).expanduser()
    if output.suffix.lower() not in VIDEO_CODECS:
        output = output / f"{Path(args.video_input).stem if args.video_input else 'webcam'}.mp4"
    if args.video_input and output.resolve() == Path(args.video_input).expanduser().resolve():
        raise ConfigError(f"--output {output} would overwrite the input; choose another file")
    return output


def open_writer(target: Path, capture: cv2.VideoCapture, frame: np.ndarray) -> cv2.VideoWriter:
    target.parent.mkdir(parents=True, exist_ok=True)
    height, width = frame.shape[:2]
    codec = cv2.VideoWriter_fourcc(*VIDEO_CODECS[target.suffix.lower()])
    frames_per_second = capture.get(cv2.CAP_PROP_FPS) or 25.0
    writer = cv2.VideoWriter(str(target), codec, frames_per_second, (width, height))
    if not writer.isOpened():
        raise ConfigError(f"this OpenCV cannot write {target}; try another ending: {', '.join(VIDEO_CODECS)}")
    return writer


def show_frame(frame_bgr: np.ndarray) -> bool:
    """Show the frame in a window; False when it was closed by Esc."""
    try:
        cv2.imshow("detlib: Esc quits", frame_bgr)
        return cv2.waitKey(1) != ESCAPE_KEY
    except cv2.error as error:
        raise ConfigError("there is no display to show the webcam on; add --output FILE.mp4") from error


def with_progress(frames: Iterable[np.ndarray], total: int | None) -> Iterator[np.ndarray]:
    """A bar on a terminal, else a line per 100 frames."""
    bar = tqdm(frames, total=total, unit="frame", disable=None)
    start = time.perf_counter()
    for number, frame in enumerate(bar, start=1):
        yield frame
        if bar.disable and number % 100 == 0:
            rate = number / (time.perf_counter() - start)
            print(f"[{number}/{total or '?'}] frames, {rate:.1f} per second", flush=True)


# JSON


def write_json(records: list[dict[str, Any]], file_name: str) -> None:
    path = Path(file_name).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records, indent=1), encoding="utf-8")
    num_objects = sum(len(record.get("instances", ())) for record in records)
    found = "classes of" if "classes" in records[0] else f"{num_objects} objects in"
    print(f"{found} {len(records)} images -> {path}")


if __name__ == "__main__":
    run_tool(run)
