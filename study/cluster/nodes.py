"""Nodes of the Ray cluster that is joined: those that are up, and waiting for more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from study.cluster.resources import Node
from study.errors import InputError
from study.records.run_options import ResourceOptions

WAIT_SECONDS = 900.0  # for the next node to be started


def live_nodes() -> list[Node]:
    """Return the machines of the cluster that are up."""
    import ray  # once `join_ray` has set what it reads

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


def wait_for_nodes(options: ResourceOptions, ask: Callable[[], None] = lambda: None) -> list[Node]:
    """Return the nodes that are up, once they are as many as the options say.

    Args:
        options: What the study runs on.
        ask: Called while waiting; raises to end that.

    Raises:
        InputError: For a quarter of an hour no node that is waited for came.
    """
    if options.wait is None:
        return live_nodes()
    gpus = options.gpus_per_worker
    bundle = {"CPU": float(options.cpus_per_worker or 1), "GPU": 1.0 if gpus is None else gpus}
    return _wait_for(options.wait, {k: v for k, v in bundle.items() if v}, ask)


def _wait_for(number: int, bundle: dict[str, float], ask: Callable[[], None]) -> list[Node]:
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
                    f"--wait {number}: {len(nodes)} nodes are up, and no other joined "
                    f"within {WAIT_SECONDS:.0f} s; see `ray status`, or wait for fewer "
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
