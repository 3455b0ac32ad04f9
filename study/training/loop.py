"""The training loop: `fit`, one epoch per step, independent of Ray and MLflow.

The same `fit` runs in `study.train`, in a Tune trial and in every Ray Train worker, so a
`breakpoint()` in it stops in a plain process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from study.config import TrainConfig, check_sync
from study.datasets.source import DataSource, ImageSet, Splits
from study.errors import Diverged, InputError, TrialError
from study.objective import Goal
from study.task import Meter, Task
from study.training import distributed
from study.training.augmentation import Augmentation
from study.training.batches import Batches, Pair
from study.training.counts import predicted
from study.training.evaluation import Progress, evaluate
from study.training.optimizer import build_optimizer, scheduled

Item = TypeVar("Item")
KEPT_MEMORY = 1 << 30  # bytes that torch freed and the process keeps, on CPUs
MOST_MMAP = 32 << 20  # bytes, the largest threshold that older glibc accepts
FINITE_CHECK_BATCHES = 50  # on the CPU; reading the loss from a GPU would stall it


class Interrupted(Exception):
    """`fit` was asked to stop; `state` is the state to resume from, in the middle of an epoch."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__("interrupted")
        self.state = state


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """The result of one epoch.

    Attributes:
        epoch: From 1.
        metrics: By full name, e.g. `train/loss`, `val/ap/window`, `epoch_seconds`.
        is_best: Whether it beats all earlier epochs by the first objective.
        state: The state to resume from after this epoch, for `study.records.checkpoint.save`.
        figure_data: Returns the arrays for `task.figures`, from this epoch's validation.
    """

    epoch: int
    metrics: dict[str, float]
    is_best: bool
    state: dict[str, Any]
    figure_data: Callable[[], dict[str, np.ndarray]]


def fit(
    task: Task,
    config: TrainConfig,
    source: DataSource,
    *,
    goal: Goal | None = None,
    resume: dict[str, Any] | None = None,
    micro_batches: int = 1,
    stop: Callable[[], bool] = lambda: False,
    limit_batches: int | None = None,
    progress: Progress[Any] = lambda batches, total, phase: batches,
) -> Iterator[EpochResult]:
    """Train and validate, yielding after every epoch; the caller decides how to report it.

    The random numbers of an epoch depend only on the seed and the epoch, so a resumed run gives the
    same results as an uninterrupted one, even if interrupted in the middle of an epoch.

    Args:
        task: The task to train.
        config: Its settings.
        source: Its data.
        goal: The study's objectives; None for the task's own objective.
        resume: The `state` of an earlier `EpochResult` or `Interrupted`.
        micro_batches: Number of parts each batch is computed in, accumulating gradients: the same
            step in less memory.
        stop: Called before every batch; with several workers only on the first, now and then, and
            all stop together.
        limit_batches: Batches per training and validation pass, for debugging.
        progress: Wraps every iterator of batches to show progress.

    Raises:
        Diverged: The loss is not finite.
        InputError: The workers cannot share the batch, the images or the normalisation.
        Interrupted: `stop` returned true.
    """
    how = _How(
        goal=goal or Goal.of_task(task),
        micro_batches=micro_batches,
        stop=stop,
        limit_batches=limit_batches,
        progress=progress,
    )
    training = _Training(task, config, source, how, resume)
    while len(training.history) < config.epochs:
        yield training.next_epoch()


@dataclasses.dataclass(frozen=True, kw_only=True)
class _How:
    """How to train: the arguments of `fit` with these names."""

    goal: Goal
    micro_batches: int
    stop: Callable[[], bool]
    limit_batches: int | None
    progress: Progress[Any]


