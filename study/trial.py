"""What Ray runs: a trial in the process of its Tune actor, or in a group of Train workers.

Both drive `study.loop.fit` and save to the trial's folder; Ray carries only reports:

    {"epoch": 3, "metrics": {...}}    an epoch that is saved
    {"note": "..."}                   something to tell the user
    {"interrupted": True}             saved in the middle of an epoch, because the study stops
    {"failure": "...", "done": True}  failed, and would again
    {"halt": "..."}                   the disk is full: the study must stop
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock
from ray import tune

from study.data import DataSource
from study.errors import InputError, StorageError, TrialError
from study.faults import keep_traceback, out_of_memory, reason_of, root_cause
from study.object_path import AnyPath, as_path
from study.run_folder import RunFolder
from study.task import build_config, load_task
from study.trial_record import TrialRecord

STOP_CHECK_SECONDS = 0.5
REMOTE_CHECK_SECONDS = 2.0  # the same in an object store, where looking takes about 20 ms
LOCK_SECONDS = 120.0  # to wait for the worker of a killed driver to die too


class OneWorkerTrial(tune.Trainable):
    """A trial in the actor's own process; the actor serves one trial after another."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the trial, from its last checkpoint if it has one."""
        self.folder = _run_folder(config)
        self.reports: Iterator[dict[str, Any]] | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch.

        What would fail again is reported as `failure`; anything else is raised, and Ray starts the
        trial again in a new process.
        """
        assert self.config is not None
        if self.reports is None:
            self.reports = run_trial(self.config, self.folder)
        try:
            return next(self.reports, {"done": True})
        except StorageError as error:
            return {"halt": str(error)}
        except (TrialError, InputError) as error:
            keep_traceback(self.folder, error)
            return {"failure": reason_of(error), "done": True}
        except Exception as error:
            keep_traceback(self.folder, error)
            raise

    def cleanup(self) -> None:
        """Let go of the network."""
        self.reports = None


def run_worker_group(config: dict[str, Any]) -> None:
    """Run a trial on several workers of Ray Train; a Tune function that only waits for them."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from ray.tune.integration.ray_train import TuneReportCallback

    per_worker = {"CPU": config["cpus_per_worker"]}
    if config["gpus_per_worker"]:
        per_worker["GPU"] = config["gpus_per_worker"]
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=bool(config["gpus_per_worker"]),
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(
            name=f"trial-{config['trial']:04d}-{os.getpid()}",
            storage_path=config["ray_folder"],
            callbacks=[TuneReportCallback()],  # type: ignore[no-untyped-call, list-item]
        ),
    )
    folder = _run_folder(config)
    try:
        trainer.fit()
    except Exception as wrapped:
        error = root_cause(wrapped)
        if isinstance(error, StorageError):
            tune.report({"halt": str(error)})
            return
        keep_traceback(folder, error)
        if isinstance(error, TrialError | InputError):
            tune.report({"failure": reason_of(error)})
            return
        raise error from wrapped  # Ray Tune starts the trial again


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker of a group; rank 0 saves, all ranks report together."""
    from ray import train

    from study import distributed

    folder = _run_folder(config)
    for report in run_trial(config, folder, save=distributed.rank() == 0):
        if "epoch" in report:
            train.report(report)


def run_trial(
    config: dict[str, Any], folder: RunFolder, save: bool = True
) -> Iterator[dict[str, Any]]:
    """Train as a trial's Ray config says, saving every epoch before it is reported.

    Epochs that were saved but never reported, the driver being killed in between, are reported
    first. A trial that runs out of memory goes on with its batches in twice as many parts.
    """
    stop = _StopFile(as_path(config["folder"]).parent / ".stop")
    with ExitStack() as held:
        if save and isinstance(folder.path, Path):
            # A worker left over from a killed driver may still be about to save. In an object
            # store, without locks, that does no harm: both save the same.
            lock = FileLock(folder.path / ".lock", timeout=LOCK_SECONDS)
            held.enter_context(lock)
        known = TrialRecord.load(folder.path)
        parts = known.parts
        state = folder.last_state()
        for text in folder.damage:
            goes_on = f"epoch {len(state['history']) + 1}" if state else "the start"
            yield {"note": f"{text} The trial goes on from {goes_on}."}
        for row in state["history"][known.epochs :] if state else []:
            yield {"epoch": int(row["epoch"]), "metrics": row}
        while True:
            parts = max(parts, state.get("parts", 1) if state else 1)
            try:
                yield from _train(config, folder, state, parts, stop, save)
                break
            except Exception as error:
                divisible = 2 * parts <= config["settings"].get("batch_size", 1)
                if not out_of_memory(error) or config["workers"] > 1 or not divisible:
                    raise
                note = f"out of memory ({reason_of(error)})"
            parts *= 2  # outside of the handler, whose traceback holds the network
            state = folder.last_state()
            yield {"note": f"{note}; goes on with each batch in {parts} parts", "parts": parts}
        while stop():
            time.sleep(STOP_CHECK_SECONDS)  # until the driver ends this process
            yield {"interrupted": True}


def _run_folder(config: dict[str, Any]) -> RunFolder:
    return RunFolder(as_path(config["folder"]) / f"{config['trial']:04d}")


def _train(
    config: dict[str, Any],
    folder: RunFolder,
    state: dict[str, Any] | None,
    parts: int,
    stop: _StopFile,
    save: bool,
) -> Iterator[dict[str, Any]]:
    if not config["gpus_per_worker"]:
        # Ray leaves the GPUs visible to a worker that asked for none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from study.loop import Interrupted, fit

    torch.set_num_threads(max(1, int(config["cpus_per_worker"])))
    task = load_task(config["task"])
    source = DataSource(
        dataset=config["dataset"],
        data_dir=Path(config["data_dir"]),
        cache_dir=Path(config["cache_dir"]),
    )
    settings = build_config(task.config_class, config["settings"])
    try:
        for result in fit(task, settings, source, resume=state, parts=parts, stop=stop):
            if save:
                folder.record(result, config["facts"])
            row = result.state["history"][-1]
            done = result.epoch >= settings.epochs
            yield {"epoch": result.epoch, "metrics": row, "done": done}
    except Interrupted as interrupted:
        folder.record_part(interrupted.state, config["facts"])
        yield {"interrupted": True}


class _StopFile:
    """Tells whether the study is to stop, by looking for a file now and then."""

    def __init__(self, path: AnyPath) -> None:
        self.path = path
        self.every = STOP_CHECK_SECONDS if isinstance(path, Path) else REMOTE_CHECK_SECONDS
        self.looked = 0.0
        self.there = False

    def __call__(self) -> bool:
        if not self.there and time.monotonic() - self.looked > self.every:
            self.there = self.path.exists()
            self.looked = time.monotonic()
        return self.there
