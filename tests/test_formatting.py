"""How people read numbers, durations and tables."""

from __future__ import annotations

import pytest

from study.formatting import (
    dollars,
    duration,
    metric_name,
    metric_value,
    number,
    pixels,
    sample_mark,
    score,
    settings_line,
    sparkline,
    table,
    with_interval,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3900, "1 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_numbers() -> None:
    assert (number(0.00012345), number(128), number("adam"), number(True)) == (
        "0.000123",
        "128",
        "adam",
        "True",
    )
    assert settings_line({"rate": 0.1, "width": 8}) == "rate=0.1 width=8"
    assert (score(0.5), score(None), metric_value(0.5), metric_value(1234567)) == (
        "0.5000",
        "-",
        "0.5000",
        "1,234,567",
    )
    assert with_interval(0.5, (0.25, 0.75)) == "0.5000 [0.2500, 0.7500]"
    assert with_interval(0.5, None) == with_interval(0.5, []) == "0.5000"
    assert (dollars(1234.5), dollars(0.0123)) == ("$1,234.50", "$0.0123")


def test_names_sizes_and_the_mark_of_drawn_data() -> None:
    assert metric_name("val/ap/window") == "ap/window" and metric_name("num_params") == "num_params"
    assert pixels(256) == "256x256 pixels" and pixels(240, 320) == "240x320 pixels"
    assert sample_mark("real") == "" and "SAMPLE DATA" in sample_mark("sample")


def test_tables_and_sparklines_fit() -> None:
    assert table(["a", "bb"], [["long", "1"], ["x", ""]]) == "a     bb\nlong   1\nx"
    assert sparkline([], 5) == "" and sparkline([1.0], 5) == "▁"
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline(list(range(100)), 10)) == 10
