"""Search the hyperparameters of a task; the same command again resumes the study.

    python -m study.tune facade --num-samples 50
    python -m study.tune facade --dataset sample --num-samples 4     # a drawn data set, minutes

The same command line continues a study that was cut off, and does nothing when it is complete; a
larger --num-samples extends it. Ctrl-C, SIGTERM and --time-budget let the trials save first.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.command import check_price, run_command
from study.environment import is_writable
from study.errors import InputError
from study.live import progress_for
from study.plan import StudyPlan, make_plan
from study.progress import Progress
from study.provenance import facts
from study.ray_session import forget_other_rays, set_ray_options, shut_down_ray, start_ray
from study.ray_watch import RayWatch
from study.record import StudyRecord
from study.redaction import command_line
from study.resources import DRIVER, say_trials, unused_gpu
from study.restart import Restart, go_on_after
from study.snapshot import rule_from
from study.stopping import Stopping, StudyStopped
from study.study_flags import build_parser, options_of
from study.summary import page_command, summary

if TYPE_CHECKING:
    from study.tracking import StudyTracker

TRACKING_SECONDS = 120.0  # to wait at the end for a tracking store that does not answer
HASTY_SECONDS = 5.0  # for all that is left, after a signal


def main(argv: list[str] | None = None) -> int:
    """Run `python -m study.tune`."""
    argv = sys.argv[1:] if argv is None else argv
    args = build_parser().parse_args(argv)
    _check_price(args)
    study = make_plan(options_of(args))
    manifest = study.manifest()
    if args.dry_run:
        from study.dry_run import describe, describe_estimate
        from study.estimate import estimate

        print(describe(study), flush=True)
        if study.resources is not None:
            print(describe_estimate(study, estimate(study), args.price_per_hour))
        return 0
    if args.address is None and (note := unused_gpu()) is not None:
        print(note, file=sys.stderr)
    return run(study, manifest, command_line("tune", argv))


def _check_price(args: argparse.Namespace) -> None:
    """Refuse a price where nothing is estimated."""
    price = args.price_per_hour
    check_price(price)
    if price is not None and args.address is not None:
        raise InputError("--price-per-hour: what runs on a cluster is not estimated; leave it out.")
    if price is not None and not args.dry_run:
        raise InputError("--price-per-hour belongs to --dry-run, which estimates; add it.")


def run(
    study: StudyPlan,
    manifest: dict[str, Any],
    command: str,
    conclude: Callable[[StudyPlan, StudyRecord], str] | None = summary,
) -> int:
    """Run or continue a study, print how it ended, and return the exit code."""
    from study.tracking import StudyTracker

    study.refuse_changed_metrics()
    restart = Restart.take()
    stopping = Stopping(study.options.time_budget, restart.begun)
    local = study.options.address is None
    uri = reach_tracking(study) if restart.why else reach_tracking_and_start_ray(study)
    if not local and restart.why is None and not _is_complete(study):
        try:
            study = join_cluster(study, stopping, uri)
        except StudyStopped:
            print(f"{stopping.why} before anything was begun", file=sys.stderr)
            return stopping.exit_code
    record = StudyRecord.create_or_continue(
        study.folder, manifest, command, stopping.abandon, uri, study.options
    )
    stopping.watch(record.path)
    if restart.why is not None:
        stopping.request(restart.why, restart.exit_code)
    for text in record.mended:
        print(f"mended: {text}", file=sys.stderr)
    known = facts(study.identity, study.source)
    left = study.options.num_samples - record.num_ended()
    settings = {**study.settings, "dataset": study.source.dataset}
    watched = study.options.system_metrics
    tracker = StudyTracker(uri, record, study.task, settings, known, system_metrics=watched)
    for trial in record.trials():  # what an earlier command could not send
        tracker.touch(trial.number)
    record.drop_losers(study.options.keep_weights)
    screen = ExitStack()  # with the live table, if there is one
    watch: RayWatch | None = None

    def on_death(why: str) -> None:
        go_on_after(why, restart, record, stopping, screen.close, local)

    try:
        if left > 0:
            if stopping.why is not None:  # of before Ray died
                raise StudyStopped
            if local:
                start_ray(study.resources)
            stopping.catch_signals()  # Ray has set its own for SIGTERM
            assert study.resources is not None
            watch = RayWatch(on_death, local, dashboard=study.resources.workers > 1)
            asked = rule_from(study.options, study.epochs)
            at_random = ", random search" if study.options.sampler == "random" else ""
            progress = screen.enter_context(progress_for(record, asked, stopping))
            progress.say(
                f"{study.title} {'continues' if record.trials() else 'begins'}: "
                f"{say_trials(left)} of up to {study.epochs} epochs, "
                f"{study.resources.describe()}; "
                f"{study.identity['dataset']}\n"
                f"    objective {study.goal}{at_random}\n"
                f"    folder {study.folder}, tracking {uri}\n"
                f"    in MLflow: {page_command(study)}"
            )
            # Ray prints there what becomes of nodes; of the only one the watch tells it.
            with open(os.devnull, "w") as nowhere:
                with redirect_stdout(nowhere if local else sys.stderr):
                    run_trials(study, record, tracker, progress, stopping, watch, known, left)
        else:
            print(f"{study.title} has its {study.options.num_samples} trials.", file=sys.stderr)
    except StudyStopped:
        pass  # `stopping` knows why
    except BaseException:
        stopping.exit_code = 1
        raise
    finally:
        screen.close()
        if watch is not None:
            watch.close()
        if not shut_down_ray():
            if stopping.exit_code == 1 and stopping.why is None:  # a fault of ours
                traceback.print_exc()
                stopping.request("the study was ended by a fault", 1)
            on_death("Ray hangs")
        status = "FAILED" if stopping.exit_code == 1 else "KILLED"
        # Without a number of trials the time budget says when a study is complete.
        spent = math.isinf(study.options.num_samples) and stopping.spent
        if spent or record.num_ended() >= study.options.num_samples:
            status = "FINISHED"
        hasty = stopping.exit_code > 128
        best = record.ranking()[:1]
        trouble = None
        if not stopping.abandoned:  # else the runs are another driver's now
            trouble = tracker.close(
                status,
                best[0] if best else None,
                TRACKING_SECONDS,
                HASTY_SECONDS if hasty else math.inf,
            )
        if trouble:
            print(
                f"tracking is not complete ({trouble}); nothing is lost: the same command sends "
                "the rest.",
                file=sys.stderr,
            )
        record.close(stopping.abandoned)
        stopping.release_signals()
    if conclude is not None:
        print(conclude(study, record))
    if stopping.why is not None:
        print(f"\n{stopping.why}", file=sys.stderr)
    if spent:
        print(f"for as long again: {command}", file=sys.stderr)
    if status != "FINISHED":
        print(f"not complete; continue with: {command}", file=sys.stderr)
        return stopping.exit_code
    cut_off = len(record.trials()) > record.num_ended()  # by the time budget; they go on
    return 0 if best or cut_off else 1


def reach_tracking_and_start_ray(study: StudyPlan) -> str:
    """Return the tracking URI as `reach_tracking` does.

    MLflow takes seconds to make a SQLite store, and Ray to start: for a new study, if nothing
    speaks against either, both do it at once.
    """
    from study import tracking_store

    uri = tracking_store.resolve_uri(study.options.tracking_uri)
    folder = study.folder
    new = isinstance(folder, Path) and not folder.exists() and is_writable(folder.parent)
    if not new or study.options.address is not None or not tracking_store.is_usable_file(uri):
        return reach_tracking(study)
    forget_other_rays()
    import ray  # noqa: F401 - not in two threads that import at once

    with ThreadPoolExecutor(1) as thread:
        reached = thread.submit(reach_tracking, study)
        try:
            start_ray(study.resources)
            return reached.result()
        except BaseException:
            shut_down_ray()
            raise


def reach_tracking(study: StudyPlan) -> str:
    """Return the tracking URI, after making sure that a new study reaches it.

    A study that goes on does not wait for a server that is away: what it has to say is sent later.

    Raises:
        InputError: The store of a new study does not answer.
    """
    from study import tracking_store

    uri = tracking_store.resolve_uri(study.options.tracking_uri)
    try:
        # The runs of one begun before may lie in an experiment of another name.
        tracking_store.reach(uri, None if study.begun_before else study.name)
    except InputError as error:
        if not study.folder.exists():
            raise
        print(f"{error} The study goes on; the rest is sent later.", file=sys.stderr)
    return uri


def _is_complete(study: StudyPlan) -> bool:
    """Return whether the study has all its trials, so that no cluster is needed."""
    record = study.begun()
    return record is not None and record.num_ended() >= study.options.num_samples


def join_cluster(study: StudyPlan, stopping: Stopping, uri: str) -> StudyPlan:
    """Join the cluster, wait for its nodes, check them all, and plan for what they have.

    Raises:
        InputError: There is no such cluster, or something on it is not as it must be.
        StudyStopped: While waiting.
    """
    from study import cluster, tracking_store

    assert study.options.address is not None
    set_ray_options()
    cluster.connect(study.options.address)
    stopping.catch_signals()  # Ray has set its own for SIGTERM
    with redirect_stdout(sys.stderr):  # Ray prints there what becomes of nodes
        nodes = cluster.nodes_for(study.options, stopping.check)
        study = study.with_resources(nodes)
        cluster.check(study.folder.parent, study.task.name, study.source, nodes, stopping.check)
    if not study.folder.exists():
        tracking_store.check(uri)
    return study


def run_trials(
    study: StudyPlan,
    record: StudyRecord,
    tracker: StudyTracker,
    progress: Progress,
    stopping: Stopping,
    watch: RayWatch,
    known: dict[str, str],
    num_trials: float,
) -> None:
    """Run trials under Ray Tune until so many have ended, or for ever if it is infinity.

    Raises:
        StudyStopped: The study is to stop before; `stopping` knows why.
    """
    from ray import tune

    from study.deaths import take_memory_kills_as_deaths
    from study.scheduler import RecordASHA
    from study.search import RecordSearcher, StudyCallback
    from study.trainable import StudyTrial

    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failures are told by us
    take_memory_kills_as_deaths()
    options = study.options
    resources = study.resources
    assert resources is not None
    with tempfile.TemporaryDirectory(prefix="study-ray-") as scratch:
        shared = {
            "task": study.task.name,
            "dataset": study.source.dataset,
            "data_dir": str(study.source.data_dir),
            "cache_dir": str(study.source.cache_dir),
            "folder": str(record.path / "trials"),
            "ray_folder": scratch,  # Ray Train makes one of this name on other machines
            "epochs": study.epochs,
            "goal": record.goal.describe(),
            "workers": resources.workers,
            "cpus_per_worker": resources.cpus_per_worker,
            "gpus_per_worker": resources.gpus_per_worker,
            "facts": known,
        }
        scheduler = None
        if study.asha is not None:
            grace_period, reduction_factor = study.asha
            scheduler = RecordASHA(record, grace_period, reduction_factor)
        callback = StudyCallback(
            record,
            tracker,
            progress,
            scheduler,
            stopping,
            watch,
            local=options.address is None,
            concurrent=resources.concurrent,
            max_failures=options.max_failures,
            keep=options.keep_weights,
            timeout=options.trial_timeout,
        )
        request = DRIVER
        if resources.workers == 1:
            request = {"cpu": resources.cpus_per_worker, "gpu": resources.gpus_per_worker}
        tuner = tune.Tuner(
            tune.with_resources(StudyTrial, request),
            tune_config=tune.TuneConfig(
                num_samples=-1 if math.isinf(num_trials) else int(num_trials),
                search_alg=RecordSearcher(record, stopping, shared),
                scheduler=scheduler,
                max_concurrent_trials=resources.concurrent,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=scratch,  # on this machine: Ray has nothing to share
                verbose=0,
                callbacks=[callback],
                # Which failures count is decided by the callback: not all are the trial's.
                failure_config=tune.FailureConfig(max_failures=-1),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        tuner.fit()


if __name__ == "__main__":
    sys.exit(run_command(main))
