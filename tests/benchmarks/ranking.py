"""Does validation predict the test? By facade and with a random split; one fold, several, seeds.

    python tests/benchmarks/ranking.py --out DIR --seconds 200     # again and again; it goes on
    python tests/benchmarks/ranking.py --out DIR --test            # once, when all is trained

Trains `--configurations` drawn from `search_spaces/facade-cpu.yaml` (the first is its baseline) by
facade on fold 0. Of these, `--chosen` are chosen by that validation score, spread over its range,
before any test image is seen. They are trained again on other folds by facade, on folds of a random
split (`split=image`), and with other seeds on fold 0. Then the test split is scored once per
training, at 256x256 as in the data set's tables. Each training has a run folder of its own, from
which it goes on; `ranking.json` is written after each.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.multiprocessing
from scipy.stats import spearmanr

from study.datasets.source import DataSource
from study.records.run_folder import RunFolder
from study.search.space_file import load_space
from study.search_space import SearchSpace, find_space
from study.storage.files import write_text
from study.task import NUM_FOLDS, base_values, best_row, build_config, load_task
from study.training.loop import Interrupted, fit

RESULTS = Path(__file__).parent / "results"
TASK = load_task("facade")


@dataclasses.dataclass(frozen=True)
class Job:
    """One training."""

    configuration: int
    split: str = "facade"
    fold: int = 0
    seed: int = 0

    @property
    def key(self) -> str:
        """The name of its folder."""
        return f"{self.configuration:02d}-{self.split}-fold{self.fold}-seed{self.seed}"


class Experiment:
    """What is trained, and what is known of it so far.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = DataSource.find(args.dataset)
        fixed = {"epochs": args.epochs, "image_size": args.image_size}
        space = load_space(
            find_space("facade-cpu"), TASK.config_class, base_values(TASK, args.dataset), fixed
        )
        self.fixed = fixed
        rng = np.random.default_rng(args.seed)
        drawn = [_draw(space, rng) for _ in range(args.configurations - 1)]
        self.values = [space.baseline, *drawn]

    def folder(self, job: Job) -> RunFolder:
        """Return the run folder of a training."""
        return RunFolder(self.args.out / job.key)

    def history(self, job: Job) -> list[dict[str, float]]:
        """Return the epochs of a training so far."""
        path = self.folder(job).path / "metrics.json"
        return json.loads(path.read_text()) if path.exists() else []

    def done(self, job: Job) -> bool:
        """Return whether a training has ended."""
        return len(self.history(job)) >= self.args.epochs

    def validation(self, job: Job) -> float:
        """Return the metric at the best epoch."""
        return best_row(self.history(job), TASK.metric, TASK.mode)[TASK.metric]

    def chosen(self) -> list[int]:
        """Return the configurations to go on with, spread evenly over the range of validation."""
        scores = {n: self.validation(Job(n)) for n in range(len(self.values))}
        wanted = np.linspace(min(scores.values()), max(scores.values()), self.args.chosen)
        picked: list[int] = []
        for value in wanted:
            rest = (n for n in scores if n not in picked)
            picked.append(min(rest, key=lambda n, value=value: abs(scores[n] - value)))
        return sorted(picked)

    def jobs(self) -> list[Job]:
        """Return all trainings that can be named by now, in their order."""
        jobs = [Job(n) for n in range(len(self.values))]
        if all(map(self.done, jobs)):
            chosen, others = self.chosen(), range(1, self.args.folds)
            jobs += [Job(n, "image") for n in chosen]
            for k in others:
                jobs += [Job(n, "facade", fold=k, seed=k) for n in chosen]
                jobs += [Job(n, "facade", seed=k) for n in chosen]
                jobs += [Job(n, "image", fold=k, seed=k) for n in chosen]
        return jobs

    def write(self) -> None:
        """Write `ranking.json`."""
        rows = [
            {
                **dataclasses.asdict(job),
                "values": self.values[job.configuration],
                "val": self.validation(job),
                "epochs": self.history(job),
            }
            for job in self.jobs()
            if self.done(job)
        ]
        about = {k: str(v) for k, v in vars(self.args).items()}
        write_text(self.args.out / "ranking.json", json.dumps({"args": about, "rows": rows}))


def _draw(space: SearchSpace, rng: np.random.Generator) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for p in space.parameters:
        assert p.low is not None and p.high is not None
        if p.log:
            value = math.exp(rng.uniform(math.log(p.low), math.log(p.high)))
        else:
            value = rng.uniform(p.low, p.high)
        values[p.name] = round(value) if p.kind == "int" else value
    return values


def train(experiment: Experiment, job: Job, deadline: float) -> bool:
    """Train as far as the time allows; return whether the training has ended."""
    values = {**experiment.fixed, **experiment.values[job.configuration]}
    places = {"split": job.split, "fold": job.fold, "seed": job.seed}
    config = build_config(TASK.config_class, {**values, **places})
    folder = experiment.folder(job)
    try:
        for result in fit(
            TASK,
            config,
            experiment.source,
            resume=folder.last_state(),
            stop=lambda: time.time() > deadline,
        ):
            folder.record(result, {})
    except Interrupted as interrupted:
        folder.record_part(interrupted.state, {})
        return False
    print(f"{job.key}  val {experiment.validation(job):.4f}", flush=True)
    return True


