"""A study's current state, from its record alone: for the live table and `study.status`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from statistics import median
from typing import Any

from study.formatting import duration, printable, sample_mark, score, sparkline
from study.objective import Goal
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, counts, seconds_of
from study.search.simulation import Outlook, Runner, ranks, simulate
from study.search.stopping_rule import StoppingRule, milestones

NUM_RUNNING = 8  # trials shown on their own lines
NUM_REASONS = 3
STEPS = 30_000  # simulated to estimate the time left; takes a tenth of a second


def snapshot(
    record: StudyRecord, rule: StoppingRule | None, outlook: Outlook | None
) -> dict[str, Any]:
    """Return a study's state as a JSON object; times in seconds.

    Args:
        record: The study.
        rule: When it stops; None if unknown.
        outlook: From `time_left`.
    """
    trials, manifest, now = record.trials(), record.manifest, time.time()
    best = record.ranking()[:1]
    signs = [_last_report(trial) for trial in trials]
    signs += [seconds_of(start["time"]) for start in manifest.get("starts", [])]
    running = [trial for trial in trials if trial.state == "running"]
    reasons = Counter(trial.reason or "unknown" for trial in trials if trial.state == "failed")
    tries = Counter(str(failure["reason"]) for trial in trials for failure in trial.failures)
    rungs = milestones(rule, manifest["epochs"])
    return {
        **{key: manifest[key] for key in ("study", "task", "dataset", "metric", "mode")},
        "num_samples": rule.num_samples if rule and not rule.unlimited else None,
        "trials": counts(trials),
        "objective": str(record.goal),
        "best": _best(best[0], trials, record.goal) if best else None,
        "front": len(record.front()) if record.goal.has_two else None,
        "running": [_running(trial, manifest["epochs"], rungs, now) for trial in running],
        "rungs": [_rung(rung, trials) for rung in rungs],
        "epochs_done": sum(trial.epochs for trial in trials),
        "last_report": max(0.0, now - max(signs)) if signs else None,
        "left": None if outlook is None else _left(outlook),
        "budget_left": rule.budget_left(manifest) if rule else None,
        "failures": dict(reasons.most_common()),
        "tried_again": dict(tries.most_common()),
    }


def _running(trial: TrialRecord, epochs: int, rungs: Sequence[int], now: float) -> dict[str, Any]:
    """Return the progress of a running trial."""
    return {
        "trial": trial.number,
        "epoch": trial.epochs,
        "epochs": epochs,
        "value": trial.best_value,
        "curve": list(trial.curve.values()),
        "next_rung": next((rung for rung in rungs if rung > trial.epochs), None),
        "last_report": max(0.0, now - _last_report(trial)),
    }


def _rung(epoch: int, trials: Sequence[TrialRecord]) -> dict[str, Any]:
    """Return how many trials reached a rung, and how many were stopped there."""
    return {
        "epoch": epoch,
        "reached": sum(trial.epochs >= epoch for trial in trials),
        "stopped": sum(trial.state == "stopped" and trial.epochs == epoch for trial in trials),
    }


def _left(outlook: Outlook) -> dict[str, Any]:
    """Return what is left of the study, and how it was estimated."""
    return {
        "epochs": sum(outlook.reached),
        "seconds": outlook.seconds,
        "low": outlook.low,
        "high": outlook.high,
        "how": "simulated from this study's epochs so far, with as many concurrent trials as now",
    }


def _best(trial: TrialRecord, trials: Sequence[TrialRecord], goal: Goal) -> dict[str, Any]:
    """Return the best trial, and the best value so far after each epoch of the study.

    `missed` is by how much it violates the study's constraints, 0 if it satisfies them.
    """
    choose = max if trial.mode == "max" else min
    rows = [row for t in trials if t.state != "failed" for row in t.history]
    rows.sort(key=lambda row: row.get("ended", 0.0))
    so_far = list(accumulate((row[trial.metric] for row in rows), choose))
    found = {"trial": trial.number, "value": trial.best_value, "epoch": trial.best_epoch}
    found["missed"] = goal.missed(trial)
    return {**found, "so_far": so_far}


def _last_report(trial: TrialRecord) -> float:
    """Return the time of a trial's last event, seconds since 1970."""
    begun = seconds_of(trial.begun)
    again = max((seconds_of(failure["time"]) for failure in trial.failures), default=begun)
    ended = trial.history[-1].get("ended", begun) if trial.history else begun
    return max(begun, again, ended)


