"""An MLflow server on this machine, started and killed by tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

from conftest import wait_for


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def server(home: Path, port: int) -> Iterator[None]:
    """An MLflow server with a store of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", port]
    command += ["--backend-store-uri", "sqlite:///server.db", "--workers", 1]
    command += ["--artifacts-destination", home / "artifacts"]
    with (home / "server.txt").open("ab") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            cwd=home,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            wait_for(lambda: answers(port))
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
            return bool(reply.status == 200)
    except OSError:
        return False
