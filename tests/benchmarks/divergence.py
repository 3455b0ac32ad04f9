"""What a search is told of trials whose loss is not finite, compared on a made-up landscape.

    python tests/benchmarks/divergence.py     # two minutes on one core

The value rises with the learning rate up to a cliff, above which the loss is not finite; where the
cliff is depends on a width. Half of the space lies beyond it, and the best is close to it. What
counts is how many of trials 10 to 59 (TPE draws the first ten at random) are lost, and how far the
best value stays from the optimum.

    fail        FAIL: TPE leaves such trials out
    worst       COMPLETE with the worst value so far
    infeasible  PRUNED without a value, a constraint missed by far: `study.search.sampler`
"""

from __future__ import annotations

from statistics import mean

import numpy as np
import optuna
from report import Report, out_parser

from study.search.sampler import NUM_RANDOM, tpe

NUM_TRIALS = 60
TOLD = ("infeasible", "worst", "fail")


def search(told: str, seed: int) -> tuple[float, float]:
    """Return the share of trials that are lost after the first ten, and the regret."""
    study = optuna.create_study(direction="maximize")
    lost, best, worst = [], -np.inf, 0.0
    for number in range(NUM_TRIALS):
        mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        study.sampler = tpe(mixed)
        trial = study.ask()
        rate = np.log10(trial.suggest_float("learning_rate", 1e-5, 1.0, log=True))
        width = np.log2(trial.suggest_int("width", 8, 128, log=True)) - 5  # -2 to 2
        decay = np.log10(trial.suggest_float("weight_decay", 1e-7, 1e-3, log=True))
        cliff = -2.5 - 0.5 * width
        lost.append(float(rate > cliff))
        if not lost[-1]:
            value = 0.9 - 0.02 * (cliff - rate - 0.2) ** 2 - 0.01 * (width - 1) ** 2
            value -= 0.003 * (decay + 5) ** 2
            best, worst = max(best, value), min(worst, value)
            study.tell(trial, value)
        elif told == "fail":
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        elif told == "worst":
            study.tell(trial, worst)
        else:
            trial.set_constraint("finite", 1e6)
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    return mean(lost[NUM_RANDOM:]), 0.9 - best


def main() -> None:
    """Compare."""
    parser = out_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    found = {told: [search(told, seed) for seed in range(args.seeds)] for told in TOLD}
    report = Report("divergence", args.out)
    report.note("seeds", args.seeds)
    for told in TOLD:
        for place, what in enumerate(("lost of trials 10 to 59, %", "regret, %")):
            ours, against = (
                100 * mean(one[place] for one in found[kind]) for kind in (told, "fail")
            )
            report.add(f"{told}: {what}, against fail", [ours], [against])
    report.write()


if __name__ == "__main__":
    main()
