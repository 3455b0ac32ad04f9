"""Several workers in a trial: what they compute together, and what Ray makes of them."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import long_only, plugin, run_module, started, wait_for

from study.datasets.source import DataSource
from study.errors import Diverged, InputError
from study.records import checkpoint
from study.records.study_record import StudyRecord
from study.runner.train_workers import telling_error
from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK, FashionConfig
from study.training import distributed
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import Interrupted, fit

# No dropout, no batch normalisation: but for rounding the number of workers makes no difference.
CONFIG = FashionConfig(epochs=3, width1=4, width2=4, hidden=16, batch_size=64, precision="float32")


def _rank(
    rank: int, world: int, port: int, job: Callable[..., Any], args: tuple[Any, ...], queue: Any
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
    )
    queue.put((rank, job(*args)))
    dist.destroy_process_group()


def on_workers(world: int, job: Callable[..., Any], *args: Any) -> list[Any]:
    """Run a job in so many gloo processes; return what each of them returns."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ranks = [
        context.Process(target=_rank, args=(rank, world, port, job, args, queue))
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    try:
        results = dict(queue.get(timeout=120) for _ in ranks)
    finally:
        for process in ranks:
            process.join(10)
            process.kill()
    return [results[rank] for rank in range(world)]


def train(source: DataSource, path: Path, weights: Path) -> dict[str, Any]:
    """Train, save rank 0's state, and score fixed weights of both tasks."""
    served: list[list[int]] = []

    class Watched(Batches):
        def _pick(self, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            served[-1] += self.indices[places].tolist()
            return super()._pick(places)

    splits = TASK.load_splits(source, CONFIG)
    batches = Watched(splits.train, torch.device("cpu"), TASK.normalization)
    for epoch in (1, 2):
        served.append([])
        list(batches.training(CONFIG.batch_size, (CONFIG.seed, epoch)))
    last = list(fit(TASK, CONFIG, source))[-1]
    scores = {}
    for task, config in ((TASK, CONFIG), (FACADE, FacadeConfig(image_size=64, batch_size=4))):
        state = checkpoint.load(weights / f"{task.name}.pt")
        network = task.build_model(build(config, state))
        network.load_state_dict(state["network"])
        images = task.load_splits(source, config).val
        val = Batches(images, torch.device("cpu"), task.normalization)
        scores[task.name] = evaluate(
            task, network, val, images, batch_size=config.batch_size, precision=config.precision
        )[0]
    if distributed.rank() == 0:
        checkpoint.save(last.state, path)
    return {"served": served, "history": last.state["history"], "scores": scores}


def build(config: Any, state: dict[str, Any]) -> Any:
    known = {field.name for field in dataclasses.fields(config)}
    return type(config)(**{k: v for k, v in state["config"].items() if k in known})


def test_one_two_and_four_workers_give_the_same(sample: DataSource, tmp_path: Path) -> None:
    facade = FacadeConfig(
        image_size=64, batch_size=4, width1=4, width2=4, width3=4, width4=4, width5=4
    )
    for task, config in ((TASK, CONFIG), (FACADE, facade)):
        network = task.build_model(config)
        state = {"network": network.state_dict(), "config": dataclasses.asdict(config)}
        checkpoint.save(state, tmp_path / f"{task.name}.pt")
    runs = {
        world: on_workers(world, train, sample, tmp_path / f"{world}.pt", tmp_path)
        for world in (1, 2, 4)
    }
    (alone,) = runs[1]
    state = checkpoint.load(tmp_path / "1.pt")
    for world, ranks in runs.items():
        for epoch in (0, 1):
            indices = [index for rank in ranks for index in rank["served"][epoch]]
            assert len(indices) == len(set(indices)) == 39 * 64
            assert set(indices) == set(alone["served"][epoch])
        for rank in ranks:
            for name, scores in alone["scores"].items():
                # Other parts of a batch are rounded otherwise, which may take a pixel's probability
                # into the next of the histogram's bins.
                assert rank["scores"][name] == pytest.approx(scores, rel=0, abs=1e-5), name
            for row, expected in zip(rank["history"], alone["history"], strict=True):
                assert row["train/loss"] == pytest.approx(expected["train/loss"], rel=1e-4)
                assert row["val/loss"] == pytest.approx(expected["val/loss"], rel=1e-4)
        for name, tensor in checkpoint.load(tmp_path / f"{world}.pt")["network"].items():
            assert torch.allclose(tensor, state["network"][name], atol=1e-4), name


def arrays(network: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.items()}


def interrupted(source: DataSource) -> dict[str, Any]:
    """Train whole, in parts, with one incomplete batch, and with a stop in each phase."""
    few = {"limit_batches": 6}
    short = dataclasses.replace(CONFIG, epochs=2)
    last = {"whole": list(fit(TASK, short, source))[-1]}
    last["parts"] = list(fit(TASK, short, source, micro_batches=3, **few))[-1]
    last["single"] = list(fit(TASK, dataclasses.replace(short, batch_size=4096), source))[-1]
    facade = FacadeConfig(
        image_size=64, epochs=1, batch_size=4, width1=4, width2=4, width3=4, width4=4, width5=4
    )
    last["facade"] = list(fit(FACADE, facade, source, **few))[-1]
    stops = []
    for asked in (0, 3, 5):
        answers = iter([False] * asked)
        begun = time.monotonic()
        state: dict[str, Any] | None = None
        with pytest.raises(Interrupted) as stop:
            list(fit(TASK, short, source, stop=lambda answers=answers: next(answers, True)))
        stops.append((int(stop.value.state["part"]["sums"][-1]), time.monotonic() - begun))
        state = distributed.broadcast(stop.value.state)
        rest = list(fit(TASK, short, source, resume=state))[-1]
        for name, tensor in last["whole"].state["network"].items():
            assert torch.equal(rest.state["network"][name], tensor), asked
        assert rest.metrics["train/loss"] == pytest.approx(last["whole"].metrics["train/loss"])
    return {
        "stops": stops,
        **{
            name: (arrays(result.state["network"]), result.metrics) for name, result in last.items()
        },
    }


def test_two_workers_stop_together_and_take_the_step_of_one(
    sample: DataSource, tmp_path: Path
) -> None:
    ranks = on_workers(2, interrupted, sample)
    (alone,) = on_workers(1, interrupted, sample)
    assert [n for n, _ in ranks[0]["stops"]] == [n for n, _ in ranks[1]["stops"]]
    for rank in ranks:
        for name in ("whole", "parts", "single"):
            network, metrics = rank[name]
            for key, tensor in alone[name][0].items():
                assert np.allclose(network[key], tensor, atol=1e-4), (name, key)
            assert metrics["train/loss"] == pytest.approx(alone[name][1]["train/loss"], rel=1e-4)
        # Statistics of batch normalisation are of rank 0, and all have scored with them.
        assert rank["facade"][1]["val/loss"] == ranks[0]["facade"][1]["val/loss"]
        for key, tensor in ranks[0]["facade"][0].items():
            assert np.array_equal(rank["facade"][0][key], tensor), key


COMMAND = (
    "tune",
    "faulty",
    "--dataset",
    "sample",
    "--search-space",
    "space.yaml",
    "--workers-per-trial",
    2,
    "--cpus-per-worker",
    1,
    "--set",
    "hidden=16",
    "--set",
    "precision=float32",
)


def test_a_trial_of_two_workers_is_stopped_in_an_epoch_and_goes_on(
    tmp_path: Path, sample: DataSource
) -> None:
    command = (*COMMAND, "--num-samples", 1, "--epochs", 2)
    env = plugin(tmp_path)
    with started(*command, cwd=tmp_path, env={**env, "PAUSE": "0.2"}) as study:
        wait_for(lambda: (tmp_path / "faults" / "began-0").exists())
        time.sleep(2)
        begun = time.monotonic()
        study.send_signal(signal.SIGTERM)
        assert study.wait(60) == 143 and time.monotonic() - begun < 20
    folder = tmp_path / "studies" / "faulty"
    part = checkpoint.load(folder / "trials" / "0000" / "last.pt")["part"]
    batches, images = int(part["sums"][-1]), int(part["sums"][1])
    assert 0 < batches < 39 and images == 64 * batches and len(part["random"]) == 2

    done = run_module(*command, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (trial,) = StudyRecord.read(folder).trials()
    assert trial.state == "finished" and sorted(trial.curve) == [1, 2]
    torch.set_num_threads(1)
    params = StudyRecord.read(folder).config(trial)
    known = {field.name for field in dataclasses.fields(FashionConfig)}
    config = FashionConfig(**{k: v for k, v in params.items() if k in known})
    for row, expected in zip(trial.history, fit(TASK, config, sample), strict=True):
        assert row["train/loss"] == pytest.approx(expected.metrics["train/loss"], rel=1e-4)


def test_the_worker_that_failed_itself_says_why_not_those_that_lost_it() -> None:
    gone = "[/pytorch/third_party/gloo/gloo/transport/tcp/{}.cc:78] {}"
    lost = [
        RuntimeError(gone.format("pair", "Connection closed by peer")),
        RuntimeError(gone.format("unbound_buffer", "Timed out waiting 5000ms for recv operation")),
        dist.DistBackendError("NCCL error: remote process exited or there was a network error"),
        ConnectionResetError(),
    ]
    for error in (ValueError("x"), RuntimeError("no connection of shapes"), InputError("y")):
        assert telling_error([*lost, error]) is error
    assert telling_error([RuntimeError("x"), *lost, diverged := Diverged("y")]) is diverged
    assert telling_error(lost) is lost[0]


@long_only
def test_faults_of_one_worker_are_cured_for_all(tmp_path: Path) -> None:
    done = run_module(
        *COMMAND,
        "--num-samples",
        3,
        "--epochs",
        2,
        "--scheduler",
        "none",
        "--seed",
        3,
        "--set",
        "cycle=true",
        "--trial-timeout",
        "2m",  # out of memory, dies, hangs
        cwd=tmp_path,
        env={**plugin(tmp_path), "STUDY_SEED": "3"},
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    memory, dies, hangs = StudyRecord.read(tmp_path / "studies" / "faulty").trials()
    for trial in (memory, dies, hangs):
        assert trial.state == "finished" and sorted(trial.curve) == [1, 2], done.stderr
    assert memory.micro_batches == 4 and len(memory.failures) == 2
    assert dies.failures[0]["reason"] == "its process died"
    assert hangs.failures[0]["reason"] == "no report for 2 min 00 s (--trial-timeout)"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Ray with two cores that outlives the studies on it; its address."""
    import ray

    context = ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=True, log_to_driver=False
    )
    yield str(context.address_info["gcs_address"])
    ray.shutdown()


@pytest.mark.parametrize("num", [3, pytest.param(12, marks=long_only)])
def test_workers_of_a_stopped_trial_make_room_for_the_next(
    tmp_path: Path, cluster: str, num: int
) -> None:
    from ray.util import placement_group_table

    (tmp_path / "space.yaml").write_text(
        "search:\n  learning_rate: {type: float, low: 1.0e-6, high: 1.0e-2, log: true}\n"
        "baseline: {learning_rate: 1.0e-2}\n"
    )
    begun = time.monotonic()
    done = run_module(
        "tune",
        "fashion",
        *COMMAND[2:],
        "--set",
        "width1=4",
        "--set",
        "width2=4",
        "--num-samples",
        num,
        "--epochs",
        3,
        "--reduction-factor",
        4,
        "--address",
        cluster,
        cwd=tmp_path,
        timeout=1200,
    )
    seconds = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    groups = placement_group_table()
    trials = StudyRecord.read(tmp_path / "studies" / "fashion").trials()
    states = [trial.state for trial in trials]
    assert len(trials) == num and set(states) == {"finished", "stopped"}
    assert states.count("stopped") > num / 2
    starts, epochs = [], []
    for trial, following in itertools.pairwise(trials):
        ended, first = trial.history[-1]["ended"], following.history[0]
        starts.append(datetime.fromisoformat(following.begun).timestamp() - ended)
        epochs.append(first["ended"] - first["epoch_seconds"] - ended)
    print(
        f"{num} trials in {seconds:.0f} s; from a trial's last epoch to the next trial's start "
        f"{max(starts):.1f} s, to its first batch {max(epochs):.1f} s at most"
    )
    assert max(starts) < 15
    assert len(groups) >= num and {group["state"] for group in groups.values()} == {"REMOVED"}
