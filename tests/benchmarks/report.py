"""What a benchmark found: a table for people, and a JSON file with every single run.

    from report import Report, median

    report = Report("batches", parser.parse_args().out)     # or Report("batches")
    report.add("batch of 128, fashion, ms", ours=[1.1, 1.2], against=[5.0, 5.3], reach=3.0)
    report.add("overhead per trial, s", ours=[0.7, 0.8], limit=1.0)
    report.note("settings", {"threads": 1})
    report.write()

Each comparison is between medians of repeats that took turns in one run. `document.py` writes what
the files say into the documents.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "torchvision", "ray", "optuna", "mlflow", "numpy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison, or one number with a limit.

    Attributes:
        what: What was measured, with its unit.
        ours: One value per repeat.
        against: The same of the other side; empty if there is none.
        better: Which is better, `lower` values (times) or `higher` ones (rates, scores).
        reach: By what factor ours is to be better than the other; None if there is no such goal.
        limit: What ours is to keep within; None if there is none.
    """

    what: str
    ours: tuple[float, ...]
    against: tuple[float, ...] = ()
    better: Literal["lower", "higher"] = "lower"
    reach: float | None = None
    limit: float | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the other."""
        if not self.against:
            return None
        ours, against = median(self.ours), median(self.against)
        return against / ours if self.better == "lower" else ours / against

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None if there is none."""
        if self.reach is not None and self.ratio is not None:
            return self.ratio >= self.reach
        if self.limit is not None:
            sign = 1 if self.better == "lower" else -1
            return sign * median(self.ours) <= sign * self.limit
        return None


class Report:
    """Collects rows and notes, prints them, and writes them.

    Args:
        name: Of the benchmark; also of its file.
        out: Where the JSON file goes; None: `results/NAME.json` beside this module.
    """

    def __init__(self, name: str, out: Path | None = None) -> None:
        self.name = name
        self.out = out or RESULTS / f"{name}.json"
        self.load_at_start = os.getloadavg()[0]
        self.rows: list[Row] = []
        self.notes: dict[str, Any] = {}

    def add(
        self,
        what: str,
        ours: float | Sequence[float],
        against: float | Sequence[float] = (),
        *,
        better: Literal["lower", "higher"] = "lower",
        reach: float | None = None,
        limit: float | None = None,
    ) -> Row:
        """Add a row; see `Row`."""
        row = Row(
            what=what,
            ours=_values(ours),
            against=_values(against),
            better=better,
            reach=reach,
            limit=limit,
        )
        self.rows.append(row)
        return row

    def note(self, name: str, value: Any) -> None:
        """Add what a reader must know to judge the numbers, or raw values that are no row."""
        self.notes[name] = value

    def table(self) -> str:
        """Return the rows aligned under a header."""
        lines = [("what", "ours", "against", "ratio", "reach", "reached")]
        for row in self.rows:
            goal = "-"
            if row.reach is not None:
                goal = f">= {row.reach:g}x"
            elif row.limit is not None:
                goal = f"{'<=' if row.better == 'lower' else '>='} {row.limit:g}"
            lines.append(
                (
                    row.what,
                    f"{median(row.ours):.4g}",
                    f"{median(row.against):.4g}" if row.against else "-",
                    f"{row.ratio:.2f}x" if row.ratio is not None else "-",
                    goal,
                    {True: "yes", False: "NO", None: "-"}[row.reached],
                )
            )
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = []
        for cells in lines:
            first, *rest = (
                cell.ljust(width) if index == 0 else cell.rjust(width)
                for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
            )
            aligned.append("  ".join([first, *rest]).rstrip())
        return "\n".join(aligned)

    def write(self) -> None:
        """Print the table and the notes, and write the file."""
        print(self.table())
        for name, value in self.notes.items():
            text = json.dumps(value) if not isinstance(value, str) else value
            print(f"{name}: {text if len(text) < 300 else text[:300] + ' ...'}")
        rows = [
            {
                **dataclasses.asdict(row),
                "median_ours": median(row.ours),
                "range_ours": [min(row.ours), max(row.ours)],
                "median_against": median(row.against) if row.against else None,
                "range_against": [min(row.against), max(row.against)] if row.against else None,
                "ratio": row.ratio,
                "reached": row.reached,
                "repeats": len(row.ours),
            }
            for row in self.rows
        ]
        content = {
            "benchmark": self.name,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {**machine(), "load_at_start": self.load_at_start},
            "versions": versions(),
            "rows": rows,
            "notes": self.notes,
        }
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {self.out}")


def out_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what all benchmarks have: `--out`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file (default: results/NAME.json here)")
    return parser


def machine() -> dict[str, Any]:
    """Return CPU model, cores, memory in GiB and, if there is one, the GPU."""
    import torch

    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": models[0] if models else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load_at_end": os.getloadavg()[0],
        "memory_gib": round(pages / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "system": platform.platform(),
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the study stands on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def _values(values: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(values) if isinstance(values, Sequence) else (values,)


__all__ = ["Report", "Row", "machine", "median", "out_parser", "versions"]
