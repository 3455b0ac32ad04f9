"""What `--dry-run` estimates beside what the same study then takes, on the real data.

    STUDY_DATA_DIR=... python tests/benchmarks/estimate.py [--only NAME] [--repeats 3]

The machine must have nothing else to do. One study is one throw of dice: which of its trials are
stopped early decides its length, so `10 %` and `90 %` say what such studies take. Apart from the
dice, `epochs` are those expected over those trained, `epoch` the estimated seconds of the epochs
that were trained over the measured ones.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import Report, out_parser

from study.dry_run.estimate import estimate
from study.records.study_record import StudyRecord
from study.runner.plan import make_plan
from study.tune import build_parser, options_of

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
    plan = make_plan(options_of(build_parser().parse_args([*words, "--dry-run"])))
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
    """Run the studies, print a table and write JSON."""
    parser = out_parser(__doc__)
    parser.add_argument("--only", choices=STUDIES, help="one of the studies (default: all)")
    parser.add_argument("--repeats", type=int, default=3, help="with other seeds (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default: 0)")
    args = parser.parse_args()
    report = Report("estimate", args.out)
    here = os.getcwd()
    for name in [args.only] if args.only else STUDIES:
        found = []
        for seed in range(args.seed, args.seed + args.repeats):
            with tempfile.TemporaryDirectory() as home:
                found.append(compare(STUDIES[name], Path(home), seed))
                os.chdir(here)
            print(name, json.dumps(found[-1]), flush=True)
        for what, key in {
            "the estimate itself, s": "probe",
            "estimated over measured time": "ratio",
            "the same for epochs trained": "epochs",
            "the same for the seconds of these epochs": "epoch",
        }.items():
            report.add(f"{name}: {what}", [one[key] for one in found])
        inside = [one["10 %"] <= one["measured"] <= one["90 %"] for one in found]
        report.add(
            f"{name}: studies inside the range for 8 of 10, %", 100 * statistics.mean(inside)
        )
        report.note(name, found)
    report.write()


if __name__ == "__main__":
    main()
