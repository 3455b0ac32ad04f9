"""What `--dry-run` estimates beside what the same study then takes, on the real data.

    STUDY_DATA_DIR=... python tests/benchmarks/estimate.py [--only NAME] [--repeats 1] [--json FILE]

The machine must have nothing else to do. One study is one throw of dice: which of its trials are
stopped early decides its length, so `10 %` and `90 %` say what such studies take. Apart from the
dice, `epochs` are those expected over those trained, `epoch` the estimated seconds of the epochs
that were trained over the measured ones.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from study.estimate import estimate
from study.plan import make_plan
from study.record import StudyRecord
from study.study_flags import build_parser
from study.tables import table

NARROW = """\
search:
  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  weight_decay: {type: float, low: 1.0e-7, high: 1.0e-3, log: true}
  width1: {type: int, low: 4, high: 24, log: true}
  width2: {type: int, low: 8, high: 48, log: true}
baseline: {width1: 16, width2: 32}
"""
STUDIES = {
    "fashion": "fashion --search-space narrow.yaml --num-samples 12 --epochs 3",
    "facade": "facade --search-space facade-cpu --num-samples 6 --epochs 2",
}


def compare(command: str, home: Path, seed: int) -> dict[str, float]:
    """Estimate a study and run it; return seconds."""
    (home / "narrow.yaml").write_text(NARROW)
    os.chdir(home)
    words = [*command.split(), "--seed", str(seed)]
    begun = time.perf_counter()
    plan = make_plan(build_parser().parse_args([*words, "--dry-run"]))
    expected = estimate(plan)
    outlook = expected.outlook
    assert outlook is not None
    probed = time.perf_counter() - begun
    begun = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run([sys.executable, "-m", "study.tune", *words], check=True, **quiet)
    took = time.perf_counter() - begun
    trials = StudyRecord.read(plan.folder).trials()
    seconds = sum(trial.epochs * each for trial, each in zip(trials, expected.seconds, strict=True))
    return {
        "seed": seed,
        "probe": probed,
        "10 %": outlook.low,
        "estimate": outlook.seconds,
        "90 %": outlook.high,
        "measured": took,
        "ratio": outlook.seconds / took,
        "epochs": sum(outlook.reached) / sum(trial.epochs for trial in trials),
        "epoch": seconds / sum(trial.seconds for trial in trials),
    }


def main() -> None:
    """Print a table and write JSON."""
    parser = argparse.ArgumentParser(description="Estimates of --dry-run beside real studies.")
    parser.add_argument("--only", choices=STUDIES, help="one of the studies (default: all)")
    parser.add_argument("--repeats", type=int, default=1, help="with other seeds (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default: 0)")
    parser.add_argument("--json", default="estimate.json", help="file (default: %(default)s)")
    args = parser.parse_args()
    file = Path(args.json).absolute()
    found: dict[str, list[dict[str, float]]] = {}
    for name in [args.only] if args.only else STUDIES:
        for seed in range(args.seed, args.seed + args.repeats):
            with tempfile.TemporaryDirectory() as home:
                found.setdefault(name, []).append(compare(STUDIES[name], Path(home), seed))
            os.chdir(file.parent)
            file.write_text(json.dumps(found, indent=1))
    rows = [
        [name, *(f"{value:.3g}" for value in entry.values())]
        for name, entries in found.items()
        for entry in entries
    ]
    print(table(["study, seconds", *next(iter(found.values()))[0]], rows))
    for name, entries in found.items():
        print(f"{name}: median ratio {statistics.median(e['ratio'] for e in entries):.2f}")


if __name__ == "__main__":
    main()
