"""Texts and tables of a study's report, read from its record.

Numbers are shown as recorded, with the images, the size and the number of epochs they were measured
at, and a note on those that are optimistic.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from typing import Any

from study.config import Value, config_fields
from study.formatting import dollars, duration, metric_value, number, pixels, score, with_interval
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord, counts
from study.reporting.spending import Ledger
from study.search.importance import FEW
from study.search.stopping_rule import StoppingRule
from study.search_space import Parameter
from study.selection.confirmation import Confirmation
from study.task import Task, class_key

EDGE = 0.05  # of a parameter's range: nearer to a bound, better values may lie beyond it
NUMBER = re.compile(r"\d[\w.+-]*")
NUM_TRIALS = 50  # in the table
NUM_NAMED = 12  # trials listed per reason of failure


def headline(
    record: StudyRecord,
    rule: StoppingRule | None,
    ledger: Ledger,
    confirmation: Confirmation | None,
) -> list[tuple[str, str, str]]:
    """Return the key figures at the top of the page: label, value, note."""
    count, ranking = counts(record.trials()), record.ranking()
    ended = sum(n for state, n in count.items() if state != "running")
    asked = f" of {rule.num_samples}" if rule and not rule.unlimited else ""
    states = ", ".join(f"{n} {state}" for state, n in count.items() if n)
    rows: list[tuple[str, str, str]] = []
    if ranking and ranking[0].best_value is not None:
        best = ranking[0]
        note = f"trial {best.number}, epoch {best.best_epoch}; {measured(record)}. Best of "
        note += f"{len(ranking)} on the same images, so optimistic"
        if missed := record.goal.shortfall(ranking):
            note += f". {missed}"
        rows.append(
            (f"best {record.manifest['metric']}", metric_value(best.best_value or 0.0), note)
        )
        base = record.trials()[0]
        if base.number == 0 and base.best_value is not None and base is not best:
            note = f"trial 0, {base.epochs} of {record.manifest['epochs']} epochs"
            note += f"; the best is {(best.best_value or 0.0) - base.best_value:+.4f}"
            rows.append(("baseline", metric_value(base.best_value), note))
    if confirmation is not None:
        one = confirmation.winner
        note = f"test, mean of {len(one.trainings)} trainings of trial {one.trial.number} on other "
        note += f"folds; 95 % {_interval(one.interval('test'))}; validation "
        note += with_interval(one.mean("val"), one.interval("val"))
        rows.append(("confirmed", metric_value(one.mean("test")), f"{note}; at {one.size}"))
    rows.append(("trials", f"{ended}{asked}", states))
    share = f"{100 * ledger.epochs / ledger.full:.0f} % of {ledger.full:,}" if ledger.full else ""
    rows.append(("epochs trained", f"{ledger.epochs:,}", f"{share} without early stopping"))
    work = f"{duration(ledger.total)} of worker time; workers per trial: {ledger.workers}"
    rows.append(("time", duration(ledger.active), work))
    cost = ledger.money(ledger.total)
    if cost is not None:
        rows.append(("cost", dollars(cost), f"at {dollars(ledger.price or 0.0)} an hour"))
    return rows


def measured(record: StudyRecord) -> str:
    """Return the data that the scores of a search were measured on."""
    size = record.manifest["settings"].get("image_size")
    data = record.manifest.get("data", {}).get("dataset", record.manifest["dataset"])
    return f"validation part of {data}" + (f" at {pixels(size)}" if size else "")


def _interval(ends: tuple[float, float] | None) -> str:
    return f"{score(ends[0])} to {score(ends[1])}" if ends else "unknown"


def classes(task: Task, record: StudyRecord) -> list[dict[str, Any]]:
    """Return the task's per-class metric for the best trial and the baseline."""
    ranking, base = record.ranking(), record.trials()[0] if record.trials() else None
    if not ranking:
        return []
    rows = []
    total = record.manifest["metric"]
    keys = [(name, f"val/{task.class_metric}/{class_key(name)}") for name in task.classes]
    for name, key in [*keys, ("all", task.metric)] + (
        [] if total == task.metric else [(total, total)]
    ):
        best = ranking[0].metrics.get(key)
        before = base.metrics.get(key) if base is not None and base.number == 0 else None
        change = best - before if best is not None and before is not None else None
        rows.append({"name": name, "best": best, "baseline": before, "change": change})
    return rows


def failures(record: StudyRecord) -> list[dict[str, Any]]:
    """Return the trials that failed or were retried, by reason, most frequent first.

    Reasons that differ only in their numbers count as one; the first is shown.
    """
    found: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for trial in record.trials():
        told = [("failed", trial.reason or "unknown")] if trial.state == "failed" else []
        told += [("retried", str(failure["reason"])) for failure in trial.failures]
        for what, reason in told:
            found[what, re.sub(NUMBER, "", reason)].append((trial.number, reason))
    return [
        {
            "what": what,
            "reason": cases[0][1],
            "count": len(cases),
            "trials": _named([number for number, _ in cases]),
        }
        for (what, _), cases in sorted(found.items(), key=lambda item: (item[0][0], -len(item[1])))
    ]


def _named(numbers: list[int]) -> str:
    distinct = list(dict.fromkeys(numbers))
    text = ", ".join(map(str, distinct[:NUM_NAMED]))
    more = len(distinct) - NUM_NAMED
    return f"{text} and {more} more" if more > 0 else text