def time_left(record: StudyRecord, rule: StoppingRule | None) -> Outlook | None:
    """Estimate the time left; None if the study has no epoch yet.

    Simulates the remaining trials under the study's rule, with the median duration of an epoch and
    of a trial's startup so far, and with as many concurrent trials as are running now.
    """
    trials = record.trials()
    ended = sum(trial.state != "running" for trial in trials)
    if rule is None or rule.unlimited or ended >= rule.num_samples:
        return None
    times = [[row["ended"] for row in t.history if "ended" in row] for t in trials]
    epochs = [b - a for ends in times for a, b in zip(ends, ends[1:], strict=False)]
    if not epochs:  # trials of one epoch have no other times
        rows = [row["epoch_seconds"] for t in trials for row in t.history if "epoch_seconds" in row]
        epochs = rows
    if not epochs:
        return None
    epoch = max(1e-3, median(epochs))
    begins = [
        ends[0] - seconds_of(trial.begun) - epoch
        for trial, ends in zip(trials, times, strict=True)
        if ends and not trial.failures
    ]
    begin = max(0.0, median(begins)) if begins else 0.0
    running = [trial for trial in trials if trial.state == "running"]
    left = int(rule.num_samples) - ended
    places = ranks(trials, record.manifest["mode"])
    runners = [
        Runner(begin=0.0, epoch=epoch, done=trial.epochs, rank=places.get(trial.number))
        for trial in running[:left]
    ]
    new = left - len(runners)
    return simulate(
        [*runners, *[Runner(begin=begin, epoch=epoch)] * min(1, new)],
        more=max(0, new - 1),
        epochs=record.manifest["epochs"],
        concurrent=max(1, len(running)),
        rule=rule.asha,
        past=[(t.epochs, places[t.number]) for t in trials if t.state != "running" and t.epochs],
        most_steps=STEPS,
    )


def lines(state: dict[str, Any], width: int) -> list[str]:
    """Return a study's state as lines of at most `width` characters."""
    count, left, best = state["trials"], state["left"], state["best"]
    ended = sum(number for word, number in count.items() if word != "running")
    total = f"/{state['num_samples']}" if state["num_samples"] else ""
    words = ", ".join(f"{number} {word}" for word, number in count.items() if number)
    sample = " (SAMPLE DATA)" if sample_mark(state["dataset"]) else ""
    rows = [f"{state['study']}{sample}: {ended}{total} trials" + (f" ({words})" if words else "")]
    if best:
        room = max(8, min(40, width - 60))
        notes = ", violates a constraint" if best["missed"] else ""
        notes += f", {state['front']} on the front" if state["front"] is not None else ""
        rows.append(
            f"best     {score(best['value'])} {state['metric']}, trial {best['trial']}, epoch "
            f"{best['epoch']}{notes}  {sparkline(best['so_far'], room)}"
        )
    time_row = f"epochs   {state['epochs_done']} done"
    budget = state["budget_left"]
    if left and (budget is None or left["seconds"] < budget):
        time_row += f", about {left['epochs']:.0f} left: {duration(left['seconds'])}"
        time_row += f" ({duration(left['low'])} to {duration(left['high'])})"
    elif budget is not None:
        time_row += f", the time budget ends in {duration(budget)}"
    rows.append(time_row)
    if state["rungs"]:
        rungs = (
            f"{r['epoch']}: {r['reached'] - r['stopped']}/{r['reached']}" for r in state["rungs"]
        )
        rows.append(f"rungs    epoch {', '.join(rungs)} continued")
    for trial in state["running"][:NUM_RUNNING]:
        share = trial["epoch"] / trial["epochs"]
        done = round(12 * share)
        value = "      " if trial["value"] is None else score(trial["value"])
        rung = f"rung {trial['next_rung']}" if trial["next_rung"] else "to the end"
        rows.append(
            f"trial {trial['trial']:>3}  {'█' * done}{'░' * (12 - done)} "
            f"{trial['epoch']:>3}/{trial['epochs']} {value} {duration(trial['last_report'])} ago, "
            f"{rung}  {sparkline(trial['curve'], 16)}"
        )
    more = len(state["running"]) - NUM_RUNNING
    if more > 0:
        rows.append(f"           and {more} more")
    for key, word in (("failures", "failed"), ("tried_again", "retried")):
        for reason, number in list(state[key].items())[:NUM_REASONS]:
            rows.append(f"{word:<8} {number}: {reason}")
    return [printable(row)[:width] for row in rows]
