"""Cost of a configuration: parameters, multiply-adds, and seconds measured in the real loop.

`python -m study.dry_run.cost` is one of several processes that measure in parallel, because
concurrent trials slow each other down: it reads one request per line and answers with a `Cost`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.config import TrainConfig, Value, build_config
from study.datasets.source import DataSource
from study.task import Task, load_task

if TYPE_CHECKING:
    from study.cluster.resources import Resources
    from study.training.loop import EpochResult

# Seconds measured per configuration, after a warm-up of a third of that.
PHASE_SECONDS = {"training": 0.7, "validation": 0.35}
PROBE_SECONDS = 20.0  # afterwards only the promised ones are measured
MULTIPLY_ADDS_PER_SECOND = 1e10  # of a core: half of a measured value, to be safe
STEP_SECONDS = 3.0  # longer steps are measured with fewer images, without warm-up


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """Size of a network.

    Attributes:
        parameters: Number of trainable parameters.
        multiply_adds: Multiply-adds of one image's forward pass.
        activations: Output elements of all layers, for one image.
    """

    parameters: int
    multiply_adds: int
    activations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """Measured cost of a configuration, in seconds.

    Attributes:
        training: Seconds per training image.
        validation: Seconds per validation image.
        begin: Seconds before the first epoch, for data and network.
        save: Seconds to save a checkpoint.
        images: Images per measured step.
    """

    training: float
    validation: float
    begin: float
    save: float
    images: int


def size_of(task: Task, config: TrainConfig, shape: Sequence[int]) -> Size:
    """Return the size of a network for one image `(C, H, W)`, without computing it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = task.build_model(config).to("meta").eval()
    outputs: list[int] = []

    def count(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs.append(output.numel())

    for module in network.modules():
        if not any(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty((1, *shape), device="meta"))
    return Size(
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        multiply_adds=counter.get_total_flops() // 2,
        activations=sum(outputs),
    )


def measure(
    task: Task, config: TrainConfig, source: DataSource, *, multiply_adds: int, threads: int
) -> Cost:
    """Train and validate on a few batches, with the device and loop of a real trial.

    Args:
        task: The task.
        config: The configuration, with the batch size of one worker.
        source: The data.
        multiply_adds: Of one image's forward pass; the backward pass takes about twice as many.
        threads: Number of torch's CPU threads.
    """
    import torch

    from study.training.loop import fit

    torch.set_num_threads(threads)
    config = _for_measuring(config, multiply_adds, threads)
    limit = _TimeLimit(warm=config.epochs == 1)
    begun, first = time.perf_counter(), 0.0
    for result in fit(task, config, source, progress=limit):
        if not first:
            first = time.perf_counter() - begun - result.metrics["epoch_seconds"]
        limit.warm = True
    training = 1 / result.metrics["images_per_second"]
    validation = result.metrics["epoch_seconds"] - training * limit.counts["training"]
    return Cost(
        training=training,
        validation=validation / limit.counts["validation"],
        begin=first,
        save=_seconds_to_save(result),
        images=config.batch_size,
    )


def _for_measuring(config: TrainConfig, multiply_adds: int, threads: int) -> TrainConfig:
    """Return a configuration of the same cost, with one epoch to warm up and one to measure.

    The learning rate is zero: the cost is the same, and the loss cannot diverge. If a step would
    take long, it has fewer images and there is no warm-up epoch.
    """
    from study.training.distributed import device

    images, epochs = config.batch_size, 2
    expected = 3 * multiply_adds / MULTIPLY_ADDS_PER_SECOND / threads
    if device().type == "cpu" and expected * images > STEP_SECONDS:
        images, epochs = min(images, max(2, int(STEP_SECONDS / expected))), 1
    return dataclasses.replace(config, batch_size=images, epochs=epochs, learning_rate=0.0)


class _TimeLimit:
    """Ends each phase of an epoch after a time limit; passed to `fit` as `progress`.

    Args:
        warm: Whether the epoch is measured; a warm-up epoch takes a third of the time.
    """

    def __init__(self, warm: bool) -> None:
        self.warm = warm
        self.counts = {"training": 0, "validation": 0}  # images of the last epoch

    def __call__(self, batches: Iterator[Any], total: int, phase: str) -> Iterator[Any]:
        begun = time.perf_counter()
        self.counts[phase] = 0
        for batch in batches:
            self.counts[phase] += len(batch[0])
            yield batch
            if time.perf_counter() - begun > PHASE_SECONDS[phase] / (1 if self.warm else 3):
                return


def _seconds_to_save(result: EpochResult) -> float:
    from study.records.run_folder import RunFolder

    with tempfile.TemporaryDirectory(prefix="study-probe-") as scratch:
        begun = time.perf_counter()
        # Not as the best: arrays for the figures would need all validation images.
        RunFolder(Path(scratch)).record(dataclasses.replace(result, is_best=False), {})
        return time.perf_counter() - begun


Wanted = tuple[Mapping[str, Value], int]  # settings of a full configuration, its multiply-adds


def measure_all(
    task: Task,
    source: DataSource,
    resources: Resources,
    wanted: Sequence[Wanted],
    promised: int,
) -> tuple[list[Cost | str | None], float]:
    """Measure configurations in as many parallel processes as the study would run here.

    Args:
        task: The task.
        source: The data.
        resources: Resources per trial, and the number of trials at a time.
        wanted: The configurations, starting with the promised ones.
        promised: Number to measure however long it takes; the others only while there is time.

    Returns:
        For each configuration its cost, an error message, or None if there was no time; and the
        speed-up of the first measured one when it runs alone.
    """
    number = resources.concurrent * resources.workers
    with ExitStack() as held:
        probes = [_Probe(task, source, resources, slot) for slot in range(number)]
        for probe in probes:
            held.callback(probe.close)
        for probe in probes:
            probe.ready()
        together = _SideBySide(probes, wanted, promised)
        with ThreadPoolExecutor(number) as pool:
            list(pool.map(together.serve, range(number)))
        alone = 1.0
        if number > 1 and resources.workers == 1:
            alone = _gain_alone(probes[0], wanted, together.answers)
    return together.answers, alone


class _SideBySide:
    """Parallel measurement of configurations by several processes, as concurrent trials run.

    Args:
        probes: The processes.
        wanted: The configurations.
        promised: Number measured however long it takes.
    """

    def __init__(self, probes: Sequence[_Probe], wanted: Sequence[Wanted], promised: int) -> None:
        self.answers: list[Cost | str | None] = [None] * len(wanted)
        self._probes, self._wanted, self._promised = probes, wanted, promised
        self._waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(wanted)):
            self._waiting.put(place)
        self._begun = time.monotonic()
        self._busy = set(range(len(probes)))

    def serve(self, slot: int) -> None:
        """Let one process measure until the queue is empty or time is up."""
        last = slot % len(self._wanted)
        while (place := self._next()) is not None:
            last = place
            self.answers[place] = self._probes[slot].ask(*self._wanted[place])
        self._busy.discard(slot)
        while self._busy:  # keep slowing down the others
            self._probes[slot].ask(*self._wanted[last])

    def _next(self) -> int | None:
        try:
            place = self._waiting.get_nowait()
        except queue.Empty:
            return None
        late = time.monotonic() - self._begun > PROBE_SECONDS
        return None if place >= self._promised and late else place


