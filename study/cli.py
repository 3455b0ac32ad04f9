"""The command line `study COMMAND`, with the exit codes, messages and flags all commands share.

    study                              # all commands
    study tune facade --num-samples 50
    python -m study.tune facade --num-samples 50   # the same

Exit codes: 0 done, 1 failed, 2 wrong usage or input, 128 + n stopped by signal n (Ctrl-C: 130).
`study` alone must start fast: a command is imported only when it runs, and this module imports
neither torch nor Ray nor MLflow.
"""

from __future__ import annotations

import argparse
import ast
import errno
import importlib
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import study
from study.config import TrainConfig, Value, config_fields, parse_value
from study.errors import DamagedFile, InputError, StartError, StorageError, did_you_mean
from study.figures.matplotlib_setup import ignore_user_settings
from study.system import environment
from study.system.redaction import mask_output, without_password
from study.system.streams import open_streams, outlive_readers

# In the order a new user needs them; each is a module of this package.
COMMANDS = ("tune", "status", "best", "report", "ui", "predict", "train", "data", "doctor")
FLAGS = ("--help", "--version")  # of `study` itself
# Errors about disks, permissions and limits. ENOENT is not among them: a file not found is a bug.
OUTSIDE = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES",
        "EPERM",
        "EROFS",
        "ENOSPC",
        "EDQUOT",
        "EFBIG",
        "EIO",
        "ENOTDIR",
        "EISDIR",
        "ENAMETOOLONG",
        "ELOOP",
        "EMFILE",
        "ENFILE",
        "EAGAIN",
        "ENOMEM",
        "ESTALE",
        "ENODEV",
    )
    if hasattr(errno, name)
)
LIMITS = {errno.EMFILE: "-n", errno.EFBIG: "-f", errno.EAGAIN: "-u"}
SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def main() -> int:
    """Run `study COMMAND ...` or `python -m study COMMAND ...`."""
    return run_command(lambda: dispatch(sys.argv[1:]))


def dispatch(words: Sequence[str]) -> int:
    """Run the command named by the first word with the remaining words; without one, list all.

    Raises:
        InputError: There is no such command.
    """
    name = words[0] if words else "--help"
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print("study", study.__version__)
    elif name in COMMANDS:
        return int(importlib.import_module(f"study.{name}").main(list(words[1:])))
    else:
        kind, known = ("flag", FLAGS) if name.startswith("-") else ("command", COMMANDS)
        raise InputError(f"there is no {kind} {name!r}{did_you_mean(name, known)}")
    return 0


def overview() -> str:
    """Return the text of `study --help`: all commands, one line each."""
    lines = [f"  {name:<8} {summary(name)}" for name in COMMANDS]
    return "\n".join(
        [
            "usage: study COMMAND ...",
            "",
            str(study.__doc__),
            "",
            *lines,
            "",
            "Run study COMMAND --help for a command's flags, study --version for the version.",
        ]
    )


def summary(command: str) -> str:
    """Return the first line of a command's docstring, without importing the command."""
    source = Path(__file__).with_name(f"{command}.py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(source))).splitlines()[0]


def command_parser(command: str, epilog: str | None = None) -> argparse.ArgumentParser:
    """Return a command's parser without flags; its usage line shows the command as typed."""
    started = Path(sys.argv[0])
    if started.name == "study":
        program = f"study {command}"
    elif started.parts[-2:] == ("study", "__main__.py"):
        program = f"python -m study {command}"
    else:
        program = f"python -m study.{command}"
    return argparse.ArgumentParser(prog=program, description=summary(command), epilog=epilog)


def run_command(main: Callable[[], int]) -> int:
    """Run a command's `main` and turn its exceptions into a message and an exit code.

    `InputError`, by which all modules report a user's mistake, becomes one line on stderr, and so
    do a full disk, a corrupted file, a failed start of Ray and errors of the operating system. Any
    other exception is a bug and keeps its traceback (exit code 1).
    """
    open_streams()
    outlive_readers()
    mask_output()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    # No telemetry, neither Ray's nor MLflow's.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    ignore_user_settings()
    try:
        environment.prepare()
        return main()
    except InputError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)  # on one line
        return 2
    except (StorageError, DamagedFile, StartError) as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, MemoryError, RuntimeError) as error:
        told = outside_reason(error)
        if told is None:
            raise
        print(f"failed: {told}", file=sys.stderr)
        return 1


