"""Drawing hyperparameters with Optuna, from nothing but what the record says.

The values of a trial depend on the search space, the study's seed, the trial's number and the
trials before it. So a study that was killed and goes on draws what it would have drawn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from study.objective import WORST_MISS, Goal
from study.setting import Value
from study.space import Parameter, SearchSpace
from study.trial_record import TrialRecord

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
NUM_RANDOM = 10  # trials with a result, before which TPE draws at random
CONSTRAINT = "constraints"  # prefix of the system attributes of `FrozenTrial.set_constraint`


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
        space: What is searched.
        trials: All that the search knows, those of an earlier study too.
        number: Of the new trial.
        seed: Of the study.
        sampler: `tpe`, a tree-structured Parzen estimator (Bergstra et al. 2011, "Algorithms for
            Hyper-Parameter Optimization"), or `random`, which learns nothing from `trials`.
        goal: What it is after.
        first: Values of the first trials, by their numbers; what they leave open is drawn.
    """
    known = [frozen(trial, space, goal, searching=True) for trial in trials]
    _, study = _in_memory(goal, known)
    return _ask(study, space, number=number, seed=seed, sampler=sampler, first=first)


class Sampling:
    """Draws what `draw` draws, but keeps Optuna's study, which takes the longer the more it knows.

    Args:
        space: What is searched.
        seed: Of the study.
        sampler: As of `draw`.
        goal: What it is after.
        earlier: Trials of an earlier study, which the search knows as if they were its own.
        first: As of `draw`.
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
            known = [
                frozen(trial, self.space, self.goal, searching=True)
                for trial in (*self.earlier, *trials)
            ]
            storage, study = self._kept = _in_memory(self.goal, known)
            ids = [one._trial_id for one in study.get_trials(deepcopy=False)]
            self._ids, self._known = ids[len(self.earlier) :], list(trials)
        else:
            storage, study = self._kept
            self._known.append(dataclasses.replace(trials[-1], state="running", history=()))
            for place, (before, trial) in enumerate(zip(self._known, trials, strict=True)):
                # Of a trial that runs TPE uses its parameters alone, and no epoch.
                if before.state == "running" != trial.state:
                    there = self._ids[place]
                    write_on(storage, there, before, trial, self.goal, searching=True)
                    self._known[place] = trial
        self._drawn = _ask(
            study,
            self.space,
            number=len(trials),
            seed=self.seed,
            sampler=self.sampler,
            first=self.first,
        )
        self._ids.append(study.get_trials(deepcopy=False)[-1]._trial_id)
        return dict(self._drawn)


def _in_memory(
    goal: Goal, trials: Sequence[optuna.trial.FrozenTrial]
) -> tuple[optuna.storages.BaseStorage, optuna.Study]:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=directions(goal))
    study.add_trials(trials)
    return storage, study


def _ask(
    study: optuna.Study,
    space: SearchSpace,
    *,
    number: int,
    seed: int,
    sampler: str,
    first: Sequence[Mapping[str, Value]],
) -> dict[str, Value]:
    """Add a trial to Optuna's study and return its values."""
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
    values: dict[str, Value] = {}
    for parameter in space.parameters:
        if parameter.active({**space.fixed, **values}):
            values[parameter.name] = _suggest(trial, parameter)
    return values


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
        seed: Of its draws.
        objectives: One or two.
        startup: Trials with a result, before which it draws at random.
        multivariate: Draw parameters together; None: with one objective, not with two.
        constant_liar: Keep away from the trials that run.
    """
    import optuna

    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=startup,
        multivariate=objectives == 1 if multivariate is None else multivariate,
        constant_liar=constant_liar,
    )


def directions(goal: Goal) -> list[Literal["maximize", "minimize"]]:
    """Return what Optuna calls the modes of the objectives."""
    return ["maximize" if objective.mode == "max" else "minimize" for objective in goal.objectives]


def frozen(
    trial: TrialRecord, space: SearchSpace, goal: Goal, *, searching: bool = False
) -> optuna.trial.FrozenTrial:
    """Return a trial as Optuna has it.

    Args:
        trial: The trial.
        space: What is searched.
        goal: What the study is after.
        searching: For a search rather than for people; see `optuna_state`.
    """
    import datetime

    import optuna

    state = optuna_state(trial, goal, searching)
    begun = datetime.datetime.fromisoformat(trial.begun).replace(tzinfo=None)
    ended = trial.ended and datetime.datetime.fromisoformat(trial.ended).replace(tzinfo=None)
    made = optuna.trial.create_trial(
        state=state,
        values=goal.values(trial) if state == optuna.trial.TrialState.COMPLETE else None,
        params=dict(trial.values),
        distributions={name: distribution(space, name) for name in trial.values},
        intermediate_values={} if searching and trial.diverged else trial.curve,
        user_attrs=attributes(trial, goal),
        constraints=constraints(trial, goal, searching),
    )
    made.datetime_start = begun
    made.datetime_complete = ended or None
    return made


def write_on(
    storage: optuna.storages.BaseStorage,
    trial_id: int,
    before: TrialRecord,
    trial: TrialRecord,
    goal: Goal,
    *,
    searching: bool = False,
) -> None:
    """Write what is new of a trial that runs in Optuna's storage, as `frozen` has it.

    `Trial.report` and `Study.tell` do the same, but read the trial again for each value.
    """
    known = attributes(before, goal)
    for name, shown in attributes(trial, goal).items():  # first: a kill in between has all repeated
        if known.get(name) != shown:
            storage.set_trial_user_attr(trial_id, name, shown)
    for name, miss in constraints(trial, goal, searching).items():
        storage.set_trial_system_attr(trial_id, f"{CONSTRAINT}:{name}", miss)
    for row in trial.history[before.epochs :] if not (searching and trial.diverged) else ():
        storage.set_trial_intermediate_value(trial_id, int(row["epoch"]), row[trial.metric])
    if trial.state != "running":
        state = optuna_state(trial, goal, searching)
        values = goal.values(trial) if state.name == "COMPLETE" else None
        if trial.state == "stopped" and state.name == "PRUNED":
            values = [trial.history[-1][trial.metric]]  # as `Study.tell`
        storage.set_trial_state_values(trial_id, state, values)


def attributes(trial: TrialRecord, goal: Goal) -> dict[str, Any]:
    """Return what Optuna's own tools show of a trial beside its values; some when it has ended."""
    ending = "stopped" if trial.state == "stopped" and goal.double else None
    seconds = trial.seconds if trial.state != "running" else None
    shown = {"best": trial.best, "seconds": seconds, "reason": trial.reason, "ending": ending}
    return {name: value for name, value in shown.items() if value is not None}


def constraints(trial: TrialRecord, goal: Goal, searching: bool) -> dict[str, float]:
    """Return the floors of an ended trial as Optuna has them: kept at 0 and below.

    TPE ranks what keeps them before what does not, and among the latter by what misses add up to.
    """
    if trial.state == "running":
        return {}
    if searching and trial.diverged:
        return {"finite": WORST_MISS}
    return goal.misses(trial)


def optuna_state(trial: TrialRecord, goal: Goal, searching: bool) -> optuna.trial.TrialState:
    """Return what Optuna calls the state of a trial.

    Optuna has no pruned trials where there are two objectives: a stopped one is complete, with the
    values of its best epoch, and an attribute says how it ended. TPE forgets trials that failed and
    goes back to where losses are not finite: in a search such a one is pruned before its first
    epoch and misses a constraint by far, so it ranks last; in a file that people read it failed.
    """
    import optuna

    names = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    if goal.double:
        names["stopped"] = "COMPLETE"
    if searching and trial.diverged:
        names["failed"] = "PRUNED"
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
