"""Early stopping with two objectives, replayed over kept learning curves: accuracy and size.

    python tests/benchmarks/fronts.py     # a minute on one core

24 random trials of the curves that `curves.py` kept, two at a time, stopped by one of three rules
after epoch 4 of 20, one in three going on. Counted are the epochs that were trained, how many of
the trials on the Pareto front (score and number of parameters, had all been trained to the end)
were stopped, and the hypervolume of the front that was found: the area that it dominates, in score
and logarithm of size, of that of the true front.

    half    no stopping, half as many trials
    first   ASHA by the first objective (`study.search.asha.Rungs`)
    fronts  non-dominated trials go on, and the best third by rank (`study.search.asha.FrontRungs`)

Then searches by TPE of `SEARCHED` trials, two at a time, none stopped: the part of the hypervolume
of all configurations that is found, with parameters drawn together and each for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, stdev

import numpy as np
import optuna
from curves import EPOCHS, GRIDS
from report import Report, out_parser
from searchers import CONCURRENT, NUM_TRIALS, Landscape

from study.objective import front
from study.search.asha import FrontRungs, Rungs
from study.search.sampler import tpe
from study.task import build_config, load_task

GRACE, FACTOR = 4, 3.0
SEARCHED = 48  # trials of a search by TPE
Rule = Callable[[int, int, tuple[float, float]], bool]


def sizes(task_name: str, landscape: Landscape) -> dict[tuple[int, ...], float]:
    """Return the number of parameters of each configuration of a landscape."""
    task = load_task(task_name)
    known: dict[str, float] = {}
    result = {}
    for place in landscape.curves:
        values = {
            name: given[index]
            for name, given, index in zip(landscape.names, landscape.values, place, strict=True)
            if name not in ("learning_rate", "weight_decay")
        }
        if task_name == "facade":
            values["width5"] = values["width1"]  # as in `curves.GRIDS`
        key = str(values)
        if key not in known:
            network = task.build_model(build_config(task.config_class, values))
            known[key] = float(sum(parameter.numel() for parameter in network.parameters()))
        result[place] = known[key]
    return result


def rules() -> dict[str, Rule]:
    """Return the rules, each new."""
    one = Rungs(GRACE, EPOCHS, FACTOR)
    two = FrontRungs(GRACE, EPOCHS, FACTOR)
    return {
        "half": lambda number, epoch, point: True,
        "first": one.goes_on,
        "fronts": two.goes_on,
    }


def replay(
    landscape: Landscape, size: dict[tuple[int, ...], float], rule: str, seed: int
) -> tuple[float, float, float]:
    """Return epochs trained, the share of the front that was stopped, and of its hypervolume."""
    generator = np.random.default_rng([seed, 2])
    places = list(landscape.curves)
    chosen = [places[k] for k in generator.integers(len(places), size=NUM_TRIALS)]
    curves = [landscape.curves[place] for place in chosen]
    goes_on = rules()[rule]
    reached = [0] * NUM_TRIALS
    for start in range(0, NUM_TRIALS // (2 if rule == "half" else 1), CONCURRENT):
        alive = list(range(start, start + CONCURRENT))
        for epoch in range(1, EPOCHS + 1):
            for number in list(alive):
                reached[number] = epoch
                point = (float(curves[number][epoch - 1]), -size[chosen[number]])
                if epoch < EPOCHS and not goes_on(number, epoch, point):
                    alive.remove(number)

    final = [float(np.nanmax(curve)) for curve in curves]
    found = [
        float(np.nanmax(c[:n])) if n else -np.inf for c, n in zip(curves, reached, strict=True)
    ]
    lengths = [float(np.log(size[place])) for place in chosen]
    corner = (min(final), max(lengths))
    true = front([(f, -s) for f, s in zip(final, lengths, strict=True)])
    stopped = mean(reached[number] < EPOCHS for number in true)
    whole, part = (
        hypervolume(list(zip(values, lengths, strict=True)), corner) for values in (final, found)
    )
    return float(sum(reached)), float(stopped), part / whole


def search(
    landscape: Landscape, size: dict[tuple[int, ...], float], multivariate: bool, seed: int
) -> float:
    """Return the share of the hypervolume of all configurations that TPE finds."""
    final = {place: float(np.nanmax(curve)) for place, curve in landscape.curves.items()}
    points = {place: (score, float(np.log(size[place]))) for place, score in final.items()}
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.sampler = tpe(seed, objectives=2, multivariate=multivariate)
    running: list[tuple[optuna.trial.Trial, tuple[int, ...]]] = []
    seen = []
    for number in range(SEARCHED + CONCURRENT):
        if len(running) == CONCURRENT or number >= SEARCHED:
            trial, place = running.pop(0)
            seen.append(points[place])
            study.tell(trial, list(points[place]))
        if number < SEARCHED:
            trial = study.ask()
            chosen = tuple(
                trial.suggest_int(name, 0, len(known) - 1)
                for name, known in zip(landscape.names, landscape.values, strict=True)
            )
            running.append((trial, chosen))
    corner = (
        float(np.quantile(list(final.values()), 0.1)),
        max(size for _, size in points.values()),
    )
    return hypervolume(seen, corner) / hypervolume(list(points.values()), corner)


def hypervolume(points: list[tuple[float, float]], corner: tuple[float, float]) -> float:
    """Return the area that points (score, size) dominate, up to a corner."""
    area, height = 0.0, corner[0]
    for score, length in sorted(points, key=lambda point: point[1]):  # the smallest first
        if score > height:
            area += (score - height) * (corner[1] - length)
            height = score
    return area


def main() -> None:
    """Compare."""
    parser = out_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=30)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    report = Report("fronts", args.out)
    report.note("seeds", args.seeds)
    for task in GRIDS:
        landscape = Landscape(task)
        size = sizes(task, landscape)
        found = {
            rule: [replay(landscape, size, rule, seed) for seed in range(args.seeds)]
            for rule in rules()
        }
        for rule in rules():
            for place, what in enumerate(("epochs", "of the front stopped, %", "hypervolume, %")):
                scale = 100 if place else 1
                ours = scale * mean(one[place] for one in found[rule])
                against = [float(NUM_TRIALS * EPOCHS), None, 100.0][place]
                report.add(
                    f"{task}: {rule}: {what}",
                    [ours],
                    [] if against is None else [against],
                    better="higher" if place == 2 else "lower",
                )
        for multivariate in (False, True):
            shares = [
                100 * search(landscape, size, multivariate, seed) for seed in range(args.seeds)
            ]
            how = "together" if multivariate else "each for itself"
            report.add(
                f"{task}: TPE, {SEARCHED} trials, parameters drawn {how}: hypervolume, %",
                mean(shares),
                better="higher",
            )
            error = stdev(shares) / len(shares) ** 0.5
            report.note(f"{task}: TPE, parameters drawn {how}: error of the mean", error)
    report.write()


if __name__ == "__main__":
    main()
