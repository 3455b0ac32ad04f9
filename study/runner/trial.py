"""A trial in one of its processes: it drives `study.training.loop.fit` and saves to its folder.

`study.runner.trainable` runs it in its own process or in workers. What goes from there to the study
are reports:

    {"epoch": 3, "metrics": {...}}  an epoch that is saved
    {"note": "..."}                 something to tell the user
    {"interrupted": True}           saved in the middle of an epoch, because the study stops
    {"failure": "...", "cause": "diverged", "done": True}  failed, and would again
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
REMOTE_CHECK_SECONDS = 2.0  # the same in an object store, where looking takes about 20 ms
TURN_SECONDS = 0.1
LOCK_SECONDS = 120.0  # to wait for the worker of a killed driver to die too


def trial_folder(config: dict[str, Any]) -> RunFolder:
    """Return the folder of the trial with this Ray config."""
    return RunFolder(as_path(config["folder"]) / f"{config['trial']:04d}")


def halved(config: dict[str, Any], micro_batches: int, error: Exception) -> dict[str, Any] | None:
    """Return the report of a trial that is short of memory and goes on; None if it cannot.

    Args:
        config: The trial's Ray config.
        micro_batches: In how many parts each batch was computed.
        error: What happened.
    """
    share = config["settings"].get("batch_size", 1) // config["workers"]
    kill = MemoryKill.of(str(error))
    twice = 2 * micro_batches
    if not out_of_memory(error) or twice > share or (kill is not None and not kill.blamed):
        return None
    note = f"out of memory ({reason_of(error)}); resumes with each batch in {twice} micro-batches"
    return {"note": note, "micro_batches": twice}


def run_trial(config: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Train as a trial's Ray config says, saving every epoch before it is reported.

    Epochs that were saved but never reported, the driver being killed in between, are reported
    first. A trial that runs out of memory goes on with its batches in twice as many parts. Every
    worker of a trial runs this and reports the same; the first one reads and writes the folder.
    """
    from study.training import distributed

    folder = trial_folder(config)
    first, alone = distributed.rank() == 0, config["workers"] == 1
    stop = _StopFile(as_path(config["folder"]).parent / ".stop")
    with ExitStack() as held:
        if first and isinstance(folder.path, Path):
            # A worker left over from a killed driver may still be about to save. Without locks,
            # as in an object store, that does no harm: both save the same.
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
                if retry is None or not alone:  # the others wait in the middle of their batch
                    raise
            # Outside of the handler, whose traceback holds the network.
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
        # Ray leaves the GPUs visible to a worker that asked for none.
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
    """Wait until an epoch may be saved: the driver knows the one before, and the trial goes on.

    Several workers report and train on at once; without this a trial that was just stopped would
    keep the weights of an epoch of which its record says nothing.
    """
    while config["workers"] > 1:
        known = TrialRecord.load(folder.path)
        if known.state == "running" and known.epochs >= epoch - 1:
            return
        time.sleep(TURN_SECONDS)


def _is_overtaken(folder: RunFolder, begun: TrialRecord, epoch: int) -> bool:
    """Return whether another machine has done this epoch since this process began the trial.

    A machine that is cut off from Ray may still reach the object store, where nothing locks the
    trial's folder; its trial goes on elsewhere.
    """
    if isinstance(folder.path, Path):
        return False
    known = TrialRecord.load(folder.path)
    return known.state != "running" or begun.epochs < epoch <= known.epochs


class _StopFile:
    """Tells whether the study is to stop, by looking for a file now and then."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.every = STOP_CHECK_SECONDS if isinstance(path, Path) else REMOTE_CHECK_SECONDS
        self.looked = 0.0
        self.there = False

    def __call__(self) -> bool:
        if not self.there and time.monotonic() - self.looked > self.every:
            with suppress(StorageError):  # a store that is busy is asked again
                self.there = self.path.exists()
            self.looked = time.monotonic()
        return self.there
