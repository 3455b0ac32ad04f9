"""Trial on several workers: Ray Train starts them, the trial's Tune actor supervises them.

    Tune actor (`run_workers`)  ->  Train's controller  ->  workers (`train_worker`), one rank each

Reports go back the same way. The first one names the workers' placement group: the study's driver
removes it when the trial stops, dies or hangs, which ends the workers and frees their cores at
once. Train itself does so seconds later, or never if it was interrupted meanwhile.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Generator, Iterable
from typing import Any

import ray
from ray import train
from ray.train import RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.placement_group import get_current_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from study.errors import InputError, StorageError, TrialError
from study.records.trial_record import TrialRecord
from study.runner.faults import out_of_memory, root_cause
from study.runner.trial import halved, run_trial, trial_folder
from study.training.distributed import lost_peer

# Settings of Ray Train for the controller and the workers.
ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",  # interval of fetching reports; default 2
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # an extra process; the study handles it
    "RAY_TRAIN_METRICS_ENABLED": "0",
}
_queues: list[Queue] = []  # of this process, reused by one trial after another


class Forward(UserCallback):
    """Sends reports and errors from Train's controller to the Tune actor.

    Args:
        queue: Where the Tune actor waits.
        name: Name of the group, since an earlier one may still be sending.
    """

    def __init__(self, queue: Queue, name: str) -> None:
        self.queue = queue
        self.name = name

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Send the report of rank 0; the other ranks report the same."""
        self._send(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Send the error at once; Train would first wait for workers that hang without it."""
        self._send(telling_error(worker_exceptions.values()))

    def _send(self, content: Any) -> None:
        controller = ray.get_runtime_context().current_actor
        self.queue.put((self.name, controller, content))


def telling_error(errors: Iterable[Exception]) -> BaseException:
    """Return the most informative error: workers that lose a peer fail too."""

    def rank(error: BaseException) -> int:
        if isinstance(error, StorageError | TrialError | InputError) or out_of_memory(error):
            return 0
        return 2 if lost_peer(error) else 1

    return min((root_cause(error) for error in errors), key=rank)


def run_workers(config: dict[str, Any]) -> Generator[dict[str, Any]]:
    """Yield the reports of a trial's workers; closing the generator ends them.

    If they run out of memory, a new group resumes with twice as many micro-batches.
    """
    while True:
        try:
            yield from _run_group(config)
            return
        except Exception as error:
            folder = trial_folder(config)
            state = folder.last_state() or {}
            known = TrialRecord.load(folder.path)
            retry = halved(config, max(known.micro_batches, state.get("parts", 1)), error)
            if retry is None:
                raise
        yield retry  # the driver records the number for the next group


def _run_group(config: dict[str, Any]) -> Generator[dict[str, Any]]:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not _queues:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        _queues.append(Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here}))
    (queue,) = _queues
    name = f"trial-{config['trial']:04d}-{uuid.uuid4().hex[:8]}"
    trainer = _trainer(config, Forward(queue, name), name)
    controller = None

    def fit() -> None:
        end: BaseException | None = None
        try:
            trainer.fit()
        except BaseException as error:
            end = error
        queue.put((name, None, end))

    threading.Thread(target=fit, daemon=True).start()
    try:
        while True:
            sender, handle, content = queue.get()
            if sender != name:
                continue
            controller = handle or controller
            if content is None:
                return
            if isinstance(content, BaseException):
                raise root_cause(content)
            yield content
    finally:
        if controller is not None:
            controller.abort.remote()  # killing it would leave one of Train's processes behind


def _trainer(config: dict[str, Any], forward: Forward, name: str) -> TorchTrainer:
    per_worker = {"CPU": config["cpus_per_worker"]}
    hidden = {"CUDA_VISIBLE_DEVICES": ""}  # Ray leaves GPUs visible to workers without GPUs
    backend = "gloo"
    if config["gpus_per_worker"]:
        per_worker["GPU"] = config["gpus_per_worker"]
        hidden = {}
        backend = "cpu:gloo,cuda:nccl"
    return TorchTrainer(
        train_worker,
        train_loop_config=config,
        torch_config=TorchConfig(backend=backend),
        scaling_config=ScalingConfig(
            num_workers=config["workers"],
            use_gpu=bool(config["gpus_per_worker"]),
            resources_per_worker=per_worker,
        ),
        run_config=RunConfig(  # type: ignore[call-arg]
            name=name,
            storage_path=config["ray_folder"],
            callbacks=[forward],  # type: ignore[list-item]
            worker_runtime_env={"env_vars": hidden},
        ),
    )


def train_worker(config: dict[str, Any]) -> None:
    """Train as one worker of a group; all workers report together."""
    group = get_current_placement_group()
    assert group is not None
    train.report({"group": group.id.hex()})
    for report in run_trial(config):
        train.report(report)
