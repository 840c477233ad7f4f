"""Does each fault to trainings, several times at random moments, and prints a table: `make faults`."""

import argparse
import random
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults.faults import FAULTS, ONCE, Case
from tests.faults.training import Run, write_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5, metavar="N", help="injections of each fault (default: 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--only", default="", metavar="WORD", help="the faults with this in their name")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="faults_"))
    config = write_dataset(folder)
    reference = Run(config, folder / "undisturbed")
    if reference.start() != 0:
        sys.exit(reference.output)
    failures = []
    print(f"{'fault':36}  injected  survived", flush=True)
    for number, (name, inject) in enumerate(FAULTS.items()):
        if args.only not in name:
            continue
        times = 1 if name in ONCE else args.times
        failed = 0
        for i in range(times):
            run = Run(config, folder / f"{number:02}-{i}")
            try:
                inject(Case(reference, run, random.Random(f"{args.seed} {name} {i}")))
            except Exception:
                failed += 1
                failures.append(f"{name}, injection {i}, in {run.folder}:\n{traceback.format_exc(limit=-1)}")
        print(f"{name:36}  {times:8}  {times - failed:8}", flush=True)
    print(*failures, sep="\n")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
