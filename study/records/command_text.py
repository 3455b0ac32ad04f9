"""Options of old studies, parsed from the text of their `study.tune` command.

`study.json` once kept only the command as typed. The flags below are those of that time, whatever
`study.tune` calls them now, so nothing here is added or renamed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Any

from study.records.run_options import RunOptions

SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def options_of(command: str) -> RunOptions | None:
    """Return a command's options; None if it is not a `study.tune` command or cannot be parsed."""
    try:
        words = shlex.split(command)
        if words[:3] != ["python", "-m", "study.tune"]:
            return None
        return RunOptions.of(_values(words[3:]))
    except (LookupError, TypeError, ValueError):
        return None


def _values(words: list[str]) -> dict[str, Any]:
    """Return option values by name.

    Raises:
        LookupError: A flag is unknown or has no value.
        TypeError: There is not exactly one task.
        ValueError: A value has the wrong type for its flag.
    """
    found: dict[str, Any] = {}
    rest = iter(words)
    for word in rest:
        if not word.startswith("--"):
            if "task" in found:
                raise TypeError(word)
            found["task"] = word
            continue
        start, equals, value = word.partition("=")
        flag = _flag(start)
        name = flag[2:].replace("-", "_")
        if flag in SWITCHES:
            found[name] = True
            continue
        if not equals:
            value = next(rest, "")
        if flag in REPEATED:
            found[name] = (*found.get(name, ()), value)
        else:
            found[name] = VALUES[flag](value)
    return found


def _flag(start: str) -> str:
    """Return the flag with this unambiguous prefix, as argparse accepts it."""
    flags = [*VALUES, *REPEATED, *SWITCHES]
    if start in flags:
        return start
    (flag,) = (known for known in flags if known.startswith(start))
    return flag


def _number_of_trials(text: str) -> float:
    return float("inf") if text.strip().lower() in ("inf", "none") else int(text)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None:
        raise ValueError(text)
    return float(match[1]) * SECONDS[match[2]]


VALUES: dict[str, Callable[[str], Any]] = {
    "--name": str,
    "--dataset": str,
    "--data-dir": str,
    "--objective": str,
    "--num-samples": _number_of_trials,
    "--max-concurrent": int,
    "--workers-per-trial": int,
    "--cpus-per-worker": int,
    "--gpus-per-worker": float,
    "--address": str,
    "--wait": int,
    "--search-space": str,
    "--epochs": int,
    "--scheduler": str,
    "--sampler": str,
    "--grace-period": int,
    "--reduction-factor": float,
    "--time-budget": _seconds,
    "--trial-timeout": _seconds,
    "--max-failures": int,
    "--keep-weights": int,
    "--warm-start-from": str,
    "--seed": int,
    "--studies-dir": str,
    "--tracking-uri": str,
    "--price-per-hour": float,
}
REPEATED = ("--require", "--set")
SWITCHES = ("--system-metrics", "--dry-run")
