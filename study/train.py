"""Train one trial in this process, without Ray.

    python -m study.train fashion --epochs 6
    python -m study.train facade --image-size 128 --epochs 1 --limit-batches 4
    python -m study.train facade --like RUN_ID        # repeat a trial from MLflow

Nothing is recorded in MLflow without `--track`, and a `breakpoint()` anywhere in the loop opens the
debugger in this terminal.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.cli import (
    add_config_flags,
    add_data_flags,
    add_tracking_flag,
    command_parser,
    config_values,
    run_command,
)
from study.config import TrainConfig, build_config, config_fields, parse_value
from study.datasets.source import DataSource, check_classes
from study.errors import InputError, TrialError
from study.figures.run_figures import draw_run
from study.formatting import pixels, sample_mark
from study.records.provenance import facts
from study.records.run_folder import RunFolder
from study.reporting.tables import metric_line, per_class_table
from study.task import Task, base_values, best_row, load_task, prepare, task_names

if TYPE_CHECKING:
    from study.training.loop import EpochResult


def build_parser(task: Task | None) -> argparse.ArgumentParser:
    """Return the parser, with a flag for every setting once the task is known."""
    parser = command_parser(
        "train",
        epilog=None if task else "Name a task to see its hyperparameters: study train fashion -h",
    )
    parser.add_argument("task", metavar="TASK", help="name of the task: fashion, facade, ...")
    add_data_flags(parser)
    parser.add_argument(
        "--params", metavar="FILE", type=Path, help="JSON file with settings; flags override it"
    )
    parser.add_argument(
        "--like", metavar="RUN_ID", help="use the data set and the settings of a run in MLflow"
    )
    parser.add_argument(
        "--limit-batches", metavar="N", type=int, help="use only N batches per pass, for debugging"
    )
    parser.add_argument(
        "--threads", metavar="N", type=int, help="CPU threads (default: torch decides)"
    )
    parser.add_argument(
        "--run-dir", metavar="DIR", type=Path, help="run folder (default: runs/TASK-TIME)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="resume from the last checkpoint in --run-dir"
    )
    parser.add_argument("--track", action="store_true", help="record the run in MLflow")
    add_tracking_flag(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    if task is not None:
        add_config_flags(parser, task.config_class)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.train`."""
    argv = sys.argv[1:] if argv is None else argv
    named = [word for word in argv if word in task_names()]
    task = load_task(named[0]) if named else None
    args = build_parser(task).parse_args(argv)
    task = task if task and task.name == args.task else load_task(args.task)
    for flag in ("limit_batches", "threads"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise InputError(f"--{flag.replace('_', '-')} must be at least 1, but got {value}.")
    resume = _last_state(args) if args.resume else None
    source, config = _source_and_config(task, args, resume)
    if resume is not None:
        _check_resume(config, resume, args)
    identity = prepare(task, source)
    check_classes(task.name, task.classes, task.load_splits(source, config))
    folder = _run_folder(task, args)
    return _train(task, config, source, identity, folder, resume, args)


def _source_and_config(
    task: Task, args: argparse.Namespace, resume: dict[str, Any] | None
) -> tuple[DataSource, TrainConfig]:
    dataset, values = args.dataset, {}
    if args.like:
        from study.tracking import store

        uri = store.resolve_uri(args.tracking_uri)
        dataset, params = store.run_settings(uri, args.like, task.name)
        fields = config_fields(task.config_class)
        values = {k: parse_value(fields[k], v) for k, v in params.items() if k in fields}
    else:
        values = base_values(task, dataset)
    if args.params:
        values |= _read_params(args.params)
    if resume is not None:
        values = dict(resume["config"])
    values |= config_values(args, task.config_class)
    return DataSource.find(dataset, args.data_dir), build_config(task.config_class, values)


def _read_params(path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, _ in pairs:
            if sum(name == other for other, _ in pairs) > 1:
                raise ValueError(f"{name!r} appears twice")
        return dict(pairs)

    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--params {path} cannot be read as JSON ({error}).") from None
    if not isinstance(values, dict):
        raise InputError(f"--params {path} must contain a JSON object, {{'setting': value, ...}}.")
    return values


def _last_state(args: argparse.Namespace) -> dict[str, Any]:
    """Return the state in `--run-dir` to `--resume` from."""
    folder = RunFolder(args.run_dir) if args.run_dir else None
    state = folder.last_state() if folder else None
    for text in folder.damage if folder else []:
        print(text, file=sys.stderr)
    if state is None:
        where = args.run_dir or "no --run-dir"
        raise InputError(
            f"--resume: no readable last.pt found ({where}); name its folder with --run-dir."
        )
    if state["task"] != args.task:
        raise InputError(f"--resume: {args.run_dir} contains a run of {state['task']}.")
    return state


def _check_resume(config: TrainConfig, state: dict[str, Any], args: argparse.Namespace) -> None:
    """Check that only `epochs` differs from the run to resume, and that it grows."""
    before = build_config(type(config), state["config"])  # newer settings have their defaults
    for name, value in dataclasses.asdict(before).items():
        if name != "epochs" and getattr(config, name) != value:
            raise InputError(
                f"--resume: the run has {name}={value}, but got {getattr(config, name)}; only "
                "--epochs can change. Leave the flag out, or start a new run."
            )
    if config.schedule != "constant" and config.epochs != before.epochs:
        raise InputError(
            f"--resume: schedule={config.schedule} was set up for {before.epochs} epochs, not "
            f"{config.epochs}. Leave --epochs out, or start a new run."
        )
    if config.epochs <= len(state["history"]):
        raise InputError(
            f"--resume: {args.run_dir} already has {len(state['history'])} epochs; use a larger "
            "--epochs."
        )


def _run_folder(task: Task, args: argparse.Namespace) -> RunFolder:
    default = Path("runs") / time.strftime(f"{task.name}-%Y%m%d-%H%M%S-{os.getpid()}")
    folder = RunFolder((args.run_dir or default).absolute())
    if not args.resume and (folder.path / "last.pt").exists():
        raise InputError(
            f"{folder.path} already contains a run; add --resume, or use another --run-dir."
        )
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {folder.path} ({error.strerror}).") from None
    return folder


def _train(
    task: Task,
    config: TrainConfig,
    source: DataSource,
    identity: dict[str, Any],
    folder: RunFolder,
    resume: dict[str, Any] | None,
    args: argparse.Namespace,
) -> int:
    import torch

    if args.threads:
        torch.set_num_threads(args.threads)
    print(f"{task.title}: {identity['dataset']}, run folder {folder.path}", file=sys.stderr)
    known = facts(identity, source)
    history = list(resume["history"]) if resume else []
    try:
        with _tracked(task, config, source, folder, known, args) as report:
            for result in _epochs(task, config, source, resume, args.limit_batches):
                folder.record(result, known)
                history = result.state["history"]
                line = metric_line(task, result.metrics, result.epoch, config.epochs)
                print(line, file=sys.stderr)
                report(result.epoch, result.metrics)
            best = best_row(history, task.metric, task.mode)
            note = run_note(task, config, source, int(best["epoch"]))
            draw_run(folder, task, task.metric, note, history)
    except TrialError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    if args.json:
        print(json.dumps({"run_dir": str(folder.path), "best": best, "epochs": len(history)}))
    else:
        print(f"{note}\n{per_class_table(task, best)}\nrun folder  {folder.path}")
    return 0


def _epochs(
    task: Task,
    config: TrainConfig,
    source: DataSource,
    resume: dict[str, Any] | None,
    limit_batches: int | None,
) -> Iterator[EpochResult]:
    """Train with progress bars on stderr if it is a terminal."""
    from tqdm import tqdm

    from study.training.loop import fit

    def progress(batches: Any, total: int, phase: str) -> Any:
        return tqdm(batches, phase, total, leave=False, file=sys.stderr, disable=None)

    return fit(task, config, source, resume=resume, limit_batches=limit_batches, progress=progress)


@contextlib.contextmanager
def _tracked(
    task: Task,
    config: TrainConfig,
    source: DataSource,
    folder: RunFolder,
    known: dict[str, str],
    args: argparse.Namespace,
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Yield a function that reports an epoch, to MLflow with `--track`, until the block ends."""
    if not args.track:
        yield lambda epoch, metrics: None
        return
    from study.tracking import store

    uri = store.resolve_uri(args.tracking_uri)
    params = {**dataclasses.asdict(config), "dataset": source.dataset}
    run = store.SingleRun(uri, task, params, known)
    status, reason = "FAILED", None
    try:
        yield run.report
        status = "FINISHED"
    except TrialError as error:
        reason = str(error)
        raise
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        run.end(folder, status, reason)


def run_note(task: Task, config: TrainConfig, source: DataSource, epoch: int) -> str:
    """Return the line below scores and figures: what they were measured on."""
    size = getattr(config, "image_size", None)
    parts = [
        task.name,
        sample_mark(source.dataset),
        "validation",
        pixels(size) if size else "",
        f"epoch {epoch} of {config.epochs}",
        f"seed {config.seed}",
    ]
    return ", ".join(filter(None, parts))


if __name__ == "__main__":
    sys.exit(run_command(main))
