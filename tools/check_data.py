#!/usr/bin/env python
"""Look for mistakes in the datasets of a config, before hours of training go into them.

All of DATASETS.TRAIN and DATASETS.TEST is read, and everything that is found told at once, with the file, the ids of
image and annotation, and what to do. Exit status: 0 if nothing is an error, 1 if something is, 2 if the check itself
could not be made, for example as the config is wrong.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from detlib.config import CfgNode, get_cfg, import_custom_modules
from detlib.data.check import Finding, Report, check_datasets
from detlib.data.check.dataset import CheckedDataset
from detlib.data.check.images import ImageFacts
from detlib.data.datasets.register import register_datasets
from detlib.engine.setup import add_overrides, check_num_classes, run_tool
from detlib.utils.errors import ConfigError, DetlibError
from detlib.utils.file_io import PathManager

EXAMPLES = """
Examples:
  all of a config's datasets, every image decoded:
      {prog} --config-file config.yaml
  without decoding, by the headers of images:
      {prog} --config-file config.yaml --quick
  for a program, and stricter:
      {prog} --config-file config.yaml --json report.json --strict
  a dataset without any config, with 8 processes that decode:
      {prog} DATASETS.TRAIN="[cells]" DATALOADER.NUM_WORKERS=8 \\
          DATASETS.REGISTER="[{{NAME: cells, TYPE: coco, JSON: cells.json, IMAGES: images}}]"
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES.format(prog=sys.argv[0]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", metavar="FILE", help="config whose datasets are looked at")
    parser.add_argument("--quick", action="store_true", help="read the headers of images only")
    parser.add_argument("--json", metavar="FILE", help="also write the report there, with all findings")
    parser.add_argument("--strict", action="store_true", help="warnings make the exit status 1, too")
    add_overrides(parser)
    return parser.parse_args()


def run() -> None:
    args = parse_args()
    cfg = load_config(args)
    report = check_datasets(cfg, args.quick, progress_bar)
    if args.config_file:
        find_other_classes(cfg, report)
    print(report.text())
    if args.json:
        with PathManager.open(args.json, "w") as file:
            json.dump(report.as_dict(), file, indent=1, default=str)
    sys.exit(int(report.count("error") > 0 or (args.strict and report.count("warning") > 0)))


def load_config(args: argparse.Namespace) -> CfgNode:
    cfg = get_cfg()
    if args.config_file:
        cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    cfg.freeze()
    if not cfg.DATASETS.TRAIN and not cfg.DATASETS.TEST:
        raise ConfigError("no dataset is named; add a --config-file with DATASETS.TRAIN or DATASETS.TEST")
    import_custom_modules(cfg)
    register_datasets(cfg)
    return cfg


def find_other_classes(cfg: CfgNode, report: Report) -> None:
    """Compare the classes with those of the model."""
    try:
        check_num_classes(cfg)
    except ConfigError as error:
        report.findings.append(Finding.of("num-classes", ", ".join(cfg.DATASETS.TRAIN), str(error)))
    except DetlibError:
        pass  # A dataset cannot be loaded, which the report says.


def progress_bar(seen: Iterable[ImageFacts], data: CheckedDataset) -> Iterator[ImageFacts]:
    return tqdm(seen, desc=data.name, total=len(data.samples), unit="image", disable=None)


if __name__ == "__main__":
    run_tool(run)
