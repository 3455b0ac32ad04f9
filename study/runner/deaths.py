"""Deaths of trials' processes, and their causes as Ray Tune reports them."""

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
    """Why the process of a trial ended.

    Attributes:
        reason: A phrase for people.
        cause: The same for programs.
        kill: Set if Ray's memory monitor ended it.
    """

    reason: str
    cause: Cause
    kill: MemoryKill | None = None

    @staticmethod
    def of(trial: Any, actor: str) -> Death:
        """Return why the last process of one of Tune's trials ended.

        Args:
            trial: Ray Tune's.
            actor: The id of the process's actor in hexadecimal.
        """
        file = trial.error_file  # Ray adds to it, and copies it for `get_error` only later
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
    """Return the error of which Ray Tune has written the text; None if Tune has not kept it.

    It keeps errors of Ray, which hold what a trial raised; one that cannot be unpickled has text
    alone.
    """
    file = trial.pickled_error_file
    if not file:
        return None
    try:
        error: BaseException = pickle.loads(Path(file).read_bytes())
    except Exception:  # what the constructor of a class in it raises, or a module that is missing
        return None
    return root_cause(error) if str(error).strip() in text else None  # else an earlier one


def take_memory_kills_as_deaths() -> None:
    """Have Ray Tune take the end of an actor for want of memory for the death that it is.

    Ray 2.60 says it with an error that its Tune does not know and ends the whole study for.
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
