"""Documents say what benchmarks found: generated from their results, with no number typed."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import TESTS

HERE = TESTS / "benchmarks"
sys.path.insert(0, str(HERE))

import document  # noqa: E402
import findings  # noqa: E402

RESULTS = {file.stem: json.loads(file.read_text()) for file in findings.RESULTS.glob("*.json")}


def test_documents_are_what_the_results_say() -> None:
    for file, text in document.documents().items():
        assert file.read_text() == text, "run: python tests/benchmarks/document.py"


def test_every_kept_result_is_shown() -> None:
    known = {*findings.TIMED, *findings.REPLAYED, *findings.OTHERS}
    assert RESULTS.keys() <= known
    assert known - RESULTS.keys() <= set(findings.TIMED), "only of what needs an idle machine"
    for name in {*findings.TIMED, "divergence", "importance"} & RESULTS.keys():
        for row in RESULTS[name]["rows"]:
            assert f"| {row['what']} |" in document.MEASURED.read_text()
    used = re.findall(r"\{\{(.+?)\}\}", document.TEMPLATE.read_text())
    for file in document.MARKED:
        used += [match[2] for match in document.MARK.finditer(file.read_text())]
    assert set(used) == findings.BLOCKS.keys() - {
        "recorded: facade scores",
        "recorded: fashion scores",
    }


def test_the_prose_has_no_number() -> None:
    """Names such as float32, H100 and AVX-512 aside, and what stands in code."""
    text = re.sub(r"\{\{.+?\}\}|`.+?`", "", document.TEMPLATE.read_text(), flags=re.S)
    assert not re.findall(r"(?<![\w-])\d[\w.,]*", text)


def test_missed_goals_are_marked_and_single_runs_too() -> None:
    lines = document.MEASURED.read_text().splitlines()
    judged = 0
    for name in {*findings.TIMED, "divergence", "importance"} & RESULTS.keys():
        for row in RESULTS[name]["rows"]:
            (line,) = [each for each in lines if each.startswith(f"| {row['what']} |")]
            assert (findings.MISSED in line) is (row["reached"] is False), line
            if name in findings.TIMED:
                assert ("one run" in line) is (row["repeats"] == 1), line
            judged += row["reached"] is not None
    assert judged > 20
    for content in RESULTS.values():
        for row in content.get("rows", []):
            if row["reached"] is False:
                (line,) = [each for each in lines if each.startswith("| `") and row["what"] in each]
                assert line.endswith(f"{findings.MISSED} |")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("training", lambda content: content["rows"][0].update(ours=[1234.0])),
        ("tracking", lambda content: content["rows"][1].update(limit=3.0)),
        ("searchers", lambda content: content["rows"][0].update(median_ours=1234.0)),
        ("recorded", lambda content: content["tables"]["fashion scores"]["rows"].pop()),
    ],
)
def test_another_result_makes_another_document(
    name: str, change: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(findings.RESULTS, tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / f"{name}.json").read_text())
    change(content)
    (tmp_path / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(findings, "RESULTS", tmp_path)
    assert any(file.read_text() != text for file, text in document.documents().items())


def test_goals_are_said_as_a_reader_judges_them() -> None:
    row = {"reach": None, "limit": None, "better": "lower"}
    assert findings.goal(row) == ""
    assert findings.goal({**row, "reach": 1 / 1.3}) == "at most 1.3x the time"
    assert findings.goal({**row, "reach": 0.95, "better": "higher"}) == "at least 0.95x"
    assert findings.goal({**row, "reach": 3.0}) == "at least 3x"
    assert findings.goal({**row, "limit": 1536.0}) == "at most 1,536"
    assert findings.spread([3.0, 1.0, 2.0]) == "2 (1 to 3)" and findings.spread([2.0]) == "2"
