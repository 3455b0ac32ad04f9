"""Ray on this machine; that it starts in truth is in all tests of studies."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from study import ray_session
from study.errors import StartError
from study.resources import Resources

RESOURCES = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=2)


class Slow:
    """A `ray.init` that takes too long so many times, as Ray 2.60 says it."""

    def __init__(self, times: int, text: str) -> None:
        self.left, self.calls, self.text = times, 0, text

    def __call__(self, **options: Any) -> None:
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise Exception(self.text)


@pytest.mark.parametrize("times", [0, 1, 2, 3])
def test_ray_is_started_again_where_the_machine_is_busy(
    times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow(times, "The current node timed out during startup. This could happen because")
    monkeypatch.setattr(ray, "init", slow)
    if times < 3:
        ray_session.start_ray(RESOURCES)
    else:
        with pytest.raises(StartError, match="in 3 attempts; end other programs"):
            ray_session.start_ray(RESOURCES)
    assert slow.calls == min(times + 1, 3)


def test_what_else_goes_wrong_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "init", Slow(1, "the version is another one"))
    with pytest.raises(Exception, match="the version is another one"):
        ray_session.start_ray(RESOURCES)