class _Training:
    """A training between two epochs: images, network, optimizer and the history of metrics.

    Attributes:
        network: The unwrapped network, with the names used in checkpoints.
        model: The network wrapped by `distributed.wrap`.
        history: One row of metrics per epoch.
        part: State of an interrupted epoch; empty if none was interrupted.
    """

    def __init__(
        self,
        task: Task,
        config: TrainConfig,
        source: DataSource,
        how: _How,
        resume: dict[str, Any] | None,
    ) -> None:
        self.task, self.config, self.how = task, config, how
        self.device = distributed.device()
        self.splits = _load_splits(task, config, source, self.device)
        self.train = Batches(self.splits.train, self.device, task.normalization)
        self.val = Batches(self.splits.val, self.device, task.normalization, beside=self.train)
        self.augmentation = Augmentation.of(config)
        if self.device.type == "cpu":
            _keep_freed_memory()
        torch.backends.cudnn.benchmark = True  # shapes are constant, so cuDNN's benchmarks pay off
        self.network = _build_network(task, config, self.device)
        self.optimizer = build_optimizer(self.network, config)
        self.history: list[dict[str, float]] = []
        self.part: dict[str, Any] = {}
        if resume is not None:
            self.network.load_state_dict(resume["network"])
            self.optimizer.load_state_dict(resume["optimizer"])
            self.history, self.part = list(resume["history"]), resume.get("part", {})
        if config.compile:
            self.network.compile()
        self.model = distributed.wrap(self.network)
        self.stop = distributed.agreed(how.stop)
        num_batches = self.train.num_training_batches(config.batch_size)
        self.num_batches = min(num_batches, how.limit_batches or num_batches)
        self.num_params = float(sum(weights.numel() for weights in self.network.parameters()))

    def next_epoch(self) -> EpochResult:
        """Train and validate for one epoch."""
        epoch = len(self.history) + 1
        started = time.perf_counter() - self.part.get("seconds", 0.0)
        sums = self._begin(epoch)
        try:
            metrics = self._train(epoch, sums)
            metrics["images_per_second"] = metrics.pop("images") / (time.perf_counter() - started)
            distributed.broadcast_buffers(self.network)  # else workers would score different ones
            scores, meter, seen = self._validate()
        except Interrupted:
            raise Interrupted({**self._state(), "part": _part(sums, started)}) from None
        except RuntimeError as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            reason = str(error).strip().splitlines()[0]
            raise TrialError(f"compile=true: {reason} Train without compile.") from error
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        metrics["num_params"] = self.num_params
        metrics["epoch_seconds"] = time.perf_counter() - started
        is_best = self._is_best(epoch, metrics)
        self.history.append({"epoch": epoch, **metrics, "ended": time.time()})
        figure_data = functools.partial(self.task.figure_data, self.network, meter, seen)
        return EpochResult(epoch, metrics, is_best, self._state(), figure_data)

    def _begin(self, epoch: int) -> _Sums:
        """Seed an epoch; return its sums, those before an interruption included."""
        torch.manual_seed(distributed.mixed_seed(self.config.seed, epoch, distributed.rank()))
        part, self.part = self.part, {}
        if part:
            distributed.set_random_states(part["random"])
        return _Sums(self.device, part.get("sums"))

    def _train(self, epoch: int, sums: _Sums) -> dict[str, float]:
        """Finish a pass over the training images; return means over all workers."""
        self.model.train()
        # Stopping early would leave other workers waiting.
        alone = distributed.world_size() == 1 and self.device.type == "cpu"
        for number, (images, targets) in enumerate(self._training_batches(epoch, sums.batches)):
            self._step(images, targets, sums)
            if alone and number % FINITE_CHECK_BATCHES == 0 and not torch.isfinite(sums.loss):
                break
        total = sums.total()
        distributed.all_reduce_sum([total])
        loss, num_images, num_right, num_predictions, _ = total.tolist()
        if not abs(loss) < float("inf"):
            raise Diverged(
                f"the training loss is not finite ({loss}); a smaller learning rate than "
                f"{self.config.learning_rate:g} may help."
            )
        return {
            "train/loss": loss / num_images,
            "train/accuracy": num_right / num_predictions,
            "images": num_images,
        }

    def _training_batches(self, epoch: int, done: int) -> Iterator[Pair]:
        """Yield the batches of an epoch after the first `done`, each at its learning rate."""
        config, left = self.config, self.num_batches - done
        seed, step = (config.seed, epoch), (epoch - 1) * self.num_batches + done
        num_steps = config.epochs * self.num_batches
        batches = self.train.training(config.batch_size, seed, done, self.augmentation)
        batches = itertools.islice(batches, left)
        batches = scheduled(batches, self.optimizer, config, step, num_steps)
        return self.how.progress(self._interruptible(batches), left, "training")

    def _step(self, images: Tensor, targets: Tensor, sums: _Sums) -> None:
        """Take an optimizer step on this worker's share of a global batch."""
        global_batch = min(self.config.batch_size, len(self.splits.train))
        num, left = self.how.micro_batches, len(images)
        self.optimizer.zero_grad(set_to_none=True)
        for inputs, wanted in zip(images.chunk(num), targets.chunk(num), strict=True):
            left -= len(inputs)
            with distributed.accumulating(self.model, more=left > 0):
                with distributed.autocast(self.device, self.config.precision):
                    logits = self.model(inputs)
                loss = self.task.loss(logits.float(), wanted, self.config)
                share = len(inputs) * distributed.world_size() / global_batch
                (loss * share).backward()  # type: ignore[no-untyped-call]
            sums.add(loss.detach(), logits.detach(), wanted)
        self.optimizer.step()
        sums.batches += 1

    def _validate(self) -> tuple[dict[str, float], Meter, ImageSet]:
        """Evaluate the network on the validation images; may be interrupted."""
        config, num, limit = self.config, self.how.micro_batches, self.how.limit_batches
        # Batches that all workers have: at any other they could not agree to stop.
        on_all = len(self.splits.val) // distributed.world_size() // config.batch_size

        def progress(batches: Iterator[Any], total: int, phase: str) -> Iterator[Any]:
            return self.how.progress(self._interruptible(batches, on_all), total, phase)

        return evaluate(
            self.task,
            self.network,
            self.val,
            self.splits.val,
            batch_size=-(-config.batch_size // num),
            precision=config.precision,
            limit_batches=limit and limit * num,
            progress=progress,
        )

    def _interruptible(self, batches: Iterator[Item], limit: int | None = None) -> Iterator[Item]:
        """Yield batches, checking before each of the first `limit` whether to stop."""
        for number in itertools.count():  # check first: a batch draws random numbers
            if (limit is None or number < limit) and self.stop():
                raise Interrupted({})
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _is_best(self, epoch: int, metrics: Mapping[str, float]) -> bool:
        """Return whether an epoch beats all earlier ones by the first objective."""
        for name in self.how.goal.metrics:
            if name not in metrics:
                raise TrialError(f"epoch {epoch}: cannot compute {name}.")
        first = self.how.goal.objectives[0]
        scores = (first.score(row[first.metric]) for row in self.history)
        return first.score(metrics[first.metric]) > max(scores, default=float("-inf"))

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": list(self.history),
            "config": dataclasses.asdict(self.config),
            "task": self.task.name,
            "parts": self.how.micro_batches,
        }


