"""The README says what is: its example, its messages, its flags and its folders."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT, plugin, run_module

from study.cli import COMMANDS
from study.records.study_record import StudyRecord

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_example_is_the_file_and_a_study_of_it_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```(python|yaml)\n(.*?)```", section("Add a task"), re.DOTALL)
    files = [ROOT / "docs" / "example" / name for name in ("stripes.py", "stripes.yaml")]
    assert [text for _, text in blocks] == [file.read_text() for file in files]
    command = ("stripes", "--dataset", "sample", "--num-samples", 2, "--epochs", 2)
    flags = ("--search-space", files[1], "--cpus-per-worker", 1)
    done = run_module("tune", *command, *flags, cwd=tmp_path, env=plugin(tmp_path))
    assert done.returncode == 0, done.stderr[-4000:]
    best = StudyRecord.read(tmp_path / "studies" / "stripes").ranking()[0]
    assert best.best_value is not None and best.best_value > 0.5, (
        "of four classes chance finds a quarter"
    )
    assert (tmp_path / "studies" / "stripes" / "report.html").exists()


def messages() -> list[str]:
    """Return the texts in the package, what is filled in being an ellipsis."""
    found = []
    for path in (ROOT / "study").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else "…" for p in node.values)
                found.append("".join(map(str, parts)))
    return found


def test_messages_to_be_troubled_by_are_in_the_package() -> None:
    shown = re.findall(r"^\| `(.*?)` \| ", section("Troubleshooting"), re.MULTILINE)
    assert len(shown) > 10
    texts = messages()
    for message in shown:
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert any(re.search(pattern, text, re.DOTALL) for text in texts), message


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_take_the_flags_that_are_shown(page: Path, tmp_path: Path) -> None:
    commands = rf"(?:python -m study\.|\bstudy )({'|'.join(COMMANDS)})\b([^`\n|]*)"
    lines = re.findall(commands, page.read_text())
    shown: dict[str, set[str]] = {}
    for command, words in lines:
        flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"#.*", "", words))
        shown.setdefault(command, set()).update(flags)
    for command, flags in shown.items():
        words = ("facade", "--help") if command == "train" else ("--help",)
        known = run_module(command, *words, cwd=tmp_path).stdout
        assert flags <= set(re.findall(r"--[a-z][a-z0-9-]*", known)), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for place in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        assert place.startswith("https://") or (page.parent / place).exists(), place


def test_the_table_names_all_folders() -> None:
    named = re.findall(r"^\| `study/(\w+)/` \|", section("Architecture"), re.MULTILINE)
    folders = [path.parent.name for path in (ROOT / "study").glob("*/__init__.py")]
    assert sorted(named) == sorted(folders)
