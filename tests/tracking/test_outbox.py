"""The outbox of tracking: each job once, oldest first, until it is closed and empty."""

from __future__ import annotations

import threading

import pytest

from study.tracking import outbox
from study.tracking.outbox import Outbox, ReportJob, TrialJob


def never() -> bool:
    return False


def test_a_job_waits_once_and_the_oldest_is_taken_first() -> None:
    box = Outbox()
    for number in (3, 1, 3, 2):
        box.put(TrialJob(number))
    box.close(ReportJob())
    taken = [str(box.take(never)) for _ in range(5)]
    assert taken == ["trial 3", "trial 1", "trial 2", "report", "None"]


def test_what_failed_comes_last_and_at_closing_not_at_all(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(outbox, "RETRY_SECONDS", 0.01)
    box = Outbox()
    box.put(TrialJob(0))
    box.put(TrialJob(1))
    assert box.take(never) == TrialJob(0)
    box.failed(TrialJob(0), "away")
    assert [box.take(never), box.take(never)] == [TrialJob(1), TrialJob(0)]
    box.succeeded()
    assert box.trouble is None and not box.unsent
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "tracking failed",
        "tracking is back",
    ]
    box.put(TrialJob(2))
    box.close(ReportJob())
    assert box.take(never) == TrialJob(2)
    box.failed(TrialJob(2), "away again")
    assert box.unsent == {TrialJob(2): "away again"}
    box.give_up()
    assert box.unsent.keys() == {TrialJob(2), ReportJob()} and box.take(never) is None


def test_a_closed_one_waits_for_what_is_still_to_come() -> None:
    box, coming = Outbox(), True
    box.close()
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(box.take(lambda: coming)))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    box.put(TrialJob(5))
    thread.join(10)
    assert taken == [TrialJob(5)]
    coming = False
    assert box.take(lambda: coming) is None