class _Sums:
    """Sums of a training pass over this worker's batches.

    Attributes:
        loss: Sum over images, float64 on the device.
        right: Number of correct predictions, float64 on the device.
        images: Number of images; like the next two a Python number: a tensor sum takes 10 us.
        predictions: Number of predictions, one per image or per pixel.
        batches: Number of batches, including those before an interruption.
    """

    def __init__(self, device: torch.device, earlier: Tensor | None) -> None:
        self._values = torch.zeros(5, dtype=torch.float64, device=device)
        self.images = self.predictions = self.batches = 0
        if earlier is not None:
            if distributed.rank() == 0:  # they are sums over all workers
                self._values += earlier.to(device)
            self.batches = int(earlier[-1])
            self._values[-1] = 0.0
        self.loss, self.right = self._values[0], self._values[2]

    def add(self, loss: Tensor, logits: Tensor, targets: Tensor) -> None:
        """Add a batch by its mean loss, logits `(B, K, ...)` and targets `(B, ...)`."""
        self.right += (predicted(logits) == targets).sum()
        self.loss.add_(loss, alpha=len(targets))
        self.images += len(targets)
        self.predictions += targets.numel()

    def total(self) -> Tensor:
        """Return loss, images, right, predictions and batches, `(5,)` float64."""
        counted = [0, self.images, 0, self.predictions, self.batches]
        return self._values + torch.tensor(counted, device=self._values.device)


def _part(sums: _Sums, started: float) -> dict[str, Any]:
    """Return the state to resume an interrupted epoch from; all workers must call it together."""
    total = sums.total()
    distributed.all_reduce_sum([total[:-1]])  # all have done the same number of batches
    return {
        "sums": total.cpu(),
        "random": distributed.random_states(),
        "seconds": time.perf_counter() - started,
    }


def _load_splits(
    task: Task, config: TrainConfig, source: DataSource, device: torch.device
) -> Splits:
    """Load the images after checking that the workers can share them; seed torch."""
    workers = distributed.world_size()
    if config.batch_size % workers:
        raise InputError(
            f"batch_size={config.batch_size} cannot be divided among {workers} workers."
        )
    check_sync(config.sync_batch_norm, workers, device.type == "cuda")
    torch.manual_seed(config.seed)
    splits = task.load_splits(source, config)
    if min(len(splits.train), len(splits.val)) < workers:
        raise InputError(f"a split has fewer images than the {workers} workers.")
    return splits


def _build_network(task: Task, config: TrainConfig, device: torch.device) -> torch.nn.Module:
    """Return a randomly initialised network on the device."""
    # Channels last saves a quarter of the time of convolution and pooling on CPUs, too.
    network: torch.nn.Module = task.build_model(config).to(
        device, memory_format=torch.channels_last
    )  # type: ignore[call-overload]
    if config.sync_batch_norm and distributed.world_size() > 1:
        network = distributed.synced(network)
    return network


def _keep_freed_memory() -> None:
    """Make glibc keep the memory that torch frees, instead of returning it in every step.

    Getting the pages back from the system took up to 28 % of a trial's time. Nothing changes
    outside Linux with glibc.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, KEPT_MEMORY)
        libc.mallopt(mmap_threshold, KEPT_MEMORY) or libc.mallopt(mmap_threshold, MOST_MMAP)
