"""Hyperparameters drawn with Optuna, from the record alone.

A draw depends only on the search space, the study's seed, the trial's number and the earlier
trials. So a study that is killed and resumed draws the same values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from study.config import Value
from study.objective import Goal
from study.records import optuna_storage
from study.records.optuna_trials import directions, frozen, write_on
from study.records.trial_record import TrialRecord
from study.search.warm_start import Earlier
from study.search_space import Parameter, SearchSpace

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
NUM_RANDOM = 10  # trials with a result before TPE stops drawing at random


def draw(
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    *,
    number: int,
    seed: int,
    sampler: str,
    goal: Goal,
    first: Sequence[Mapping[str, Value]],
) -> dict[str, Value]:
    """Return the hyperparameters of the next trial.

    Args:
        space: The search space.
        trials: All known trials, including those of an earlier study.
        number: The new trial's number.
        seed: The study's seed.
        sampler: `tpe`, a tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for
            Hyper-Parameter Optimization"), or `random`, which ignores `trials`.
        goal: The study's objectives and constraints.
        first: Hyperparameters of the first trials, by number; missing ones are drawn.
    """
    known = [frozen(trial, space, goal, searching=True) for trial in trials]
    study = _in_memory(goal, known)
    return _ask(study, space, number=number, seed=seed, sampler=sampler, first=first)


class Sampler:
    """Draws the same as `draw`, but keeps Optuna's study, which is slow to build for many trials.

    Args:
        space: The search space.
        seed: The study's seed.
        sampler: As in `draw`.
        goal: The study's objectives and constraints.
        earlier: Trials of an earlier study, treated as the study's own.
        first: As in `draw`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        sampler: str,
        goal: Goal,
        earlier: Sequence[TrialRecord],
        first: Sequence[Mapping[str, Value]],
    ) -> None:
        self.space = space
        self.seed = seed
        self.sampler = sampler
        self.goal = goal
        self.earlier = earlier
        self.first = first
        self._study: optuna.Study | None = None
        self._ids: list[int] = []  # ids of the trials in Optuna's study, without the earlier ones
        self._known: list[TrialRecord] = []  # the same trials as last written there
        self._drawn: dict[str, Value] = {}  # hyperparameters of the last trial drawn there

    @staticmethod
    def of(manifest: dict[str, Any]) -> Sampler:
        """Return the sampler of a study, whose first trial is the baseline."""
        space, earlier = SearchSpace.of(manifest["space"]), Earlier.of(manifest)
        return Sampler(
            space,
            seed=manifest["seed"],
            sampler=manifest["sampler"],
            goal=Goal.of(manifest),
            earlier=earlier.trials,
            first=[space.baseline, *earlier.first],
        )

    def draw(self, trials: Sequence[TrialRecord]) -> dict[str, Value]:
        """Return the hyperparameters of the next trial.

        Args:
            trials: All trials of the study so far, by number.
        """
        # False at first, and if the last draw could not be recorded.
        follows = [trial.params for trial in trials[len(self._known) :]] == [self._drawn]
        if self._study is None or not follows:
            known = [
                frozen(trial, self.space, self.goal, searching=True)
                for trial in (*self.earlier, *trials)
            ]
            self._study = _in_memory(self.goal, known)
            self._ids = optuna_storage.trial_ids(self._study)[len(self.earlier) :]
            self._known = list(trials)
        else:
            self._known.append(dataclasses.replace(trials[-1], state="running", history=()))
            for place, (before, trial) in enumerate(zip(self._known, trials, strict=True)):
                # TPE uses only the parameters of a running trial, none of its epochs.
                if before.state == "running" != trial.state:
                    there = self._ids[place]
                    write_on(self._study, there, before, trial, self.goal, searching=True)
                    self._known[place] = trial
        self._drawn = _ask(
            self._study,
            self.space,
            number=len(trials),
            seed=self.seed,
            sampler=self.sampler,
            first=self.first,
        )
        self._ids.append(optuna_storage.trial_ids(self._study)[-1])
        return dict(self._drawn)


def _in_memory(goal: Goal, trials: Sequence[optuna.trial.FrozenTrial]) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=optuna.storages.InMemoryStorage(), directions=directions(goal)
    )
    study.add_trials(trials)
    return study


def _ask(
    study: optuna.Study,
    space: SearchSpace,
    *,
    number: int,
    seed: int,
    sampler: str,
    first: Sequence[Mapping[str, Value]],
) -> dict[str, Value]:
    """Add a trial to Optuna's study and return its hyperparameters."""
    import numpy as np
    import optuna

    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    if sampler == "tpe":
        study.sampler = tpe(mixed, objectives=len(study.directions))
    else:
        study.sampler = optuna.samplers.RandomSampler(seed=mixed)
    if number < len(first):
        study.enqueue_trial(dict(first[number]))
    trial = study.ask()
    params: dict[str, Value] = {}
    for parameter in space.parameters:
        if parameter.active({**space.fixed, **params}):
            params[parameter.name] = _suggest(trial, parameter)
    return params


def tpe(
    seed: int,
    *,
    objectives: int = 1,
    startup: int = NUM_RANDOM,
    multivariate: bool | None = None,
    constant_liar: bool = True,
) -> optuna.samplers.TPESampler:
    """Return TPE as studies use it; `tests/benchmarks/searchers.py` compares the alternatives.

    Args:
        seed: Random seed.
        objectives: Number of objectives, one or two.
        startup: Trials with a result before it stops drawing at random.
        multivariate: Draw parameters jointly; None for jointly with one objective only.
        constant_liar: Avoid the neighbourhood of running trials.
    """
    import optuna

    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=startup,
        multivariate=objectives == 1 if multivariate is None else multivariate,
        constant_liar=constant_liar,
    )


def _suggest(trial: optuna.trial.Trial, parameter: Parameter) -> Value:
    name, low, high, step = parameter.name, parameter.low, parameter.high, parameter.step
    if parameter.kind == "categorical":
        value = trial.suggest_categorical(name, parameter.choices)
        assert value is not None
        return value
    assert low is not None and high is not None
    if parameter.kind == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=parameter.log)
    return trial.suggest_float(name, low, high, step=step, log=parameter.log)
