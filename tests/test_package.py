"""What the distribution says of itself, the same in all files."""

from __future__ import annotations

import importlib
import re
import tomllib

import yaml
from conftest import ROOT

import study

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_and_one_license_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == study.__version__
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in PROJECT["authors"]
    ]
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest and newest[1] == study.__version__
    assert "Apache License" in (ROOT / PROJECT["license-files"][0]).read_text()


def test_the_console_script_is_there() -> None:
    module, _, function = PROJECT["scripts"]["study"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_ci_runs_on_every_python_that_is_said_to_work() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    word = "Programming Language :: Python :: 3."
    said = [f"3.{line.removeprefix(word)}" for line in PROJECT["classifiers"] if word in line]
    assert tested == said and PROJECT["requires-python"] == f">={said[0]}"
