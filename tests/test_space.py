"""Search spaces: what is read, and the error for every mistake, with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.errors import InputError
from study.space import SearchSpace, find_space
from study.space_file import load_space
from study.tasks.facade import FacadeConfig

GOOD = """\
fixed:
  image_size: 128
search:
  learning_rate: {type: float, low: 1e-4, high: 1.0e-2, log: true}
  batch_size: {type: int, low: 4, high: 16, step: 4}
  width1: {type: int, low: 4, high: 32, log: true}
  last_relu: {type: categorical, choices: [true, false]}
  width5: {type: int, low: 4, high: 32, when: {last_relu: false}}
baseline:
  width1: 16
"""


def load(tmp_path: Path, text: str, base=None, assigned=None) -> SearchSpace:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    return load_space(path, FacadeConfig, base or {}, assigned or {})


def test_a_good_space_is_read(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD)
    assert [p.name for p in space.parameters] == [
        *("learning_rate", "batch_size", "width1", "last_relu", "width5")
    ]
    assert space.fixed == {"image_size": 128}
    rate, batch = space.parameters[:2]
    assert (rate.low, rate.high, rate.log) == (1e-4, 1e-2, True)
    assert (batch.low, batch.high, batch.step) == (4, 16, 4)


def test_trial_zero_is_the_baseline_within_the_space(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD)
    # width5 is only searched without the last ReLU, which the baseline has.
    expected = {"learning_rate": 1e-3, "batch_size": 8, "width1": 16, "last_relu": True}
    assert space.baseline == expected
    clipped = load(tmp_path, "search:\n  width1: {type: int, low: 4, high: 32}\n")
    assert clipped.baseline == {"width1": 32}, "the default, 64, is above the range"


def test_assigned_settings_are_no_longer_searched(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD, assigned={"last_relu": False, "batch_size": 8})
    assert "batch_size" not in {p.name for p in space.parameters}
    assert space.fixed == {"image_size": 128, "last_relu": False, "batch_size": 8}
    assert space.parameters[-1].name == "width5" and space.parameters[-1].when is None
    without = load(tmp_path, GOOD, assigned={"last_relu": True})
    assert "width5" not in {p.name for p in without.parameters}


def test_the_file_stands_above_sample_settings_and_below_set(tmp_path: Path) -> None:
    space = load(tmp_path, GOOD, base={"image_size": 64, "epochs": 4})
    assert space.fixed == {"image_size": 128, "epochs": 4}
    space = load(tmp_path, GOOD, base={"image_size": 64}, assigned={"image_size": 32})
    assert space.fixed["image_size"] == 32


def test_a_step_of_a_float_need_not_add_up_exactly(tmp_path: Path) -> None:
    text = "search:\n  weight_decay: {type: float, low: 0.1, high: 0.7, step: 0.1}\n"
    for value in (0.1, 0.3, 0.6, 0.7):
        space = load(tmp_path, text + f"baseline: {{weight_decay: {value}}}\n")
        assert space.baseline["weight_decay"] == value


@pytest.mark.parametrize(("low", "high"), [(0.3, 0.9), (0.1, 0.7)])
def test_steps_do_not_lead_beyond_the_range(tmp_path: Path, low: float, high: float) -> None:
    text = f"search:\n  crop: {{type: float, low: {low}, high: {high}, step: 0.1}}\n"
    space = load(tmp_path, text, base={"crop": 1.0})
    assert space.baseline["crop"] == high  # Optuna refuses 0.9000000000000001 in a study


def test_order_follows_conditions(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        "search:\n"
        "  width5: {type: int, low: 4, high: 32, when: {last_relu: [true]}}\n"
        "  last_relu: {type: categorical, choices: [true, false]}\n",
    )
    assert [p.name for p in space.parameters] == ["last_relu", "width5"]
    assert not space.parameters[1].active({"last_relu": False})


def test_equal_spaces_have_equal_descriptions(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).describe() == load(tmp_path, "# words\n" + GOOD).describe()
    other = GOOD.replace("high: 16", "high: 20")
    assert load(tmp_path, GOOD).describe() != load(tmp_path, other).describe()


RATE = "search:\n  learning_rate: "


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("serch:\n  a: 1\n", 1, "there is no section 'serch'; did you mean 'search'?"),
        (
            "search:\n  lerning_rate: {type: float, low: 1, high: 2}\n",
            2,
            "there is no setting 'lerning_rate'; did you mean 'learning_rate'?",
        ),
        ("fixed:\n  seeed: 1\nsearch: {}\n", 2, "there is no setting 'seeed'"),
        (RATE + "{type: float, low: 0.1, high: 0.01}\n", 2, "low must be below high"),
        (RATE + "{type: float, low: 0.1, high: 0.1}\n", 2, "low must be below high"),
        (RATE + "{type: float, low: 0, high: 0.1, log: true}\n", 2, "log needs low above 0"),
        (RATE + "{type: float, low: -1, high: 0.1}\n", 2, "learning_rate must be at least 0"),
        (RATE + "{type: float, low: x, high: 0.1}\n", 2, "low must be a number, but got 'x'"),
        (RATE + "{type: float, high: 0.1}\n", 2, "low must be a number, but got None"),
        (RATE + "{type: float, low: .nan, high: 1}\n", 2, "low must be a number"),
        (RATE + "{type: float, low: 0.1, high: .inf}\n", 2, "high must be a number"),
        (RATE + "{type: real, low: 1, high: 2}\n", 2, "type must be one of float, int"),
        (
            RATE + "{type: int, low: 1, high: 2}\n",
            2,
            "as int; use type: categorical or float",
        ),
        (RATE + "{type: float, low: 1, high: 2, stp: 1}\n", 2, "no 'stp'; did you mean 'step'?"),
        (RATE + "{type: float, low: 1, high: 2, log: 3}\n", 2, "log must be true or false"),
        (RATE + "0.001\n", 2, "a value for all trials goes under `fixed`"),
        (
            "search:\n\n  batch_size: {type: int, low: 4, high: 15, step: 4}\n",
            3,
            "high must be low plus a multiple of step",
        ),
        (
            "search:\n  batch_size: {type: int, low: 4, high: 16, step: 4, log: true}\n",
            2,
            "log and step exclude each other",
        ),
        ("search:\n  batch_size: {type: int, low: 1.5, high: 4}\n", 2, "low must be a whole"),
        ("search:\n  last_relu: {type: categorical}\n", 2, "choices must be a list"),
        ("search:\n  last_relu: {type: categorical, choices: [1]}\n", 2, "true or false"),
        ("search:\n  last_relu: {type: categorical, choices: [true, true]}\n", 2, "twice"),
        ("search:\n  epochs: {type: int, low: 1, high: 9}\n", 2, "epochs is the same for all"),
        ("fixed:\n  epochs: ten\nsearch: {}\n", 2, "epochs must be a whole number, but got 'ten'"),
        (
            "fixed:\n  width1: 8\nsearch:\n  width1: {type: int, low: 4, high: 9}\n",
            4,
            "width1 is both fixed and searched",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9}\n  width1: {type: int}\n",
            3,
            "'width1' stands here twice",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {widht2: 3}}\n",
            2,
            "there is no setting 'widht2'; did you mean 'width2'?",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: 30}}\n"
            "  width2: {type: int, low: 4, high: 9}\n",
            2,
            "width2 is never 30 in this space",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: 5}}\n"
            "  width2: {type: int, low: 4, high: 9, when: {width1: 5}}\n",
            2,
            "width1, width2 depend on one another",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9}\nbaseline: {width1: 90}\n",
            3,
            "width1=90 is outside its search range",
        ),
        (RATE + "{type: [1], low: 1, high: 2}\n", 2, "type must be one of float"),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: big}}\n"
            "  width2: {type: int, low: 4, high: 9}\n",
            2,
            "width2 is never 'big' in this space",
        ),
        ("search: [1\n", 2, "this is not YAML"),
        ("- 1\n", 1, "expected `name: value` lines"),
    ],
)
def test_a_mistake_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert f"space.yaml, line {line}: " in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "search: {}\n", "fixed:\n  epochs: 3\n", "search: &a\n  w: *a\n"]
)
def test_a_space_must_search_something(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"space.yaml"):
        load(tmp_path, text)


def test_shipped_spaces_are_found_by_name() -> None:
    assert find_space("facade-cpu").name == "facade-cpu.yaml"
    with pytest.raises(InputError, match="did you mean 'facade-cpu'?"):
        find_space("facade-gpu")
    with pytest.raises(InputError, match=r"there is no search space nowhere.yaml"):
        find_space("nowhere.yaml")
