"""Open the trials of a study in MLflow's web interface.

    python -m study.ui                # the study last run
    python -m study.ui facade --no-browser --port 5000

Starts `mlflow server` for this machine only, opens the page of the study's trials and runs until
Ctrl-C. If tracking is already a server, its page is opened. By default MLflow shows a study as one
collapsed row, because columns and expanded rows are stored in each browser; the link opens a view
that was prepared for this study.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import IO
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from study.cli import (
    add_studies_flag,
    add_study_name,
    add_tracking_flag,
    command_parser,
    run_command,
)
from study.errors import InputError, StartError
from study.records.manifest import find_study
from study.records.study_record import StudyRecord
from study.storage.paths import as_path
from study.storage.sqlite_uri import path_of

START_SECONDS = 120.0  # for MLflow's server on a busy machine; about ten are usual


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `study.ui`."""
    parser = command_parser("ui")
    add = parser.add_argument
    add_study_name(parser)
    add("--port", type=int, help="port of the page on this machine (default: a free one)")
    add(
        "--no-browser",
        action="store_true",
        help="print the address of the page instead of opening it",
    )
    add_studies_flag(parser)
    add_tracking_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.ui`."""
    args = build_parser().parse_args(argv)
    if args.port is not None and not 0 < args.port < 65536:
        raise InputError(f"--port must be 1 to 65535, but got {args.port}.")
    folder = find_study(as_path(args.studies_dir), args.study)
    from study.tracking.store import resolve_uri
    from study.tracking.view import prepare_view

    uri = resolve_uri(args.tracking_uri)
    StudyRecord.settle(folder, uri)
    place = prepare_view(uri, StudyRecord.read(folder))
    if uri.startswith("http"):
        show(f"{uri.rstrip('/')}/{place}", args.no_browser)
        return 0
    with server(uri, args.port) as (process, address):
        show(f"{address}/{place}", args.no_browser)
        print("press Ctrl-C to stop the server", file=sys.stderr)
        process.wait()
    raise StartError("MLflow's server has stopped.")


def show(link: str, no_browser: bool) -> None:
    """Print the address of a page, and open it."""
    print(link, flush=True)
    if not no_browser and not webbrowser.open(link):
        print("cannot start a browser; open the address yourself", file=sys.stderr)


@contextmanager
def server(uri: str, port: int | None) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """Run MLflow's server on a store, on this machine only; yield its process and address.

    Raises:
        InputError: The port is taken.
        StartError: The server does not start.
    """
    port = _port(port)
    file = path_of(uri)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    # Not on the command line, which all users of a machine can read.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": uri}
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log, _signals_end_it():
        process = subprocess.Popen(
            [*command, "--port", str(port), "--workers", "1"],
            cwd=file.parent if file is not None else None,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for this process, which then ends the server
        )
        try:
            _wait_until_it_answers(process, address, log)
            yield process, address
        finally:
            _end(process)


def _port(port: int | None) -> int:
    """Return a free port: the given one, or any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port or 0))
        except OSError as error:
            raise InputError(f"--port {port}: {error.strerror}; choose another port.") from None
        return int(probe.getsockname()[1])


def _wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    direct = build_opener(ProxyHandler({}))  # a proxy cannot reach this machine's ports
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            with direct.open(f"{address}/health", timeout=2) as reply:
                if reply.status == 200:
                    return
        except (URLError, OSError):
            pass
        if process.poll() is not None or time.monotonic() > until:
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()[-1:]
            raise StartError(f"MLflow's server did not start: {' '.join(said) or 'no output'}")
        time.sleep(0.2)


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """End the server, too, when a signal ends this process; the server does not receive it."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ending = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, leave) for number in ending}
    # A script's background processes ignore Ctrl-C otherwise.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and its children."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(10)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


if __name__ == "__main__":
    sys.exit(run_command(main))
