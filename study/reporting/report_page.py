"""The page of a study: self-contained HTML that needs no server and no network.

While a study runs, `study.tracking.tracker` has this page rewritten regularly and uploads it to the
study's run in MLflow. It can be opened there, sent by mail, printed, and read on a phone.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import sys
import time
from importlib import resources
from typing import Any

from study.errors import InputError
from study.objective import Objective
from study.records.study_record import REPORT_FILE, StudyRecord
from study.reporting import facts, parameter_charts, trial_charts
from study.reporting.spending import Ledger
from study.search.importance import Importance, importance
from study.search.stopping_rule import StoppingRule, milestones
from study.selection.confirmation import find
from study.selection.test_log import describe_test, of_confirmation, read_openings
from study.storage.files import write_text
from study.storage.paths import AnyPath
from study.task import Task, load_task

PACKAGE = __name__.rpartition(".")[0]  # contains the page's template, style sheet and script
PICTURE_WIDTH, PICTURE_QUALITY = 1400, 80  # pixels; of WebP
MOST_BYTES = 5_000_000  # of the page; pictures beyond this are left out


def write(record: StudyRecord, path: AnyPath | None = None, price: float | None = None) -> None:
    """Write the page of a study.

    Args:
        record: The study.
        path: Of the page; in the study's folder by default.
        price: US dollars per hour for all machines; None if unknown.

    Raises:
        StorageError: It cannot be written.
    """
    write_text(path or record.path / REPORT_FILE, page(record, price), durable=False, shared=True)


def page(record: StudyRecord, price: float | None = None) -> str:
    """Return the page of a study as HTML; arguments as for `write`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=PackageLoader(PACKAGE, "."), autoescape=True, undefined=StrictUndefined
    )
    template = environment.get_template("report_page.html")
    shown = {
        **content(load_task(record.manifest["task"]), record, price),
        "library": _packed(get_plotlyjs()),
        "styles": resources.files(PACKAGE).joinpath("report_page.css").read_text(),
        "script": resources.files(PACKAGE).joinpath("report_page.js").read_text(),
    }
    room = MOST_BYTES - len(template.render(shown, pictures=[]).encode())
    return template.render(shown, pictures=_pictures(record, room))


def content(task: Task, record: StudyRecord, price: float | None) -> dict[str, Any]:
    """Return the content of the page, except its pictures."""
    rule = StoppingRule.of_last_start(record.manifest)
    ranking = record.ranking()
    confirmation = find(record, ranking)
    ledger = Ledger.of(record, rule, price)
    matters, why_not = _importance(task, record)
    manifest = record.manifest
    drawn = _charts(task, record, rule, matters)
    tests = [test for test in read_openings(record.path) if not of_confirmation(test)]
    return {
        "study": manifest["study"],
        "title": task.title,
        "sample": manifest["dataset"] != "real",
        "goal": str(record.goal),
        "measured": facts.measured(record),
        "written": time.strftime("%Y-%m-%d %H:%M %z"),
        "runs": any(trial.state == "running" for trial in record.trials()),
        "headline": facts.headline(record, rule, ledger, confirmation),
        "hints": facts.hints(task, record, confirmation),
        "confirmed": confirmation and confirmation.describe().strip(),
        "tests": [describe_test(manifest["metric"], test) for test in tests],
        "classes": facts.classes(task, record),
        "class_metric": task.class_metric,
        "best": ranking[0] if ranking else None,
        "failures": facts.failures(record),
        "spent": facts.spent(record, ledger),
        "ledger": ledger,
        "saved": facts.saved(ledger),
        "trials": facts.trials(record, ledger),
        "commands": facts.commands(record),
        "manifest": {"data": {"dataset": manifest["dataset"]}, **manifest},
        "slices": [name for name in drawn if name.startswith("slice-")],
        "objectives": [objective.metric for objective in _traded_off(record)],
        "has_two": record.goal.has_two,
        "matters": matters and "; ".join(matters.notes()),
        "why_not": why_not,
        "charts": drawn,
        "data": _packed(json.dumps(_finite(drawn), allow_nan=False)),
    }


def _charts(
    task: Task, record: StudyRecord, rule: StoppingRule | None, matters: Importance | None
) -> dict[str, trial_charts.Chart]:
    """Return the charts that have something to show, by name."""
    drawn: dict[str, trial_charts.Chart] = {}
    ranking = record.ranking()
    if record.trials():
        drawn["history"] = trial_charts.history(record)
        drawn["curves"] = trial_charts.curves(record, milestones(rule, record.manifest["epochs"]))
        drawn["timeline"] = trial_charts.timeline(record)
    if ranking:
        drawn["parallel"] = parameter_charts.parallel(record)
        drawn |= {f"slice-{name}": chart for name, chart in parameter_charts.slices(record)}
    if matters is not None:
        drawn["importance"] = parameter_charts.importances(task, matters)
    objectives = _traded_off(record)
    if len({(trial.best or {}).get(objectives[1].metric) for trial in ranking}) > 1:
        drawn["trade-off"] = trial_charts.trade_off(record, objectives)
    return drawn


def _traded_off(record: StudyRecord) -> tuple[Objective, ...]:
    """Return the study's two objectives, or its only one and the number of parameters."""
    objectives = record.goal.objectives
    return objectives if record.goal.has_two else (*objectives, Objective("num_params", "min"))


def _packed(text: str) -> str:
    """Return a text compressed and base64-encoded, which is safe in HTML."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


def _finite(value: Any) -> Any:
    """Return a value for JSON: a non-finite number becomes null, a gap in a chart."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, (list, tuple)) else value


def _importance(task: Task, record: StudyRecord) -> tuple[Importance | None, str]:
    try:
        return importance(task, record), ""
    except InputError as error:
        return None, str(error)


def _pictures(record: StudyRecord, room: int) -> list[dict[str, str]]:
    """Return the figures of the best trial as data URLs, as many as fit into `room` bytes."""
    from PIL import Image

    from study.datasets.photo import BadImage, opened

    found: list[dict[str, str]] = []
    for trial in record.ranking()[:1]:
        for file in record.run_folder(trial.number).figures():
            try:
                with opened(io.BytesIO(file.read_bytes())) as picture:
                    shown = picture.convert("RGB")
            except BadImage as error:
                print(f"left out: {file}: {error}", file=sys.stderr)
                continue
            if shown.width > PICTURE_WIDTH:
                height = round(shown.height * PICTURE_WIDTH / shown.width)
                shown = shown.resize((PICTURE_WIDTH, height), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            shown.save(buffer, "WEBP", quality=PICTURE_QUALITY, method=4)
            url = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
            room -= len(url) + 200
            if room > 0:
                name = file.name.removesuffix(".png").replace("_", " ")
                size = {"width": str(shown.width), "height": str(shown.height)}
                found.append({"name": name, "url": url, **size})
    return found
