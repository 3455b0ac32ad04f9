"""What Ray runs: a trial in the process of its Tune actor, or in a group of Train workers.

Both drive `study.loop.fit` and save to the trial's folder; Ray carries only metrics.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from study.data import DataSource
from study.errors import TrialError
from study.run_folder import RunFolder
from study.task import build_config, load_task

if TYPE_CHECKING:
    from study.loop import EpochResult


class OneWorkerTrial(tune.Trainable):
    """A trial in the actor's own process; the actor serves one trial after another."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin the trial, from its last checkpoint if it has one."""
        self.folder = RunFolder(Path(config["folder"]) / f"{config['trial']:04d}")
        self.epochs: Iterator[EpochResult] | None = None
        self.end: int = config["epochs"]

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in the same process."""
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Train one epoch; an error ends the trial and is reported as `failure`."""
        assert self.config is not None
        try:
            if self.epochs is None:
                self.epochs = run_epochs(self.config, self.folder)
            result = next(self.epochs, None)
        except Exception as error:  # whatever training raises ends this trial and no other
            return {**failure(self.folder, error), "done": True}
        if result is None:  # it had ended before it was cut off
            row = self.folder.history()[-1]
            return {"epoch": int(row["epoch"]), "metrics": row, "done": True}
        return {**report_of(result), "done": result.epoch >= self.end}

    def cleanup(self) -> None:
        """Let go of the network."""
        self.epochs = None


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
    try:
        trainer.fit()
    except Exception as error:  # reported like a failure in the process
        folder = RunFolder(Path(config["folder"]) / f"{config['trial']:04d}")
        tune.report(failure(folder, _root_cause(error)))


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker of a group; rank 0 saves, all ranks report together."""
    from ray import train

    from study import distributed

    folder = RunFolder(Path(config["folder"]) / f"{config['trial']:04d}")
    for result in run_epochs(config, folder, save=distributed.rank() == 0):
        train.report(report_of(result))


def run_epochs(
    config: dict[str, Any], folder: RunFolder, save: bool = True
) -> Iterator[EpochResult]:
    """Run `fit` as a trial's Ray config says, saving every epoch before it is reported."""
    if not config["gpus_per_worker"]:
        # Ray leaves the GPUs visible to a worker that asked for none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import torch

    from study.loop import fit

    torch.set_num_threads(max(1, int(config["cpus_per_worker"])))
    task = load_task(config["task"])
    source = DataSource(
        dataset=config["dataset"],
        data_dir=Path(config["data_dir"]),
        cache_dir=Path(config["cache_dir"]),
    )
    settings = build_config(task.config_class, config["settings"])
    for result in fit(task, settings, source, resume=folder.last_state()):
        if save:
            folder.record(result, config["facts"])
        yield result


def report_of(result: EpochResult) -> dict[str, Any]:
    """Return what Ray carries of an epoch."""
    return {"epoch": result.epoch, "metrics": result.metrics}


def failure(folder: RunFolder, error: BaseException) -> dict[str, Any]:
    """Write a trial's traceback to its folder and return the report of its failure."""
    folder.path.mkdir(parents=True, exist_ok=True)
    text = "".join(traceback.format_exception(error))
    folder.error_file.write_text(text)
    known = isinstance(error, TrialError)
    return {"failure": str(error) if known else f"{type(error).__name__}: {error}"}


def _root_cause(error: BaseException) -> BaseException:
    """Return what a worker raised, out of the errors that Ray wraps around it."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        return _root_cause(next(iter(failures.values())))
    cause = getattr(error, "cause", None) or getattr(error, "_exc", None)
    return _root_cause(cause) if isinstance(cause, BaseException) else error
