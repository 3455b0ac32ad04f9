"""Watchdog for Ray itself, which may die or hang in a way that Ray's calls never return.

    watch = RayWatch(on_death, local=True)    # once Ray runs
    watch.check()                             # in Ray's callbacks, before a trial is blamed
    watch.close()                             # before Ray is shut down

One thread checks that the processes of a local Ray are alive; others send health checks to GCS and
raylet, as Ray's own components do. The limit is a number of failed checks, not of seconds: a
suspended driver or a sleeping machine sends none in the meantime.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

ASK_SECONDS = 5.0  # timeout of a health check, and time between two
NUM_SILENT = 4  # failed checks in a row
# The head of a cluster may come back; after 60 s without it, Ray would exit this process.
NUM_SILENT_CLUSTER = 9
LOOK_SECONDS = 1.0
HEALTH = "/grpc.health.v1.Health/Check"


class RayWatch:
    """Monitors the Ray that this process is connected to.

    Args:
        on_death: Called once, with a message, from a thread of the watch or the caller of `check`.
        local: Whether this process started Ray.
        dashboard: Whether trials need Ray's dashboard.
    """

    def __init__(self, on_death: Callable[[str], None], local: bool, dashboard: bool) -> None:
        self._on_death = on_death
        self._local = local
        self._processes = _processes(dashboard) if local else {}
        self._addresses = _addresses()
        self._dying = threading.RLock()
        self._closed = threading.Event()
        for work in (self._look, *(self._asking(name) for name in self._addresses)):
            threading.Thread(target=work, name="ray-watch", daemon=True).start()

    def check(self) -> None:
        """Check that Ray's processes are alive; a death is handled before this returns."""
        for name, process in self._processes.items():
            if not _lives(process):
                self.dead(f"Ray's {name} has died")

    def dead(self, why: str) -> None:
        """Report that Ray is dead, once."""
        with self._dying:
            if not self._closed.is_set():
                self._closed.set()
                self._on_death(why)

    def close(self) -> None:
        """Stop watching."""
        self._closed.set()

    def _look(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            self.check()

    def _asking(self, name: str) -> Callable[[], None]:
        return lambda: self._ask(name)

    def _ask(self, name: str) -> None:
        import grpc
        from ray._private.grpc_utils import init_grpc_channel

        ask = init_grpc_channel(self._addresses[name]).unary_unary(HEALTH)
        silent = 0
        most = NUM_SILENT if self._local else NUM_SILENT_CLUSTER
        while not self._closed.is_set():
            try:
                ask(b"", timeout=ASK_SECONDS, wait_for_ready=True)
                silent = 0
                self._closed.wait(ASK_SECONDS)
            except grpc.RpcError as error:
                if error.code() not in (
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    grpc.StatusCode.UNAVAILABLE,
                ):
                    silent = 0  # it answered, so it is alive
                    self._closed.wait(ASK_SECONDS)
                    continue
                silent += 1
            if silent >= most:
                where = "" if self._local else f" at {self._addresses[name]}"
                self.dead(f"Ray's {name}{where} has not answered for {silent * ASK_SECONDS:.0f} s")


def _addresses() -> dict[str, str]:
    """Return the addresses of GCS and of this machine's raylet."""
    import ray

    context = ray.get_runtime_context()
    here = context.get_node_id()
    raylets = {
        entry["NodeID"]: f"{entry['NodeManagerAddress']}:{entry['NodeManagerPort']}"
        for entry in ray.nodes()  # type: ignore[no-untyped-call]
    }
    return {"GCS": context.gcs_address, "raylet": raylets[here]}


def _processes(dashboard: bool) -> dict[str, Any]:
    """Return the essential processes of a local Ray, by name."""
    import psutil
    from ray._private import worker

    names = {"gcs_server": "GCS", "raylet": "raylet"}
    if dashboard:
        names["dashboard"] = "dashboard"
    node: Any = worker._global_node
    started: Mapping[str, Any] = node.all_processes
    found = {
        name: psutil.Process(started[kind][0].process.pid)
        for kind, name in names.items()
        if kind in started
    }
    for child in found["raylet"].children():
        if "agent" in " ".join((child.name(), *child.cmdline())).lower():
            found[f"agent {child.name().removeprefix('ray::')}"] = child
    return found


def _lives(process: Any) -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
