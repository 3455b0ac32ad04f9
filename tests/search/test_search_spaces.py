"""The search spaces that come along."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.errors import InputError
from study.objective import Goal, Objective
from study.runner.plan import make_plan
from study.search.sampler import draw
from study.search.space_file import load_space
from study.search_space import SearchSpace, find_space
from study.task import Value, build_config, load_task
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import FashionConfig
from study.tune import build_parser, options_of

GOAL = Goal((Objective("val/accuracy", "max"),))
FILES = sorted(find_space("fashion").parent.glob("*.yaml"))
FAMILIES = {
    "two_conv": {"width1", "width2", "hidden", "kernel_size", "batch_norm"},
    "residual": {"width", "blocks", "stem_pool"},
    "hourglass": {*(f"width{n}" for n in range(1, 6)), "last_relu"},
    "unet": {"depth", "width", "growth", "block", "norm", "dropout"},
}
LOSSES = {
    "cross_entropy": set(),
    "weighted": {"class_power"},
    "dice": {"region_share"},
    "lovasz": {"region_share"},
}


def load(name: str, **assigned: Value) -> SearchSpace:
    task = load_task(name.partition("-")[0])
    return load_space(find_space(name), task.config_class, {}, assigned)


def drawn(space: SearchSpace, number: int) -> dict[str, Value]:
    first = [space.baseline]
    return draw(space, [], number=number, seed=0, sampler="tpe", goal=GOAL, first=first)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_trial_zero_is_the_baseline(file: Path) -> None:
    space = load(file.stem)
    assert drawn(space, 0) == space.baseline
    assert set(space.baseline) == {p.name for p in space.parameters if p.active(space.baseline)}
    task = load_task(file.stem.partition("-")[0])
    config = build_config(task.config_class, {**space.fixed, **space.baseline})
    if "model" in space.fixed:  # another family than the baseline's
        return
    small = {"image_size": 128, "width1": 16, "width2": 32, "width3": 64, "width4": 32}
    small = {**small, "width5": 16} if file.stem in ("facade-cpu", "facade-full") else {}
    assert config == build_config(task.config_class, small)


@pytest.mark.parametrize("name", ["fashion", "facade"])
def test_the_card_s_space_is_rate_decay_and_widths(name: str) -> None:
    names = {parameter.name for parameter in load(name).parameters}
    widths = {n for n in names if n.startswith("width")}
    assert names == {"learning_rate", "weight_decay", *widths}
    assert len(widths) == (2 if name == "fashion" else 5)


@pytest.mark.parametrize("name", ["fashion", "facade"])
def test_conditional_parameters_belong_to_their_family(name: str) -> None:
    space, task = load(f"{name}-full"), load_task(name)
    common = {p.name for p in space.parameters if p.when is None}
    seen: dict[str, set[Value]] = {"model": set(), "loss": set()}
    for number in range(50):
        values = drawn(space, number)
        seen["model"].add(values["model"])
        expected = common | FAMILIES[str(values["model"])]
        if name == "facade":
            seen["loss"].add(values["loss"])
            expected |= LOSSES[str(values["loss"])]
        assert set(values) == expected
        config = build_config(task.config_class, {**space.fixed, **values})
        network = task.build_model(config)
        assert sum(parameter.numel() for parameter in network.parameters()) < 2.2e6
    assert len(seen["model"]) == 2 and len(seen["loss"]) in (0, 4)


def test_a_family_that_is_set_leaves_out_the_other() -> None:
    names = {parameter.name for parameter in load("facade-full", model="unet").parameters}
    assert FAMILIES["unet"] <= names and not names & FAMILIES["hourglass"] and "model" not in names


def test_a_size_that_a_network_of_the_space_cannot_take_is_refused() -> None:
    words = ["facade", "--search-space", "facade-full", "--dataset", "sample"]
    make_plan(options_of(build_parser().parse_args([*words, "--set", "image_size=80"])))
    with pytest.raises(InputError, match=r"a multiple of 16 \(depth=4\), but got 100"):
        make_plan(options_of(build_parser().parse_args([*words, "--set", "image_size=100"])))
    make_plan(
        options_of(
            build_parser().parse_args([*words, "--set", "image_size=100", "--set", "depth=2"])
        )
    )


def test_settings_have_one_name() -> None:
    # A search space of one task reads like that of the other.
    both = FashionConfig.__dataclass_fields__.keys() & FacadeConfig.__dataclass_fields__.keys()
    assert {"model", "width", "dropout", "optimizer", "schedule", "label_smoothing"} <= both
