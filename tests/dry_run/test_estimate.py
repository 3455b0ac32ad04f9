"""What `--dry-run` estimates: sizes by hand, costs of real steps, a study that goes on."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import begin
from conftest import Finished, run_module

from study.datasets.source import DataSource
from study.dry_run.cost import Cost, Size, measure, size_of
from study.dry_run.estimate import Estimate, completed, estimate, extremes, to_come
from study.dry_run.text import describe_estimate
from study.records.study_record import StudyRecord
from study.runner.plan import StudyPlan, make_plan
from study.search.simulation import Outlook
from study.task import Task, TrainConfig, build_config, load_task
from study.tasks.facade import FacadeConfig
from study.tune import build_parser, options_of


def plan(*words: object) -> StudyPlan:
    return make_plan(
        options_of(build_parser().parse_args([*map(str, words), "--dataset", "sample"]))
    )


def test_sizes_by_hand() -> None:
    fashion = load_task("fashion")
    config = build_config(
        fashion.config_class, {"width1": 4, "width2": 6, "hidden": 10, "kernel_size": 3}
    )
    size = size_of(fashion, config, (1, 28, 28))
    head = 6 * 7 * 7
    assert size.parameters == (9 * 4 + 4) + (9 * 4 * 6 + 6) + (head * 10 + 10) + (10 * 10 + 10)
    adds = 28 * 28 * 9 * 4 + 14 * 14 * 9 * 4 * 6 + head * 10 + 10 * 10
    assert size.multiply_adds == adds
    facade = load_task("facade")
    widths = {f"width{n}": n for n in range(1, 6)}
    size = size_of(facade, build_config(facade.config_class, widths), (3, 16, 16))
    kernels = [(3, 1, 7), (1, 2, 5), (2, 3, 5), (3, 4, 3), (4, 5, 3), (5, 5, 3)]
    pixels = [256, 256, 64, 64, 64, 256]
    adds = [a * b * k * k for a, b, k in kernels]
    assert size.multiply_adds == sum(p * n for p, n in zip(pixels, adds, strict=True))
    outputs = sum(b for _, b, _ in kernels)
    normalised = 2 * (1 + 2 + 3 + 4 + 5)
    assert size.parameters == sum(adds) + outputs + normalised


def test_extremes_follow_multiply_adds_and_conditions(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "search:\n"
        "  kernel_size: {type: categorical, choices: [5, 1, 3]}\n"
        "  learning_rate: {type: float, low: 0.1, high: 1.0}\n"
        "  width1: {type: int, low: 2, high: 9, when: {kernel_size: 1}}\n"
        "baseline: {kernel_size: 3, learning_rate: 0.5}\n"
    )
    study = plan("fashion", "--search-space", file)
    found = extremes(study.task, study.space, study.settings, (1, 28, 28))
    shown = {
        name: (settings["kernel_size"], settings.get("width1"), settings["learning_rate"])
        for name, (settings, _) in found.items()
    }
    assert shown["smallest"][:2] == (1, 2) and shown["largest"][0] == 5
    assert shown["baseline"][0] == 3 and {rate for *_, rate in shown.values()} == {0.5}


def test_each_family_has_its_extremes() -> None:
    study = plan("facade", "--search-space", "facade-full")
    found = extremes(study.task, study.space, study.settings, (3, 128, 128))
    ends = {
        f"{end} {family}" for end in ("smallest", "largest") for family in ("hourglass", "unet")
    }
    assert set(found) == {"baseline", *ends}
    for name, (settings, size) in found.items():
        assert name == "baseline" or name.endswith(str(settings["model"]))
        assert found["smallest unet"][1].multiply_adds <= size.multiply_adds or "hour" in name
    largest = build_config(study.task.config_class, found["largest unet"][0])
    assert isinstance(largest, FacadeConfig)
    assert (largest.depth, largest.width, largest.growth) == (4, 24, 1.6)


@pytest.mark.parametrize("name", ["fashion", "facade"])
def test_a_real_step_is_measured(sample: DataSource, name: str) -> None:
    task = load_task(name)
    narrow = {"width1": 4, "width2": 4, "learning_rate": 1e30}  # would not be finite
    config = build_config(task.config_class, {**task.sample_settings, **narrow})
    cost = measure(task, config, sample, multiply_adds=10**5, threads=1)
    assert cost.images == config.batch_size
    assert min(cost.training, cost.validation, cost.begin, cost.save) > 0
    huge = measure(task, config, sample, multiply_adds=10**10, threads=1)
    assert huge.images == 2, "few images where a step would take long"


@pytest.mark.parametrize("name", ["fashion", "facade"])
def test_training_and_validation_are_told_apart(
    sample: DataSource, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, clock = load_task(name), [0.0]
    config = build_config(task.config_class, {**task.sample_settings, "width1": 4, "width2": 4})
    build = type(task).build_model

    def tick(network: torch.nn.Module, inputs: Any, output: Any) -> None:
        clock[0] += 3.0 if network.training else 1.0

    def ticking(self: Task, config: TrainConfig) -> torch.nn.Module:
        network = build(self, config)
        network.register_forward_hook(tick)
        return network

    monkeypatch.setattr(type(task), "build_model", ticking)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    cost = measure(task, config, sample, multiply_adds=10**5, threads=1)
    assert cost.images == config.batch_size
    assert cost.training == pytest.approx(3 / cost.images)
    assert cost.validation == pytest.approx(1 / cost.images)


def test_costs_of_others_come_from_their_sizes() -> None:
    sizes = [
        Size(parameters=1, multiply_adds=m, activations=a)
        for m, a in [(10, 5), (1000, 10), (500, 70), (7000, 30)]
    ]

    def cost(size: Size) -> Cost:
        seconds = 2.0 + 0.01 * size.multiply_adds + 0.5 * size.activations
        return Cost(training=seconds, validation=seconds / 3, begin=1, save=0.1, images=8)

    answers: list[Any] = [*map(cost, sizes[:3]), "does not fit"]
    found = completed([({}, size) for size in sizes], answers)
    assert found[3].training == pytest.approx(cost(sizes[3]).training)
    assert found[3].validation == pytest.approx(cost(sizes[3]).validation)
    assert completed([({}, sizes[0])], [None]) == []


def test_price_is_hours_times_dollars() -> None:
    study = plan("fashion", "--epochs", 3)
    seconds = Outlook(reached=(4.0, 2.0, 2.0), seconds=7200, low=3600, high=10800)
    text = describe_estimate(study, Estimate(left=4, outlook=seconds), 0.5)
    assert "about 2 h 00 min for 4 trials" in text
    assert "about $1.00 ($0.50 to $1.50) at $0.5 an hour" in text
    assert "epoch 1: 4.0, 3: 2.0; 8 epochs in all" in text
    assert "$" not in describe_estimate(study, Estimate(left=4, outlook=seconds), None)


def test_a_study_that_goes_on_is_estimated_for_what_is_left(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.home, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    words = [str(word) for word in finished.command]
    assert estimate(make_plan(options_of(build_parser().parse_args(words)))).left == 0
    before = {path: path.stat().st_mtime for path in tmp_path.rglob("*")}
    words[words.index("--num-samples") + 1] = "10"
    found = estimate(make_plan(options_of(build_parser().parse_args(words))))
    assert found.left == 2 and found.first == 8 and len(found.drawn) == 2
    assert found.outlook is not None and found.outlook.reached[0] == 2
    assert {path: path.stat().st_mtime for path in tmp_path.rglob("*")} == before
    other = run_module(
        "tune",
        *words[:-6],
        "--epochs",
        2,
        "--search-space",
        "space.yaml",
        "--dry-run",
        cwd=tmp_path,
    )
    assert other.returncode == 2 and "was created with epochs=" in other.stderr


@pytest.mark.parametrize("objective", ["accuracy", "accuracy,num_params"])
@pytest.mark.parametrize(("ended", "running"), [(0, 0), (4, 1), (13, 1), (13, 3)])
def test_a_dry_run_draws_what_the_study_draws(
    tmp_path: Path, objective: str, ended: int, running: int
) -> None:
    """As long as nothing else ends: beyond that it promises nothing."""
    study = plan(
        "fashion",
        "--num-samples",
        40,
        "--objective",
        objective,
        "--studies-dir",
        tmp_path,
        "--max-concurrent",
        2,
        "--cpus-per-worker",
        1,
    )
    assert study.resources is not None
    concurrent = study.resources.concurrent
    record = StudyRecord.create_or_continue(study.folder, study.manifest(), "command")
    for number in range(ended + running):
        values = begin(record).params
        row = {"val/accuracy": float(values["learning_rate"]), "num_params": number % 5}
        record.report(number, {"epoch": 1, **row})
        if number < ended:
            record.end(number, "stopped" if number % 3 else "finished")
    drawn, certain = to_come(study, record.trials(), 20)
    expected = max(0, 10 - ended - running, concurrent - running)
    assert (certain, len(drawn)) == (expected, 20)
    assert [begin(record).params for _ in range(certain)] == drawn[:certain]
    record.close()


def test_all_of_random_search_is_certain_and_a_warm_start_goes_on(tmp_path: Path) -> None:
    places = ("--studies-dir", tmp_path, "--num-samples", 40)
    study = plan("fashion", *places, "--sampler", "random")
    record = StudyRecord.create_or_continue(study.folder, study.manifest(), "command")
    drawn, certain = to_come(study, [], 20)
    assert certain == 20
    for values in drawn:
        assert (trial := begin(record)).params == values
        record.report(trial.number, {"epoch": 1, "val/accuracy": 0.5})
        record.end(trial.number, "finished")
    record.close()
    warm = plan("fashion", *places, "--name", "warm", "--warm-start-from", "fashion")
    record = StudyRecord.create_or_continue(warm.folder, warm.manifest(), "command")
    for _ in range(2):  # before and after it has begun
        drawn, certain = to_come(warm, record.trials(), 3)
        assert certain == 1 or warm.resources and certain == warm.resources.concurrent
        assert [begin(record).params for _ in range(certain)] == drawn[:certain]
        for trial in record.trials():
            if trial.state == "running":
                record.report(trial.number, {"epoch": 1, "val/accuracy": 0.1 * trial.number})
                record.end(trial.number, "finished")
    record.close()


def test_dry_run_says_how_long_and_leaves_nothing(tmp_path: Path) -> None:
    done = run_module(
        "tune",
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        6,
        "--dry-run",
        "--scheduler",
        "none",
        "--price-per-hour",
        0.5,
        cwd=tmp_path,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert "all trials reach epoch 4" in done.stdout
    assert "learning_rate: log float 0.0001 to 0.01 (baseline 0.001)" in done.stdout
    assert "learning_rate=0.001 weight_decay=1e-05 width1=32 width2=32 (baseline)" in done.stdout
    for word in ("smallest", "baseline", "largest", "\ntime  ", "\nprice  "):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []
