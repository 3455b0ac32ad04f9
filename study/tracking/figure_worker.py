"""Draws figures of trials and the report in a process that takes what time training leaves.

Matplotlib keeps Python busy for tenths of a second, in which the driver could not hear its trials.

    drawing = Drawing(drawn=print)                       # called with the job that is done
    drawing.request(trial, "facade", folder, note)       # None: drawn later
    drawing.request_report(path)                         # the same, of the study's page
    drawing.close()

The process, this module run by its name, reads a JSON object per line and answers each with one. It
ends when its input does, so it outlives no driver, not even one that is killed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from study.errors import StorageError
from study.figures.matplotlib_setup import ignore_user_settings
from study.figures.run_figures import draw_run
from study.formatting import pixels, sample_mark
from study.records.run_folder import RunFolder
from study.storage.paths import AnyPath, as_path
from study.task import Task, load_task
from study.tracking.outbox import Job, ReportJob, TrialJob

if TYPE_CHECKING:
    from study.records.study_record import StudyRecord
    from study.records.trial_record import TrialRecord

NICENESS = 10
ANSWER_SECONDS = 100.0  # for what takes seconds; at its end a study waits a little longer


class Drawing:
    """Starts the process when it is needed, and again when it is gone.

    Args:
        drawn: Told, by another thread, what is there: a trial's figures, or the report.
    """

    def __init__(self, drawn: Callable[[Job], None]) -> None:
        self._drawn = drawn
        self._wanted: SimpleQueue[tuple[Job, str]] = SimpleQueue()
        self._asked: set[Job] = set()
        self._answers: dict[Job, dict[str, Any]] = {}
        self._process: subprocess.Popen[str] | None = None
        threading.Thread(target=self._work, name="drawing", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether there are figures that were asked for and not fetched."""
        return bool(self._asked or self._answers)

    def request(
        self,
        trial: TrialRecord,
        task: str,
        folder: RunFolder,
        note: str,
    ) -> list[str] | None:
        """Ask for learning curves and the figures of the best epoch, or for what became of them.

        Args:
            trial: What is drawn of.
            task: Its name.
            folder: Of the trial.
            note: Line below the titles.

        Returns:
            What was found damaged, in sentences; None if the figures are still to be drawn, which
            `drawn` will tell.

        Raises:
            StorageError: The disk is full.
        """
        about = {"metric": trial.metric, "mode": trial.mode, "history": trial.history}
        wanted = {"task": task, "folder": str(folder.path), "note": note, **about}
        return self._fetch(TrialJob(trial.number), wanted)

    def request_report(self, path: AnyPath) -> list[str] | None:
        """Ask for the page of a study, written after all figures that were asked for before.

        Args:
            path: The study's folder.

        Returns:
            As `request`.

        Raises:
            StorageError: The disk is full.
        """
        return self._fetch(ReportJob(), {"report": str(path)})

    def _fetch(self, job: Job, wanted: dict[str, Any]) -> list[str] | None:
        if job in self._answers:
            answer = self._answers.pop(job)
            if "full" in answer:
                raise StorageError(answer["full"])
            return list(answer["damage"])
        if job not in self._asked:
            self._asked.add(job)
            self._wanted.put((job, json.dumps(wanted)))
        return None

    def forget(self, job: Job) -> None:
        """Have it drawn anew when it is asked for again."""
        self._asked.discard(job)
        self._answers.pop(job, None)

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it is gone already
                self._process.stdin.close()

    def _work(self) -> None:
        while True:
            job, line = self._wanted.get()
            answer = self._ask(line) or self._ask(line)
            what = "no report" if isinstance(job, ReportJob) else f"{job}: no figures"
            died = f"{what}, the process that draws died twice."
            self._answers[job] = json.loads(answer) if answer else {"damage": [died]}
            self._asked.discard(job)
            self._drawn(job)

    def _ask(self, line: str) -> str:
        """Return the answer; nothing if the process died, or had to be killed for its silence."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        limit = threading.Timer(ANSWER_SECONDS, self._process.kill)
        limit.daemon = True
        limit.start()
        with suppress(OSError):  # of writing to a process that is gone
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        limit.cancel()
        if not answer:  # its end is heard before it counts as ended
            self._process.kill()
            self._process.wait()
        return answer


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the driver, which has figures to wait for
    )


def figure_note(task: Task, record: StudyRecord, trial: TrialRecord) -> str:
    """Return the line that says what the figures of a trial show."""
    dataset, epochs = record.manifest["dataset"], record.manifest["epochs"]
    size = record.config(trial).get("image_size")
    parts = [
        task.name,
        sample_mark(dataset),
        f"trial {trial.number}",
        "validation",
        pixels(size) if size else "",
        f"epoch {trial.best_epoch} of {epochs}",
    ]
    return ", ".join(filter(None, parts))


def main() -> None:
    """Answer requests until there are no more."""
    os.nice(NICENESS)
    ignore_user_settings()
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            out.write(json.dumps(_answer(json.loads(line))) + "\n")
            out.flush()


def _answer(wanted: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"damage": _report(wanted) if "report" in wanted else _draw(wanted)}
    except StorageError as error:
        return {"full": str(error)}


def _draw(wanted: dict[str, Any]) -> list[str]:
    folder = RunFolder(as_path(wanted["folder"]))
    try:
        about = [wanted[key] for key in ("metric", "note", "history", "mode")]
        draw_run(folder, load_task(wanted["task"]), *about)
    except StorageError:
        raise
    except Exception as error:  # a task's own; it must not keep the metrics from being sent
        folder.damage.append(f"{folder.path}: no figures ({type(error).__name__}: {error}).")
    return folder.damage


def _report(wanted: dict[str, Any]) -> list[str]:
    from study.records.study_record import StudyRecord
    from study.reporting import report_page

    path = as_path(wanted["report"])
    try:
        report_page.write(StudyRecord.read(path))
    except StorageError:
        raise
    except Exception as error:  # for a page nothing else may suffer
        return [f"{path}: no report ({type(error).__name__}: {error})."]
    return []


if __name__ == "__main__":
    main()
