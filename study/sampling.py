"""Drawing hyperparameters with Optuna, from nothing but what the record says.

The values of a trial depend on the search space, the study's seed, the trial's number and the
trials before it. So a study that was killed and goes on draws what it would have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from study.space import Parameter, SearchSpace
from study.task import Value
from study.trial_record import TrialRecord

if TYPE_CHECKING:
    import optuna


def draw(
    space: SearchSpace,
    trials: Sequence[TrialRecord],
    *,
    number: int,
    seed: int,
    mode: str,
    first: Sequence[Mapping[str, Value]],
) -> dict[str, Value]:
    """Return the hyperparameters of the next trial, from a tree-structured Parzen estimator.

    Bergstra et al. 2011, "Algorithms for Hyper-Parameter Optimization".

    Args:
        space: What is searched.
        trials: All that the search knows, those of an earlier study too.
        number: Of the new trial.
        seed: Of the study.
        mode: `max` or `min`.
        first: Values of the first trials, by their numbers; what they leave open is drawn.
    """
    _, study = _in_memory(mode, [frozen(trial, space) for trial in trials])
    return _ask(study, space, number=number, seed=seed, first=first)


class Sampling:
    """Draws what `draw` draws, but keeps Optuna's study, which takes the longer the more it knows.

    Args:
        space: What is searched.
        seed: Of the study.
        mode: `max` or `min`.
        earlier: Trials of an earlier study, which the search knows as if they were its own.
        first: As of `draw`.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        seed: int,
        mode: str,
        earlier: Sequence[TrialRecord],
        first: Sequence[Mapping[str, Value]],
    ) -> None:
        self.space = space
        self.seed = seed
        self.mode = mode
        self.earlier = earlier
        self.first = first
        self._kept: tuple[optuna.storages.BaseStorage, optuna.Study] | None = None
        self._ids: list[int] = []  # of the trials in the storage, the earlier ones left out
        self._known: list[TrialRecord] = []  # what it says of them
        self._drawn: dict[str, Value] = {}  # the values of one more that it has

    def draw(self, trials: Sequence[TrialRecord]) -> dict[str, Value]:
        """Return the hyperparameters of the next trial.

        Args:
            trials: All of the study so far, by number.
        """
        # Not so at first, and where what was drawn could not be written.
        follows = [trial.values for trial in trials[len(self._known) :]] == [self._drawn]
        if self._kept is None or not follows:
            known = [frozen(trial, self.space) for trial in (*self.earlier, *trials)]
            storage, study = self._kept = _in_memory(self.mode, known)
            ids = [there._trial_id for there in study.get_trials(deepcopy=False)]
            self._ids, self._known = ids[len(self.earlier) :], list(trials)
        else:
            storage, study = self._kept
            self._known.append(dataclasses.replace(trials[-1], state="running", history=()))
            for place, (before, trial) in enumerate(zip(self._known, trials, strict=True)):
                if before.state == "running" != trial.state:  # TPE leaves out what runs
                    write_on(storage, self._ids[place], before, trial)
                    self._known[place] = trial
        self._drawn = _ask(study, self.space, number=len(trials), seed=self.seed, first=self.first)
        self._ids.append(study.get_trials(deepcopy=False)[-1]._trial_id)
        return dict(self._drawn)


def _in_memory(
    mode: str, trials: Sequence[optuna.trial.FrozenTrial]
) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, direction=direction(mode))
    study.add_trials(trials)
    return storage, study


def _ask(
    study: optuna.Study,
    space: SearchSpace,
    *,
    number: int,
    seed: int,
    first: Sequence[Mapping[str, Value]],
) -> dict[str, Value]:
    """Add a trial to Optuna's study and return its values."""
    import numpy as np
    import optuna

    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study.sampler = optuna.samplers.TPESampler(seed=mixed)
    if number < len(first):
        study.enqueue_trial(dict(first[number]))
    trial = study.ask()
    values: dict[str, Value] = {}
    for parameter in space.parameters:
        if parameter.active({**space.fixed, **values}):
            values[parameter.name] = _suggest(trial, parameter)
    return values


def direction(mode: str) -> Literal["maximize", "minimize"]:
    """Return what Optuna calls a mode."""
    return "maximize" if mode == "max" else "minimize"


def frozen(trial: TrialRecord, space: SearchSpace) -> optuna.trial.FrozenTrial:
    """Return a trial as Optuna has it; one with an end but no value counts as failed."""
    import datetime

    import optuna

    state = optuna_state(trial)
    begun = datetime.datetime.fromisoformat(trial.begun).replace(tzinfo=None)
    ended = trial.ended and datetime.datetime.fromisoformat(trial.ended).replace(tzinfo=None)
    made = optuna.trial.create_trial(
        state=state,
        value=trial.value if state == optuna.trial.TrialState.COMPLETE else None,
        params=dict(trial.values),
        distributions={name: distribution(space, name) for name in trial.values},
        intermediate_values=trial.curve,
        user_attrs=attributes(trial),
    )
    made.datetime_start = begun
    made.datetime_complete = ended or None
    return made


def write_on(
    storage: optuna.storages.BaseStorage, trial_id: int, before: TrialRecord, trial: TrialRecord
) -> None:
    """Write what is new of a trial that runs in Optuna's storage.

    `Trial.report` and `Study.tell` do the same, but read the trial again for each value.
    """
    known = attributes(before)
    for name, shown in attributes(trial).items():  # first: a kill in between has all repeated
        if known.get(name) != shown:
            storage.set_trial_user_attr(trial_id, name, shown)
    for row in trial.history[before.epochs :]:
        storage.set_trial_intermediate_value(trial_id, int(row["epoch"]), row[trial.metric])
    if trial.state != "running":
        last = trial.history[-1][trial.metric] if trial.history else None
        value = {"finished": trial.value, "stopped": last}.get(trial.state)
        values = None if value is None else [value]
        storage.set_trial_state_values(trial_id, optuna_state(trial), values)


def attributes(trial: TrialRecord) -> dict[str, Any]:
    """Return what Optuna's own tools show of a trial beside its values; some when it has ended."""
    seconds = trial.seconds if trial.state != "running" else None
    shown = {"best": trial.best, "seconds": seconds, "reason": trial.reason}
    return {name: value for name, value in shown.items() if value is not None}


def optuna_state(trial: TrialRecord) -> optuna.trial.TrialState:
    """Return what Optuna calls the state of a trial."""
    import optuna

    names = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    return optuna.trial.TrialState[names[trial.state]]


def distribution(space: SearchSpace, name: str) -> optuna.distributions.BaseDistribution:
    """Return what Optuna calls the range of a parameter."""
    from optuna import distributions

    (parameter,) = (known for known in space.parameters if known.name == name)
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.kind == "categorical":
        return distributions.CategoricalDistribution(parameter.choices)
    assert low is not None and high is not None
    if parameter.kind == "int":
        return distributions.IntDistribution(int(low), int(high), parameter.log, int(step or 1))
    return distributions.FloatDistribution(low, high, parameter.log, step)


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
