"""What can go wrong in a trial, told apart by what helps.

| fault | what happens |
|---|---|
| out of memory | batches in twice as many parts, from the last checkpoint |
| exception, process or machine that died or hangs | again, `--max-failures` times in one epoch |
| loss that is not finite, wrong input | failed: again it would end the same |
| disk full | no trial's fault: the study stops, and the same command goes on |
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Sequence
from contextlib import suppress

from study.errors import StorageError, TrialError
from study.files import write_text
from study.redaction import redacted
from study.run_folder import RunFolder
from study.trial_record import TrialRecord

NUM_ALIKE = 3  # so many first trials that fail alike end a study

# How torch, CUDA and Ray say that memory was short.
OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|cannot allocate memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|running low on memory|OutOfMemory",
    re.IGNORECASE,
)


def out_of_memory(error: BaseException | str) -> bool:
    """Return whether an error, or the text of one, means that memory was short."""
    if isinstance(error, MemoryError):
        return True
    return OUT_OF_MEMORY.search(str(error)) is not None


def reason_of(error: BaseException) -> str:
    """Return one line for people."""
    text = str(error).strip()
    line = redacted(text.splitlines()[0]) if text else ""
    return line if isinstance(error, TrialError) else f"{type(error).__name__}: {line}"


def keep_traceback(folder: RunFolder, error: BaseException) -> None:
    """Write the traceback of an error to `error.txt`."""
    folder.path.mkdir(parents=True, exist_ok=True)
    with suppress(StorageError):  # the error itself says more
        write_text(folder.error_file, redacted("".join(traceback.format_exception(error))))


def root_cause(error: BaseException) -> BaseException:
    """Return what a worker raised, out of the errors that Ray wraps around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return root_cause(next(iter(failures.values())))
    cause = getattr(error, "cause", None) or getattr(error, "_base_exc", None)
    if not isinstance(cause, BaseException):
        return error
    if hasattr(error, "_traceback_str"):  # the worker's, which did not come along
        cause.add_note(error._traceback_str)
    return root_cause(cause)


def common_failure(trials: Sequence[TrialRecord]) -> str | None:
    """Return the reason for which all of the first trials failed, None if there is no such.

    Trials that were stopped early do not count, and there is no such reason if a trial got
    further than those that failed. Numbers in reasons may differ.
    """
    first = [trial for trial in trials if trial.state != "stopped"][:NUM_ALIKE]
    if len(first) < NUM_ALIKE or any(trial.state != "failed" for trial in first):
        return None
    reasons = {re.sub(r"[-+.\d]*\d(e[-+]?\d+)?", "#", trial.reason or "") for trial in first}
    furthest = max(trial.epochs for trial in first)
    if len(reasons) > 1 or any(trial.epochs > furthest for trial in trials):
        return None
    return first[0].reason
