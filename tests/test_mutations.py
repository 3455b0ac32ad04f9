"""Search spaces and flags with random mistakes: each is run, or refused in one line."""

from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.cli import run_command
from study.dry_run.text import describe
from study.runner.plan import make_plan
from study.search import sampler
from study.task import build_config
from study.tune import build_parser, options_of

SPACES = {path.stem: path.read_text() for path in sorted(Path("search_spaces").glob("*.yaml"))}
TOKENS = st.sampled_from(
    [
        "nan",
        ".inf",
        "-1",
        "0",
        "1",
        "2.5",
        "1e999",
        "1e-400",
        "10000000000000000000000",
        "''",
        "[]",
        "{}",
        "null",
        "true",
        "[1, 1]",
        "[[1]]",
        "- 1",
        "&a",
        "*a",
        "!!python/object:os.x",
        "float",
        "int",
        "categorical",
        "log: true",
        "step: 3",
        "low",
        "high",
        "choices",
        "when",
        "learning_rate",
        "epochs",
        "seed",
        "batch_size",
        "search:",
        "fixed:",
        "baseline:",
        ":",
        "{",
        "}",
        "\t",
        "\x00",
        "\ud7ff",
        "ü",
        "#",
        "'",
        '"',
        "|",
        "%YAML 9",
        "---",
        "<<: 1",
    ]
) | st.text(max_size=8)


@st.composite
def spaces(draw: st.DrawFn) -> tuple[str, str]:
    """Return a task, and a search space for it that comes along, with some mistakes."""
    name = draw(st.sampled_from(sorted(SPACES)))
    lines = SPACES[name].splitlines()
    lines = [line for line in lines if not line.lstrip().startswith("#")]
    for _ in range(draw(st.integers(0, 2))):
        if not lines:
            break
        index = draw(st.integers(0, len(lines) - 1))
        words = lines[index].split(" ")
        word = draw(st.integers(0, len(words) - 1))
        match draw(st.sampled_from(["delete", "double", "indent", "replace", "insert", "word"])):
            case "delete":
                del lines[index]
            case "double":
                lines.insert(index, lines[index])
            case "indent":
                lines[index] = " " * draw(st.integers(0, 6)) + lines[index].strip()
            case "replace":
                ending = "," if words[word].endswith(",") else ""
                words[word] = draw(TOKENS) + ending
                lines[index] = " ".join(words)
            case "insert":
                lines.insert(index, draw(TOKENS))
            case "word":
                lines[index] = " ".join([*words[:word], draw(TOKENS), *words[word:]])
    return name.partition("-")[0], "\n".join(lines) + "\n"


VALUES = st.sampled_from(
    [
        "",
        "0",
        "-1",
        "1",
        "2",
        "3.5",
        "nan",
        "inf",
        "1e9",
        "x",
        "1h",
        "90s",
        "../x",
        "none",
        "asha",
        "random",
    ]
) | st.text(st.characters(exclude_categories=["Cc", "Zl", "Zp"]), max_size=5)
FLAGS = st.sampled_from(
    [
        "--num-samples",
        "--epochs",
        "--max-concurrent",
        "--workers-per-trial",
        "--seed",
        "--cpus-per-worker",
        "--gpus-per-worker",
        "--time-budget",
        "--trial-timeout",
        "--name",
        "--max-failures",
        "--keep-weights",
        "--scheduler",
        "--grace-period",
        "--dataset",
        "--reduction-factor",
        "--warm-start-from",
        "--sampler",
        "--nonsense",
    ]
)
SETTINGS = st.tuples(
    st.sampled_from(["learning_rate", "epochs", "batch_size", "width1", "image_size", "seed", "x"]),
    VALUES,
).map(lambda pair: ["--set", f"{pair[0]}={pair[1]}"])


def plan_only(words: list[str]) -> int:
    """Do what `--dry-run` does before it measures."""
    plan = make_plan(options_of(build_parser().parse_args(words)))
    plan.manifest()
    print(describe(plan))
    return 0


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    space=spaces(),
    flags=st.lists(st.tuples(FLAGS, VALUES).map(list) | SETTINGS, max_size=1),
)
def test_each_is_run_or_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, space: tuple[str, str], flags: list[list[str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    task, text = space
    (tmp_path / "space.yaml").write_bytes(text.encode(errors="surrogatepass"))
    words = [task, "--dataset", "sample", "--search-space", "space.yaml", *sum(flags, [])]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = run_command(lambda: plan_only(words))
        except SystemExit as end:  # from argparse
            code = end.code
    lines = err.getvalue().strip().split("\n")
    assert code in (0, 2), lines
    if code == 2:
        assert "error: " in lines[-1] and (len(lines) == 1 or lines[0].startswith("usage: "))
        return
    assert lines == [""] and out.getvalue().startswith("study ")
    plan = make_plan(options_of(build_parser().parse_args(words)))
    for number in range(3):  # what would run can be drawn and is a valid configuration
        values = sampler.draw(
            plan.space,
            [],
            number=number,
            seed=plan.options.seed,
            sampler=plan.options.sampler,
            goal=plan.goal,
            first=[plan.space.baseline],
        )
        build_config(plan.task.config_class, {**plan.settings, **values, "seed": number})
    assert os.listdir(tmp_path) == ["space.yaml"]
