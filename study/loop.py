"""The training loop: `fit`, one epoch per step, with no Ray and no MLflow in it.

The same `fit` runs in `study.train`, in a Tune trial and in every Ray Train worker, so a
`breakpoint()` in it stops in a plain process.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import torch

from study import distributed
from study.batches import Batches
from study.data import DataSource, ImageSet
from study.errors import InputError, TrialError
from study.resources import check_sync
from study.task import Meter, Task, TrainConfig

Item = TypeVar("Item")
# Wraps an iterator of batches to show progress: (batches, how many, "training" or "validation").
Watch = Callable[[Iterator[Item], int, str], Iterator[Item]]
SUMS = ("loss", "images", "right", "predictions", "batches")  # of a training pass
FINITE_CHECK_BATCHES = 50  # asking a GPU for the loss more often would stall it


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
        is_best: Whether no earlier epoch was better by the task's metric.
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
        resume: The `state` of an earlier `EpochResult`, or of `Interrupted`.
        parts: Computes each batch in so many parts, adding up their gradients: the same step in
            less memory.
        stop: Asked before every batch; of several workers only the first is asked, now and then,
            and all stop together.
        limit_batches: Batches per training and validation pass, for debugging.
        watch: Sees every iterator of batches, to show progress.

    Raises:
        TrialError: The loss is not finite.
        InputError: The workers cannot share the batch, the images or the normalisation.
        Interrupted: `stop` said so.
    """
    device, workers = distributed.device(), distributed.world_size()
    if config.batch_size % workers:
        raise InputError(
            f"batch_size={config.batch_size} cannot be divided among {workers} workers."
        )
    check_sync(config.sync_batch_norm, workers, device.type == "cuda")
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    torch.manual_seed(config.seed)
    splits = task.load_splits(source, config)
    if min(len(splits.train), len(splits.val)) < workers:
        raise InputError(f"there are fewer images in a split than the {workers} workers.")
    train, val = (Batches(s, device, task.normalization) for s in (splits.train, splits.val))
    network = task.build_model(config).to(device, memory_format=layout)  # type: ignore[call-overload]
    if config.sync_batch_norm and workers > 1:
        network = distributed.synced(network)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    history: list[dict[str, float]] = []
    part: dict[str, Any] = {}  # of an epoch that was interrupted
    if resume is not None:
        network.load_state_dict(resume["network"])
        optimizer.load_state_dict(resume["optimizer"])
        history, part = list(resume["history"]), resume.get("part", {})
    model = distributed.wrap(network)
    stop = distributed.agreed(stop)
    on_all = len(splits.val) // workers // config.batch_size  # batches that every worker validates

    def interruptible(batches: Iterator[Item], limit: int | None = None) -> Iterator[Item]:
        for number, batch in enumerate(batches):
            if (limit is None or number < limit) and stop():
                raise Interrupted({})
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

    sign = 1 if task.mode == "max" else -1
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
        batches = train.training(config.batch_size, (config.seed, epoch), skip=done)
        total = train.num_training_batches(config.batch_size)
        total = min(total, limit_batches or total) - done
        try:
            served = watch(interruptible(itertools.islice(batches, total)), total, "training")
            whole = min(config.batch_size, len(splits.train))
            metrics = _train_epoch(task, config, model, optimizer, served, sums, parts, whole)
            metrics["images_per_second"] = metrics.pop("images") / (time.perf_counter() - started)
            distributed.broadcast_buffers(network)  # else each worker would score its own network
            scores, meter, seen = evaluate(
                *(task, config, network, val, splits.val),
                parts=parts,
                limit_batches=limit_batches,
                watch=lambda batches, *about: watch(interruptible(batches, on_all), *about),
            )
        except Interrupted:
            distributed.all_reduce_sum([sums[:-1]])
            part = {"sums": sums.cpu(), "random": distributed.random_states()}
            part["seconds"] = time.perf_counter() - started
            raise Interrupted({**state(), "part": part}) from None
        metrics |= {f"val/{name}": value for name, value in scores.items()}
        if task.metric not in metrics:
            raise TrialError(f"epoch {epoch}: {task.metric} cannot be computed.")
        metrics["epoch_seconds"] = time.perf_counter() - started
        best = max((sign * row[task.metric] for row in history), default=float("-inf"))
        history.append({"epoch": epoch, **metrics, "ended": time.time()})

        def evidence(meter: Meter = meter, seen: ImageSet = seen) -> dict[str, np.ndarray]:
            return task.evidence(network, meter, seen)

        is_best = sign * metrics[task.metric] > best
        yield EpochResult(epoch, metrics, is_best, state(), evidence)


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
    for number, (images, targets) in enumerate(batches):
        optimizer.zero_grad(set_to_none=True)
        left = len(images)
        for inputs, wanted in zip(images.chunk(parts), targets.chunk(parts), strict=True):
            left -= len(inputs)
            with distributed.accumulating(model, more=left > 0):
                with distributed.autocast(sums.device):
                    logits = model(inputs)
                    loss = task.loss(logits, wanted, config)
                (loss * (len(inputs) * workers / whole)).backward()  # type: ignore[no-untyped-call]
            right = (logits.detach().argmax(dim=1) == wanted).sum()
            counts = (loss.detach() * len(inputs), len(inputs), right, wanted.numel())
            for index, value in enumerate(counts):
                sums[index] += value
        optimizer.step()
        sums[-1] += 1
        alone = workers == 1  # else the other ranks would wait for this one
        if alone and number % FINITE_CHECK_BATCHES == 0 and not torch.isfinite(sums[0]):
            break
    over_all = sums.clone()
    distributed.all_reduce_sum([over_all])
    loss_sum, num_images, num_right, num_predictions, _ = over_all.tolist()
    if not abs(loss_sum) < float("inf"):
        raise TrialError(
            f"the training loss is not finite ({loss_sum}); a smaller learning rate than "
            f"{config.learning_rate:g} may help."
        )
    return {
        "train/loss": loss_sum / num_images,
        "train/accuracy": num_right / num_predictions,
        "images": num_images,
    }


