"""What a study needs before its first trial: its tracking store, and Ray, here or on a cluster."""

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
    """Return the tracking URI as `reach_tracking` does.

    MLflow takes seconds to make a SQLite store, and Ray to start: for a new study, if nothing
    speaks against either, both do it at once.
    """
    from study.tracking import store

    uri = store.resolve_uri(study.options.tracking_uri)
    folder = study.folder
    new = isinstance(folder, Path) and not folder.exists() and is_writable(folder.parent)
    if not new or study.options.address is not None or not store.is_usable_file(uri):
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
    from study.tracking import store

    uri = store.resolve_uri(study.options.tracking_uri)
    try:
        # The runs of one begun before may lie in an experiment of another name.
        store.reach(uri, None if study.begun_before else study.name)
    except InputError as error:
        if not study.folder.exists():
            raise
        print(f"{error} The study continues; the rest is sent later.", file=sys.stderr)
    return uri


def is_complete(study: StudyPlan) -> bool:
    """Return whether the study has all its trials, so that no cluster is needed."""
    record = study.begun()
    return record is not None and record.num_ended() >= study.options.num_samples


def join_cluster(study: StudyPlan, stopping: Stopping, uri: str) -> StudyPlan:
    """Join the cluster, wait for its nodes, check them all, and plan for what they have.

    Raises:
        InputError: There is no such cluster, or something on it is not as it must be.
        StudyStopped: While waiting.
    """
    from study.tracking import store

    assert study.options.address is not None
    join_ray(study.options.address)
    stopping.catch_signals()  # Ray has set its own for SIGTERM
    with redirect_stdout(sys.stderr):  # Ray prints there what becomes of nodes
        nodes = wait_for_nodes(study.options, stopping.check)
        study = study.with_resources(nodes)
        check_nodes(study.folder.parent, study.task.name, study.source, nodes, stopping.check)
    if not study.folder.exists():
        store.check(uri)
    return study
