"""The importance of each hyperparameter for each metric (`python -m study.best NAME --importance`).

PED-ANOVA: Watanabe et al. 2023, "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in
Arbitrary Subspaces", extended by "Conditional PED-ANOVA" (arXiv 2601.20800) for parameters that
some trials lack, as implemented in Optuna. It compares the distribution of a parameter's values
over the best trials with that over all trials. So it needs only the trials' order, tolerates a
search that samples good regions more densely, and fits no model; fANOVA needs scikit-learn and
leaves out parameters that some trials lack.

Stopped trials count, otherwise the sample would be biased towards good ones: all trials are
compared by their best epoch up to the last one that each of them has reached. Diverged trials count
as worst. With few trials every parameter seems to matter somewhat. So the scores are shuffled many
times, and only importances above those of the shuffles are marked as above chance.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from study.errors import InputError
from study.formatting import table
from study.objective import Goal, Objective
from study.records.optuna_trials import distribution
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.task import Task, best_row, class_key

FEWEST, FEW = 5, 20  # trials: below the first no result, below the second only a hint
# The best trials are this fraction of all, and at least this many if possible. In synthetic studies
# searched by TPE (`tests/benchmarks/importance.py`), a quarter detects the parameter that matters
# more often than a tenth, Optuna's default; docs/measured.md has the numbers.
QUANTILE, NUM_TOP = 0.25, 5
NUM_SHUFFLES, CHANCE = 60, 0.95  # chance level: this quantile of the shuffles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """The importance of each hyperparameter for each metric.

    Attributes:
        shares: Parameter -> full metric name -> percent; sums to 100 for each metric.
        clear: Pairs of parameter and metric above chance.
        trials: Number of trials compared.
        diverged: Number of those that diverged and count as worst.
        epoch: The last epoch that counts.
        epochs: Epochs of a full trial.
        top: Number of trials that count as the best.
    """

    shares: Mapping[str, Mapping[str, float]]
    clear: frozenset[tuple[str, str]]
    trials: int
    diverged: int
    epoch: int
    epochs: int
    top: int

    def as_json(self) -> dict[str, Any]:
        """Return the importances as a JSON object, in percent."""
        return {
            "method": "PED-ANOVA",
            "trials": self.trials,
            "diverged": self.diverged,
            "epoch": self.epoch,
            "top": self.top,
            "percent": self.shares,
            "above_chance": sorted(map(list, self.clear)),
        }

    def describe(self, task: Task) -> str:
        """Return a table, the most important parameter for the objective first."""
        metrics = list(next(iter(self.shares.values()), {}))
        rows = [
            [name, *(self._cell(name, metric) for metric in metrics)]
            for name in sorted(self.shares, key=lambda name: -self.shares[name][metrics[0]])
        ]
        prefix = f"val/{task.class_metric}/"
        header = [metric.removeprefix(prefix) for metric in metrics]
        title = "hyperparameter importance in percent (PED-ANOVA; * above chance)"
        return "\n".join([title, table(["parameter", *header], rows), *self.notes()])

    def notes(self) -> list[str]:
        """Return lines on what was compared, and on the limits of the result."""
        lines = [
            f"the best {self.top} of {self.trials} trials, by their best epoch up to "
            f"{self.epoch} of {self.epochs}, the last one all of them reached",
        ]
        if self.diverged:
            lines.append(f"{self.diverged} diverged (loss not finite) and count as worst")
        if self.trials < FEW:
            lines.append(f"fewer than {FEW} trials: only a hint")
        return lines

    def _cell(self, name: str, metric: str) -> str:
        return f"{self.shares[name][metric]:.0f}{'*' if (name, metric) in self.clear else ' '}"


def importance(task: Task, record: StudyRecord) -> Importance:
    """Return the importance of each hyperparameter for the objectives and for each class.

    Raises:
        InputError: The study has too few trials.
    """
    informative = [trial for trial in record.trials() if trial.informs]
    diverged = [trial for trial in informative if trial.diverged]
    ended = [trial for trial in informative if not trial.diverged]
    compared = [*ended, *diverged]
    if len(ended) < 2 or len(compared) < FEWEST:
        raise InputError(
            f"Hyperparameter importance needs {FEWEST} ended trials; study {record.path.name} "
            f"has {len(compared)}."
        )
    epoch = min(trial.epochs for trial in ended)
    rows = [best_row(trial.history[:epoch], trial.metric, trial.mode) for trial in ended]
    quantile = min(0.5, max(QUANTILE, NUM_TOP / len(compared)))
    columns = [objective for objective in _columns(task, record.goal) if _known(objective, rows)]
    points = {objective.metric: _scores(objective, rows, len(diverged)) for objective in columns}
    trials = _Trials(record, compared, quantile)
    chance = trials.chance()
    raw = {metric: trials.importances(scores) for metric, scores in points.items()}
    totals = {metric: sum(found.values()) or 1.0 for metric, found in raw.items()}
    return Importance(
        shares={
            name: {metric: 100 * found[name] / totals[metric] for metric, found in raw.items()}
            for name in chance
        },
        clear=frozenset(
            (name, metric)
            for metric, found in raw.items()
            for name in found
            if found[name] > chance[name]
        ),
        trials=len(compared),
        diverged=len(diverged),
        epoch=epoch,
        epochs=record.manifest["epochs"],
        top=int(np.ceil(quantile * len(compared))),
    )


def _columns(task: Task, goal: Goal) -> list[Objective]:
    """Return the metrics to compute importance for: the objectives, then each class."""
    names = (f"val/{task.class_metric}/{class_key(name)}" for name in task.classes)
    return list(dict.fromkeys([*goal.objectives, *(Objective(name, "max") for name in names)]))


def _known(objective: Objective, rows: Sequence[Mapping[str, float]]) -> bool:
    return all(objective.metric in row for row in rows)


def _scores(
    objective: Objective, rows: Sequence[Mapping[str, float]], num_diverged: int
) -> list[float]:
    scores = [objective.score(row[objective.metric]) for row in rows]
    return scores + [min(scores) - 1.0] * num_diverged


class _Trials:
    """Trials as an Optuna study, to be scored in one order after another.

    Args:
        record: The study.
        trials: The trials to compare.
        quantile: The fraction that counts as the best.
    """

    def __init__(self, record: StudyRecord, trials: Sequence[TrialRecord], quantile: float) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study()
        self._evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=quantile)
        self._num = len(trials)
        ranges = {p.name: distribution(record.space, p.name) for p in record.space.parameters}
        for trial in trials:
            self._study.add_trial(
                optuna.trial.create_trial(
                    value=0.0,
                    params=dict(trial.params),
                    distributions={name: ranges[name] for name in trial.params},
                )
            )

    def importances(self, scores: Sequence[float]) -> dict[str, float]:
        """Return PED-ANOVA's importances for scores where higher is better, not normalised."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about few trials, which our notes mention
            found = optuna.importance.get_param_importances(
                self._study,
                evaluator=self._evaluator,
                target=lambda trial: -float(scores[trial.number]),  # Optuna expects low is better
                normalize=False,
            )
        return {name: float(found[name]) for name in sorted(found)}

    def chance(self) -> dict[str, float]:
        """Return the chance level of each parameter: its importance for shuffled scores.

        Only the order of trials counts, so this is the same for every metric.
        """
        generator = np.random.default_rng(0)
        found = [
            self.importances(generator.permutation(self._num).tolist()) for _ in range(NUM_SHUFFLES)
        ]
        return {name: float(np.quantile([one[name] for one in found], CHANCE)) for name in found[0]}
