"""Drawing hyperparameters with Optuna, from nothing but what the record says.

The values of a trial depend on the search space, the study's seed, the trial's number and the
trials before it. So a study that was killed and goes on draws what it would have drawn.
"""

from __future__ import annotations

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
    import numpy as np
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mixed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    study = optuna.create_study(
        direction=direction(mode), sampler=optuna.samplers.TPESampler(seed=mixed)
    )
    study.add_trials([frozen(trial, space) for trial in trials])
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


def attributes(trial: TrialRecord) -> dict[str, Any]:
    """Return what Optuna's own tools show of a trial beside its values."""
    shown = {"best": trial.best, "seconds": trial.seconds, "reason": trial.reason}
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
