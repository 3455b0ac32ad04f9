"""The training loop: resuming, failing, several ranks."""

from __future__ import annotations

import copy
import dataclasses
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import timeless

from study.datasets.source import DataSource
from study.errors import InputError, TrialError
from study.records import checkpoint
from study.records.run_folder import RunFolder
from study.task import build_config
from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK, FashionConfig
from study.training import distributed
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import Interrupted, fit
from study.training.models import HourglassNet, TwoConv

SMALL = {"width1": 4, "width2": 4, "hidden": 16, "batch_size": 64}


AUGMENTED = {"flip": 0.5, "shift": 0.1, "erase": 0.5, "brightness": 0.2}
SCHEDULED = {
    **{"schedule": "one_cycle", "optimizer": "sgd", "learning_rate": 0.05, "momentum": 0.9},
    **{"batch_norm": True, "dropout": 0.2, "label_smoothing": 0.1, "flip": 0.5},
}
RESIDUAL = {"model": "residual", "width": 4, "schedule": "cosine", "optimizer": "adamw"}


@pytest.mark.parametrize("more", [{}, AUGMENTED, SCHEDULED, RESIDUAL])
def test_resuming_gives_what_an_uninterrupted_run_gives(
    sample: DataSource, tmp_path: Path, more: dict[str, Any]
) -> None:
    config = FashionConfig(epochs=3, **SMALL, **more)
    whole = list(fit(TASK, config, sample, limit_batches=5))
    folder = RunFolder(tmp_path)
    for result in fit(TASK, config, sample, limit_batches=5):
        folder.record(result, {})
        if result.epoch == 1:
            break  # the process dies here
    rest = list(fit(TASK, config, sample, limit_batches=5, resume=folder.last_state()))
    assert [result.epoch for result in rest] == [2, 3]
    for resumed, uninterrupted in zip(rest, whole[1:], strict=True):
        assert timeless(resumed.metrics) == timeless(uninterrupted.metrics)
        assert resumed.is_best == uninterrupted.is_best
    for name, tensor in whole[-1].state["network"].items():
        assert torch.equal(rest[-1].state["network"][name], tensor)


@pytest.mark.parametrize("more", [{}, SCHEDULED, RESIDUAL])
def test_an_epoch_that_was_interrupted_ends_as_if_it_had_not_been(
    sample: DataSource, more: dict[str, Any]
) -> None:
    config = FashionConfig(epochs=2, **SMALL, **{**AUGMENTED, **more})
    whole = list(fit(TASK, config, sample, limit_batches=5))
    for batches in (3, 7, 14):  # in training, in validation, in training again
        asked = iter([False] * batches)
        with pytest.raises(Interrupted) as interrupted:
            for _ in fit(
                TASK, config, sample, limit_batches=5, stop=lambda asked=asked: next(asked, True)
            ):
                pass
        rest = list(fit(TASK, config, sample, limit_batches=5, resume=interrupted.value.state))
        assert timeless(rest[-1].metrics) == timeless(whole[-1].metrics), batches
        for name, tensor in whole[-1].state["network"].items():
            assert torch.equal(rest[-1].state["network"][name], tensor), batches


def test_a_schedule_ends_with_the_last_epoch(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, schedule="one_cycle", **SMALL)
    last = list(fit(TASK, config, sample, limit_batches=5))[-1]
    (group,) = last.state["optimizer"]["param_groups"]
    assert group["lr"] == pytest.approx(config.learning_rate / 25 * 1e-4)


def test_a_checkpoint_of_before_there_were_more_settings_goes_on(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, **SMALL)
    steps = fit(TASK, config, sample, limit_batches=3)
    begun = copy.deepcopy(next(steps).state)  # which is trained on
    second = next(steps)
    old = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed", "split_seed")
    old += ("width1", "width2", "hidden", "kernel_size", "flip", "shift", "crop", "erase")
    kept = {name: begun["config"][name] for name in old}
    assert build_config(FashionConfig, kept) == config
    (resumed,) = fit(TASK, config, sample, limit_batches=3, resume={**begun, "config": kept})
    assert timeless(resumed.metrics) == timeless(second.metrics)


def test_the_best_checkpoint_is_of_the_best_epoch(sample: DataSource, tmp_path: Path) -> None:
    config = FashionConfig(epochs=4, learning_rate=0.02, **SMALL)
    folder = RunFolder(tmp_path)
    for result in fit(TASK, config, sample, limit_batches=8):
        folder.record(result, {"data.name": "sample"})
    history = checkpoint.load(folder.last_checkpoint)["history"]
    best = max(history, key=lambda row: row["val/accuracy"])
    state = checkpoint.load(folder.best_checkpoint)
    assert state["history"][-1] == best and len(history) == 4
    assert state["facts"] == {"data.name": "sample"}


