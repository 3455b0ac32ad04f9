"""Survey of a study's machines: their check results, and differences from the driver's."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from study.cluster.node_check import NodeReport, Request, check_node
from study.cluster.nodes import live_nodes
from study.cluster.resources import Node
from study.datasets.source import DataSource
from study.errors import InputError, StorageError
from study.storage.files import write_text
from study.storage.paths import AnyPath, children

NODE_SECONDS = 900.0  # for a node to answer; it may first prepare a data set
PATIENCE_SECONDS = 5.0  # before printing which nodes are missing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Survey:
    """The result of checking all machines.

    Attributes:
        reports: Reports by host; None for a host that did not answer.
        problems: `(host, message)`; the host is empty for the cluster as a whole.
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
        task: Task whose data set is checked; None for no data set.
        source: Location of the data set.
        nodes: Nodes of the cluster; None for this machine only, without Ray.
        ask: Called while waiting for answers; raises to stop waiting.
    """
    problems: list[tuple[str, str]] = []
    with ExitStack() as stack:
        folder = None
        try:
            folder = stack.enter_context(_shared_folder(studies))
        except InputError as error:
            problems.append(("", str(error)))
        request = Request(
            task=task,
            dataset=source.dataset,
            data_dir=str(source.data_dir),
            cache_dir=str(source.cache_dir),
            storage=None if folder is None else str(folder),
            gpus=0.0,
        )
        here = check_node(request)
        answers: dict[str, NodeReport | str] = {"this machine": here}
        if nodes is not None:
            answers = dict(_answers(nodes, request, ask))
        problems += [(host, answer) for host, answer in answers.items() if isinstance(answer, str)]
        reports = {
            host: answer if isinstance(answer, NodeReport) else None
            for host, answer in answers.items()
        }
        for host, report in reports.items():
            if report is not None:
                problems += [(host, problem) for problem in _problems(report, here, folder)]
    return Survey(reports=reports, problems=problems)


def _problems(report: NodeReport, here: NodeReport, folder: AnyPath | None) -> Iterator[str]:
    """Yield the problems of a machine, and between it and the driver's machine."""
    yield from report.problems
    yield from _differences(here, report)
    wrote = folder and report.wrote and folder / report.wrote
    if folder and wrote and not _arrived(wrote, report.probe):
        yield (
            f"files that it writes to {folder.parent} do not appear on the driver: the folder is "
            "not shared. Choose a shared one (NFS, s3://bucket/studies) with --studies-dir."
        )


def check_nodes(
    studies: AnyPath,
    task: str,
    source: DataSource,
    nodes: list[Node],
    ask: Callable[[], None],
) -> None:
    """Check every node of the cluster before a study starts; arguments as for `survey`.

    Raises:
        InputError: A check failed; the message names the problems and hosts.
    """
    problems = survey(studies, task, source, nodes, ask).problems
    if problems:
        told = "; ".join(f"{host}: {problem}" if host else problem for host, problem in problems)
        raise InputError(f"{told} (`python -m study.doctor` with the same flags shows all nodes)")


def _answers(
    nodes: list[Node], request: Request, ask: Callable[[], None]
) -> Iterator[tuple[str, NodeReport | str]]:
    """Yield the report of each node, or a message if there is none."""
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
        print(f"waiting for {hosts} (the data set is prepared once per machine)", file=sys.stderr)
        until = time.monotonic() + NODE_SECONDS
        while waiting and time.monotonic() < until:
            ask()
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=1.0)
    for reference, node in asked.items():
        if reference in waiting:
            ray.cancel(reference, force=True)
            yield node.host, f"did not answer within {NODE_SECONDS:.0f} s; see its logs."
            continue
        try:
            yield node.host, ray.get(reference)
        except Exception as error:  # the node lacks the package, or died
            text = (str(error).strip() or type(error).__name__).splitlines()[-1]
            if node.id not in [live.id for live in live_nodes()]:
                text = "it left the cluster"
            elif "No module named" in text:
                text += "; install the project on this machine too (cluster.yaml)"
            yield node.host, f"cannot be checked: {text}"


def _differences(here: NodeReport, there: NodeReport) -> Iterator[str]:
    """Yield the differences from the driver's machine."""
    fix = "install the same on all machines (cluster.yaml)"
    if there.python != here.python:
        yield f"Python {there.python}, the driver has {here.python}; {fix}."
    for package, version in here.versions.items():
        if there.versions.get(package) != version:
            have = there.versions.get(package) or "is missing"
            yield f"{package} {have}, the driver has {version}; {fix}."
    if there.code != here.code:
        yield f"the project's code differs from the driver's; {fix}."
    if there.checksum and here.checksum and there.checksum != here.checksum:
        yield "the data set differs from the driver's (checksum mismatch); copy the driver's."


@contextmanager
def _shared_folder(studies: AnyPath) -> Iterator[AnyPath]:
    """Yield a temporary folder in the studies' folder, with a file that the driver wrote.

    Raises:
        InputError: The driver cannot write there.
    """
    folder = studies / f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True)
        write_text(folder / "driver", json.dumps({"time": time.time()}))
    except (OSError, StorageError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot write {studies} ({reason}); fix it, or choose another folder with "
            "--studies-dir."
        ) from None
    try:
        yield folder
    finally:
        with suppress(OSError, StorageError):
            for file in children(folder):
                file.unlink()
            folder.rmdir()


def _arrived(path: AnyPath, probe: str) -> bool:
    deadline = time.monotonic() + 3.0  # NFS shows other machines' files with a delay
    while time.monotonic() < deadline:
        with suppress(OSError, StorageError):
            if path.read_bytes().decode() == probe:
                return True
        time.sleep(0.2)
    return False