def hints(task: Task, record: StudyRecord, confirmation: Confirmation | None) -> list[str]:
    """Return hints on what to do next, which the numbers alone do not give."""
    ranking = record.ranking()
    if not ranking:
        return []
    best, count = ranking[0], counts(record.trials())
    found = [
        text
        for parameter in record.space.parameters
        if best.number > 0  # the baseline was given, not found by the search
        if (text := _near_bound(task, parameter, best.params.get(parameter.name)))
    ]
    if best.number == 0 and len(ranking) > 1:
        found.append("The baseline is still the best: the search has found nothing better yet.")
    if best.best_epoch == record.manifest["epochs"]:
        found.append(
            f"The best epoch of the best trial is its last, {best.best_epoch}: more --epochs may "
            "help (in a new study, because the trials would not be comparable)."
        )
    ended = sum(count[state] for state in ("finished", "stopped", "failed"))
    if count["failed"] > 0.2 * ended:
        found.append(f"{count['failed']} of {ended} trials failed; the reasons are below.")
    if ended < FEW:
        found.append(f"Fewer than {FEW} trials: the importances are only a guess so far.")
    if confirmation is None and count["finished"] and len(ranking) > 2:
        found.append(
            "The best score is not confirmed: python -m study.best "
            f"{record.path.name} --confirm 3 trains the three best again on other folds."
        )
    return found


def _near_bound(task: Task, parameter: Parameter, value: Value | None) -> str | None:
    """Return a hint if a value is so near to a bound that better ones may lie beyond it.

    A bound of the setting itself, such as 0 for a probability, cannot be widened.
    """
    if value is None or parameter.kind == "categorical" or isinstance(value, (str, bool)):
        return None
    assert parameter.low is not None and parameter.high is not None
    low, high, here = (
        math.log(bound) if parameter.log else float(bound)
        for bound in (parameter.low, parameter.high, value)
    )
    limits = config_fields(task.config_class)[parameter.name].metadata
    sides = (("low", parameter.low, here - low), ("high", parameter.high, high - here))
    for name, bound, distance in sides:
        if high > low and distance <= EDGE * (high - low) and bound != limits[name]:
            return (
                f"The best {parameter.name}, {number(value)}, is within {100 * EDGE:.0f} % of its "
                f"bound ({name}: {number(bound)}): widen the range in a new study."
            )
    return None


def spent(record: StudyRecord, ledger: Ledger) -> list[dict[str, Any]]:
    """Return the time and cost of each rung."""
    total = ledger.total or 1.0
    return [
        {
            "epochs": f"{rung.first} to {rung.last}" if rung.last > rung.first else str(rung.last),
            "trials": rung.trials,
            "stopped": rung.stopped,
            "trained": rung.epochs,
            "seconds": duration(rung.seconds),
            "share": f"{100 * rung.seconds / total:.0f} %",
            "money": _money(ledger, rung.seconds),
        }
        for rung in ledger.rungs
    ]


def saved(ledger: Ledger) -> str:
    """Return a sentence on what early stopping saved; empty if nothing."""
    if not ledger.saved:
        return ""
    whole = ledger.total + ledger.saved
    text = f"Early stopping saved {ledger.full - ledger.epochs:,} epochs, about "
    text += f"{duration(ledger.saved)} of worker time ({100 * ledger.saved / whole:.0f} % of "
    amount = _money(ledger, ledger.saved)
    return text + "training all trials to the end" + (f"; {amount})." if amount else ").")


def _money(ledger: Ledger, seconds: float) -> str | None:
    amount = ledger.money(seconds)
    return None if amount is None else dollars(amount)


def trials(record: StudyRecord, ledger: Ledger) -> dict[str, Any]:
    """Return a table of the best trials, then unranked ones, at most `NUM_TRIALS`."""
    ranking = record.ranking()
    rest = [trial for trial in record.trials() if trial not in ranking]
    chosen = [*ranking, *rest][:NUM_TRIALS]
    names = [parameter.name for parameter in record.space.parameters]
    return {
        "metrics": list(record.goal.metrics),
        "names": names,
        "left": len(ranking) + len(rest) - len(chosen),
        "rows": [_row(record, trial, names, ledger) for trial in chosen],
    }


def _row(
    record: StudyRecord, trial: TrialRecord, names: list[str], ledger: Ledger
) -> dict[str, Any]:
    best = trial.best or {}
    return {
        "number": trial.number,
        "state": trial.state,
        "scores": [metric_value(best[m]) if m in best else "" for m in record.goal.metrics],
        "epoch": trial.best_epoch or "",
        "epochs": f"{trial.epochs}/{record.manifest['epochs']}",
        "time": duration(ledger.work[trial.number]),
        "money": _money(ledger, ledger.work[trial.number]),
        "values": [number(trial.params[n]) if n in trial.params else "" for n in names],
    }


def commands(record: StudyRecord) -> list[tuple[str, str]]:
    """Return commands that repeat the study or continue from it: purpose and command."""
    name, manifest = record.path.name, record.manifest
    starts = manifest.get("starts", [])
    found = [
        (f"run on {start['time'][:16]} on {start['host']}", start["command"]) for start in starts
    ]
    options = RunOptions.of_last_start(manifest)
    if options is not None and "confirms" not in manifest and math.isfinite(options.num_samples):
        twice = dataclasses.replace(options, num_samples=2 * options.num_samples)
        found.append(("twice as many trials", twice.command()))
    ranking = record.ranking()
    if ranking and (run_id := record.run_folder(ranking[0].number).run_id):
        task = manifest["task"]
        found.append(("repeat the best trial", f"python -m study.train {task} --like {run_id}"))
    found.append(("test and export the winner", f"python -m study.best {name} --export"))
    return found
