"""Shared fixtures: data sources, command lines, and one real study that many tests look at."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from study.datasets.source import DataSource

TESTS = Path(__file__).parent
ROOT = TESTS.parent  # of the repository

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# A shell that runs the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what failed: a run that is ended from outside prints no summary."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\n{report.nodeid} ({report.when})\n{report.longreprtext}", flush=True)


# What takes minutes and has a shorter sister that always runs.
LONG = os.environ.get("STUDY_CHAOS") == "long"
long_only = pytest.mark.skipif(not LONG, reason="takes minutes; STUDY_CHAOS=long runs it")


@pytest.fixture(scope="session", autouse=True)
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session, empty at its start, shared by the processes that test."""
    place = tmp_path_factory.getbasetemp()
    path = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / "cache"
    path.mkdir(exist_ok=True)
    os.environ["STUDY_CACHE_DIR"] = str(path)
    return path


@pytest.fixture(scope="session")
def sample(cache_dir: Path) -> DataSource:
    """The drawn data sets."""
    return DataSource.find("sample")


@pytest.fixture(scope="session")
def real(cache_dir: Path) -> DataSource:
    """The real data sets; tests that need them skip without them."""
    source = DataSource.find("real")
    if not os.environ.get("STUDY_DATA_DIR") or not source.data_dir.is_dir():
        pytest.skip("no real data: set STUDY_DATA_DIR")
    return source


SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket, found by this process and those it starts.

    The server is a process of its own: `mock_aws` empties all that moto has in its process.
    """
    pytest.importorskip("moto.server")
    log = (tmp_path_factory.mktemp("moto") / "log").open("w")
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        stdin=subprocess.PIPE,  # it ends with this process, however that ends
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
    )
    with log, server, pytest.MonkeyPatch.context() as patch:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        assert port, Path(log.name).read_text()
        values = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "eu-central-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        for name, value in values.items():
            patch.setenv(name, value)
        import boto3

        place = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3").create_bucket(Bucket="team", CreateBucketConfiguration=place)
        yield "s3://team"
        server.terminate()


def run_module(
    module: str, *args: object, cwd: Path, env: dict[str, str] | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python -m study.<module>` as a user would, in a folder of its own."""
    command = [sys.executable, "-m", f"study.{module}", *map(str, args)]
    variables = {**os.environ, **(env or {})}
    variables.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout
    )


def plugin(home: Path) -> dict[str, str]:
    """Return the environment in which there is the task `faulty`, and write it a search space."""
    (home / "faults").mkdir(exist_ok=True)
    (home / "space.yaml").write_text("search:\n  width1: {type: int, low: 2, high: 8}\n")
    return {
        "PYTHONPATH": str(TESTS / "plugin"),
        "FAULTS": str(home / "faults"),
    }


def toy_study(num_samples: int, epochs: int) -> tuple[object, ...]:
    """Return the words of a study of the task `faulty`, in which every trial runs to its end."""
    words = "--search-space space.yaml --scheduler none --cpus-per-worker 1"
    size = ("--num-samples", num_samples, "--epochs", epochs)
    return ("faulty", "--dataset", "sample", *size, *words.split())


@contextlib.contextmanager
def started(
    module: str, *args: object, cwd: Path, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start `python -m study.<module>`, its output going to the file `output`."""
    command = [sys.executable, "-m", f"study.{module}", *map(str, args)]
    with (cwd / "output").open("ab") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **(env or {})}, stdout=output, stderr=output
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], object], seconds: float = 300) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    timing = ("epoch_seconds", "images_per_second")
    return {name: value for name, value in metrics.items() if name not in timing}


SPACE = """\
# Trials with the last learning rate end with a loss that is not finite.
search:
  learning_rate: {type: categorical, choices: [0.001, 1.0e-5, 1.0e+30]}
  width1: {type: int, low: 2, high: 16, log: true}
  width2: {type: int, low: 2, high: 16, log: true}
baseline: {width1: 16, width2: 16}
"""


@dataclasses.dataclass(frozen=True)
class Finished:
    """A study that has run: its folder's parent's parent, and what the command printed."""

    home: Path
    command: tuple[object, ...]
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path) -> Finished:
    """A study of eight trials on drawn garments, some stopped early, some failing."""
    home = tmp_path_factory.mktemp("finished")
    (home / "space.yaml").write_text(SPACE)
    command = (
        "fashion",
        "--dataset",
        "sample",
        "--num-samples",
        8,
        "--epochs",
        3,
        "--seed",
        1,
        "--system-metrics",
        "--search-space",
        "space.yaml",
        "--cpus-per-worker",
        1,
        "--max-concurrent",
        2,
    )
    done = run_module("tune", *command, cwd=home)
    assert done.returncode == 0, done.stderr[-4000:]
    return Finished(home, command, done)
