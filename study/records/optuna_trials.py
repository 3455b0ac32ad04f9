"""Conversion of a study's trials to Optuna's, for its samplers and for its own tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from study.objective import WORST_MISS, Goal
from study.records import optuna_storage
from study.records.trial_record import TrialRecord
from study.search_space import SearchSpace

if TYPE_CHECKING:
    import optuna


def directions(goal: Goal) -> list[Literal["maximize", "minimize"]]:
    """Return the objectives' modes as Optuna's directions."""
    return ["maximize" if objective.mode == "max" else "minimize" for objective in goal.objectives]


def frozen(
    trial: TrialRecord, space: SearchSpace, goal: Goal, *, searching: bool = False
) -> optuna.trial.FrozenTrial:
    """Return a trial as an Optuna `FrozenTrial`.

    Args:
        trial: The trial.
        space: The search space.
        goal: The study's objectives and constraints.
        searching: For a sampler rather than for people; see `optuna_state`.
    """
    import datetime

    import optuna

    state = optuna_state(trial, goal, searching)
    begun = datetime.datetime.fromisoformat(trial.begun).replace(tzinfo=None)
    ended = trial.ended and datetime.datetime.fromisoformat(trial.ended).replace(tzinfo=None)
    made = optuna.trial.create_trial(
        state=state,
        values=goal.values(trial) if state == optuna.trial.TrialState.COMPLETE else None,
        params=dict(trial.params),
        distributions={name: distribution(space, name) for name in trial.params},
        intermediate_values={} if searching and trial.diverged else trial.curve,
        user_attrs=attributes(trial, goal),
        constraints=constraints(trial, goal, searching),
    )
    made.datetime_start = begun
    made.datetime_complete = ended or None
    return made


def write_on(
    study: optuna.Study,
    trial_id: int,
    before: TrialRecord,
    trial: TrialRecord,
    goal: Goal,
    *,
    searching: bool = False,
) -> None:
    """Write the changes of a running trial to Optuna's study, in the form of `frozen`."""
    known = attributes(before, goal)
    shown = {k: v for k, v in attributes(trial, goal).items() if known.get(k) != v}
    optuna_storage.write_attributes(study, trial_id, shown)  # first: after a kill all is rewritten
    optuna_storage.write_constraints(study, trial_id, constraints(trial, goal, searching))
    rows = trial.history[before.epochs :] if not (searching and trial.diverged) else ()
    curve = {int(row["epoch"]): row[trial.metric] for row in rows}
    optuna_storage.write_curve(study, trial_id, curve)
    if trial.state != "running":
        state = optuna_state(trial, goal, searching)
        values = goal.values(trial) if state.name == "COMPLETE" else None
        if trial.state == "stopped" and state.name == "PRUNED":
            values = [trial.history[-1][trial.metric]]  # as `Study.tell`
        optuna_storage.end_trial(study, trial_id, state, values)


def attributes(trial: TrialRecord, goal: Goal) -> dict[str, Any]:
    """Return the attributes that Optuna's tools show of a trial, some only after it has ended."""
    ending = "stopped" if trial.state == "stopped" and goal.has_two else None
    seconds = trial.seconds if trial.state != "running" else None
    shown = {
        "best": trial.best,
        "seconds": seconds,
        "reason": trial.reason,
        "cause": trial.cause,
        "ending": ending,
    }
    return {name: value for name, value in shown.items() if value is not None}


def constraints(trial: TrialRecord, goal: Goal, searching: bool) -> dict[str, float]:
    """Return the constraints of an ended trial in Optuna's form: satisfied at 0 and below.

    TPE ranks feasible trials before infeasible ones, and the latter by their total violation.
    """
    if trial.state == "running":
        return {}
    if searching and trial.diverged:
        return {"finite": WORST_MISS}
    return goal.misses(trial)


def optuna_state(trial: TrialRecord, goal: Goal, searching: bool) -> optuna.trial.TrialState:
    """Return the Optuna state of a trial.

    Optuna has no pruned trials with two objectives: a stopped trial is complete, with the values of
    its best epoch, and an attribute says how it ended. TPE ignores failed trials and would return
    to where losses diverge: for a sampler a diverged trial is pruned before its first epoch and
    violates a constraint by far, so it ranks last; in a file for people it is failed.
    """
    import optuna

    names = {"finished": "COMPLETE", "stopped": "PRUNED", "failed": "FAIL", "running": "RUNNING"}
    if goal.has_two:
        names["stopped"] = "COMPLETE"
    if searching and trial.diverged:
        names["failed"] = "PRUNED"
    return optuna.trial.TrialState[names[trial.state]]


def distribution(space: SearchSpace, name: str) -> optuna.distributions.BaseDistribution:
    """Return the range of a parameter as an Optuna distribution."""
    from optuna import distributions

    (parameter,) = (known for known in space.parameters if known.name == name)
    low, high, step = parameter.low, parameter.high, parameter.step
    if parameter.kind == "categorical":
        return distributions.CategoricalDistribution(parameter.choices)
    assert low is not None and high is not None
    if parameter.kind == "int":
        return distributions.IntDistribution(int(low), int(high), parameter.log, int(step or 1))
    return distributions.FloatDistribution(low, high, parameter.log, step)
