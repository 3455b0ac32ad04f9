"""Faults of a trial, classified by how they are handled.

| fault | handling |
|---|---|
| out of memory | resumes from the last checkpoint with twice as many micro-batches |
| killed by Ray's memory monitor beside a larger process | retried after a pause |
| exception; process or machine died or hangs | retried, up to `--max-failures` times per epoch |
| loss not finite, invalid input | failed: a retry would end the same way |
| disk full | not the trial's fault: the study stops; the same command resumes it |
"""

from __future__ import annotations

import dataclasses
import re
import traceback
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from study.errors import Diverged, InputError, StorageError, TrialError
from study.records.run_folder import RunFolder
from study.records.trial_record import Cause, TrialRecord
from study.storage.files import write_text
from study.system.redaction import redacted

NUM_ALIKE = 3  # the study stops if this many first trials fail for the same reason

# Out-of-memory errors of torch, CUDA and Ray.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|running low on memory|OutOfMemory",
    re.IGNORECASE,
)


# A process is blamed for running out of memory if it used at least this share of what the largest
# other process used.
BLAME = 0.8
# The format of Ray 2.60 when its memory monitor has killed processes.
MEMORY = re.compile(r"was ([\d.]+)GB used / ([\d.]+)GB limit")
CONSIDERED = re.compile(
    r"(Selected to kill: )?\((?:Actor\((\w+)\): )?[^\n]*?pid=(\d+), actual memory used=([\d.]+)GB"
)
USER = re.compile(r"^(\d+)\t([\d.]+)\t", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryKill:
    """A process killed by Ray's memory monitor.

    Attributes:
        own: GB used by the process.
        largest: GB used by the largest other process.
        used: GB in use on its machine.
        limit: GB available on its machine.
    """

    own: float
    largest: float
    used: float
    limit: float

    @staticmethod
    def of(text: str, actor: str = "") -> MemoryKill | None:
        """Parse the text of an error; None if it is another kind of error.

        Args:
            text: The error's text.
            actor: Id of the process's actor, in hexadecimal; by default the largest killed process
                is taken.
        """
        memory = MEMORY.search(text)
        if memory is None:
            return None
        considered = CONSIDERED.findall(text)
        ended = [(float(gb), pid, name) for selected, name, pid, gb in considered if selected]
        own, pid, _ = max([e for e in ended if e[2] == actor] or ended or [(0.0, "", "")])
        others = [(pid, gb) for _, _, pid, gb in considered] + USER.findall(text)
        return MemoryKill(
            own=own,
            largest=max((float(gb) for other, gb in others if other != pid), default=0.0),
            used=float(memory[1]),
            limit=float(memory[2]),
        )

    @property
    def blamed(self) -> bool:
        """Whether the process itself used much of the memory."""
        return self.own >= BLAME * self.largest

    def __str__(self) -> str:
        if self.blamed:
            lower, beside = "batch_size, image_size or --max-concurrent", ""
        else:
            lower, beside = "--max-concurrent", f" (another used {self.largest:.1f} GB)"
        return (
            f"out of memory: {self.used:.1f} of {self.limit:.1f} GB in use, {self.own:.1f} GB by "
            f"its process{beside}; lower {lower}"
        )


def out_of_memory(error: BaseException | str) -> bool:
    """Return whether an error, or the text of one, is an out-of-memory error."""
    if isinstance(error, MemoryError):
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None


def reason_of(error: BaseException) -> str:
    """Return the reason for a failure, in one line."""
    text = str(error).strip()
    if (kill := MemoryKill.of(text)) is not None:
        return str(kill)
    line = redacted(text.splitlines()[0]) if text else ""
    return line if isinstance(error, TrialError) else f"{type(error).__name__}: {line}"


def cause_of(error: BaseException) -> Cause:
    """Return the cause of a trial's failure, given its exception."""
    if isinstance(error, Diverged):
        return "diverged"
    if isinstance(error, InputError):
        return "input"
    return "out_of_memory" if out_of_memory(error) else "error"


def keep_traceback(folder: RunFolder, error: BaseException) -> None:
    """Write the traceback of an error to `error.txt`."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with suppress(StorageError):  # the original error matters more
        write_text(folder.error_file, redacted("".join(traceback.format_exception(error))))


def root_cause(error: BaseException) -> BaseException:
    """Return the exception that a worker raised, unwrapped from Ray's errors."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return root_cause(next(iter(failures.values())))
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
    if not isinstance(cause, BaseException):
        return error
    if hasattr(error, "_traceback_str"):  # the worker's traceback, which is not pickled
        cause.add_note(error._traceback_str)
    return root_cause(cause)


def common_failure(trials: Sequence[TrialRecord]) -> str | None:
    """Return the reason for which all of the first trials failed; None if there is none.

    Trials stopped early do not count. None also if a trial got further than those that failed.
    Numbers in the reasons may differ.
    """
    counted = (trial for trial in trials if trial.state != "stopped")
    first = list(islice(counted, NUM_ALIKE))
    if len(first) < NUM_ALIKE or any(trial.state != "failed" for trial in first):
        return None
    reasons = {re.sub(r"[-+.\d]*\d(e[-+]?\d+)?", "#", trial.reason or "") for trial in first}
    furthest = max(trial.epochs for trial in first)
    if len(reasons) > 1 or any(trial.epochs > furthest for trial in trials):
        return None
    return first[0].reason
