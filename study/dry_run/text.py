"""Output of `study.tune --dry-run`: the plan and the estimate."""

from __future__ import annotations

import math

from study.cluster.resources import unused_gpu
from study.dry_run.estimate import Estimate
from study.formatting import duration, number, settings_line, table
from study.records.run_options import say_trials
from study.runner.plan import StudyPlan
from study.search.simulation import Outlook

NUM_SHOWN = 4  # upcoming configurations


def describe(study: StudyPlan) -> str:
    """Return the plan as text."""
    lines = [
        f"study      {study.name}: {study.task.title}, {say_trials(study.options.num_samples)} "
        f"of up to {study.epochs} epochs",
        f"data       {study.identity['dataset']}, {study.identity['train']} training images "
        "(some of them for validation)",
    ]
    lines.insert(1, f"objective  {study.goal}")
    for parameter in study.space.parameters:
        kind = "log " if parameter.log else ""
        extent = (
            " | ".join(map(str, parameter.choices))
            if parameter.kind == "categorical"
            else f"{kind}{parameter.kind} {parameter.low:g} to {parameter.high:g}"
        )
        condition = ""
        if parameter.when:
            values = " or ".join(map(str, parameter.when[1]))
            condition = f" when {parameter.when[0]} is {values}"
        baseline = number(study.space.baseline.get(parameter.name, "-"))
        lines.append(f"search     {parameter.name}: {extent}{condition} (baseline {baseline})")
    lines.append(
        "settings   " + " ".join(f"{key}={value}" for key, value in study.settings.items())
    )
    if study.resources is not None:
        lines.append(f"trials     {study.resources.describe()}")
    if study.options.address is None and (note := unused_gpu()) is not None:
        lines.append(f"note       {note}")
    lines.append(f"folder     {study.folder}")
    return "\n".join(lines)


def describe_estimate(study: StudyPlan, found: Estimate, price: float | None) -> str:
    """Return an estimate as text.

    Args:
        study: The study.
        found: The estimate.
        price: US dollars per hour of this machine; None if unknown.
    """
    if not found.left:
        return f"time       none: the study already has its {study.options.num_samples} trials"
    if found.outlook is None:
        return f"time       unknown: all configurations tried failed ({found.failures[0]})"
    lines = [_reach(study, found.outlook)]
    shown = found.drawn[: min(NUM_SHOWN, found.certain)]
    for place, values in enumerate(shown, start=found.first):
        baseline = "" if place else " (baseline)"
        lines.append(f"trial {place:<5}{settings_line(values)}{baseline}")
    if found.certain < len(found.drawn):
        learned = found.first + found.certain
        lines.append(
            f"trial ...  from number {learned} on, chosen from the results of earlier trials"
        )
    elif len(shown) < len(found.drawn):
        lines.append("trial ...  likewise: none depends on the results of others")
    lines.append(_networks(found))
    lines += [f"fails      {failure}" for failure in found.failures]
    return "\n".join([*lines, *_time(study, found, price)])


def _reach(study: StudyPlan, outlook: Outlook) -> str:
    if study.asha is None:
        return f"epochs     all trials reach epoch {study.epochs} (--scheduler none)"
    more = "; with two objectives about a tenth more" if study.goal.has_two else ""
    steps = [0, *(n for n in range(1, study.epochs) if outlook.reached[n] < outlook.reached[n - 1])]
    ends = [*steps[1:], study.epochs]
    counts = ", ".join(
        f"{end}: {outlook.reached[start]:.1f}" for start, end in zip(steps, ends, strict=True)
    )
    return (
        f"epochs     trials expected to reach epoch {counts}; {sum(outlook.reached):.0f} epochs in "
        f"all (the first at a rung always pass it{more})"
    )


def _networks(found: Estimate) -> str:
    rows = []
    for name, (size, cost, seconds) in found.extremes.items():
        times = ["-", "-", "-", "-"]
        if cost is not None:
            steps = [1000 * cost.images * each for each in (cost.training, cost.validation)]
            times = [f"{ms:.4g} ms" for ms in steps] + [str(cost.images), duration(seconds)]
        rows.append([name, f"{size.parameters:,}", f"{size.multiply_adds:,}", *times])
    header = ["network", "parameters", "multiply-adds", "training step", "validation step"]
    return table([*header, "images", "epoch"], rows)


def _time(study: StudyPlan, found: Estimate, price: float | None) -> list[str]:
    assert found.outlook is not None
    outlook = found.outlook
    low, mean, high = outlook.low, outlook.seconds, outlook.high
    lines = [
        f"time       about {duration(mean)} for {found.left} trials; 8 of 10 such studies take "
        f"{duration(low)} to {duration(high)} ({found.measured} configurations measured)"
    ]
    budget = study.options.time_budget
    if budget is not None and (budget < mean or math.isinf(study.options.num_samples)):
        lines.append(
            f"budget     {duration(budget)}: about {found.left * budget / mean:.0f} trials"
        )
    if price is not None:
        dollars = [t / 3600 * price for t in (mean, low, high)]
        lines.append(
            f"price      about ${dollars[0]:.2f} (${dollars[1]:.2f} to ${dollars[2]:.2f}) at "
            f"${price:g} an hour"
        )
    return lines
