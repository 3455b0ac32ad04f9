"""The Ray Tune actor of a trial: it trains itself, or watches over the workers that do."""

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
    """A trial; the actor serves one after another."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the trial, from its last checkpoint if it has one."""
        self.folder = trial_folder(config)
        self.reports: Generator[dict[str, Any]] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch.

        What would fail again is reported as `failure`; anything else is raised, and Ray starts the
        trial again in a new process.
        """
        assert self.config is not None
        if self.reports is None:
            self.reports = self._begin(self.config)
        try:
            return next(self.reports, {"done": True})
        except StorageError as error:
            if not isinstance(self.folder.path, Path):
                raise  # one machine's way to the store, perhaps: Ray starts the trial again
            return {"halt": str(error)}
        except (TrialError, InputError) as error:
            keep_traceback(self.folder, error)
            return {"failure": reason_of(error), "cause": cause_of(error), "done": True}
        except Exception as error:
            keep_traceback(self.folder, error)
            raise

    def _begin(self, config: dict[str, Any]) -> Generator[dict[str, Any]]:
        if TrialRecord.load(self.folder.path).state != "running":
            return  # it failed too often, and Ray starts it all the same
        time.sleep(config.get("pause", 0))  # until something larger has perhaps ended
        if config["workers"] == 1:
            yield from run_trial(config)
            return
        from study.runner.train_workers import run_workers  # takes Ray Train to import

        yield from run_workers(config)

    def cleanup(self) -> None:
        """Let go of the network, and end the workers."""
        if self.reports is not None:
            self.reports.close()
        self.reports = None