def test_augmentation_is_of_training_images_alone(sample: DataSource) -> None:
    frozen = {"learning_rate": 0.0, "batch_size": 64, "epochs": 1}
    plain, changed = (
        next(fit(FACADE, FacadeConfig(image_size=32, **frozen, **more), sample, limit_batches=1))
        for more in ({}, AUGMENTED)
    )
    assert plain.metrics["train/loss"] != changed.metrics["train/loss"]
    # Training in the same way would leave the same network but for what normalisation saw.
    assert changed.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=0.05)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_a_compiled_network_learns_the_same(sample: DataSource) -> None:
    config = FashionConfig(epochs=1, precision="float32", **SMALL)
    plain, compiled = (
        next(fit(TASK, dataclasses.replace(config, compile=c), sample, limit_batches=4))
        for c in (False, True)
    )
    assert compiled.metrics["train/loss"] == pytest.approx(plain.metrics["train/loss"], rel=1e-4)
    assert compiled.metrics["val/loss"] == pytest.approx(plain.metrics["val/loss"], rel=1e-4)
    assert compiled.state["network"].keys() == plain.state["network"].keys()


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU scores have the precision, too")
def test_bfloat16_learns_nearly_the_same_and_scores_are_of_float32(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, batch_norm=True, **SMALL)
    runs = {
        precision: list(fit(TASK, dataclasses.replace(config, precision=precision), sample))[-1]
        for precision in ("auto", "float32", "bfloat16")
    }
    exact, rounded = runs["float32"], runs["bfloat16"]
    assert exact.metrics["train/loss"] != rounded.metrics["train/loss"]
    assert rounded.metrics["train/loss"] == pytest.approx(exact.metrics["train/loss"], rel=0.02)
    auto = "bfloat16" if distributed.computes_bfloat16(torch.device("cpu")) else "float32"
    assert timeless(runs["auto"].metrics) == timeless(runs[auto].metrics)

    network = TASK.build_model(config).to(memory_format=torch.channels_last)
    network.load_state_dict(rounded.state["network"])
    assert {weights.dtype for weights in network.parameters()} == {torch.float32}
    images = TASK.load_splits(sample, config).val
    val = Batches(images, torch.device("cpu"), TASK.normalization)
    scores = evaluate(
        TASK, network, val, images, batch_size=config.batch_size, precision="float32"
    )[0]
    assert scores["loss"] == rounded.metrics["val/loss"]


FAULTS = """
import resource, torch
from study.training.loop import _keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(16 << 20)  # 64 MiB, which glibc gives back at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
_keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_what_torch_frees_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], check=True, capture_output=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 5


def test_a_loss_that_is_not_finite_ends_the_trial(sample: DataSource) -> None:
    config = FashionConfig(epochs=2, learning_rate=1e30, **SMALL)
    with pytest.raises(TrialError, match="training loss is not finite.*smaller learning rate"):
        list(fit(TASK, config, sample))


def test_a_trial_is_checked_before_it_trains(sample: DataSource, monkeypatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    config = FashionConfig(**{**SMALL, "batch_size": 64})
    with pytest.raises(InputError, match="batch_size=64 cannot be divided among 3 workers"):
        next(fit(TASK, config, sample))


def test_validation_enlarges_logits_to_the_targets(sample: DataSource) -> None:
    config = FacadeConfig(image_size=64)
    network = HourglassNet((4, 4, 4, 4, 4), 5)
    full_size = FACADE.load_full_size(sample, config, "val")
    assert full_size.images.shape[-1] == 64 and full_size.targets.shape[-1] == 128
    batches = Batches(full_size, torch.device("cpu"), FACADE.normalization)
    scores, meter, seen = evaluate(
        FACADE, network, batches, full_size, batch_size=8, precision="auto", limit_batches=1
    )
    assert meter.arrays()["predictions"].shape[1:] == (128, 128)
    figure_data = FACADE.figure_data(network, meter, seen)
    assert figure_data["images"].shape[-2:] == figure_data["targets"].shape[-2:] == (128, 128)


def test_baseline_shapes() -> None:
    facade = HourglassNet((64, 128, 256, 128, 64), 5)
    assert facade(torch.randn(1, 3, 32, 48)).shape == (1, 5, 32, 48)
    assert facade(torch.randn(1, 3, 32, 48)).min() >= 0, "the baseline ends with a ReLU"
    kernels = [m.kernel_size[0] for m in facade.modules() if isinstance(m, torch.nn.Conv2d)]
    assert kernels == [7, 5, 5, 3, 3, 3]
    fashion = TwoConv((32, 32), 128, 5, 10)
    assert fashion(torch.randn(2, 1, 28, 28)).shape == (2, 10)
