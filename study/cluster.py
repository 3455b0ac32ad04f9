"""A Ray cluster: joining it, waiting for its nodes, and checking every one of them."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from study.datasets.source import DataSource
from study.errors import InputError, StorageError
from study.files import write_text
from study.node_check import NodeReport, Request, check_node
from study.object_path import AnyPath, children
from study.resources import Node
from study.run_options import ResourceOptions

NODE_SECONDS = 900.0  # for a node to answer; it may prepare a data set first
WAIT_SECONDS = 900.0  # for the next node to be started
PATIENCE_SECONDS = 5.0  # before saying which nodes are waited for


def connect(address: str) -> None:
    """Join a running cluster.

    Raises:
        InputError: There is none.
    """
    if (Path.home() / ".ray" / "auth_token").exists():
        # Given an address, Ray looks for its token too late and is refused.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--address {address}: {reason} Start a cluster (`ray up cluster.yaml`), leave "
            "--address out to use this machine, or put the cluster's token into ~/.ray/auth_token."
        ) from None


def live_nodes() -> list[Node]:
    """Return the machines of the cluster that are up."""
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    # One that has just come has no resources yet, not even memory.
    entries = [entry for entry in nodes if entry["Alive"] and entry["Resources"]]
    hosts = [f"{e['NodeManagerHostname']} ({e['NodeManagerAddress']})" for e in entries]
    return [
        Node(
            id=entry["NodeID"],
            # Ray can have several nodes on one machine.
            host=host if hosts.count(host) == 1 else f"{host} {entry['NodeID'][:6]}",
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
        )
        for entry, host in zip(entries, hosts, strict=True)
    ]


def nodes_for(args: ResourceOptions, ask: Callable[[], None] = lambda: None) -> list[Node]:
    """Return the nodes of the cluster that is joined, once they are as many as the flags say.

    Args:
        args: What the study runs on.
        ask: Called while waiting; raises to end that.

    Raises:
        InputError: For a quarter of an hour no node that is waited for came.
    """
    if args.wait is None:
        return live_nodes()
    gpus = args.gpus_per_worker
    bundle = {"CPU": float(args.cpus_per_worker or 1), "GPU": 1.0 if gpus is None else gpus}
    return wait_for_nodes(args.wait, {k: v for k, v in bundle.items() if v}, ask)


def wait_for_nodes(number: int, bundle: dict[str, float], ask: Callable[[], None]) -> list[Node]:
    """Wait until so many nodes are up, asking a cluster that grows by itself for them.

    Args:
        number: Of nodes, the head among them.
        bundle: What one worker of a trial takes; nodes that have it are asked for.
        ask: Called now and then; raises to end the waiting.

    Raises:
        InputError: They do not come.
    """
    from ray.autoscaler.sdk import request_resources

    nodes = live_nodes()
    said, deadline = -1, 0.0
    try:
        while len(nodes) < number:
            if len(nodes) != said:
                said = len(nodes)
                deadline = time.monotonic() + WAIT_SECONDS
                each = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
                print(f"waiting for {number} nodes with {each}, {said} up so far", file=sys.stderr)
                request_resources(bundles=[bundle] * (_slots(bundle, nodes) + number - said))
            if time.monotonic() > deadline:
                raise InputError(
                    f"--wait {number}: {len(nodes)} nodes are up, and no other came within "
                    f"{WAIT_SECONDS:.0f} s; look at `ray status`, or ask for fewer "
                    "(--gpus-per-worker 0 if none has a GPU)."
                )
            ask()
            time.sleep(1.0)
            nodes = live_nodes()
    finally:
        if said >= 0:  # from here on the trials keep them, and when those end they may go
            request_resources(bundles=[])
    return nodes


def _slots(bundle: dict[str, float], nodes: list[Node]) -> int:
    """Return how many bundles the nodes hold."""
    sizes = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    return sum(int(min(size[kind] // bundle[kind] for kind in bundle)) for size in sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """What the check of all machines gave.

    Attributes:
        reports: By host; None for one that did not answer.
        problems: `(host, sentence)`; the host is empty for the cluster as a whole.
    """

    reports: dict[str, NodeReport | None]
    problems: list[tuple[str, str]]


def survey(
    studies: AnyPath,
    task: str | None,
    source: DataSource,
    nodes: list[Node] | None,
    ask: Callable[[], None] = lambda: None,
) -> Survey:
    """Check this machine, or every node of the cluster against it.

    Args:
        studies: Folder of the studies.
        task: Whose data set is looked for; None for no data set.
        source: Where it is looked for.
        nodes: Of the cluster; None for this machine alone, without Ray.
        ask: Called while waiting for answers; raises to end that.
    """
    problems: list[tuple[str, str]] = []
    reports: dict[str, NodeReport | None] = {}
    with _shared_folder(studies, problems) as folder:
        request = Request(
            task=task,
            dataset=source.dataset,
            data_dir=str(source.data_dir),
            cache_dir=str(source.cache_dir),
            storage=None if folder is None else str(folder),
            gpus=0.0,
        )
        here = check_node(request)
        if nodes is None:
            reports["this machine"] = here
        else:
            for host, answer in _answers(nodes, request, ask):
                reports[host] = answer if isinstance(answer, NodeReport) else None
                if isinstance(answer, str):
                    problems.append((host, answer))
        for host, report in reports.items():
            if report is not None:
                problems += [(host, problem) for problem in report.problems]
                problems += [(host, problem) for problem in _differences(here, report)]
                wrote = folder and report.wrote and folder / report.wrote
                if wrote and not _arrived(wrote, report.probe):
                    problems.append(
                        (
                            host,
                            f"what it wrote to {studies} does not arrive here: the folder is "
                            "not shared. Name one that is (NFS, s3://bucket/studies) with "
                            "--studies-dir.",
                        )
                    )
    return Survey(reports=reports, problems=problems)


def check(
    studies: AnyPath,
    task: str,
    source: DataSource,
    nodes: list[Node],
    ask: Callable[[], None],
) -> None:
    """Check every node of the cluster before a study begins; the arguments are `survey`'s.

    Raises:
        InputError: Something is wrong; says what and where.
    """
    problems = survey(studies, task, source, nodes, ask).problems
    if problems:
        told = "; ".join(f"{host}: {problem}" if host else problem for host, problem in problems)
        raise InputError(f"{told} (`python -m study.doctor` with the same flags shows all nodes)")


def _answers(
    nodes: list[Node], request: Request, ask: Callable[[], None]
) -> Iterator[tuple[str, NodeReport | str]]:
    """Yield what each node answers, or why it does not."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    check: Any = ray.remote(num_cpus=0, max_retries=0)(check_node)
    asked = {
        check.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote(dataclasses.replace(request, gpus=node.gpus)): node
        for node in nodes
    }
    waiting = list(asked)
    _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE_SECONDS)
    if waiting:
        hosts = ", ".join(asked[reference].host for reference in waiting)
        print(f"waiting for {hosts}; a data set is prepared once per machine", file=sys.stderr)
        until = time.monotonic() + NODE_SECONDS
        while waiting and time.monotonic() < until:
            ask()
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
    for reference, node in asked.items():
        if reference in waiting:
            ray.cancel(reference, force=True)
            yield node.host, f"did not answer within {NODE_SECONDS:.0f} s; look at its logs."
            continue
        try:
            yield node.host, ray.get(reference)
        except Exception as error:  # what a node without the package raises, or one that dies
            text = (str(error).strip() or type(error).__name__).splitlines()[-1]
            if node.id not in [live.id for live in live_nodes()]:
                text = "it went away meanwhile"
            elif "No module named" in text:
                text += "; install the project on this machine as on the others (cluster.yaml)"
            yield node.host, f"cannot be checked: {text}"