def work(process: int, experiment: Experiment, deadline: float) -> None:
    """Train every `processes`-th of what is missing."""
    torch.set_num_threads(1)
    missing = [job for job in experiment.jobs() if not experiment.done(job)]
    for job in missing[process :: experiment.args.processes]:
        if time.time() > deadline or not train(experiment, job, deadline):
            return
        if process == 0:
            experiment.write()


def score_tests(experiment: Experiment) -> None:
    """Score the test split with every training that is not scored yet."""
    from study.selection.held_out_test import score

    path = experiment.args.out / "tests.json"
    tests = json.loads(path.read_text()) if path.exists() else {}
    chosen = experiment.chosen()
    for job in experiment.jobs():
        if job.configuration not in chosen or job.key in tests:
            continue
        state = experiment.folder(job).load_or_repair_weights(TASK.metric, TASK.mode)
        config = build_config(TASK.config_class, state["config"])
        network = TASK.build_model(config)
        network.load_state_dict(state["network"])
        entry = {}
        splits: tuple[Literal["val", "test"], ...] = ("val", "test")
        for split in splits:
            images = TASK.load_full_size(experiment.source, config, split)
            entry[split] = score(TASK, config, network, images).metrics["mean_ap"]
        tests[job.key] = entry
        write_text(path, json.dumps(tests, indent=1))


def report(experiment: Experiment) -> dict[str, Any]:
    """Return what follows from all scores."""
    chosen, folds = experiment.chosen(), range(experiment.args.folds)
    path = experiment.args.out / "tests.json"
    tests = json.loads(path.read_text()) if path.exists() else {}

    def values(split: str, kind: str, folded: bool = True) -> np.ndarray:
        """Return `(configuration, fold or seed)`."""
        table = []
        for n in chosen:
            jobs = [Job(n, split, fold=k if folded else 0, seed=k) for k in folds]
            if kind == "trained":
                table.append([experiment.validation(job) for job in jobs])
            else:
                table.append([tests[job.key][kind] for job in jobs])
        return np.array(table)

    found: dict[str, Any] = {"configurations": len(chosen), "folds": len(folds)}
    by_fold, by_seed = values("facade", "trained"), values("facade", "trained", folded=False)
    for name, table in (("folds", by_fold), ("seeds of fold 0", by_seed)):
        found[f"deviation over {name}"] = float(table.std(axis=1, ddof=1).mean())
        # What is left when a fold is easy or hard for all: this is what can turn a ranking over.
        paired = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
        found[f"the same, paired, over {name}"] = float(np.sqrt((paired**2).sum() / freedom))
        pairs = [
            spearmanr(table[:, a], table[:, b]).statistic for a in folds for b in folds if a < b
        ]
        found[f"rank correlation between two {name}"] = float(np.mean(pairs))
    found["deviation over configurations"] = float(by_fold.mean(axis=1).std(ddof=1))
    for split in ("facade", "image") if tests else ():
        val, test = values(split, "val"), values(split, "test")
        own = [spearmanr(val[:, k], test[:, k]).statistic for k in folds]
        found[split] = {
            "rank correlation, one fold, its own test": [float(value) for value in own],
            "rank correlation, mean of folds": float(
                spearmanr(val.mean(axis=1), test.mean(axis=1)).statistic
            ),
            "gap, test minus validation": float((test - val).mean()),
            "gap of each configuration": (test - val).mean(axis=1).round(4).tolist(),
            "validation": val.mean(axis=1).round(4).tolist(),
            "test": test.mean(axis=1).round(4).tolist(),
        }
    if tests:  # the truth for all: the mean test of the configuration, trained in either way
        truth = values("facade", "test").mean(axis=1)
        for name, table in (("one fold", by_fold), ("one fold, seeds", by_seed)):
            each = [spearmanr(table[:, k], truth).statistic for k in folds]
            found[f"rank correlation with mean test, {name}"] = float(np.mean(each))
        for name, table in (("mean of folds", by_fold), ("mean of seeds", by_seed)):
            found[f"rank correlation with mean test, {name}"] = float(
                spearmanr(table.mean(axis=1), truth).statistic
            )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, or test once; say what is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=["real", "sample"], default="real")
    parser.add_argument("--configurations", type=int, default=16)
    parser.add_argument("--chosen", type=int, default=8)
    parser.add_argument("--folds", type=int, default=3, choices=range(2, NUM_FOLDS + 1))
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="save and end after")
    parser.add_argument("--test", action="store_true", help="score the test split, once")
    parser.add_argument("--out", type=Path, default=Path("ranking"))
    args = parser.parse_args(argv)
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    experiment = Experiment(args)
    TASK.identity(experiment.source)  # the cache, once
    deadline = time.time() + args.seconds
    while time.time() < deadline and not all(map(experiment.done, experiment.jobs())):
        torch.multiprocessing.spawn(work, (experiment, deadline), nprocs=args.processes)
        experiment.write()
    jobs = experiment.jobs()
    done = sum(map(experiment.done, jobs))
    if done < len(jobs) or len(jobs) == len(experiment.values):
        print(f"{done} of {len(jobs)} trainings known so far; the same command goes on")
        return
    if args.test:
        score_tests(experiment)
    found = report(experiment)
    for name, value in found.items():
        print(f"{name}: {json.dumps(value)}")
    if args.dataset == "sample":  # to try this out
        return
    RESULTS.mkdir(exist_ok=True)
    asked = {name: str(value) for name, value in vars(args).items() if name != "out"}
    about = {"args": asked, "found": found}
    write_text(RESULTS / "ranking.json", json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
