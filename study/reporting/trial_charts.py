"""Interactive charts of a study's trials, as JSON objects for plotly.js.

A chart is `{"data": [...], "layout": {...}}`. Colours are variables of the page's style sheet, such
as `--best`, so that a chart works in light and dark mode; fonts, grid and margins are the page's.
The charts of hyperparameters are in `study.reporting.parameter_charts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from itertools import accumulate
from typing import Any

from study.formatting import number, score
from study.objective import Goal, Objective
from study.records.study_record import StudyRecord
from study.records.trial_record import STATES, TrialRecord
from study.reporting.spending import spans_of

Chart = dict[str, Any]

MOST_EACH = 10  # up to this span, an axis marks every whole number
WORDS = {
    "finished": "finished",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "running",
}


def history(record: StudyRecord) -> Chart:
    """Draw the value of each trial, and the best one so far."""
    trials, metric = record.trials(), record.manifest["metric"]
    choose = max if record.manifest["mode"] == "max" else min
    known = [
        (trial.number, trial.best_value) for trial in scored(record) if trial.best_value is not None
    ]
    lowest = min((value for _, value in known), default=0.0)
    data: list[Chart] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "best so far",
            "hoverinfo": "skip",
            "x": [place for place, _ in known],
            "y": list(accumulate((value for _, value in known), choose)),
            "line": {"shape": "hv", "width": 2, "color": "--best"},
        }
    ]
    for state in STATES:
        chosen = [t for t in trials if t.state == state and (t.best_value is not None or t.reason)]
        if not chosen:
            continue
        failed = state == "failed"  # drawn at the lower edge
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": WORDS[state],
                "x": [trial.number for trial in chosen],
                "y": [lowest if failed else trial.best_value for trial in chosen],
                "marker": marker(state),
                "text": [about(record, trial) for trial in chosen],
                "hovertemplate": "%{text}<extra></extra>",
            }
        )
    numbers = counting_axis("trial", len(trials))
    return {"data": data, "layout": {"xaxis": numbers, "yaxis": axis_of(metric)}}


def curves(record: StudyRecord, rungs: Sequence[int]) -> Chart:
    """Draw the learning curves of all trials, with the rungs at which they may be stopped."""
    trials = [trial for trial in record.trials() if trial.epochs]
    best = next(iter(record.ranking()), None)
    special = {trial.number: name for trial, name in ((best, "best"),) if trial is not None}
    if trials and trials[0].number == 0:
        special.setdefault(0, "baseline")
    data = []
    for state in reversed(STATES):
        chosen = [t for t in trials if t.state == state and t.number not in special]
        if chosen:
            width = 0.6 if len(trials) > 200 else 1.1
            line = {"width": width, "color": f"--{state}"}
            data.append(_lines(WORDS[state], chosen, line, 0.35 if len(trials) > 200 else 0.75))
    for place, name in special.items():
        dash = "solid" if name == "best" else "dash"
        line = {"width": 3, "color": f"--{name}", "dash": dash}
        title = f"{name}: trial {place}"
        data.append(_lines(title, [t for t in trials if t.number == place], line, 1.0))
    layout = {
        "xaxis": counting_axis("epoch", record.manifest["epochs"]),
        "yaxis": axis_of(record.manifest["metric"]),
        "shapes": [
            {
                "type": "line",
                "x0": rung,
                "x1": rung,
                "y0": 0,
                "y1": 1,
                "yref": "paper",
                "layer": "below",
                "line": {"color": "--rung", "width": 1, "dash": "dot"},
            }
            for rung in rungs
        ],
        "annotations": [
            {
                "x": rung,
                "y": 0,
                "yref": "paper",
                "yanchor": "bottom",
                "xanchor": "left",
                "text": f"rung {rung}",
                "showarrow": False,
                "font": {"size": 11, "color": "--muted"},
            }
            for rung in rungs
        ],
    }
    return {"data": data, "layout": layout}


def _lines(name: str, trials: Sequence[TrialRecord], line: Chart, opacity: float) -> Chart:
    """Draw the curves of trials as one trace, with gaps between them."""
    x: list[int | None] = []
    y: list[float | None] = []
    numbers: list[int | None] = []
    for trial in trials:
        x += [*trial.curve, None]
        y += [*trial.curve.values(), None]
        numbers += [trial.number] * (trial.epochs + 1)
    single = max((trial.epochs for trial in trials), default=0) == 1
    return {
        "type": "scatter",
        "mode": "markers" if single else "lines",
        "name": name,
        "x": x,
        "y": y,
        "customdata": numbers,
        "line": line,
        "opacity": opacity,
        "marker": {"color": line["color"]},
        "hovertemplate": "trial %{customdata}, epoch %{x}: %{y:.4f}<extra></extra>",
    }


def trade_off(record: StudyRecord, objectives: Sequence[Objective]) -> Chart:
    """Draw two objectives of all trials against each other, with the Pareto front."""
    first, second = objectives
    trials = [t for t in scored(record) if t.best and {first.metric, second.metric} <= set(t.best)]
    on_front = {trial.number for trial in Goal(tuple(objectives)).front(trials)}
    data = []
    for name, chosen, shape in (
        ("others", [t for t in trials if t.number not in on_front], marker("stopped")),
        ("front", [t for t in trials if t.number in on_front], {**marker("best"), "size": 10}),
    ):
        chosen.sort(key=lambda trial: (trial.best or {})[second.metric])
        if chosen:
            data.append(
                {
                    "type": "scatter",
                    "name": name,
                    "marker": shape,
                    "mode": "lines+markers" if name == "front" else "markers",
                    "line": {"shape": "hv", "color": "--best", "width": 1.5, "dash": "dot"},
                    "x": [(trial.best or {})[second.metric] for trial in chosen],
                    "y": [(trial.best or {})[first.metric] for trial in chosen],
                    "text": [about(record, trial) for trial in chosen],
                    "hovertemplate": "%{text}<br>%{x}<extra></extra>",
                }
            )
    layout = {
        "xaxis": axis_of(second.metric),
        "yaxis": axis_of(first.metric),
        "hovermode": "closest",
    }
    return {"data": data, "layout": layout}


def timeline(record: StudyRecord) -> Chart:
    """Draw when each trial ran; concurrent trials are side by side."""
    bars = [(begin, end, trial) for trial in record.trials() for begin, end in spans_of(trial)]
    free: list[float] = []  # lane -> when its last trial ended
    lanes = []
    bars.sort(key=lambda bar: bar[0])
    for begin, end, _ in bars:
        lane = next((k for k, until in enumerate(free) if until <= begin + 1.0), len(free))
        free[lane : lane + 1] = [end]
        lanes.append(lane)
    data = []
    for state in STATES:
        chosen = [
            (bar, lane) for bar, lane in zip(bars, lanes, strict=True) if bar[2].state == state
        ]
        if chosen:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": WORDS[state],
                    "base": [_time(begin) for (begin, _, _), _ in chosen],
                    "x": [1000 * (end - begin) for (begin, end, _), _ in chosen],
                    "y": [lane + 1 for _, lane in chosen],
                    "marker": {"color": f"--{state}", "line": {"color": "--paper", "width": 1}},
                    "text": [str(trial.number) for (_, _, trial), _ in chosen],
                    "textposition": "inside",
                    "insidetextanchor": "middle",
                    "textangle": 0,
                    "customdata": [about(record, trial) for (_, _, trial), _ in chosen],
                    "hovertemplate": "%{customdata}<br>from %{base|%H:%M:%S}<extra></extra>",
                }
            )
    axis = {**counting_axis("slot", len(free)), "autorange": "reversed"}
    layout = {"xaxis": {"type": "date"}, "yaxis": axis, "barmode": "overlay", "bargap": 0.15}
    layout["height"] = 120 + 34 * min(len(free), 20)
    return {"data": data, "layout": layout}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]


def scored(record: StudyRecord) -> list[TrialRecord]:
    """Return the trials that have a value and did not fail, in order of their numbers."""
    return [t for t in record.trials() if t.best_value is not None and t.state != "failed"]


def marker(state: str) -> Chart:
    """Return the marker of a trial in a state, or of the best one."""
    symbols = {"stopped": "circle-open", "failed": "x", "best": "star", "running": "diamond-open"}
    return {"color": f"--{state}", "symbol": symbols.get(state, "circle"), "size": 7}


def axis_of(title: str) -> Chart:
    """Return an axis with a title."""
    return {"title": {"text": title}}


def counting_axis(title: str, span: float) -> Chart:
    """Return an axis of whole numbers; for a short one, plotly would mark fractions."""
    return {**axis_of(title), "tickformat": "d", **({"dtick": 1} if span <= MOST_EACH else {})}


def about(record: StudyRecord, trial: TrialRecord) -> str:
    """Return the hover text of a trial."""
    title = f"<b>trial {trial.number}</b>, {WORDS[trial.state]}, {trial.epochs} epochs"
    lines = []
    if trial.best:
        metrics = record.goal.metrics
        lines += [f"{name} {score(trial.best[name])}" for name in metrics if name in trial.best]
    lines += [trial.reason[:90]] if trial.reason else []
    lines += [f"{name} {number(value)}" for name, value in trial.params.items()]
    return "<br>".join([title, *(escape(line, quote=False) for line in lines)])
