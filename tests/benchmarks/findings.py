"""What the files in `results/` say, as Markdown: the parts of `document.py`'s documents."""

from __future__ import annotations

import functools
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median, stdev
from typing import Any

RESULTS = Path(__file__).parent / "results"
# Benchmarks of time and memory, in the order in which they are shown, with what they are about.
TIMED = {
    "training": "Images per second of the training loop",
    "studies": "The same study: ours, by Ray's documented pattern, by a plain Optuna loop",
    "overhead": "What a trial takes beside its training",
    "tracking": "What MLflow takes",
    "scale": "Many trials that learn nothing",
    "memory": "Trials beside one another",
    "concurrency": "One trial on all cores, or a trial per core",
    "startup": "Waiting for the command line",
    "estimate": "What `--dry-run` says, and what the study then takes",
}
REPLAYED = (
    "searchers",
    "searchers_short",
    "searchers_tpe",
    "grace",
    "fronts",
    "divergence",
    "importance",
)
OTHERS = ("ranking", "recorded")  # of another form
MISSED = "**missed**"


def load(name: str) -> dict[str, Any]:
    """Return what a benchmark wrote; empty if it has not run."""
    file = RESULTS / f"{name}.json"
    content: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return content


def number(value: float) -> str:
    """Return a value with three or four digits that count."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> str:
    """Return the median of repeats, and from where to where they lie."""
    if not values:
        return ""
    middle = number(median(values))
    if len(values) == 1:
        return middle
    return f"{middle} ({number(min(values))} to {number(max(values))})"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [list(header), ["---"] * len(header), *map(list, rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def goal(row: Mapping[str, Any]) -> str:
    """Return the goal of a row, as its benchmark has it; empty if there is none."""
    if row["reach"] is not None and row["better"] == "lower" and row["reach"] < 1:
        return f"at most {1 / row['reach']:.3g}x the time"
    if row["reach"] is not None:
        return f"at least {row['reach']:.3g}x"
    if row["limit"] is not None:
        return f"at {'most' if row['better'] == 'lower' else 'least'} {number(row['limit'])}"
    return ""


def verdict(row: Mapping[str, Any]) -> str:
    """Return whether a goal is reached; empty if there is none."""
    return {True: "reached", False: MISSED, None: ""}[row["reached"]]


def about(content: Mapping[str, Any]) -> str:
    """Return when and on what a benchmark ran."""
    machine, versions = content["machine"], content["versions"]
    load_at = f"load {machine['load_at_end']:.1f} at its end"
    if "load_at_start" in machine:
        load_at = (
            f"load {machine['load_at_start']:.1f} before, {machine['load_at_end']:.1f} at its end"
        )
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    stack = ", ".join(f"{name} {versions[name]}" for name in ("torch", "ray", "optuna", "mlflow"))
    cores = f"{machine['cores']} cores of {machine['cpu']}{gpu}"
    return f"{content['date'][:10]}, {cores}, {load_at}; {stack}"


def timed(name: str) -> str:
    """Return the section of a benchmark of time or memory: all its rows."""
    content = load(name)
    title = f"**{TIMED[name]}** (`{name}.py`"
    if not content:
        return f"{title}): no result is kept yet, so there is no number to show."
    rows = [
        [
            row["what"],
            spread(row["ours"]),
            spread(row["against"]),
            "" if row["ratio"] is None else f"{row['ratio']:.2f}x",
            goal(row),
            verdict(row),
            "one run" if row["repeats"] == 1 else str(row["repeats"]),
        ]
        for row in content["rows"]
    ]
    header = ("what", "ours", "the other's", "times better", "goal", "", "repeats")
    notes = [
        f"{key}: {value}." for key, value in content["notes"].items() if isinstance(value, str)
    ]
    said = wrapped(f"{title}; {about(content)}). {' '.join(notes)}".strip())
    return f"{said}\n\n{markdown(header, rows)}"


def all_timed() -> str:
    """Return the sections of all benchmarks of time and memory."""
    return "\n\n".join(timed(name) for name in TIMED)


def missed() -> str:
    """Return which goals are missed, all of them."""
    names = [*TIMED, *REPLAYED]
    rows = [(name, row) for name in names for row in load(name).get("rows", [])]
    judged = [(name, row) for name, row in rows if row["reached"] is not None]
    lost = [(name, row) for name, row in judged if not row["reached"]]
    table = markdown(
        ("benchmark", "what", "found", "goal", ""),
        ([f"`{name}.py`", row["what"], found(row), goal(row), verdict(row)] for name, row in lost),
    )
    return f"Of {len(judged)} goals {len(lost)} are missed:\n\n{table}"


def found(row: Mapping[str, Any]) -> str:
    """Return what a goal is compared with."""
    return f"{row['ratio']:.2f}x" if row["reach"] is not None else number(row["median_ours"])


def replayed(name: str) -> str:
    """Return all rows of a simulation."""
    content = load(name)
    rows = [
        [row["what"], spread(row["ours"]), spread(row["against"]), goal(row), verdict(row)]
        for row in content["rows"]
    ]
    return markdown(("what", "found", "the other's", "goal", ""), rows)


def error(values: Sequence[float]) -> float:
    """Return the standard error of a mean."""
    return stdev(values) / len(values) ** 0.5


def strategies() -> str:
    """Return the epochs that each way to search takes, all of them, with standard errors."""
    content = load("searchers")
    cells: dict[str, list[str]] = {}
    for row in content["rows"]:
        if not row["what"].endswith("; mean epochs"):
            continue
        task, strategy = row["what"].removesuffix("; mean epochs").split(": ", 1)
        default = strategy.startswith("(default) ")
        strategy = strategy.removeprefix("(default) ")
        each = content["notes"][f"{task}: epochs of every seed"][strategy]
        cell = f"{row['median_ours']:.0f} ± {error(each):.0f} ({row['ratio']:.1f}x)"
        if row["reached"] is not None:
            cell += f", goal {goal(row)}: {verdict(row)}"
        cells.setdefault(f"**{strategy} (the default)**" if default else strategy, []).append(cell)
    return markdown(
        ("search", "fashion", "facade"), ([name, *both] for name, both in cells.items())
    )


def winners_stopped() -> str:
    """Return how often ASHA stops the trial that would have won, by its rule."""
    notes = load("searchers")["notes"]
    tasks = [notes[f"{task}: 24 random trials with ASHA"] for task in ("fashion", "facade")]
    rows = [
        [rule, *(f"{100 * task[rule]['winner stopped']:.0f} %" for task in tasks)]
        + [f"{1000 * task[rule]['best lower by']:.1f}" for task in tasks]
        for rule in tasks[0]
    ]
    lower = "best lower by, thousandths, "
    return markdown(("rule", "fashion", "facade", f"{lower}fashion", "facade"), rows)


def graces() -> str:
    """Return what random searches miss by grace period, for each task, schedule and budget."""
    content = load("grace")
    cells: dict[str, dict[str, str]] = {}
    for row in content["rows"]:
        place, name = row["what"].removesuffix("; best missed by").rsplit(", ", 1)
        cells.setdefault(place, {})[name] = f"{1000 * row['median_ours']:.1f}"
    names = list(next(iter(cells.values())))
    rows = []
    for place, by_rule in cells.items():
        task, schedule, trials = place.split(", ")
        key = f"{task}, {schedule}, {trials.split()[0]}: error of a mean"
        standard = 1000 * content["notes"][key]
        rows.append([place, *(by_rule[name] for name in names), f"{standard:.2f}"])
    header = ["", *(name.removeprefix("ASHA ") for name in names), "standard error"]
    return markdown(header, rows)


def short_studies() -> str:
    """Return what short studies miss of the best, for each beginning of TPE."""
    content = load("searchers_short")
    cells: dict[str, list[str]] = {}
    for row in content["rows"]:
        what = row["what"].removesuffix("; best below the best of all by, mean")
        task, trials, strategy = what.split(", ", 2)
        standard = content["notes"].get(f"{what}: error of the mean")
        cell = f"{1000 * row['median_ours']:.1f}"
        cell += "" if standard is None else f" ± {1000 * standard:.1f}"
        cells.setdefault(f"{task}, {trials}", []).append(f"{strategy.split(',')[0]}: {cell}")
    rows = [[place, "; ".join(found)] for place, found in cells.items()]
    return markdown(("study", "best below the best of all by, thousandths"), rows)


def tpe_arguments() -> str:
    """Return the epochs that TPE takes by its arguments."""
    content = load("searchers_tpe")
    cells: dict[str, list[str]] = {}
    for row in content["rows"]:
        task, strategy = row["what"].removesuffix("; mean epochs").split(": ", 1)
        standard = content["notes"][f"{task}: {strategy}: error of the mean"]
        cells.setdefault(strategy, []).append(f"{row['median_ours']:.0f} ± {standard:.0f}")
    return markdown(
        ("search", "fashion", "facade"), ([name, *both] for name, both in cells.items())
    )


def fronts() -> str:
    """Return epochs, hypervolume and what is stopped of the front, by rule."""
    cells: dict[tuple[str, str], list[str]] = {}
    for row in load("fronts")["rows"]:
        task, rule, what = row["what"].split(": ", 2)
        if rule.startswith("TPE"):
            continue
        percent = " %" if what.endswith("%") else ""
        cells.setdefault((task, rule), []).append(f"{row['median_ours']:.0f}{percent}")
    full = f"{load('fronts')['rows'][0]['median_against']:.0f}"
    rows = [[task, rule, *values] for (task, rule), values in cells.items()]
    rows = [[task, "none", full, "0 %", "100 %"] for task in ("fashion", "facade")] + rows
    header = ("", "stopping", "epochs", "of the true front stopped", "hypervolume")
    return markdown(header, sorted(rows, key=lambda row: row[0] != "fashion"))


def tpe_fronts() -> str:
    """Return the hypervolume that TPE finds, by how it draws parameters."""
    content = load("fronts")
    cells: dict[str, list[str]] = {}
    for row in content["rows"]:
        task, rule, _ = row["what"].split(": ", 2)
        if rule.startswith("TPE"):
            key = f"{task}: TPE, {rule.split(', ', 2)[2]}: error of the mean"
            cell = f"{row['median_ours']:.1f} ± {content['notes'][key]:.1f} %"
            cells.setdefault(rule, []).append(cell)
    return markdown(
        ("search", "fashion", "facade"), ([name, *both] for name, both in cells.items())
    )


def ranking() -> str:
    """Return whether validation predicts the test, by how the validation images are split."""
    content = load("ranking")["found"]
    rows = []
    for name, split in (("by building", "facade"), ("random, which leaks", "image")):
        of = content[split]
        each = "; ".join(f"{value:.2f}" for value in of["rank correlation, one fold, its own test"])
        gaps = of["gap of each configuration"]
        rows.append(
            [
                name,
                f"{each}; **{of['rank correlation, mean of folds']:.2f}**",
                *(f"{sum(of[key]) / len(of[key]):.3f}" for key in ("validation", "test")),
                f"{of['gap, test minus validation']:+.3f} ({min(gaps):+.3f} to {max(gaps):+.3f})",
            ]
        )
    correlation = "rank correlation of validation with test, one fold; the other; mean of both"
    return markdown(("split", correlation, "validation", "test", "gap"), rows)


def recorded(name: str) -> str:
    """Return a table of which no machine-written record is kept, and says so."""
    entry = load("recorded")["tables"][name]
    commits = ", ".join(f"`{commit}`" for commit in entry["commits"])
    said = f"{entry['what']}; {entry['machine']}, {entry['when']}"
    kept = f"No record is kept: copied from what commands printed, by {commits}."
    parts = [wrapped(f"*{said[0].upper()}{said[1:]}. {kept}*")]
    if entry["rows"]:
        parts.append(markdown(entry["columns"], entry["rows"]))
    parts += [wrapped(note) for note in entry["notes"]]
    return "\n\n".join(parts)


def scores(name: str) -> str:
    """Return a table of scores for the README, what is kept of them, and what is to be said."""
    entry = load("recorded")["tables"][name]
    commits = ", ".join(f"`{commit}`" for commit in entry["commits"])
    kept = f"*Ours copied from what commands printed, by {commits}: no `tests.json` kept.*"
    notes = [wrapped(note) for note in entry["notes"]]
    return "\n\n".join([markdown(entry["columns"], entry["rows"]), kept, *notes])


def private_memory() -> str:
    """Return how much more memory of its own a facade trial has than an empty one, in MiB."""
    rows = {row["what"]: row["median_ours"] for row in load("memory")["rows"]}
    ours, empty = (
        rows[f"{task}, 2 at a time: private part, a trial, MiB"] for task in ("facade", "empty")
    )
    return f"{ours - empty:.0f}"


def seeds(name: str) -> str:
    """Return over how many seeds a simulation is averaged."""
    return str(load(name)["notes"]["seeds"])


def landscape(key: str) -> str:
    """Return a number of both kept landscapes together."""
    notes = load("searchers")["notes"]
    return f"{sum(notes[f'{task} landscape'][key] for task in ('fashion', 'facade')):,}"


def wrapped(text: str) -> str:
    """Return a paragraph in lines of a document's length."""
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


NOTED = ("searchers", "searchers_short", "searchers_tpe", "fronts", "divergence")
BLOCKS: dict[str, Callable[[], str]] = {
    "missed": missed,
    "timed": all_timed,
    "strategies": strategies,
    "winners stopped": winners_stopped,
    "tpe": tpe_arguments,
    "graces": graces,
    "short studies": short_studies,
    "fronts": fronts,
    "tpe fronts": tpe_fronts,
    "ranking": ranking,
    "private": private_memory,
    "divergence": functools.partial(replayed, "divergence"),
    "importance": functools.partial(replayed, "importance"),
    "facade scores": functools.partial(scores, "facade scores"),
    "fashion scores": functools.partial(scores, "fashion scores"),
    **{
        f"recorded: {name}": functools.partial(recorded, name)
        for name in load("recorded")["tables"]
    },
    **{f"seeds: {name}": functools.partial(seeds, name) for name in NOTED},
    "configurations": functools.partial(landscape, "configurations"),
    "trained": functools.partial(landscape, "of which trained"),
    "importance studies": lambda: str(load("importance")["notes"]["studies of each size"]),
}
