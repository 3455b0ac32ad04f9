"""How often `study.best --importance` finds the one parameter that matters, and marks others.

    python tests/benchmarks/importance.py     # two minutes on one core

Studies are made up: TPE searches four parameters, one of which is conditional. The objective
depends on the learning rate alone, the average precision of pillar on one width alone, that of the
other classes on nothing; all have noise. Every third trial is stopped early.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import mean

import numpy as np
from report import Report, out_parser

import study.search.importance as measured
from study.records.study_record import StudyRecord
from study.search.importance import Importance, importance
from study.search.sampler import Sampler
from study.search_space import Parameter, SearchSpace
from study.task import load_task

TASK = load_task("facade")
KNOB, KNOB_OF_PILLAR = "learning_rate", "width1"
SPACE = SearchSpace(
    (
        Parameter(name="learning_rate", kind="float", low=1e-4, high=1e-1, log=True),
        Parameter(name="width1", kind="int", low=4, high=64, step=4),
        Parameter(name="last_relu", kind="categorical", choices=(True, False)),
        Parameter(name="width5", kind="int", low=4, high=64, when=("last_relu", (False,))),
    ),
    {"image_size": 64},
    {"learning_rate": 1e-3, "width1": 16, "last_relu": True},
)
NOISE = 0.05  # standard deviation; the objective varies by 1.6, pillar by 0.94


def made_up(folder: Path, num_trials: int, seed: int) -> StudyRecord:
    """Return a study that TPE searched."""
    manifest = {
        **{"study": "s", "task": "facade", "dataset": "sample", "checksum": "c", "seed": seed},
        "sampler": "tpe",
        **{"metric": "val/mean_ap", "mode": "max", "epochs": 9, "settings": {"image_size": 64}},
        "space": SPACE.describe(),
    }
    record = StudyRecord.create_or_continue(folder, json.loads(json.dumps(manifest)), "made up")
    sampler = Sampler.of(manifest)
    generator = np.random.default_rng(seed)
    for number in range(num_trials):
        values = record.begin(sampler.draw(record.trials())).params
        row = {f"val/ap/{name}": NOISE * generator.normal() for name in TASK.classes}
        row["val/ap/pillar"] += float(values[KNOB_OF_PILLAR]) / 64
        log_rate = float(np.log10(float(values[KNOB])))
        row["val/mean_ap"] = -((log_rate + 2.5) ** 2) / 4 + NOISE * generator.normal()
        record.report(number, {"epoch": 1, **row})
        record.end(number, "stopped" if number % 3 == 2 else "finished")
    record.close()
    return record


def false_marks(found: Importance) -> float:
    """Return which part of what does not matter is marked."""
    nothing = [f"val/ap/{name}" for name in TASK.classes if name != "pillar"]
    marked = sum(metric in nothing for _, metric in found.clear)
    return marked / (len(nothing) * len(found.shares))


def main() -> None:
    """Make studies up and measure."""
    parser = out_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=8)
    args = parser.parse_args()
    report = Report("importance", args.out)
    report.note("studies of each size", args.seeds)
    with tempfile.TemporaryDirectory() as scratch:
        for num_trials in (20, 50, 100):
            records = [
                made_up(Path(scratch) / f"{num_trials}-{seed}", num_trials, seed)
                for seed in range(args.seeds)
            ]
            results = {}
            for quantile in (0.25, 0.1):
                measured.QUANTILE = quantile
                results[quantile] = [importance(TASK, record) for record in records]
            for what, count in {
                f"{KNOB} marked for the objective": lambda f: (KNOB, "val/mean_ap") in f.clear,
                f"{KNOB} first for it": lambda f: first(f, "val/mean_ap") == KNOB,
                f"{KNOB_OF_PILLAR} marked for pillar": lambda f: (
                    (KNOB_OF_PILLAR, "val/ap/pillar") in f.clear
                ),
            }.items():
                shares = [100 * mean(map(count, results[quantile])) for quantile in results]
                report.add(
                    f"{num_trials} trials: {what}, %; the best quarter against the best tenth",
                    shares[:1],
                    shares[1:],
                    better="higher",
                )
            report.add(
                f"{num_trials} trials: marked of what does not matter, %",
                [100 * mean(map(false_marks, results[0.25]))],
                [100 * mean(map(false_marks, results[0.1]))],
            )
    report.write()


def first(found: Importance, metric: str) -> str:
    """Return the parameter with the largest share."""
    return max(found.shares, key=lambda name: found.shares[name][metric])


if __name__ == "__main__":
    main()
