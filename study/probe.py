"""What one configuration costs: parameters, multiply-adds, and seconds measured in the real loop.

`python -m study.probe` is one of the processes that measure side by side, since trials that run
at the same time slow each other down: it reads a request per line and answers with a `Cost`.
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

from study.datasets.source import DataSource
from study.setting import TrainConfig, Value, build_config
from study.task import Task, load_task

if TYPE_CHECKING:
    from study.resources import Resources

TRAINING_SECONDS = 0.7  # measured per configuration, after a third of it to warm up
VALIDATION_SECONDS = 0.35
PROBE_SECONDS = 20.0  # after which only what was promised is measured
MULTIPLY_ADDS_PER_SECOND = 1e10  # of a core: half of what one was measured to do, to be careful
STEP_SECONDS = 3.0  # a step that takes longer is measured with fewer images, and once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """How large a network is.

    Attributes:
        parameters: Number of trained ones.
        multiply_adds: Of one image's forward pass.
        activations: Numbers that its layers give out, of one image.
    """

    parameters: int
    multiply_adds: int
    activations: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
    """What a configuration was measured to take, in seconds.

    Attributes:
        training: Per image.
        validation: Per image.
        begin: Before the first epoch: data and network.
        save: Of a checkpoint.
        images: Images per step that it was measured with.
    """

    training: float
    validation: float
    begin: float
    save: float
    images: int


def size_of(task: Task, config: TrainConfig, shape: Sequence[int]) -> Size:
    """Return how large a configuration's network is for one image `(C, H, W)`; computes nothing."""
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

    The learning rate is zero: it costs the same, and no loss can become infinite.

    Args:
        task: Whose loop it is.
        config: The configuration; its batch size is what one worker has of it.
        source: Its data.
        multiply_adds: Of one image's forward pass; backward takes about twice as many.
        threads: Of torch on the CPU.
    """
    import torch

    from study.distributed import device
    from study.loop import fit
    from study.run_folder import RunFolder

    torch.set_num_threads(threads)
    images, passes = config.batch_size, 2
    expected = 3 * multiply_adds / MULTIPLY_ADDS_PER_SECOND / threads
    if device().type == "cpu" and expected * images > STEP_SECONDS:
        images, passes = min(images, max(2, int(STEP_SECONDS / expected))), 1
    config = dataclasses.replace(config, batch_size=images, epochs=passes, learning_rate=0.0)
    counts = {"training": 0, "validation": 0}
    limits = {"training": TRAINING_SECONDS, "validation": VALIDATION_SECONDS}

    def watch(batches: Iterator[Any], total: int, phase: str) -> Iterator[Any]:
        begun = time.perf_counter()
        counts[phase] = 0
        for batch in batches:
            counts[phase] += len(batch[0])
            yield batch
            if time.perf_counter() - begun > limits[phase] / (1 if warm else 3):
                return

    warm = passes == 1
    begun, first = time.perf_counter(), 0.0
    for result in fit(task, config, source, progress=watch):
        if not first:
            first = time.perf_counter() - begun - result.metrics["epoch_seconds"]
        warm = True
    training = 1 / result.metrics["images_per_second"]
    validation = result.metrics["epoch_seconds"] - training * counts["training"]
    with tempfile.TemporaryDirectory(prefix="study-probe-") as scratch:
        begun = time.perf_counter()
        # The figures' arrays would need all of the validation images.
        RunFolder(Path(scratch)).record(dataclasses.replace(result, is_best=False), {})
        save = time.perf_counter() - begun
    return Cost(
        training=training,
        validation=validation / counts["validation"],
        begin=first,
        save=save,
        images=images,
    )


def measure_all(
    task: Task,
    source: DataSource,
    resources: Resources,
    wanted: Sequence[tuple[Mapping[str, Value], int]],
    promised: int,
) -> tuple[list[Cost | str | None], float]:
    """Measure configurations in as many processes at a time as a study would run on this machine.

    Args:
        task: Whose they are.
        source: Its data.
        resources: Of each trial, and how many run at once.
        wanted: Settings of a whole configuration and its multiply-adds, the first ones promised.
        promised: How many to measure however long it takes; others as long as there is time.

    Returns:
        By configuration its cost, why it failed, or None if there was no time; and how many times
        faster the first one that was measured is when it runs alone.
    """
    answers: list[Cost | str | None] = [None] * len(wanted)
    number = resources.concurrent * resources.workers
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for place in range(len(wanted)):
        waiting.put(place)
    with ExitStack() as held:
        probes = [_Probe(task, source, resources, slot) for slot in range(number)]
        for probe in probes:
            held.callback(probe.close)
        for probe in probes:
            probe.ready()
        begun = time.monotonic()
        busy = set(range(number))

        def serve(slot: int) -> None:
            last = slot % len(wanted)
            while True:
                try:
                    place = waiting.get_nowait()
                except queue.Empty:
                    break
                if place >= promised and time.monotonic() - begun > PROBE_SECONDS:
                    break
                last = place
                answers[place] = probes[slot].ask(*wanted[place])
            busy.discard(slot)
            while busy:  # the others are still to be slowed down
                probes[slot].ask(*wanted[last])

        with ThreadPoolExecutor(number) as pool:
            list(pool.map(serve, range(number)))
        alone = 1.0
        first = next((n for n, answer in enumerate(answers) if isinstance(answer, Cost)), None)
        if number > 1 and first is not None and resources.workers == 1:
            together, single = answers[first], probes[0].ask(*wanted[first])
            if isinstance(together, Cost) and isinstance(single, Cost):
                alone = max(1.0, together.training / single.training)
    return answers, alone


class _Probe:
    """One of the processes that measure."""

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
        """Wait until the process has imported what it needs."""
        self._exchange(self._begin)

    def ask(self, settings: Mapping[str, Value], multiply_adds: int) -> Cost | str:
        """Return what a configuration costs, or why it fails."""
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
            return {"failure": "the process that measured it died"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main() -> int:
    """Answer requests until there are no more."""
    from study.faults import reason_of

    say: Callable[[Any], None] = lambda answer: print(json.dumps(answer), flush=True)  # noqa: E731
    begin = json.loads(sys.stdin.readline())
    import torch  # noqa: F401  so that all processes have it before they measure

    import study.loop  # noqa: F401

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
        except Exception as error:  # whatever a configuration's trial would end with
            say({"failure": reason_of(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