def _differences(here: NodeReport, there: NodeReport) -> Iterator[str]:
    """Yield what is not as on the driver's machine."""
    fix = "the set-up of all machines must install the same (cluster.yaml)"
    if there.python != here.python:
        yield f"Python {there.python}, the driver has {here.python}; {fix}."
    for package, version in here.versions.items():
        if there.versions.get(package) != version:
            have = there.versions.get(package) or "no"
            yield f"{have} {package}, the driver has {version}; {fix}."
    if there.code != here.code:
        yield f"another version of this project than the driver's; {fix}."
    if there.checksum and here.checksum and there.checksum != here.checksum:
        yield "another data set than the driver's (its checksum differs); copy the driver's."


@contextmanager
def _shared_folder(studies: AnyPath, problems: list[tuple[str, str]]) -> Iterator[AnyPath | None]:
    """Yield a folder of this check beside the studies, holding what the driver wrote.

    It is None if the driver cannot write there.
    """
    folder = studies / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        write_text(folder / "driver", json.dumps({"time": time.time()}))
    except (OSError, StorageError) as error:
        reason = getattr(error, "strerror", None) or error
        problems.append(
            (
                "",
                f"cannot write {studies} ({reason}); mend it, or name another folder with "
                "--studies-dir.",
            )
        )
        yield None
        return
    try:
        yield folder
    finally:
        with suppress(OSError, StorageError):
            for file in children(folder):
                file.unlink()
            folder.rmdir()


def _arrived(path: AnyPath, probe: str) -> bool:
    deadline = time.monotonic() + 3.0  # NFS shows new files of others after a moment
    while time.monotonic() < deadline:
        with suppress(OSError, StorageError):
            if path.read_bytes().decode() == probe:
                return True
        time.sleep(0.2)
    return False
