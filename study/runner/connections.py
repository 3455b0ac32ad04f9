"""Connections made before the first trial: the tracking store, and Ray, local or on a cluster."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path

from study.cluster.nodes import wait_for_nodes
from study.cluster.session import forget_other_rays, join_ray, shut_down_ray, start_ray
from study.cluster.survey import check_nodes
from study.errors import InputError
from study.runner.plan import StudyPlan
from study.runner.stopping import Stopping
from study.system.environment import is_writable


def reach_tracking_and_start_ray(study: StudyPlan) -> str:
    """Return the tracking URI, as `reach_tracking` does, and start Ray for a new local study.

    Creating a SQLite store and starting Ray take seconds each, so both are done in parallel where
    possible.
    """
    from study.tracking import store

    uri = store.resolve_uri(study.options.tracking_uri)
    folder = study.folder
    new = isinstance(folder, Path) and not folder.exists() and is_writable(folder.parent)
    if not new or study.options.address is not None or not store.is_usable_file(uri):
        return reach_tracking(study)
    forget_other_rays()
    import ray  # noqa: F401 - before two threads would import it in parallel

    with ThreadPoolExecutor(1) as thread:
        reached = thread.submit(reach_tracking, study)
        try:
            start_ray(study.resources)
            return reached.result()
        except BaseException:
            shut_down_ray()
            raise


def reach_tracking(study: StudyPlan) -> str:
    """Return the tracking URI; for a new study, check first that the store answers.

    A resumed study does not wait for a server that is down: its data are sent later.

    Raises:
        InputError: The store of a new study does not answer.
    """
    from study.tracking import store

    uri = store.resolve_uri(study.options.tracking_uri)
    try:
        # An older study may have its runs in an experiment of another name.
        store.reach(uri, None if study.begun_before else study.name)
    except InputError as error:
        if not study.folder.exists():
            raise
        print(f"{error} The study continues; the rest is sent later.", file=sys.stderr)
    return uri


def is_complete(study: StudyPlan) -> bool:
    """Return whether the study has all its trials and needs no cluster."""
    record = study.begun()
    return record is not None and record.num_ended() >= study.options.num_samples


def join_cluster(study: StudyPlan, stopping: Stopping, uri: str) -> StudyPlan:
    """Join the cluster, wait for its nodes, check them, and allocate their resources.

    Raises:
        InputError: There is no such cluster, or a check of a node failed.
        StudyStopped: The study was stopped while waiting.
    """
    from study.tracking import store

    assert study.options.address is not None
    join_ray(study.options.address)
    stopping.catch_signals()  # Ray has installed its own SIGTERM handler
    with redirect_stdout(sys.stderr):  # Ray prints node events to stdout
        nodes = wait_for_nodes(study.options, stopping.check)
        study = study.with_resources(nodes)
        check_nodes(study.folder.parent, study.task.name, study.source, nodes, stopping.check)
    if not study.folder.exists():
        store.check(uri)
    return study
