"""Trials per hour of the same study: ours, Ray's documented pattern, and a plain Optuna loop.

    python tests/benchmarks/studies.py
    python tests/benchmarks/studies.py --repeats 1 --train-images 4000 --val-images 1000

Trials of two epochs on Fashion-MNIST, two at a time with one thread each, no early stopping.
Ours draws the configurations, the others get the same; each is a command of its own, timed from its
start to its end. All keep the weights and log the same metrics to MLflow on SQLite; ours also
saves every epoch before it is reported, draws five figures a trial and ranks.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import HERE, run, run_study, unpack
from report import Report, median, out_parser

from study.tasks.fashion import FashionConfig

EPOCHS = 2
CONTENDERS = {
    "ours": None,
    "ray": "ray_pattern.py",
    "loop": "optuna_loop.py",
    "memory": "optuna_loop.py",
}


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--train-images", type=int, default=50_000)
    parser.add_argument("--val-images", type=int, default=10_000)
    parser.add_argument("--max-width", type=int, default=16, help="of both convolutions")
    parser.add_argument("--skip", nargs="*", default=[], choices=("ray", "loop", "memory"))
    args = parser.parse_args()
    report = Report("studies", args.out)
    walls: dict[str, list[float]] = {}
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        root = Path(folder) / "data"
        unpack(root)
        for repeat in range(args.repeats):
            home = Path(folder) / str(repeat)
            configs: list[dict[str, Any]] = []

            # Ours is first: it draws what the others get.
            for name, script in CONTENDERS.items():
                if name not in args.skip:
                    place = home / name
                    place.mkdir(parents=True)
                    started = time.perf_counter()
                    if script:
                        values = run_other(place, script, name, configs, root)
                    else:
                        values = run_ours(place, configs, args)
                    walls.setdefault(name, []).append(time.perf_counter() - started)
                    scores.setdefault(name, []).append(max(values))
                    print(f"{name}: {walls[name][-1]:.1f} s, best {max(values):.4f}", flush=True)
                    shutil.rmtree(place)
    rates = {name: [3600 * args.trials / wall for wall in found] for name, found in walls.items()}
    for name, (what, reach) in {
        "ray": ("trials per hour, against Ray's pattern", 3.0),
        "loop": ("trials per hour, against an Optuna loop, DataLoader on torchvision", 1.0),
        "memory": ("trials per hour, against an Optuna loop, images in memory", 1.0),
    }.items():
        if name in rates:
            report.add(what, rates["ours"], rates[name], better="higher", reach=reach)
    report.note("dashboard", "Ray's pattern starts it, which Ray Train needs; ours does without")
    report.note("seconds", {name: median(found) for name, found in walls.items()})
    report.note("best val/accuracy", scores)
    report.note("images", {"train": args.train_images, "val": args.val_images})
    report.note("setting", f"{args.trials} trials, {EPOCHS} epochs, 2 at a time, 1 thread each")
    report.note("widths", f"4 to {args.max_width}, drawn on a logarithmic scale")
    report.write()


def run_ours(home: Path, configs: list[dict[str, Any]], args: Any) -> list[float]:
    """Run our study; return the scores, and add its configurations to `configs`."""
    widths = f"{{type: int, low: 4, high: {args.max_width}, log: true}}"
    (home / "space.yaml").write_text(
        "search:\n"
        "  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
        "  weight_decay: {type: float, low: 1.0e-7, high: 1.0e-3, log: true}\n"
        f"  width1: {widths}\n  width2: {widths}\n"
        "baseline: {width1: 8, width2: 8}\n"
    )
    run_study(
        "few",
        "--num-samples",
        args.trials,
        "--epochs",
        EPOCHS,
        "--search-space",
        "space.yaml",
        "--set",
        f"train_images={args.train_images}",
        "--set",
        f"val_images={args.val_images}",
        "--cpus-per-worker",
        1,
        "--max-concurrent",
        2,
        "--scheduler",
        "none",
        home=home,
    )
    scores = []
    for file in sorted((home / "studies" / "few" / "trials").glob("*/trial.json")):
        trial = json.loads(file.read_text())
        assert trial["state"] == "finished"
        scores.append(max(row["val/accuracy"] for row in trial["history"]))
        default = FashionConfig()
        configs.append(
            {
                "epochs": EPOCHS,
                "batch_size": default.batch_size,
                "hidden": default.hidden,
                "kernel_size": default.kernel_size,
                "train_images": args.train_images,
                "val_images": args.val_images,
                "seed": trial["number"],
                **trial["values"],
            }
        )
    assert len(configs) == args.trials
    return scores


def run_other(
    home: Path, script: str, name: str, configs: list[dict[str, Any]], root: Path
) -> list[float]:
    """Run another contender with these configurations; return the scores."""
    data = "memory" if name == "memory" else "dataset"
    given = [{**config, "data": data, "root": str(root)} for config in configs]
    (home / "configs.json").write_text(json.dumps(given))
    run(HERE / script, "configs.json", home=home)
    values: list[float] = json.loads((home / "scores.json").read_text())
    return values


if __name__ == "__main__":
    main()
