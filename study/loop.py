"""The training loop: `fit`, one epoch per step, with no Ray and no MLflow in it.

The same `fit` runs in `study.train`, in a Tune trial and in every Ray Train worker, so a
`breakpoint()` in it stops in a plain process.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from study import distributed
from study.augmentation import Augmentation
from study.batches import Batches
from study.counts import predicted
from study.datasets.source import DataSource, ImageSet
from study.errors import Diverged, InputError, TrialError
from study.evaluation import Watch, evaluate
from study.objective import Goal
from study.optimizer import build_optimizer
from study.schedule import scheduled
from study.setting import TrainConfig, check_sync
from study.task import Meter, Task

Item = TypeVar("Item")
KEPT_MEMORY = 1 << 30  # bytes that torch freed and the process keeps, on CPUs
MOST_MMAP = 32 << 20  # bytes, the largest threshold that older glibc takes
SUMS = ("loss", "images", "right", "predictions", "batches")  # of a training pass
FINITE_CHECK_BATCHES = 50  # on the CPU; asking a GPU for the loss would stall it


class Interrupted(Exception):
    """`fit` was asked to stop; `state` is what to go on from, in the middle of an epoch."""

    def __init__(self, state: dict[str, Any]) -> None:
        super().__init__("interrupted")
        self.state = state


@dataclasses.dataclass(frozen=True)
class EpochResult:
    """What one epoch gave.

    Attributes:
        epoch: From 1.
        metrics: By full name, e.g. `train/loss`, `val/ap/window`, `epoch_seconds`.
        is_best: Whether no earlier epoch was as good by the first objective.
        state: All that is needed to go on after this epoch, for `study.checkpoint.save`.
        evidence: Returns the arrays for `task.figures`, from the validation of this epoch.
    """

    epoch: int
    metrics: dict[str, float]
    is_best: bool
    state: dict[str, Any]
    evidence: Callable[[], dict[str, np.ndarray]]


def fit(
    task: Task,
    config: TrainConfig,
    source: DataSource,
    *,
    goal: Goal | None = None,
    resume: dict[str, Any] | None = None,
    parts: int = 1,
    stop: Callable[[], bool] = lambda: False,
    limit_batches: int | None = None,
    watch: Watch[Any] = lambda batches, total, phase: batches,
) -> Iterator[EpochResult]:
    """Train and validate, yielding after every epoch; the caller decides what a report is.

    The random numbers of an epoch depend on the seed and the epoch alone, so a resumed run gives
    what an uninterrupted one gives, also when it was interrupted in the middle of an epoch.

    Args:
        task: What is trained.
        config: Its settings.
        source: Its data.
        goal: What the study is after; None: the task's own objective.
        resume: The `state` of an earlier `EpochResult`, or of `Interrupted`.
        parts: Computes each batch in so many parts, adding up their gradients: the same step in
            less memory.
        stop: Asked before every batch; of several workers only the first is asked, now and then,
            and all stop together.
        limit_batches: Batches per training and validation pass, for debugging.
        watch: Sees every iterator of batches, to show progress.

    Raises:
        Diverged: The loss is not finite.
        InputError: The workers cannot share the batch, the images or the normalisation.
        Interrupted: `stop` said so.
    """
    device, workers = distributed.device(), distributed.world_size()
    if config.batch_size % workers:
        raise InputError(
            f"batch_size={config.batch_size} cannot be divided among {workers} workers."
        )
    check_sync(config.sync_batch_norm, workers, device.type == "cuda")
    torch.manual_seed(config.seed)
    splits = task.load_splits(source, config)
    if min(len(splits.train), len(splits.val)) < workers:
        raise InputError(f"there are fewer images in a split than the {workers} workers.")
    train = Batches(splits.train, device, task.normalization)
    val = Batches(splits.val, device, task.normalization, beside=train)
    augmentation = Augmentation.of(config)
    if device.type == "cpu":
        _keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # shapes stay the same, so cuDNN's trials pay off
    # On CPUs, too, convolution and pooling are faster with channels last: a quarter less time.
    network = task.build_model(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.sync_batch_norm and workers > 1:
        network = distributed.synced(network)
    optimizer = build_optimizer(network, config)
    history: list[dict[str, float]] = []
    part: dict[str, Any] = {}  # of an epoch that was interrupted
    if resume is not None:
        network.load_state_dict(resume["network"])
        optimizer.load_state_dict(resume["optimizer"])
        history, part = list(resume["history"]), resume.get("part", {})
    if config.compile:
        network.compile()
    model = distributed.wrap(network)
    stop = distributed.agreed(stop)
    per_epoch = train.num_training_batches(config.batch_size)
    per_epoch = min(per_epoch, limit_batches or per_epoch)
    on_all = len(splits.val) // workers // config.batch_size  # batches that every worker validates

    def interruptible(batches: Iterator[Item], limit: int | None = None) -> Iterator[Item]:
        for number in itertools.count():  # asked first: a batch draws random numbers
            if (limit is None or number < limit) and stop():
                raise Interrupted({})
            batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def state() -> dict[str, Any]:
        return {
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": list(history),
            "config": dataclasses.asdict(config),
            "task": task.name,
            "parts": parts,
        }

    goal = goal or Goal.of_task(task)
    first = goal.objectives[0]
    num_params = float(sum(parameter.numel() for parameter in network.parameters()))
    for epoch in range(len(history) + 1, config.epochs + 1):
        started = time.perf_counter() - part.get("seconds", 0.0)
        torch.manual_seed(distributed.seed(config.seed, epoch, distributed.rank()))
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        done = 0
        if part:
            distributed.set_random_states(part["random"])
            done = int(part["sums"][-1])
            if distributed.rank() == 0:  # the sums are of all workers
                sums += part["sums"].to(device)
            sums[-1] = done
        part = {}
        batches = train.training(config.batch_size, (config.seed, epoch), done, augmentation)
        batches = itertools.islice(batches, per_epoch - done)
        step = (epoch - 1) * per_epoch + done
        batches = scheduled(batches, optimizer, config, step, config.epochs * per_epoch)
        try:
            served = watch(interruptible(batches), per_epoch - done, "training")
            whole = min(config.batch_size, len(splits.train))
            metrics = _train_epoch(task, config, model, optimizer, served, sums, parts, whole)
            metrics["images_per_second"] = metrics.pop("images") / (time.perf_counter() - started)
            distributed.broadcast_buffers(network)  # else each worker would score its own network
            scores, meter, seen = evaluate(
                task,
                network,
                val,
                splits.val,
                batch_size=-(-config.batch_size // parts),
                precision=config.precision,
                limit_batches=limit_batches and limit_batches * parts,
                watch=lambda batches, *about: watch(interruptible(batches, on_all), *about),
            )
        except Interrupted:
            distributed.all_reduce_sum([sums[:-1]])
            part = {"sums": sums.cpu(), "random": distributed.random_states()}
            part["seconds"] = time.perf_counter() - started
            raise Interrupted({**state(), "part": part}) from None
        except RuntimeError as error:
            if not type(error).__module__.startswith("torch._dynamo"):
                raise
            reason = str(error).strip().splitlines()[0]
            raise TrialError(f"compile=true: {reason} Train without it.") from error
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        metrics["num_params"] = num_params
        metrics["epoch_seconds"] = time.perf_counter() - started
        for name in goal.metrics:
            if name not in metrics:
                raise TrialError(f"epoch {epoch}: {name} cannot be computed.")
        best = max((first.score(row[first.metric]) for row in history), default=float("-inf"))
        history.append({"epoch": epoch, **metrics, "ended": time.time()})

        def evidence(meter: Meter = meter, seen: ImageSet = seen) -> dict[str, np.ndarray]:
            return task.evidence(network, meter, seen)

        is_best = first.score(metrics[first.metric]) > best
        yield EpochResult(epoch, metrics, is_best, state(), evidence)


def _keep_freed_memory() -> None:
    """Have glibc keep what torch frees; it gave it back and asked for it again in every step.

    Getting such pages from the system took up to 28 % of a trial's time. Elsewhere than on Linux
    with glibc nothing changes.
    """
    if sys.platform != "linux":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(trim_threshold, KEPT_MEMORY)
        libc.mallopt(mmap_threshold, KEPT_MEMORY) or libc.mallopt(mmap_threshold, MOST_MMAP)


def _train_epoch(
    task: Task,
    config: TrainConfig,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]],
    sums: torch.Tensor,
    parts: int,
    whole: int,
) -> dict[str, float]:
    """Take one pass over batches of `whole` images, of which this worker has its share.

    Adds to `sums`, which are `SUMS`; returns their means over all workers.
    """
    model.train()
    workers = distributed.world_size()
    alone = workers == 1 and sums.device.type == "cpu"  # other ranks would wait for this one
    loss_sum, num_right = sums[0], sums[2]
    images_seen = predictions = done = 0  # counted by Python: a tensor's sum takes 10 us
    try:
        for number, (images, targets) in enumerate(batches):
            optimizer.zero_grad(set_to_none=True)
            left = len(images)
            for inputs, wanted in zip(images.chunk(parts), targets.chunk(parts), strict=True):
                left -= len(inputs)
                with distributed.accumulating(model, more=left > 0):
                    with distributed.autocast(sums.device, config.precision):
                        logits = model(inputs)
                    loss = task.loss(logits.float(), wanted, config)
                    share = len(inputs) * workers / whole
                    (loss * share).backward()  # type: ignore[no-untyped-call]
                num_right += (predicted(logits.detach()) == wanted).sum()
                loss_sum.add_(loss.detach(), alpha=len(inputs))
                images_seen += len(inputs)
                predictions += wanted.numel()
            optimizer.step()
            done += 1
            if alone and number % FINITE_CHECK_BATCHES == 0 and not torch.isfinite(loss_sum):
                break
    finally:  # also when interrupted
        sums += torch.tensor([0, images_seen, 0, predictions, done], device=sums.device)
    over_all = sums.clone()
    distributed.all_reduce_sum([over_all])
    loss_total, num_images, right, num_predictions, _ = over_all.tolist()
    if not abs(loss_total) < float("inf"):
        raise Diverged(
            f"the training loss is not finite ({loss_total}); a smaller learning rate than "
            f"{config.learning_rate:g} may help."
        )
    return {
        "train/loss": loss_total / num_images,
        "train/accuracy": right / num_predictions,
        "images": num_images,
    }
