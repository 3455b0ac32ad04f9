"""Ray Tune actor of a trial: trains in its own process, or supervises workers that do."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from ray import tune

from study.errors import InputError, StorageError, TrialError
from study.records.trial_record import TrialRecord
from study.runner.faults import cause_of, keep_traceback, reason_of
from study.runner.trial import run_trial, trial_folder


class StudyTrial(tune.Trainable):
    """A trial; the actor is reused for one trial after another."""

    def setup(self, config: dict[str, Any]) -> None:
        """Prepare the trial, which starts from its last checkpoint if it has one."""
        self.folder = trial_folder(config)
        self.reports: Generator[dict[str, Any]] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch.

        An error that would recur is reported as `failure`; any other is raised, and Ray restarts
        the trial in a new process.
        """
        assert self.config is not None
        if self.reports is None:
            self.reports = self._begin(self.config)
        try:
            return next(self.reports, {"done": True})
        except StorageError as error:
            if not isinstance(self.folder.path, Path):
                raise  # perhaps this machine's connection: Ray restarts the trial
            return {"halt": str(error)}
        except (TrialError, InputError) as error:
            keep_traceback(self.folder, error)
            return {"failure": reason_of(error), "cause": cause_of(error), "done": True}
        except Exception as error:
            keep_traceback(self.folder, error)
            raise

    def _begin(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        if TrialRecord.load(self.folder.path).state != "running":
            return  # it failed too often, but Ray starts it anyway
        time.sleep(config.get("pause", 0))  # a larger process may end meanwhile
        if config["workers"] == 1:
            yield from run_trial(config)
            return
        from study.runner.train_workers import run_workers  # imports Ray Train

        yield from run_workers(config)

    def cleanup(self) -> None:
        """Release the network, and end the workers."""
        if self.reports is not None:
            self.reports.close()
        self.reports = None
