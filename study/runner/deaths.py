"""Deaths of trial processes and their causes, read from Ray Tune's errors."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path
from typing import Any

from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError

from study.records.trial_record import Cause
from study.runner.faults import MemoryKill, cause_of, out_of_memory, root_cause


@dataclasses.dataclass(frozen=True, kw_only=True)
class Death:
    """Cause of the end of a trial process.

    Attributes:
        reason: Phrase for people.
        cause: The same for programs.
        kill: Set if Ray's memory monitor killed it.
    """

    reason: str
    cause: Cause
    kill: MemoryKill | None = None

    @staticmethod
    def of(trial: Any, actor: str) -> Death:
        """Return why the last process of a Ray Tune trial ended.

        Args:
            trial: Ray Tune's trial.
            actor: Id of the process's actor, in hexadecimal.
        """
        file = trial.error_file  # Ray appends to it; `get_error` reads a later copy
        text = Path(file).read_text().strip().rpartition("Failure # ")[2] if file else "unknown"
        if (kill := MemoryKill.of(text, actor)) is not None:
            return Death(reason=str(kill), cause="out_of_memory", kill=kill)
        error = _error(trial, text)
        if isinstance(error, ActorUnavailableError):
            return Death(reason="its process or machine was lost", cause="lost")
        cause: Cause = "error" if error is None else cause_of(error)
        short = cause == "out_of_memory" or out_of_memory(text)
        if isinstance(error, RayActorError):
            if short:
                return Death(reason="its process ran out of memory", cause="out_of_memory")
            return Death(reason="its process died", cause="died")
        return Death(reason=text.splitlines()[-1], cause="out_of_memory" if short else cause)


def _error(trial: Any, text: str) -> BaseException | None:
    """Return the error whose text Ray Tune has written; None if Tune has not kept it.

    Tune keeps Ray's errors, which wrap the exception of the trial. If one cannot be unpickled, only
    its text is available.
    """
    file = trial.pickled_error_file
    if not file:
        return None
    try:
        error: BaseException = pickle.loads(Path(file).read_bytes())
    except Exception:  # a constructor in it raises, or a module is missing
        return None
    return root_cause(error) if str(error).strip() in text else None  # else of an earlier failure


def take_memory_kills_as_deaths() -> None:
    """Make Ray Tune treat an out-of-memory kill as the death of an actor.

    Ray 2.60 raises an error for it that Tune does not handle, which would end the whole study.
    """
    manager: Any = RayActorManager
    if hasattr(manager, "study_original"):
        return
    manager.study_original = manager._actor_task_failed

    def failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=str(exception))
        self.study_original(tracked_actor_task=tracked_actor_task, exception=exception)

    manager._actor_task_failed = failed
