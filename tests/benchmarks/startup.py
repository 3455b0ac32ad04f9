"""How long a user waits: for `--help`, for the best trials, and for the first training step.

    python tests/benchmarks/startup.py
    python tests/benchmarks/startup.py --repeats 1

The first step is that of a task that is Fashion-MNIST on real data and notes the time in its loss.
A study starts in an empty folder, so a SQLite store for MLflow has to be made; the data set and the
empty store that MLflow once made are cached already.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

from contenders import finish, run, run_study
from report import Report, out_parser

COMMANDS = ("tune", "best", "train", "data", "doctor")
SPACE = "search:\n  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
TRIALS = 50  # of the study whose best trials are shown


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    report = Report("startup", args.out)
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        for command in COMMANDS:
            taken = [timed("-m", f"study.{command}", "--help", home=home) for _ in range(5)]
            report.add(f"{command} --help, s", taken, limit=1.0)
        (home / "space.yaml").write_text(SPACE)
        run_study(
            "few",
            "--num-samples",
            TRIALS,
            "--epochs",
            1,
            "--search-space",
            "space.yaml",
            home=home,
        )
        for flags in ((), ("--json",)):
            taken = [timed("-m", "study.best", "few", *flags, home=home) for _ in range(3)]
            report.add(" ".join(("best", *flags)) + f", {TRIALS} trials, s", taken, limit=3.0)
    tune = [first_step("tune", "--num-samples", 2) for _ in range(args.repeats)]
    report.add("tune to the first training step, s", tune, limit=12.0)
    report.add("train to the same, s", [first_step("train") for _ in range(args.repeats)])
    report.note("tune", "in an empty folder")
    report.write()


def timed(*args: object, home: Path) -> float:
    """Return how many seconds a Python process takes."""
    began = time.time()
    run(*args, home=home)
    return time.time() - began


def first_step(command: str, *flags: object) -> float:
    """Return the seconds from the command line to the first training step; the rest is cut off."""
    space = ("--search-space", "fashion") if command == "tune" else ()
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        os.environ["FIRST_STEP"] = str(home / "first_step")
        began = time.time()
        process = run("-m", f"study.{command}", "timed", *space, *flags, home=home, background=True)
        while not (home / "first_step").exists() and process.poll() is None:
            time.sleep(0.02)
        process.terminate()
        process.wait()
        if not (home / "first_step").exists():
            finish(process, home)
        time.sleep(0.1)  # the file is not empty
        return float((home / "first_step").read_text()) - began


if __name__ == "__main__":
    main()