def evaluate(
    task: Task,
    config: TrainConfig,
    network: torch.nn.Module,
    batches: Batches,
    images: ImageSet,
    *,
    parts: int = 1,
    limit_batches: int | None = None,
    watch: Watch[Any] = lambda batches, total, phase: batches,
) -> tuple[dict[str, float], Meter, ImageSet]:
    """Evaluate the unwrapped network, each image once over all ranks.

    Where targets are larger than the network's output, its logits are enlarged (bilinear).

    Args:
        task: Gives loss and meter.
        config: Its settings.
        network: Takes normalised images.
        batches: `study.batches.Batches` over `images`.
        images: The set.
        parts: Divides the batch size by so much.
        limit_batches: Stop after so many batches.
        watch: Shows progress.

    Returns:
        Metrics by name without the split (`loss`, `accuracy`, ...), the meter, and this rank's
        images in the order in which the meter saw them.

    Raises:
        TrialError: The loss is not finite.
    """
    network.eval()
    meter = task.build_meter(batches.device)
    sums = torch.zeros(2, dtype=torch.float64, device=batches.device)
    share = images.indices[distributed.rank() :: distributed.world_size()]
    batch_size = -(-config.batch_size // parts)
    limit_batches = limit_batches and limit_batches * parts
    total = -(-len(share) // batch_size)
    served = itertools.islice(batches.evaluation(batch_size), limit_batches)
    with torch.inference_mode():
        for inputs, targets in watch(served, min(total, limit_batches or total), "validation"):
            with distributed.autocast(batches.device):
                logits = network(inputs)
            logits = _sized_like(logits, targets)
            loss = task.loss(logits.float(), targets, config)
            sums += torch.stack([loss * len(inputs), torch.ones_like(loss) * len(inputs)])
            meter.update(logits, targets)
    distributed.all_reduce_sum([sums])
    loss_sum, num_images = sums.tolist()
    if not abs(loss_sum) < float("inf"):
        raise TrialError(f"the validation loss is not finite ({loss_sum}).")
    meter.reduce()
    if limit_batches:
        share = share[: limit_batches * batch_size]
    seen = ImageSet(images.images, images.targets, share)
    return {"loss": loss_sum / num_images, **meter.compute()}, meter, seen


def _sized_like(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if targets.ndim == 3 and logits.shape[2:] != targets.shape[1:]:
        size = targets.shape[1:]
        return torch.nn.functional.interpolate(logits.float(), size, mode="bilinear")
    return logits
