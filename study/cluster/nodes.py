"""Nodes of the joined Ray cluster: which ones are up, and waiting for more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from study.cluster.resources import Node
from study.errors import InputError
from study.records.run_options import ResourceOptions

WAIT_SECONDS = 900.0  # for the next node to start


def live_nodes() -> list[Node]:
    """Return the machines of the cluster that are up."""
    import ray  # after `join_ray` has set its environment

    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    # A node that has just joined has no resources yet, not even memory.
    entries = [entry for entry in nodes if entry["Alive"] and entry["Resources"]]
    hosts = [f"{e['NodeManagerHostname']} ({e['NodeManagerAddress']})" for e in entries]
    return [
        Node(
            id=entry["NodeID"],
            # Several nodes may run on one machine.
            host=host if hosts.count(host) == 1 else f"{host} {entry['NodeID'][:6]}",
            cpus=entry["Resources"].get("CPU", 0.0),
            gpus=entry["Resources"].get("GPU", 0.0),
        )
        for entry, host in zip(entries, hosts, strict=True)
    ]


def wait_for_nodes(options: ResourceOptions, ask: Callable[[], None] = lambda: None) -> list[Node]:
    """Return the nodes that are up, after waiting for the number given by `--wait`.

    Args:
        options: Resources of the study.
        ask: Called while waiting; raises to stop waiting.

    Raises:
        InputError: No new node joined for a quarter of an hour.
    """
    if options.wait is None:
        return live_nodes()
    gpus = options.gpus_per_worker
    bundle = {"CPU": float(options.cpus_per_worker or 1), "GPU": 1.0 if gpus is None else gpus}
    return _wait_for(options.wait, {k: v for k, v in bundle.items() if v}, ask)


def _wait_for(number: int, bundle: dict[str, float], ask: Callable[[], None]) -> list[Node]:
    """Wait until enough nodes are up; an autoscaling cluster is asked for them.

    Args:
        number: Number of nodes, including the head.
        bundle: Resources of one worker of a trial; nodes that have them are requested.
        ask: Called while waiting; raises to stop waiting.

    Raises:
        InputError: The nodes do not join in time.
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
        if said >= 0:  # trials keep them up from here; afterwards they may go
            request_resources(bundles=[])
    return nodes


def _slots(bundle: dict[str, float], nodes: list[Node]) -> int:
    """Return how many bundles fit on the nodes."""
    sizes = [{"CPU": node.cpus, "GPU": node.gpus} for node in nodes]
    return sum(int(min(size[kind] // bundle[kind] for kind in bundle)) for size in sizes)
