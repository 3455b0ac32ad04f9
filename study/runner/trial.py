"""Trial within one process: drives `study.training.loop.fit` and saves to the trial's folder.

`study.runner.trainable` runs it in its own process or in workers. It sends reports to the study:

    {"epoch": 3, "metrics": {...}}  an epoch was saved
    {"note": "..."}                 a message for the user
    {"interrupted": True}           saved in the middle of an epoch, because the study stops
    {"failure": "...", "cause": "diverged", "done": True}  failed; a retry would fail too
    {"group": "..."}                placement group of the trial's workers, in hexadecimal
    {"halt": "..."}                 the disk is full: the study must stop
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from study.config import build_config
from study.datasets.source import DataSource
from study.errors import StorageError
from study.objective import Goal
from study.records.run_folder import RunFolder
from study.records.trial_record import TrialRecord
from study.runner.faults import MemoryKill, out_of_memory, reason_of
from study.storage.files import lock
from study.storage.paths import AnyPath, as_path
from study.task import load_task

STOP_CHECK_SECONDS = 0.5
REMOTE_CHECK_SECONDS = 2.0  # in an object store, where a check takes about 20 ms
TURN_SECONDS = 0.1
LOCK_SECONDS = 120.0  # to wait for a killed driver's worker to die


def trial_folder(config: dict[str, Any]) -> RunFolder:
    """Return the folder of the trial with this Ray config."""
    return RunFolder(as_path(config["folder"]) / f"{config['trial']:04d}")


def halved(config: dict[str, Any], micro_batches: int, error: Exception) -> dict[str, Any] | None:
    """Return the report of a trial that resumes with smaller micro-batches; None if it cannot.

    Args:
        config: The trial's Ray config.
        micro_batches: Micro-batches per batch so far.
        error: The exception.
    """
    share = config["settings"].get("batch_size", 1) // config["workers"]
    kill = MemoryKill.of(str(error))
    twice = 2 * micro_batches
    if not out_of_memory(error) or twice > share or (kill is not None and not kill.blamed):
        return None
    note = f"out of memory ({reason_of(error)}); resumes with each batch in {twice} micro-batches"
    return {"note": note, "micro_batches": twice}


def run_trial(config: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Train a trial from its Ray config; every epoch is saved before it is reported.

    Epochs that were saved but not reported, because the driver was killed in between, are reported
    first. A trial that runs out of memory resumes with twice as many micro-batches. Every worker of
    a trial runs this and reports the same; only rank 0 reads and writes the folder.
    """
    from study.training import distributed

    folder = trial_folder(config)
    first, alone = distributed.rank() == 0, config["workers"] == 1
    stop = _StopFile(as_path(config["folder"]).parent / ".stop")
    with ExitStack() as held:
        if first and isinstance(folder.path, Path):
            # A worker of a killed driver may still be about to save. In an object store, which
            # has no locks, that is harmless: both save the same.
            held.enter_context(lock(folder.path / ".lock", LOCK_SECONDS))
        begin = (TrialRecord.load(folder.path), folder.last_state()) if first else None
        known, state = distributed.broadcast(begin)  # type: ignore[misc]
        micro_batches = known.micro_batches
        for text in distributed.broadcast(folder.damage):
            goes_on = f"resumes from epoch {len(state['history']) + 1}" if state else "starts over"
            yield {"note": f"{text} The trial {goes_on}."}
        for row in state["history"][known.epochs :] if state else []:
            yield {"epoch": int(row["epoch"]), "metrics": row}
        while True:
            micro_batches = max(micro_batches, state.get("parts", 1) if state else 1)
            try:
                yield from _train(config, folder, state, micro_batches, stop, known)
                break
            except Exception as error:
                retry = halved(config, micro_batches, error)
                if retry is None or not alone:  # other ranks wait within their batch
                    raise
            # Outside the handler, whose traceback keeps the network in memory.
            micro_batches = retry["micro_batches"]
            state = folder.last_state()
            yield retry
        while alone and stop():
            time.sleep(STOP_CHECK_SECONDS)  # until the driver ends this process
            yield {"interrupted": True}


def _train(
    config: dict[str, Any],
    folder: RunFolder,
    state: dict[str, Any] | None,
    micro_batches: int,
    stop: _StopFile,
    known: TrialRecord,
) -> Iterator[dict[str, Any]]:
    if not config["gpus_per_worker"]:
        # Ray leaves the GPUs visible to workers without GPUs.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from study.training import distributed
    from study.training.loop import Interrupted, fit

    torch.set_num_threads(max(1, int(config["cpus_per_worker"])))
    task = load_task(config["task"])
    source = DataSource(
        dataset=config["dataset"],
        data_dir=Path(config["data_dir"]),
        cache_dir=Path(config["cache_dir"]),
    )
    settings = build_config(task.config_class, config["settings"])
    try:
        goal = Goal.of(config["goal"])
        for result in fit(
            task, settings, source, goal=goal, resume=state, micro_batches=micro_batches, stop=stop
        ):
            if distributed.rank() == 0:
                _await_turn(config, folder, result.epoch)
                if _is_overtaken(folder, known, result.epoch):
                    return
                folder.record(result, config["facts"])
            row = result.state["history"][-1]
            done = result.epoch >= settings.epochs
            yield {"epoch": result.epoch, "metrics": row, "done": done}
    except Interrupted as interrupted:
        if distributed.rank() == 0:
            folder.record_part(interrupted.state, config["facts"])
        yield {"interrupted": True}


def _await_turn(config: dict[str, Any], folder: RunFolder, epoch: int) -> None:
    """Wait until an epoch may be saved: the driver has the one before and the trial continues.

    Several workers report and train on immediately; without this, a trial that was just stopped
    would keep the weights of an epoch missing from its record.
    """
    while config["workers"] > 1:
        known = TrialRecord.load(folder.path)
        if known.state == "running" and known.epochs >= epoch - 1:
            return
        time.sleep(TURN_SECONDS)


def _is_overtaken(folder: RunFolder, begun: TrialRecord, epoch: int) -> bool:
    """Return whether another machine has trained this epoch since this process started.

    A machine cut off from Ray may still reach the object store, where the trial's folder is not
    locked; its trial has resumed elsewhere.
    """
    if isinstance(folder.path, Path):
        return False
    known = TrialRecord.load(folder.path)
    return known.state != "running" or begun.epochs < epoch <= known.epochs


class _StopFile:
    """Checks periodically for the file that asks the study to stop."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.every = STOP_CHECK_SECONDS if isinstance(path, Path) else REMOTE_CHECK_SECONDS
        self.looked = 0.0
        self.there = False

    def __call__(self) -> bool:
        if not self.there and time.monotonic() - self.looked > self.every:
            with suppress(StorageError):  # a busy store is asked again
                self.there = self.path.exists()
            self.looked = time.monotonic()
        return self.there
