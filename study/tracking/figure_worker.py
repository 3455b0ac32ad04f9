"""Draws the trials' figures and the report in a separate, low-priority process.

Matplotlib blocks Python for tenths of a second, during which the driver could not react to trials.

    drawing = Drawing(drawn=print)                       # called with each job that is done
    drawing.request(trial, "facade", folder, note)       # None: drawn later
    drawing.request_report(path)                         # the same, for the study's page
    drawing.close()

The process runs this module with `-m`, reads a JSON object per line and answers each with one.
It exits at the end of its input, so it never outlives the driver, even if that is killed.
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
ANSWER_SECONDS = 100.0  # for work of a few seconds; at its end a study waits slightly longer


class Drawing:
    """Starts the drawing process on demand, and restarts it if it died.

    Args:
        drawn: Called from another thread with each job that is done: figures or the report.
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
        """Whether any requested figures have not been fetched."""
        return bool(self._asked or self._answers)

    def request(
        self,
        trial: TrialRecord,
        task: str,
        folder: RunFolder,
        note: str,
    ) -> list[str] | None:
        """Request the learning curves and best-epoch figures of a trial, or fetch the result.

        Args:
            trial: The trial.
            task: Name of its task.
            folder: Of the trial.
            note: Line below the titles.

        Returns:
            Sentences about corrupted files; None if the figures are not drawn yet (`drawn` is
            called when they are).

        Raises:
            StorageError: The disk is full.
        """
        about = {"metric": trial.metric, "mode": trial.mode, "history": trial.history}
        wanted = {"task": task, "folder": str(folder.path), "note": note, **about}
        return self._fetch(TrialJob(trial.number), wanted)

    def request_report(self, path: AnyPath) -> list[str] | None:
        """Request a study's page; it is written after all figures requested before.

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
        """Draw the job again the next time it is requested."""
        self._asked.discard(job)
        self._answers.pop(job, None)

    def close(self) -> None:
        """End the process."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):  # it has already exited
                self._process.stdin.close()

    def _work(self) -> None:
        while True:
            job, line = self._wanted.get()
            answer = self._ask(line) or self._ask(line)
            what = "no report" if isinstance(job, ReportJob) else f"{job}: no figures"
            died = f"{what}: the drawing process died twice."
            self._answers[job] = json.loads(answer) if answer else {"damage": [died]}
            self._asked.discard(job)
            self._drawn(job)

    def _ask(self, line: str) -> str:
        """Return the answer; empty if the process died, or timed out and was killed."""
        if self._process is None or self._process.poll() is not None:
            self._process = _start()
        assert self._process.stdin is not None and self._process.stdout is not None
        answer = ""
        limit = threading.Timer(ANSWER_SECONDS, self._process.kill)
        limit.daemon = True
        limit.start()
        with suppress(OSError):  # the process has exited
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        limit.cancel()
        if not answer:  # its pipe closes before the process is reaped
            self._process.kill()
            self._process.wait()
        return answer


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C goes to the driver only, which waits for the figures
    )


def figure_note(task: Task, record: StudyRecord, trial: TrialRecord) -> str:
    """Return the line below the titles of a trial's figures: what they show."""
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
    """Answer requests until the input ends."""
    os.nice(NICENESS)
    ignore_user_settings()
    answers = os.dup(1)
    os.dup2(2, 1)  # keep what libraries print out of the answers
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
    except Exception as error:  # from the task's code; the metrics must still be sent
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
    except Exception as error:  # a failed page must not affect anything else
        return [f"{path}: no report ({type(error).__name__}: {error})."]
    return []


if __name__ == "__main__":
    main()
