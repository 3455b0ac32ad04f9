"""Search spaces: what is read, and the error for every mistake, with its line."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from study.config import parse_assignments
from study.errors import InputError
from study.search.space_file import load_space
from study.search_space import SearchSpace, find_space
from study.task import TrainConfig, setting
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
        "learning_rate",
        "batch_size",
        "width1",
        "last_relu",
        "width5",
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
        (RATE + "{type: float, low: 0, high: 0.1, log: true}\n", 2, "log requires low > 0"),
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
            "log and step are mutually exclusive",
        ),
        ("search:\n  batch_size: {type: int, low: 1.5, high: 4}\n", 2, "low must be a whole"),
        ("search:\n  last_relu: {type: categorical}\n", 2, "choices must be a non-empty list"),
        ("search:\n  last_relu: {type: categorical, choices: [1]}\n", 2, "true or false"),
        ("search:\n  last_relu: {type: categorical, choices: [true, true]}\n", 2, "duplicate"),
        (
            "search:\n  epochs: {type: int, low: 1, high: 9}\n",
            2,
            "epochs cannot differ between trials",
        ),
        ("fixed:\n  epochs: ten\nsearch: {}\n", 2, "epochs must be a whole number, but got 'ten'"),
        (
            "fixed:\n  width1: 8\nsearch:\n  width1: {type: int, low: 4, high: 9}\n",
            4,
            "width1 is both fixed and searched",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9}\n  width1: {type: int}\n",
            3,
            "'width1' is defined twice",
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
            "width1, width2 depend on each other",
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
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: []}}\n",
            2,
            "width1: when: width2 needs a value, or a list of values",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: }}\n",
            2,
            "width1: when: width2 needs a value, or a list of values",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: {min: 16}}}\n",
            2,
            "width1: when: width2 needs a value, or a list of values",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: {width2: [[4]]}}\n",
            2,
            "width1: when: width2 needs a value, or a list of values",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9, when: }\n",
            2,
            "when must look like {other_parameter: value}",
        ),
        (  # of a setting that is the same for all trials, by default or by `fixed`
            "search:\n  block: {type: categorical, choices: [plain], when: {model: Unet}}\n"
            "  width1: {type: int, low: 4, high: 9}\n",
            2,
            "hourglass, unet, but got 'Unet'; did you mean 'unet'?",
        ),
        (
            "fixed: {norm: group}\nsearch:\n"
            "  width1: {type: int, low: 4, high: 9, when: {norm: grup}}\n",
            3,
            "batch, group, but got 'grup'; did you mean 'group'?",
        ),
        ("fixed: {epochs: 017}\nsearch: {}\n", 1, "but got '017'; write 17."),
        ("fixed: {epochs: 1:30}\nsearch: {}\n", 1, "a whole number, but got '1:30'."),
        ("fixed: {epochs: 2026-11-26}\nsearch: {}\n", 1, "whole number, but got '2026-11-26'."),
        ("fixed: {epochs: 8.5}\nsearch: {}\n", 1, "epochs must be a whole number, but got 8.5."),
        ("fixed: {epochs: '8'}\nsearch: {}\n", 1, "but got '8'; write it without quotes."),
        ("fixed:\n  epochs:\nsearch: {}\n", 2, "epochs must be a whole number, but got None."),
        ("fixed: {epochs: 1" + 30 * "0" + "}\nsearch: {}\n", 1, "epochs must be below 2^63"),
        ("fixed: {epochs: 1" + 5000 * "0" + "}\nsearch: {}\n", 1, "a whole number, but got"),
        ("fixed:\n  weight_decay: 0,5\nsearch: {}\n", 2, "but got '0,5'; write 0.5."),
        ("fixed: {weight_decay: .inf}\nsearch: {}\n", 1, "must be a finite number, but got inf"),
        ("fixed: {last_relu: 'no'}\nsearch: {}\n", 1, "must be true or false, but got 'no'"),
        (
            RATE + "{type: float, low: '0.1', high: 1}\n",
            2,
            "but got '0.1'; write it without quotes",
        ),
        (
            "search:\n  crop: {type: float, low: 0.5, high: 1, step: 5.0e-324}\n",
            2,
            "high must be low plus a multiple of step",
        ),
        (
            "search:\n  width1: {type: int, low: 4, high: 9}\n  width2:\n    type: int\n"
            "    low: 2\n    high: 8\n    low: 4\n",
            7,
            "'low' is defined twice, first on line 5",
        ),
        ("search:\n\twidth1: {type: int, low: 4, high: 9}\n", 2, "indent with spaces"),
        ("search:\n  a: *b\n", 2, "undefined alias 'b'"),
        ("search:\n  width1: {<<: 3, type: int}\n", 2, "`<<` takes an anchor's"),
        ("search:\n  width1: !!python/name:os.system {}\n", 2, "is not supported"),
        ("fixed:\n  epochs: \x00\n", 2, "unprintable character 0x0"),
        ("search: &a\n  width1: *a\n", 1, "this anchor contains itself"),
        ("search: " + 200 * "[" + 200 * "]", 1, "nested more than 20 levels deep"),
        ("search: [1\n", 2, "this is not valid YAML"),
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


def of_words() -> type[TrainConfig]:
    """Return a config with two settings of words and one of true and false."""
    words = ("no", "off", "on", "y", "1e3", "2026-11-26", "null")
    return dataclasses.make_dataclass(
        "Words",
        [
            ("mixing", str, setting("off", "of words", choices=words)),
            ("flag", bool, setting(True, "of true and false")),
            ("width", int, setting(8, "of whole numbers")),
            ("rate", float, setting(0.1, "of numbers")),
        ],
        bases=(TrainConfig,),
        frozen=True,
        kw_only=True,
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1.0e2", 100.0),
        ("1e2", 100.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1E+2", 100.0),
        ("1_000", 1000.0),
        ("0x10", 16.0),
        ("-0.5", -0.5),
        ("7", 7.0),
    ],
)
def test_numbers_are_read_as_a_person_means_them(tmp_path: Path, text: str, value: float) -> None:
    """In YAML and on the command line alike."""
    config = of_words()
    path = tmp_path / "space.yaml"
    path.write_text(f"search:\n  rate: {{type: categorical, choices: [{text}, 2.5]}}\n")
    space = load_space(path, config, {}, {})
    assert space.parameters[0].choices == (value, 2.5)
    assert parse_assignments([f"rate={text}"], config) == {"rate": value}
    path.write_text(f"search:\n  rate: {{type: float, low: {text}, high: 9999}}\n")
    assert load_space(path, config, {}, {}).parameters[0].low == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("1_000", 1000), ("0o17", 15), ("0x1F", 31), ("0b11", 3), ("1e3", 1000), ("-5", -5)],
)
def test_whole_numbers_are_read_as_a_person_means_them(
    tmp_path: Path, text: str, value: int
) -> None:
    config = of_words()
    path = tmp_path / "space.yaml"
    path.write_text(f"search:\n  width: {{type: int, low: {text}, high: 0xffff}}\n")
    parameter = load_space(path, config, {}, {}).parameters[0]
    assert (parameter.low, parameter.high) == (value, 65535) and type(parameter.low) is int
    assert parse_assignments([f"width={text}"], config) == {"width": value}


def test_words_are_words_where_a_setting_is_of_words(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "fixed: {flag: no}\nsearch:\n"
        "  mixing: {type: categorical, choices: [no, off, on, y, 1e3, 2026-11-26, 'null']}\n"
        "  rate: {type: float, low: 1e-3, high: 1, log: yes, when: {mixing: [no, off]}}\n"
        "  width: {type: int, low: 1, high: 9, when: {flag: off}}\n"
        "baseline: {mixing: on}\n"
    )
    space = load_space(path, of_words(), {}, {})
    mixing, rate, width = sorted(space.parameters, key=lambda p: p.name)
    assert mixing.choices == ("no", "off", "on", "y", "1e3", "2026-11-26", "null")
    assert {type(choice) for choice in mixing.choices} == {str}, "kept in JSON and pickles"
    assert rate.when == ("mixing", ("no", "off")) and rate.log is True
    assert space.fixed["flag"] is False and width.when is None and space.baseline["mixing"] == "on"
    path.write_text("search:\n  flag: {type: categorical, choices: [y, N]}\n")
    assert load_space(path, of_words(), {}, {}).parameters[0].choices == (True, False)


def test_merged_mappings_stand_below_their_own_entries(tmp_path: Path) -> None:
    space = load(
        tmp_path,
        "search:\n  width1: &width {type: int, low: 4, high: 32}\n"
        "  width2: {<<: *width, high: 64}\n  width3: {high: 16, <<: [*width]}\n  width4: *width\n",
    )
    assert [(p.low, p.high) for p in space.parameters] == [(4, 32), (4, 64), (4, 16), (4, 32)]


@pytest.mark.parametrize(
    "content",
    [
        GOOD.encode("utf-8-sig"),
        GOOD.encode("utf-16"),
        GOOD.replace("\n", "\r\n").encode(),
        GOOD.replace("\n", "\r").encode(),
    ],
)
def test_what_editors_of_other_systems_write_is_read(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    expected = load(tmp_path / "..", GOOD).describe()
    assert load_space(path, FacadeConfig, {}, {}).describe() == expected


def test_a_line_is_counted_in_a_file_of_another_system(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"search:\r\n  width1: {type: int, low: 4, high: 9}\r\n  widht2: {}\r\n")
    with pytest.raises(InputError, match="line 3: there is no setting 'widht2'"):
        load_space(path, FacadeConfig, {}, {})


def test_aliases_have_a_limit(tmp_path: Path) -> None:
    lines = ["search:", "  width1: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"  width{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    begin = time.process_time()
    with pytest.raises(InputError, match=r"space.yaml, line \d: .*more than 10,000 values"):
        load(tmp_path, "\n".join(lines) + "\n")
    chain = ["search:", "  width1: &a0 [1]"]
    chain += [f"  width{n}: &a{n} [*a{n - 1}]" for n in range(1, 3000)]
    with pytest.raises(InputError, match=r"space.yaml, line \d+: .*20 levels"):
        load(tmp_path, "\n".join(chain) + "\n")
    assert time.process_time() - begin < 60, "they must not be written out"


@pytest.mark.parametrize("content", [b"# " + bytes(200_000), b"search: \xff\n"])
def test_a_file_that_is_no_text_of_a_search_space(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"space.yaml (is not a search space|cannot be read)"):
        load_space(path, FacadeConfig, {}, {})


PIECES = st.sampled_from(
    [
        "search:",
        "fixed:",
        "baseline:",
        "\n",
        "\n  ",
        "\n    ",
        " ",
        ": ",
        ", ",
        "{",
        "}",
        "[",
        "]",
        "width1",
        "learning_rate",
        "model",
        "epochs",
        "last_relu",
        "type",
        "float",
        "int",
        "categorical",
        "low",
        "high",
        "log",
        "step",
        "choices",
        "when",
        "1",
        "0.5",
        "1e-3",
        "9e999",
        "no",
        "true",
        "null",
        "&a ",
        "*a",
        "<<",
        "!!set",
        "'",
        '"',
        "#",
        "|",
        ">",
        "- ",
        "? ",
        "\t",
        "-",
        "unet",
        "hourglass",
        "%",
        "---",
        "...",
        "\ufeff",
        "\x85",
        "0o7",
        ".nan",
        "1_0",
    ]
)


@settings(max_examples=400, deadline=60_000, derandomize=True)
@given(text=st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join))
def test_any_text_gives_a_space_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        space = load_space(path, FacadeConfig, {}, {})
    except InputError as error:
        assert str(path) in str(error) and len(str(error).splitlines()) == 1
    else:
        assert space.parameters and SearchSpace.of(space.describe()) == space


def test_shipped_spaces_are_found_by_name() -> None:
    assert find_space("facade-cpu").name == "facade-cpu.yaml"
    with pytest.raises(InputError, match="did you mean 'facade-cpu'?"):
        find_space("facade-gpu")
    with pytest.raises(InputError, match=r"there is no search space nowhere.yaml"):
        find_space("nowhere.yaml")
    for name in ("x" * 5000, "a\0b", "x" * 5000 + ".yaml"):
        with pytest.raises(InputError, match="there is no search space"):
            find_space(name)
