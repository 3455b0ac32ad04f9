"""The report: what it says of a study, that it needs nothing else, and that a browser draws it."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, run_module
from PIL import Image
from recorded import MANIFEST

from study import report
from study.cli import run_command
from study.records.study_record import StudyRecord
from study.records.trial_record import TrialRecord
from study.reporting import facts, report_page
from study.reporting.report_page import _pictures, page
from study.reporting.spending import Ledger, spans_of
from study.reporting.trial_charts import about
from study.search import importance
from study.search.stopping_rule import StoppingRule
from study.search_space import Parameter, SearchSpace
from study.task import config_fields, load_task

BEGUN = 1_790_000_000
SPACE = SearchSpace(
    (
        Parameter(name="learning_rate", kind="float", low=1e-4, high=1e-2, log=True),
        Parameter(name="crop", kind="float", low=0.5, high=1.0),
        Parameter(name="model", kind="categorical", choices=("hourglass", "unet")),
        Parameter(name="width", kind="int", low=8, high=24, step=8, when=("model", ("unet",))),
    ),
    {},
    {"learning_rate": 1e-3, "crop": 1.0, "model": "hourglass"},
)
COMMAND = "python -m study.tune facade --num-samples 6 --grace-period 3"


def trial(number: int, state: Any, scores: list[float], **changes: Any) -> TrialRecord:
    """A trial with epochs of ten seconds, begun a minute after the one before."""
    begun = BEGUN + 60 * number
    history = tuple(
        {
            **{"epoch": epoch, "ended": begun + 10.0 * epoch, "epoch_seconds": 10.0},
            **{"val/mean_ap": value, "val/ap/pillar": value / 2, "num_params": 1000.0 + number},
        }
        for epoch, value in enumerate(scores, 1)
    )
    known = TrialRecord(
        number=number,
        metric="val/mean_ap",
        mode="max",
        state=state,
        params={"learning_rate": 1e-3 * (1 + number % 9), "crop": 0.7, "model": "hourglass"},
        history=history,
        begun=time.strftime("%Y-%m-%dT%H:%M:%S+0000", time.gmtime(begun)),
    )
    return dataclasses.replace(known, **changes)


def study(path: Path, trials: list[TrialRecord], **changes: Any) -> StudyRecord:
    manifest = {**MANIFEST, "space": SPACE.describe(), **changes}
    record = StudyRecord.create_or_continue(path, json.loads(json.dumps(manifest)), COMMAND)
    for one in trials:
        one.save(record.run_folder(one.number).path)
    record.close()
    return StudyRecord.read(path)


def charts_of(text: str) -> dict[str, Any]:
    packed = re.search(r'id="charts">([^<]+)<', text)
    assert packed is not None
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


@pytest.fixture
def trials() -> list[TrialRecord]:
    return [
        trial(0, "finished", [0.3, 0.4, 0.5] + [0.5] * 6),
        trial(1, "stopped", [0.1, 0.2, 0.2], params={"learning_rate": 9.9e-3, "crop": 0.6}),
        trial(
            2,
            "finished",
            [0.4] * 8 + [0.75],
            params={
                **{"learning_rate": 9.9e-3, "crop": 0.99, "model": "unet", "width": 24},
            },
        ),
        trial(3, "failed", [0.2], reason="the loss is not finite; smaller than 0.009 may help"),
        trial(4, "failed", [], reason="the loss is not finite; smaller than 0.02 may help"),
    ]


def test_the_page_of_a_real_study(finished: Finished) -> None:
    done = run_module("report", "--price-per-hour", 3, cwd=finished.home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("studies/fashion/report.html\n")
    text = (finished.home / "studies" / "fashion" / "report.html").read_text()
    record = StudyRecord.read(finished.home / "studies" / "fashion")
    assert "Sample data" in text and len(text) < 5_000_000
    assert f"<b>{record.ranking()[0].best_value:.4f}</b>" in text
    assert "the training loss is not finite" in text and "python -m study.tune fashion" in text
    assert text.count('<img src="data:image/webp') >= 4  # figures of the best trial
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert links and all(link.startswith(("#", "data:")) for link in links), "no network"
    drawn = charts_of(text)
    assert {"history", "curves", "parallel", "timeline", "slice-width1"} <= set(drawn)
    points = sum(len(trace["x"]) for trace in drawn["history"]["data"][1:])
    assert points == len(record.trials())


def browse(file: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser without a network, until it has loaded."""
    known = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    closed = ["--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking"]
    return subprocess.run(
        ["chromium", *known, *closed, *flags, file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_a_browser_draws_it_without_a_network(finished: Finished) -> None:
    record = StudyRecord.read(finished.home / "studies" / "fashion")
    file = finished.home / "drawn.html"
    report_page.write(record, file)
    done = browse(file, "--dump-dom")
    # What a browser calls loaded has its charts: a picture or a print of it is not blank.
    assert 'data-drawn="yes"' in done.stdout
    assert "<iframe" not in done.stdout and 'loading="lazy"' not in done.stdout
    drawn = charts_of(file.read_text())
    assert done.stdout.count('class="chart js-plotly-plot"') == len(drawn) > 5
    assert "CONSOLE" not in done.stderr, done.stderr


MEASURE = """
<script>
onload = () => {
  const pages = [...document.querySelectorAll("iframe")].map((frame) => {
    const inside = frame.contentDocument;
    const charts = [...inside.querySelectorAll(".js-plotly-plot")];
    const cut = charts.flatMap((chart) => {
      const whole = chart.getBoundingClientRect();
      return [...chart.querySelectorAll("text")].filter((text) => {
        const box = text.getBoundingClientRect();
        const beside = box.left < whole.left - 1 || box.right > whole.right + 1;
        return beside || box.bottom > whole.bottom + 1;
      }).map((text) => chart.id + ": " + text.textContent);
    });
    const wide = inside.documentElement.scrollWidth > frame.clientWidth;
    return {page: frame.id, cut, wide, charts: charts.length};
  });
  document.body.dataset.seen = JSON.stringify(pages);
};
</script>"""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium")
def test_nothing_is_cut_off(tmp_path: Path) -> None:
    fields = config_fields(load_task("facade").config_class)
    names = ["learning_rate", *sorted(fields.keys() - {"learning_rate"}, key=len)[-11:]]
    space = SearchSpace(
        tuple(Parameter(name=name, kind="float", low=0.0, high=1.0) for name in names), {}, {}
    )
    frames, expected = "", []
    for num in (1, 4, 50):
        trials = [trial(n, "finished", [0.1, 0.2, 0.3 + n / 100]) for n in range(num)]
        for one in trials:
            one.params.clear()
            one.params.update({k: (1 + one.number * n) % 10 / 10 for n, k in enumerate(names)})
        record = study(tmp_path / f"s{num}", trials, space=space.describe())
        file = tmp_path / f"{num}.html"
        report_page.write(record, file)
        for width in (390, 1440):
            name = f"{num} trials, {width} pixels"
            frames += f'<iframe id="{name}" src="{file.name}" width={width} height=900></iframe>'
            charts = len(charts_of(file.read_text()))
            expected.append({"page": name, "cut": [], "wide": False, "charts": charts})
    measure = tmp_path / "measure.html"
    measure.write_text(frames + MEASURE)
    done = browse(
        measure, "--allow-file-access-from-files", "--window-size=1500,1000", "--dump-dom"
    )
    found = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert found is not None, done.stderr
    assert json.loads(html.unescape(found[1])) == expected


@pytest.mark.parametrize("num", [1, 4, 50])
def test_few_trials_are_marked_one_by_one(tmp_path: Path, num: int) -> None:
    trials = [trial(n, "finished", [0.1, 0.2 + n / 100]) for n in range(num)]
    drawn = charts_of(page(study(tmp_path / "s", trials, epochs=2)))
    for chart in ("history", "curves"):  # no half trials, no half epochs
        axis = drawn[chart]["layout"]["xaxis"]
        assert axis["tickformat"] == "d" and ("dtick" in axis) is (num <= 10 or chart == "curves")
    lines = [trace["name"] for trace in drawn["parallel"]["data"]]
    fifths = ["poorest fifth", "fifth 2", "fifth 3", "fifth 4", "best fifth"]
    assert lines == (fifths if num == 50 else [f"trial {n}" for n in range(num)])


def test_importance_says_what_it_lacks(tmp_path: Path) -> None:
    text = page(study(tmp_path / "s", [trial(n, "finished", [0.1]) for n in range(4)]))
    assert "needs 5 ended trials; study s has 4" in text and "--importance" not in text


def test_a_reason_is_no_markup(tmp_path: Path) -> None:
    """Whatever it holds: a line with bold letters of its own once went out as it was."""
    reason = 'loss of <b>3 & 4</b> <a href="https://example.org">more</a>'
    failed = dataclasses.replace(trial(0, "failed", [0.5]), reason=reason)
    title, *lines = about(study(tmp_path / "s", [failed]), failed).split("<br>")
    assert title.startswith("<b>trial 0</b>, failed")
    assert any("loss of &lt;b&gt;3 &amp; 4&lt;/b&gt;" in line for line in lines)
    assert not any("<" in line for line in lines)


def test_what_a_study_spent(tmp_path: Path, trials: list[TrialRecord]) -> None:
    record = study(tmp_path / "s", trials)
    asked = StoppingRule.of_last_start(record.manifest)
    assert asked is not None and asked.asha is not None
    ledger = Ledger.of(record, asked, price=36.0)
    assert ledger.work == {0: 90, 1: 30, 2: 90, 3: 10, 4: 0} and ledger.epochs == 22
    assert ledger.full == 3 * 9 + 1 and ledger.saved == 60  # six epochs of trial 1
    # 0 to 90, 60 to 90, 120 to 210, 180 to 190
    assert ledger.active == 180
    assert ledger.money(ledger.total) == pytest.approx(36.0 * 180 / 3600)
    assert ledger.money(ledger.work[0]) == pytest.approx(1.8 * 90 / 220)
    first, second = ledger.rungs
    assert (first.first, first.last, first.trials, first.stopped, first.epochs) == (1, 3, 4, 1, 10)
    assert (second.first, second.last, second.epochs, second.seconds) == (4, 9, 12, 120)
    assert Ledger.of(record, asked).money(10) is None


def test_a_trial_that_was_cut_off_ran_twice() -> None:
    whole = trial(0, "finished", [0.1, 0.2, 0.3])
    assert spans_of(whole) == [(BEGUN, BEGUN + 30)]
    first, *later = whole.history
    apart = (first, *({**row, "ended": row["ended"] + 1000} for row in later))
    assert spans_of(dataclasses.replace(whole, history=apart)) == [
        (BEGUN, BEGUN + 10),
        (BEGUN + 1010, BEGUN + 1030),
    ]


def test_hints_name_bounds_that_can_be_widened(tmp_path: Path, trials: list[TrialRecord]) -> None:
    record, task = study(tmp_path / "s", trials), load_task("facade")
    found = "\n".join(facts.hints(task, record, None))
    assert "best learning_rate, 0.0099, is within 5 % of its bound (high: 0.01)" in found
    assert "best width, 24, is within 5 % of its bound (high: 24)" in found
    assert "crop" not in found, "1 is the largest that there is"
    assert "its last, 9" in found and "s --confirm 3" in found


def test_a_bound_is_judged_on_the_scale_that_is_searched(tmp_path: Path) -> None:
    trials = [trial(0, "finished", [0.1]), trial(1, "finished", [0.5])]
    task = load_task("facade")
    for rate, near in ((1.2e-4, True), (1.3e-4, False), (7.5e-3, False), (8.1e-3, True)):
        trials[1].params["learning_rate"] = rate
        record = study(tmp_path / str(rate), trials)
        assert ("learning_rate" in str(facts.hints(task, record, None))) is near, rate


def test_failures_that_differ_in_numbers_are_one(tmp_path: Path, trials: list[TrialRecord]) -> None:
    trials[0] = trials[0].with_failure("its process died", 1)
    rows = facts.failures(study(tmp_path / "s", trials))
    assert [(row["what"], row["count"], row["trials"]) for row in rows] == [
        ("failed", 2, "3, 4"),
        ("retried", 1, "0"),
    ]
    assert "0.009" in rows[0]["reason"]


def test_the_best_beside_the_baseline(tmp_path: Path, trials: list[TrialRecord]) -> None:
    rows = facts.classes(load_task("facade"), study(tmp_path / "s", trials))
    by_name = {row["name"]: row for row in rows}
    assert by_name["pillar"]["change"] == pytest.approx((0.75 - 0.5) / 2)
    assert by_name["window"]["best"] is None  # not recorded
    assert by_name["all"]["best"] == 0.75 and by_name["all"]["baseline"] == 0.5


def test_the_command_for_more_trials(tmp_path: Path, trials: list[TrialRecord]) -> None:
    found = dict(facts.commands(study(tmp_path / "s", trials)))
    assert found["twice as many trials"] == COMMAND.replace("6", "12")


def test_a_damaged_figure_is_left_out_and_named(
    tmp_path: Path, trials: list[TrialRecord], capsys
) -> None:
    record = study(tmp_path / "studies" / "a", trials)
    figures = record.run_folder(2).path / "figures"  # of the best trial
    figures.mkdir()
    Image.new("RGB", (8, 8)).save(figures / "whole.png")
    (figures / "short.png").write_bytes((figures / "whole.png").read_bytes()[:40])
    assert [picture["name"] for picture in _pictures(record, 10**6)] == ["whole"]
    assert f"left out: {figures / 'short.png'}: " in capsys.readouterr().err


@pytest.mark.parametrize("state", ["finished", "running", "failed"])
def test_a_study_of_one_trial(tmp_path: Path, state: str) -> None:
    values = [] if state == "failed" else [0.2]
    text = page(study(tmp_path / "s", [trial(0, state, values, reason="<b>why</b>")]))
    assert "<b>why" not in text, "what a trial says is not taken for HTML"
    assert "&lt;b&gt;why" in text or state != "failed"


def test_a_study_that_has_only_begun_and_numbers_that_are_none(tmp_path: Path) -> None:
    assert "No trial has started" in page(study(tmp_path / "s", []))
    odd = trial(0, "finished", [0.5, 0.6])
    odd.history[1]["val/ap/pillar"] = float("nan")
    assert "NaN" not in json.dumps(charts_of(page(study(tmp_path / "odd", [odd]))))


def test_two_objectives_have_a_front(tmp_path: Path, trials: list[TrialRecord]) -> None:
    both = [["val/mean_ap", "max"], ["num_params", "min"]]
    text = page(study(tmp_path / "s", trials, objectives=both))
    _, front = charts_of(text)["trade-off"]["data"]
    assert front["x"] == [1000.0, 1002.0] and front["y"] == [0.5, 0.75]
    assert "The Pareto front of the two objectives" in text


def test_a_thousand_trials_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importance, "NUM_SHUFFLES", 2)
    text = page(study(tmp_path / "s", [trial(n, "finished", [0.1] * 9) for n in range(1000)]))
    assert len(text) < 5_000_000 and "and 950 more" in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--price-per-hour", "-1"], "--price-per-hour must be a price in dollars"),
        (["--out", "no/such/folder/x.html"], "name a file in a folder that exists"),
        (["other"], "there is no study 'other'"),
    ],
)
def test_mistakes_are_told(
    finished: Finished, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--studies-dir", str(finished.home / "studies")]
    assert run_command(lambda: report.main([*flags, *place])) == 2
    assert message in capsys.readouterr().err
