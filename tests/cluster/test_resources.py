"""Dividing a machine among trials."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from study.cluster.resources import (
    Node,
    Resources,
    allocate,
    local_cpus,
    local_gpus,
    unused_gpu,
)
from study.errors import InputError
from study.records.run_options import ResourceOptions


def divide(
    cpus: float = 0, gpus: float = 0, nodes: list[Node] | None = None, **flags: Any
) -> Resources:
    request: dict[str, Any] = {
        **{"num_samples": 50, "workers": 1, "max_concurrent": None, "address": None, "wait": None},
        **{"cpus_per_worker": None, "gpus_per_worker": None, **flags},
    }
    options = ResourceOptions(workers_per_trial=request.pop("workers"), **request)
    options.check()
    return allocate(nodes or [Node(cpus=cpus, gpus=gpus)], options)


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ((2, 0), {}, (1, 0, 2)),  # a core each
        ((8, 0), {"num_samples": 2}, (4, 0, 2)),  # few trials share all cores
        ((8, 0), {"max_concurrent": 3}, (2, 0, 3)),
        ((8, 0), {"cpus_per_worker": 3}, (3, 0, 2)),
        ((16, 4), {}, (4, 1, 4)),  # a GPU each, and its share of the cores
        ((16, 1), {"gpus_per_worker": 0.5}, (8, 0.5, 2)),
        ((16, 4), {"gpus_per_worker": 0}, (1, 0, 16)),
        ((16, 4), {"workers": 2}, (4, 1, 2)),
        ((2, 0), {"workers": 2}, (1, 0, 1)),
        ((2, 0), {"num_samples": 1}, (2, 0, 1)),
    ],
)
def test_division(
    machine: tuple[int, int], flags: dict[str, Any], expected: tuple[int, float, int]
) -> None:
    resources = divide(*machine, **flags)
    found = (resources.cpus_per_worker, resources.gpus_per_worker, resources.concurrent)
    assert found == expected
    used = resources.concurrent * resources.workers
    assert used * resources.cpus_per_worker <= machine[0]
    assert used * resources.gpus_per_worker <= machine[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"gpus_per_worker": 1}, "asks for 1 GPUs, but there are 0"),
        ({"cpus_per_worker": 4}, "asks for 4 CPUs"),
        ({"workers": 3}, "asks for 3 CPUs"),
        ({"workers": 0}, "--workers-per-trial must be at least 1, but got 0"),
        ({"max_concurrent": 0}, "--max-concurrent must be at least 1, but got 0"),
        ({"workers": 2, "gpus_per_worker": 0.5}, "several workers cannot share a GPU"),
        ({"wait": 3}, "add its --address"),
        ({"wait": 0, "address": "auto"}, "must be at least 1 node"),
        ({"gpus_per_worker": 1.5}, "above 1 it must be a whole number"),
        ({"gpus_per_worker": -1}, "--gpus-per-worker must be 0 or more"),
        ({"gpus_per_worker": float("nan")}, "--gpus-per-worker must be 0 or more"),
    ],
)
def test_what_can_never_fit_is_refused(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(2, **flags)


@pytest.mark.parametrize(
    ("sizes", "flags", "expected"),
    [
        ([(3, 0)] * 2, {"cpus_per_worker": 2}, (2, 0, 2)),  # a core of each node stays idle
        ([(3, 0)] * 2, {"cpus_per_worker": 2, "workers": 2}, (2, 0, 1)),
        ([(2, 0)] * 3, {"workers": 2}, (1, 0, 3)),
        ([(2, 0)] * 2, {"workers": 2}, (1, 0, 2)),
        ([(0, 0), (2, 0)], {"workers": 2}, (1, 0, 1)),  # a head node without cores
        ([(8, 0), (8, 2)], {}, (4, 1, 2)),  # trials with a GPU are where the GPUs are
        ([(8, 1), (2, 1)], {"workers": 2}, (2, 1, 1)),
        ([(4, 0), (8, 0)], {"max_concurrent": 2, "num_samples": 2}, (4, 0, 2)),
    ],
)
def test_a_worker_fits_on_one_node(
    sizes: list[tuple[int, int]], flags: dict[str, Any], expected: tuple[int, float, int]
) -> None:
    resources = divide(nodes=[Node(cpus=cpus, gpus=gpus) for cpus, gpus in sizes], **flags)
    found = (resources.cpus_per_worker, resources.gpus_per_worker, resources.concurrent)
    assert found == expected


def test_a_worker_that_fits_on_no_node_is_refused() -> None:
    nodes = [Node(cpus=3)] * 2
    with pytest.raises(InputError, match="2 CPUs on one node each do not fit on the nodes"):
        divide(nodes=nodes, cpus_per_worker=2, workers=3)
    with pytest.raises(InputError, match="1 CPUs and 1 GPUs on one node"):
        divide(nodes=[Node(cpus=4), Node(cpus=0, gpus=1)])


def test_gpus_that_training_does_not_use_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert unused_gpu(tmp_path) is None
    for name, build in (("kfd", "ROCm"), ("dxg", "CUDA"), ("nvidia0", "CUDA")):
        (tmp_path / name).touch()
        told = unused_gpu(tmp_path)
        assert told is not None and f"{tmp_path}/{name}" in told and f"torch for {build}" in told
        assert local_gpus(tmp_path) == 0
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        assert unused_gpu(tmp_path) is None, "hidden on purpose"
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        (tmp_path / name).unlink()
    (tmp_path / "dxg").touch()  # torch is asked where there is such a device
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_gpus(tmp_path) == 2 and unused_gpu(tmp_path) is None
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "Apple's GPU is not used" in (unused_gpu(tmp_path) or "")


def test_cores_are_those_of_the_group_and_one_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    for quota, cores in ((0.5, 1), (1.9, 1), (float("inf"), len(os.sched_getaffinity(0)))):
        monkeypatch.setattr("study.cluster.resources.cpu_quota", lambda quota=quota: quota)
        assert local_cpus() == cores
