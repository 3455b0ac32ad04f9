"""Ray on this machine, from its start to its end."""

from __future__ import annotations

import gc
import logging
import os
import sys

from study.errors import StartError
from study.resources import Resources, local_cpus, local_gpus

NUM_STARTS = 3


def set_ray_options() -> None:
    """Set what Ray reads from the environment."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the other output ignores verbose=0
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")  # they are in error.txt and MLflow
    os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # KeyboardInterrupt ends the study here


def stay_on_loopback() -> None:
    """Have the Ray that is started here, and all its processes, listen on 127.0.0.1 alone.

    Ray does so on its own on macOS and Windows; it replaces an address of ours by the machine's
    outer one, which a firewall, a VPN or a proxy may also keep it from reaching.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Workers of one trial find each other by it, not by what the machine's name resolves to.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # read when Ray was imported, perhaps before


def start_ray(resources: Resources | None) -> None:
    """Start Ray on this machine, if it was not done before.

    Ray gives its node 30 seconds, which a cold disk or a busy machine may exceed, so it is started
    again then.

    Raises:
        StartError: It did not start at all.
    """
    set_ray_options()
    stay_on_loopback()
    import ray

    assert resources is not None
    if ray.is_initialized():
        return
    for _ in range(NUM_STARTS):
        try:
            ray.init(
                address="local",  # not a cluster that happens to run on this machine
                num_cpus=local_cpus(),
                num_gpus=local_gpus(),
                # Ray Train asks the dashboard which placement groups are left over.
                include_dashboard=resources.workers > 1,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises no other kind here
            ray.shutdown()
            if "timed out during startup" not in str(error):
                raise
            print("Ray did not start within 30 s, as on a busy machine", file=sys.stderr)
    raise StartError(
        f"Ray did not start in {NUM_STARTS} attempts; end other programs on this machine, or look "
        "into /tmp/ray/session_latest/logs, and type the command again."
    )


def shut_down_ray() -> None:
    """Stop Ray if it runs."""
    if "ray" in sys.modules:
        import ray

        # What Ray Tune leaves in cycles holds actors and objects. Collected later, by the thread
        # of tracking perhaps, it would reach for a worker that is gone, and end the process.
        gc.collect()
        ray.shutdown()