def _gain_alone(
    probe: _Probe, wanted: Sequence[Wanted], answers: Sequence[Cost | str | None]
) -> float:
    """Return the speed-up of the first measured configuration when it runs alone."""
    for configuration, together in zip(wanted, answers, strict=True):
        if isinstance(together, Cost):
            single = probe.ask(*configuration)
            return (
                max(1.0, together.training / single.training) if isinstance(single, Cost) else 1.0
            )
    return 1.0


class _Probe:
    """A process that measures."""

    def __init__(self, task: Task, source: DataSource, resources: Resources, slot: int) -> None:
        gpus = resources.gpus_per_worker
        devices = ""
        if gpus:
            known = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = known.split(",") if known else [str(n) for n in range(64)]
            devices = names[min(int(slot * gpus), len(names) - 1)]
        threads = str(resources.cpus_per_worker)
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": devices, "OMP_NUM_THREADS": threads},
        )
        self._begin = {
            "task": task.name,
            "dataset": source.dataset,
            "data_dir": str(source.data_dir),
            "cache_dir": str(source.cache_dir),
            "threads": resources.cpus_per_worker,
        }
        self._workers = resources.workers

    def ready(self) -> None:
        """Wait until the process has finished its imports."""
        self._exchange(self._begin)

    def ask(self, settings: Mapping[str, Value], multiply_adds: int) -> Cost | str:
        """Return the cost of a configuration, or an error message."""
        share = {"batch_size": int(settings["batch_size"]) // self._workers}
        answer = self._exchange({"settings": {**settings, **share}, "multiply_adds": multiply_adds})
        return Cost(**answer["cost"]) if "cost" in answer else str(answer["failure"])

    def _exchange(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            return {"failure": "the measuring process died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main() -> int:
    """Answer requests until the input ends."""
    from study.runner.faults import reason_of

    say: Callable[[Any], None] = lambda answer: print(json.dumps(answer), flush=True)  # noqa: E731
    begin = json.loads(sys.stdin.readline())
    import torch  # noqa: F401  imported by all processes before any measures

    import study.training.loop  # noqa: F401

    task = load_task(begin["task"])
    paths = {key: Path(begin[key]) for key in ("data_dir", "cache_dir")}
    source = DataSource(dataset=begin["dataset"], **paths)
    say({})
    for line in sys.stdin:
        request = json.loads(line)
        try:
            config = build_config(task.config_class, request["settings"])
            adds = request["multiply_adds"]
            cost = measure(task, config, source, multiply_adds=adds, threads=begin["threads"])
            say({"cost": dataclasses.asdict(cost)})
        except Exception as error:  # any error that would fail the trial
            say({"failure": reason_of(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
