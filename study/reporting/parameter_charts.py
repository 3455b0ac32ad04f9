"""Charts of hyperparameters, in the same form as those of `study.reporting.trial_charts`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from html import escape
from itertools import pairwise

from study.config import Value
from study.formatting import metric_name, number, score
from study.records.study_record import StudyRecord
from study.records.trial_record import STATES, TrialRecord
from study.reporting.trial_charts import Chart, axis_of, counting_axis, marker, scored
from study.search.importance import Importance
from study.search_space import Parameter
from study.task import Task

NUM_SHADES = 5  # of lines in parallel coordinates, from worst to best


def parallel(record: StudyRecord) -> Chart:
    """Draw each trial as a line over its hyperparameters, coloured by its rank."""
    parameters, trials = record.space.parameters, scored(record)
    sign = 1 if record.manifest["mode"] == "max" else -1
    order = sorted(trials, key=lambda trial: sign * (trial.best_value or 0.0))
    values = [trial.best_value for trial in trials if trial.best_value is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    width = 0.6 if len(trials) > 200 else 2
    names = [parameter.name for parameter in parameters]
    names.append(metric_name(record.manifest["metric"]))
    ends = [*map(_ends, parameters), (score(low), score(high))]
    return {
        "data": [
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": name,
                **_lines(record, chosen, low, high),
                "hovertemplate": "%{text}<extra></extra>",
                "line": {"color": f"--shade{shade}", "width": width},
                "marker": {"size": 4, "color": f"--shade{shade}"},
                "opacity": 1.0 if shade == NUM_SHADES - 1 else 0.6,
            }
            for name, shade, chosen in _shaded(order)
        ],
        "layout": {
            "xaxis": {"tickvals": list(range(len(names))), "ticktext": names, "tickangle": -35},
            "yaxis": {"visible": False, "range": [-0.09, 1.09]},
            "annotations": [
                {
                    "x": place,
                    "y": y,
                    "yref": "y",
                    "text": end[side],
                    "showarrow": False,
                    "yanchor": anchor,
                    "font": {"size": 10, "color": "--muted"},
                }
                for place, end in enumerate(ends)
                for side, (y, anchor) in enumerate(((-0.02, "top"), (1.02, "bottom")))
            ],
            "hovermode": "closest",
        },
    }


def _lines(record: StudyRecord, trials: Sequence[TrialRecord], low: float, high: float) -> Chart:
    """Return the lines of trials, with gaps between them, and the hover texts of their points.

    Args:
        record: The study.
        trials: Trials drawn in the same style.
        low: Smallest value of all trials, at the bottom.
        high: Largest value.
    """
    parameters = record.space.parameters
    x: list[int | None] = []
    y: list[float | None] = []
    texts: list[str] = []
    for trial in trials:
        assert trial.best_value is not None
        places = [_place(p, trial.params.get(p.name)) for p in parameters]
        places.append((trial.best_value - low) / (high - low) if high > low else 0.5)
        x += [*range(len(places)), None]
        y += [*places, None]
        shown = [f"{p.name} {number(trial.params.get(p.name, '-'))}" for p in parameters]
        shown += [f"{record.manifest['metric']} {score(trial.best_value)}", ""]
        texts += [f"trial {trial.number}: {escape(text, quote=False)}" for text in shown]
    return {"x": x, "y": y, "text": texts}


def _shaded(order: Sequence[TrialRecord]) -> list[tuple[str, int, Sequence[TrialRecord]]]:
    """Divide trials, worst first, into fifths; fewer than five trials get one part each.

    Returns:
        Name, shade and trials of each part.
    """
    num = min(NUM_SHADES, len(order))
    if num < NUM_SHADES:
        names = [f"trial {trial.number}" for trial in order]
    else:
        names = ["poorest fifth", *(f"fifth {n}" for n in range(2, num)), "best fifth"]
    bounds = [len(order) * part // num for part in range(num + 1)] if num else []
    parts = [order[first:last] for first, last in pairwise(bounds)]
    return list(zip(names, range(NUM_SHADES - num, NUM_SHADES), parts, strict=True))


def slices(record: StudyRecord) -> list[tuple[str, Chart]]:
    """Draw the objective against each hyperparameter; return name and chart of each."""
    found = []
    best = next(iter(record.ranking()), None)
    for parameter in record.space.parameters:
        chosen = [t for t in scored(record) if parameter.name in t.params]
        data = []
        for state in STATES:
            some = [trial for trial in chosen if trial.state == state and trial is not best]
            data += [_points(some, parameter.name, marker(state))] if some else []
        if best is not None and best in chosen:
            data.append(_points([best], parameter.name, {**marker("best"), "size": 12}))
        if not data:
            continue
        axis = axis_of(parameter.name)
        if parameter.kind == "categorical":
            labels = [number(choice) for choice in parameter.choices]
            axis |= {"type": "category", "categoryorder": "array", "categoryarray": labels}
            axis |= {"range": [-0.5, len(labels) - 0.5]}
        else:
            low, high = (_scale(parameter)(bound) for bound in _bounds(parameter))
            margin = 0.04 * (high - low or 1.0)
            axis |= {"range": [low - margin, high + margin]}
            if parameter.log and parameter.kind == "int":
                first, last = _bounds(parameter)
                doubled = [first * 2**k for k in range(int(math.log2(last / first)) + 1)]
                axis |= {"type": "log", "tickvals": doubled}
            elif parameter.log:
                axis |= {"type": "log", "exponentformat": "power"}
                axis["dtick"] = 1 if high - low >= 1.5 else "D2"
            elif parameter.kind == "int":
                axis |= counting_axis(parameter.name, high - low)
        layout = {"xaxis": axis, "yaxis": axis_of(""), "showlegend": False}
        found.append((parameter.name, {"data": data, "layout": layout}))
    return found


def _points(trials: Sequence[TrialRecord], name: str, shape: Chart) -> Chart:
    return {
        "type": "scatter",
        "mode": "markers",
        "marker": shape,
        "x": [x if isinstance(x := t.params[name], float) else number(x) for t in trials],
        "y": [trial.best_value for trial in trials],
        "text": [
            f"trial {t.number}, {name} {escape(number(t.params[name]), quote=False)}"
            for t in trials
        ],
        "hovertemplate": "%{text}: %{y:.4f}<extra></extra>",
    }


def importances(task: Task, found: Importance) -> Chart:
    """Draw importances as a heat map of parameters and metrics, most important first."""
    metrics = list(next(iter(found.shares.values()), {}))
    names = sorted(found.shares, key=lambda name: found.shares[name][metrics[0]])
    prefix = f"val/{task.class_metric}/"
    shares = [[found.shares[name][metric] for metric in metrics] for name in names]
    texts = [
        [f"{found.shares[n][m]:.0f}{' *' if (n, m) in found.clear else ''}" for m in metrics]
        for n in names
    ]
    return {
        "data": [
            {
                "type": "heatmap",
                "y": names,
                "z": shares,
                "text": texts,
                "zmin": 0,
                "x": [metric.removeprefix(prefix) for metric in metrics],
                "texttemplate": "%{text}",
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
                "colorscale": [[0, "--paper"], [1, "--best"]],
                "hovertemplate": "%{y} for %{x}: %{z:.1f} %<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {"side": "top", "tickangle": -35},
            "yaxis": {"tickmode": "linear"},
            "height": 110 + 24 * len(names),
        },
    }


def _scale(parameter: Parameter) -> Callable[[float], float]:
    return math.log10 if parameter.log else float


def _bounds(parameter: Parameter) -> tuple[float, float]:
    assert parameter.low is not None and parameter.high is not None
    return parameter.low, parameter.high


def _place(parameter: Parameter, value: Value | None) -> float | None:
    """Return a value's position in its range, in [0, 1]; None if the trial has no value."""
    if value is None:
        return None
    if parameter.kind == "categorical":
        num = len(parameter.choices)
        return parameter.choices.index(value) / (num - 1) if num > 1 else 0.5
    assert not isinstance(value, str)
    low, high, here = map(_scale(parameter), (*_bounds(parameter), value))
    return (here - low) / (high - low) if high > low else 0.5


def _ends(parameter: Parameter) -> tuple[str, str]:
    if parameter.kind == "categorical":
        return number(parameter.choices[0]), number(parameter.choices[-1])
    low, high = _bounds(parameter)
    return number(low), number(high)
