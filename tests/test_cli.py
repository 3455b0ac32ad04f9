"""The front door: `study`, `study COMMAND`, and the same by `python -m`."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import study
from study.cli import COMMANDS, dispatch, overview
from study.errors import InputError

SCRIPT = Path(sys.executable).with_name("study")  # comes with `pip install`
PACKAGE = Path(study.__file__).parent


def run(*words: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, words)),
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )


def test_all_commands_are_listed_with_the_first_line_of_their_docstring() -> None:
    found = {
        path.stem: ast.get_docstring(ast.parse(path.read_text()))
        for path in PACKAGE.glob("*.py")
        if "sys.exit(run_command(main))" in path.read_text()
    }
    assert set(COMMANDS) == set(found) and len(set(COMMANDS)) == len(COMMANDS)
    shown = overview().splitlines()
    for name, docstring in found.items():
        assert docstring is not None
        line = docstring.splitlines()[0]
        assert f"  {name:<8} {line}" in shown and len(line) < 90 and line.endswith("."), name


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",)])
def test_study_alone_shows_all_commands(words: tuple[str, ...], tmp_path: Path) -> None:
    for start in ((SCRIPT,), (sys.executable, "-m", "study")):
        done = run(*start, *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == overview() + "\n"
    assert list(tmp_path.iterdir()) == []


def test_version(tmp_path: Path) -> None:
    assert run(SCRIPT, "--version", cwd=tmp_path).stdout == f"study {study.__version__}\n"


def test_study_alone_imports_nothing_heavy_and_answers_at_once(tmp_path: Path) -> None:
    code = "import sys; from study.__main__ import main; main(); print(*sys.modules)"
    loaded = run(sys.executable, "-c", code, cwd=tmp_path).stdout.split()
    assert "study.errors" in loaded
    assert not {"torch", "numpy", "ray", "mlflow", "optuna", "matplotlib"} & set(loaded)
    seconds = []
    for _ in range(5):  # of CPU time, because a machine that tests is busy
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run(SCRIPT, cwd=tmp_path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    "word, message",
    [
        ("tun", "error: there is no command 'tun'; did you mean 'tune'?\n"),
        ("--verison", "error: there is no flag '--verison'; did you mean '--version'?\n"),
        ("classification", "error: there is no command 'classification'; known: best,"),
        ("", "error: there is no command ''; known: best,"),
    ],
)
def test_an_unknown_word_is_one_line_with_a_suggestion(
    word: str, message: str, tmp_path: Path
) -> None:
    done = run(SCRIPT, word, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message) and done.stderr.count("\n") == 1


def test_usage_shows_the_command_as_it_was_typed(tmp_path: Path) -> None:
    for start in (("study",), ("python", "-m", "study")):
        words = (SCRIPT,) if start == ("study",) else (sys.executable, "-m", "study")
        assert run(*words, "status", "--help", cwd=tmp_path).stdout.startswith(
            f"usage: {' '.join(start)} status [-h]"
        )
    typed = run(sys.executable, "-m", "study.status", "--help", cwd=tmp_path).stdout
    assert typed.startswith("usage: python -m study.status [-h]")
    assert "Show how a study is doing, from any terminal." in typed


def test_a_command_gets_its_words_and_gives_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="there is no study"):
        dispatch(["status", "--studies-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        dispatch(["status", "--no-such-flag"])
    assert ended.value.code == 2 and "--no-such-flag" in capsys.readouterr().err
    done = run(SCRIPT, "status", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: there is no study")


def test_the_script_starts_again_in_utf8_like_a_module(tmp_path: Path) -> None:
    old = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for start in ((SCRIPT,), ("-m", "study")):
        words = (sys.executable, "-X", "importtime", *start, "--version")
        for env, starts in ((old, 2), ({"PYTHONUTF8": "1"}, 1)):
            done = run(*words, cwd=tmp_path, **env)
            assert done.stdout == f"study {study.__version__}\n"
            assert done.stderr.count("| site\n") == starts, start