def outside_reason(error: Exception) -> str | None:
    """Describe an error of the operating system in one line; None if the error is a bug."""
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or raise ulimit -v."
    if isinstance(error, OSError) and error.errno in OUTSIDE:
        place = f": {error.filename}" if error.filename is not None else ""
        limit = f" (ulimit {LIMITS[error.errno]})" if error.errno in LIMITS else ""
        return f"{error.strerror}{limit}{place}"
    if "can't start new thread" in str(error):
        return "cannot start more threads; close other programs, or raise ulimit -u or -v."
    return None


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--dataset` and `--data-dir`."""
    parser.add_argument(
        "--dataset",
        choices=["real", "sample"],
        default="real",
        help="real images, or sample: images drawn by the program, to try things out without a"
        " download (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder with the data sets (default: $STUDY_DATA_DIR, or data)",
    )


def add_study_name(parser: argparse.ArgumentParser) -> None:
    """Add the name of an existing study."""
    parser.add_argument(
        "study", metavar="NAME", nargs="?", help="name of the study (default: the one last run)"
    )


def add_studies_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--studies-dir`."""
    parser.add_argument(
        "--studies-dir",
        metavar="DIR",
        default="studies",
        help="folder of studies, or s3://bucket/folder (default: %(default)s)",
    )


def add_tracking_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--tracking-uri`."""
    parser.add_argument(
        "--tracking-uri",
        metavar="URI",
        type=without_password,
        help="MLflow tracking URI (default: $MLFLOW_TRACKING_URI, or sqlite:///mlflow.db)",
    )


def add_goal_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--objective` and `--require`."""
    parser.add_argument(
        "--objective",
        metavar="METRIC[,METRIC]",
        help="metric to improve, e.g. accuracy, ap/pillar or worst_class; a second one, e.g. "
        "num_params or images_per_second, gives a Pareto front (default: the task's)",
    )
    add_require_flag(parser, "constraint on a trial's best epoch")


def add_require_flag(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--require`."""
    parser.add_argument(
        "--require",
        metavar="'METRIC>=VALUE'",
        action="append",
        default=[],
        help=f"{what}, e.g. 'ap/window>=0.8' or 'num_params<=1e5'; may be repeated",
    )


def add_resource_flags(parser: argparse.ArgumentParser) -> None:
    """Add the number of trials, and the flags of `add_machine_flags`."""
    parser.add_argument(
        "--num-samples",
        metavar="N",
        type=_num_samples,
        default=10,
        help="run until N trials of the study have ended; inf: until --time-budget or Ctrl-C "
        "ends it (default: %(default)s)",
    )
    add_machine_flags(parser)


def add_machine_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags for the resources of trials."""
    add = parser.add_argument
    add(
        "--max-concurrent", metavar="N", type=int, help="trials at a time (default: as many as fit)"
    )
    add(
        "--workers-per-trial",
        metavar="N",
        type=int,
        default=1,
        help="processes per trial, which share each batch (default: %(default)s)",
    )
    add(
        "--cpus-per-worker",
        metavar="N",
        type=int,
        help="CPU cores per worker (default: an equal share)",
    )
    add(
        "--gpus-per-worker",
        metavar="N",
        type=float,
        help="GPUs per worker; a fraction lets trials share a GPU (default: 1 if there is a GPU)",
    )
    add(
        "--address",
        help="address of a running Ray cluster, or auto (default: start Ray on this machine)",
    )
    add(
        "--wait",
        metavar="N",
        type=int,
        help="with --address: wait until the cluster has N nodes; an autoscaling cluster is "
        "asked to start them",
    )


def _num_samples(text: str) -> float:
    """Return a whole number of trials, or infinity."""
    if text.strip().lower() in ("inf", "none"):
        return math.inf
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a whole number; use inf for no limit"
        ) from None


def add_config_flags(parser: argparse.ArgumentParser, config_class: type[TrainConfig]) -> None:
    """Add a flag for every field of a config; flags not given are absent from the result."""
    group = parser.add_argument_group("hyperparameters and settings")
    for name, field in config_fields(config_class).items():
        choices = field.metadata["choices"]
        group.add_argument(
            "--" + name.replace("_", "-"),
            dest=f"config_{name}",
            metavar="|".join(choices) if choices else type(field.default).__name__.upper(),
            default=argparse.SUPPRESS,
            help=f"{field.metadata['help']} (default: {field.default})",
        )


def config_values(args: argparse.Namespace, config_class: type[TrainConfig]) -> dict[str, Value]:
    """Return the values of the `add_config_flags` flags that were given."""
    fields = config_fields(config_class)
    given: dict[str, Any] = vars(args)
    values = {}
    for name, field in fields.items():
        if f"config_{name}" in given:
            try:
                values[name] = parse_value(field, given[f"config_{name}"])
            except InputError as error:
                raise InputError(f"--{name.replace('_', '-')}: {error}") from None
    return values


def check_price(price: float | None) -> None:
    """Refuse an invalid `--price-per-hour`."""
    if price is not None and not 0 <= price < float("inf"):
        raise InputError(
            f"--price-per-hour must be a price in dollars, at least 0, but got {price:g}."
        )


def parse_time(flag: str, text: str) -> float:
    """Return the seconds in a time such as `90`, `90s`, `30m`, `8h` or `2d`.

    Raises:
        InputError: The text is not a time above zero.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    seconds = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if seconds <= 0:
        raise InputError(f"{flag} must be a time like 90s, 30m or 8h, but got {text!r}.")
    return seconds
