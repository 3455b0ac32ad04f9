"""Starting what the benchmarks compare, each in processes and an empty folder of its own."""

from __future__ import annotations

import gzip
import logging
import os
import subprocess
import sys
from pathlib import Path

from study.cluster.session import set_ray_options
from study.datasets.source import DataSource

HERE = Path(__file__).parent


def environment() -> dict[str, str]:
    """Return an environment with this checkout's code, and the benchmarks' own tasks."""
    places = [
        str(HERE),
        str(HERE / "plugin"),
        str(HERE.parents[1]),
        os.environ.get("PYTHONPATH", ""),
    ]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    variables.pop("MLFLOW_TRACKING_URI", None)
    variables["RAY_USAGE_STATS_ENABLED"] = "0"
    variables["MLFLOW_DISABLE_TELEMETRY"] = "true"
    return variables


def run_study(*args: object, home: Path) -> None:
    """Run `python -m study.tune` in a folder; its messages go to the file `output` there."""
    run("-m", "study.tune", *args, home=home)


def run(*args: object, home: Path, background: bool = False) -> subprocess.Popen[bytes]:
    """Run Python with these arguments in a folder.

    Raises:
        RuntimeError: It failed; the end of its output is the message.
    """
    with (home / "output").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *map(str, args)],
            cwd=home,
            env=environment(),
            stdout=output,
            stderr=output,
        )
    if not background:
        finish(process, home)
    return process


def finish(process: subprocess.Popen[bytes], home: Path) -> None:
    """Wait for a process of `run`."""
    if process.wait() != 0:
        text = (home / "output").read_text(errors="replace")
        raise RuntimeError(f"{process.args} failed:\n{text[-4000:]}")


def unpack(folder: Path) -> None:
    """Lay Fashion-MNIST into a folder as torchvision wants it, without compression."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for file in (DataSource.find().data_dir / "FashionMNIST" / "raw").glob("*-ubyte*"):
        opened = gzip.open if file.suffix == ".gz" else open
        with opened(file, "rb") as packed:
            (raw / file.name.removesuffix(".gz")).write_bytes(packed.read())


def start_ray() -> None:
    """Start Ray for two trials at a time, set up as a study sets it up."""
    set_ray_options()
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
