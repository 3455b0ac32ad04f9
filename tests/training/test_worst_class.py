"""The worst class's score, by hand."""

from __future__ import annotations

from study.tasks.facade import TASK as FACADE
from study.tasks.fashion import TASK as FASHION
from study.training.worst_class import worst_class


def test_the_worst_class_by_hand() -> None:
    scores = {"ap/others": 0.7, "ap/pillar": 0.2, "ap/window": 0.9, "iou/pillar": 0.1}
    assert worst_class(FACADE, scores) == {"min_ap": 0.2}, "absent classes do not count"
    assert worst_class(FASHION, {"accuracy/T-shirt-top": 0.4}) == {"min_accuracy": 0.4}
    assert worst_class(FACADE, {}) == {}
