"""Memory of trials that run beside one another: mini-facade at 256 pixels, one and two at a time.

    python tests/benchmarks/memory.py
    python tests/benchmarks/memory.py --seconds 20

Studies on the real data, stopped with SIGTERM once measured. Of each trial's process `/proc` tells
the proportional set size (PSS, in which a page that n processes share counts as an n-th) and what
is private; of the cache's arrays the same, which are to be in memory once however many trials read
them. What a further trial takes is the difference of two such studies; that of the task `empty`,
which has next to no data and no network, is what the interpreter, torch and Ray take of it.

Linux only. Widths are tiny and batches small, so that activations do not hide the rest.
"""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from contenders import run
from report import Report, median, out_parser

from study.datasets.source import DataSource

SPACE = "search:\n  learning_rate: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}\n"
WIDTHS = {"width1": 4, "width2": 8, "width3": 8, "width4": 8, "width5": 4}
BATCH_SIZE = 2
# What a trial's process calls itself, between its trial's steps and in one.
ACTORS = b"ray::StudyTrial", b"ray::ResourceTrainable"
START_SECONDS = 180  # at most, of all trials
KEYS = ("Rss", "Pss", "Private", "Shared")
Sizes = dict[str, float]  # MiB by `KEYS`


def main() -> None:
    parser = out_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=25, help="of training before measuring")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    settings = {**WIDTHS, "image_size": 256, "batch_size": BATCH_SIZE}
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    report = Report("memory", args.out)
    limits: dict[str, float] = {}
    found: dict[str, list[float]] = {}
    raw: dict[str, list[Any]] = {}
    for _ in range(args.repeats):
        for name, value in once(args.seconds, flags, limits, raw).items():
            found.setdefault(name, []).append(value)
    for name, values in found.items():
        report.add(name, values, limit=limits.get(name))
    report.note("of every study, MiB", raw)
    report.note("settings", settings)
    report.note("seconds of training before", args.seconds)
    report.write()


def once(
    seconds: float, flags: list[str], limits: dict[str, float], raw: dict[str, list[Any]]
) -> dict[str, float]:
    """Run the four studies; return MiB by what they are, and fill in limits and raw sizes."""
    pss: dict[tuple[str, int], float] = {}
    private: dict[tuple[str, int], float] = {}
    found: dict[str, float] = {}
    for task, given in (("empty", []), ("facade", flags)):
        for concurrent in (1, 2):
            trials = study(task, concurrent, seconds, given)
            name = f"{task}, {concurrent} at a time"
            raw.setdefault(name, []).append(trials)
            pss[task, concurrent] = sum(whole["Pss"] for whole, _ in trials)
            private[task, concurrent] = mean(whole["Private"] for whole, _ in trials)
            found[f"{name}: PSS of all trials, MiB"] = pss[task, concurrent]
            found[f"{name}: private part, a trial, MiB"] = private[task, concurrent]
            if task == "facade":
                mapped = mean(arrays["Rss"] for _, arrays in trials)
                found[f"{name}: arrays mapped by a trial, RSS, MiB"] = mapped
                total = f"{name}: arrays, PSS of all trials, MiB"
                found[total] = sum(arrays["Pss"] for _, arrays in trials)
                limits[total] = trials[0][1]["Size"]
    more = {task: pss[task, 2] - pss[task, 1] for task in ("empty", "facade")}
    found["a further trial, PSS, MiB"] = more["facade"]
    found["of it interpreter, torch and Ray, PSS, MiB"] = more["empty"]
    found["the rest, its own data and network, PSS, MiB"] = more["facade"] - more["empty"]
    # The PSS of the first falls when a second one shares its pages: what is private is the bill.
    alone = "private memory of a facade trial beside another, less an empty one's, MiB"
    found[alone] = private["facade", 2] - private["empty", 2]
    return found


def study(
    task: str, concurrent: int, seconds: float, flags: list[str]
) -> list[tuple[Sizes, Sizes]]:
    """Run a study for a while; return of each trial the sizes of its process and of its arrays."""
    with tempfile.TemporaryDirectory(prefix="study-bench-") as folder:
        home = Path(folder)
        (home / "space.yaml").write_text(SPACE)
        process = run(
            "-m",
            "study.tune",
            task,
            "--num-samples",
            concurrent,
            "--epochs",
            100_000,
            "--search-space",
            "space.yaml",
            "--scheduler",
            "none",
            "--cpus-per-worker",
            1,
            "--max-concurrent",
            concurrent,
            *flags,
            home=home,
            background=True,
        )
        try:
            actors: list[int] = []
            deadline = time.monotonic() + START_SECONDS
            while len(actors) < concurrent or not all(map(begun, actors)):
                assert process.poll() is None, (home / "output").read_text()[-2000:]
                assert time.monotonic() < deadline, (home / "output").read_text()[-2000:]
                time.sleep(0.5)
                actors = [
                    pid
                    for pid in descendants(process.pid)
                    if any(name in command(pid) for name in ACTORS)
                ]
            time.sleep(seconds)
            found = []
            for _ in range(5):  # a step frees and takes memory
                found.append([(rollup(pid), arrays(pid)) for pid in sorted(actors)])
                time.sleep(0.7)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    assert len(actors) == concurrent
    return [
        tuple(
            {key: median([now[part][key] for now in each]) for key in each[0][part]}
            for part in (0, 1)
        )  # type: ignore[misc]
        for each in zip(*found, strict=True)
    ]


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that a process has started, and theirs."""
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        children: list[str] = []
        with suppress(OSError):  # the thread has ended
            children = path.read_text().split()
        for child in map(int, children):
            yield child
            yield from descendants(child)


def begun(pid: int) -> bool:
    """Return whether a process has loaded torch; a worker that waits or still imports has not."""
    return "libtorch_cpu" in Path(f"/proc/{pid}/maps").read_text()


def command(pid: int) -> bytes:
    """Return the command line of a process, nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def rollup(pid: int) -> Sizes:
    """Return the sizes of a process."""
    return _sizes(Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())


def arrays(pid: int) -> Sizes:
    """Return the sizes of what a process maps of the cache's arrays, and their whole `Size`."""
    cache = str(DataSource.find().cache_dir)
    lines: list[str] = []
    inside = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if not line.split(" ", 1)[0].endswith(":"):  # the head of a mapping
            inside = cache in line and line.endswith(".npy")
        elif inside:
            lines.append(line)
    return _sizes(lines)


def _sizes(lines: list[str]) -> Sizes:
    sizes = dict.fromkeys((*KEYS, "Size"), 0.0)
    for line in lines:
        name, *rest = line.split()
        key = name.rstrip(":")
        if key.startswith(("Private_", "Shared_")) and not key.endswith("Hugetlb"):
            key = key.split("_")[0]  # clean and dirty ones
        if key in sizes:
            sizes[key] += int(rest[0]) / 1024
    return {key: round(value, 1) for key, value in sizes.items()}


if __name__ == "__main__":
    main()
