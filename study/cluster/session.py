"""Ray session: started on this machine or joined on a cluster, and shut down."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import shutil
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from study.cluster.resources import Resources, local_cpus, local_gpus
from study.errors import InputError, StartError
from study.system.environment import is_writable, socket_folder
from study.system.limits import raise_limits

NUM_STARTS = 3
WORKER_SECONDS = 30.0  # for a Ray worker to start on a busy machine
SHUTDOWN_SECONDS = 30.0
KILL_SECONDS = 5.0  # for killed processes to disappear

# Settings that a study relies on, whatever the user's shell has set.
OPTIONS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the new output ignores verbose=0
    "RAY_AIR_FULL_TRACEBACKS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in error.txt and MLflow
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # KeyboardInterrupt ends the study here
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else the current folder is copied to each worker
}
# Variables meant for another Ray than the one that a study starts for itself.
FOREIGN = (
    "RAY_ADDRESS",
    "RAY_NAMESPACE",
    "RAY_RUNTIME_ENV",
    "RAY_RUNTIME_ENV_HOOK",
    "RAY_JOB_ID",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
    "RAY_OVERRIDE_JOB_RUNTIME_ENV",
    "RAY_OVERRIDE_RESOURCES",
    "RAY_REDIS_ADDRESS",
    "RAY_CLIENT_MODE",
    "RAY_USE_TLS",
    "RAY_LD_PRELOAD_ON_WORKERS",
    "RAY_STORAGE",
    "RAY_object_spilling_config",
    "RAY_DEBUG",
    "RAY_DEBUG_POST_MORTEM",
    "RAY_LOG_TO_STDERR",
    "RAY_LOGGING_CONFIG_ENCODING",
    "RAY_WORKER_NICENESS",
)
# Variables of Tune that would change what a study does.
TUNE = (
    "TUNE_RESULT_DIR",
    "TUNE_RESULT_BUFFER_LENGTH",
    "TUNE_RESULT_BUFFER_MIN_TIME_S",
    "TUNE_RESULT_BUFFER_MAX_TIME_S",
    "TUNE_MAX_PENDING_TRIALS_PG",
    "TUNE_GLOBAL_CHECKPOINT_S",
    "TUNE_FORCE_TRIAL_CLEANUP_S",
    "TUNE_ORIG_WORKING_DIR",
    "TUNE_TRIAL_STARTUP_GRACE_PERIOD",
    "TUNE_TRIAL_RESULT_WAIT_TIME_S",
    "TUNE_CHECKPOINT_CLOUD_RETRY_NUM",
)


def set_ray_options() -> None:
    """Set Ray's environment variables."""
    os.environ.update(OPTIONS)
    for name in TUNE:
        os.environ.pop(name, None)


def forget_other_rays() -> None:
    """Remove variables meant for another Ray; call before Ray is imported, which reads them."""
    for name in FOREIGN:
        os.environ.pop(name, None)


def _prepare_folder() -> Path:
    """Prepare limits, token and folder for Ray; return the folder.

    Raises:
        InputError: There is no usable folder, or a limit of this process is too low.
    """
    raise_limits(local_cpus())
    parent = socket_folder()
    os.environ["RAY_TMPDIR"] = str(parent)
    token = Path.home() / ".ray" / "auth_token"
    if not os.path.isfile(os.environ.get("RAY_AUTH_TOKEN_PATH", "")):
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)  # Ray would exit with an error
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not named and not os.access(token, os.R_OK) and not is_writable(token.parent):
        # Ray would write a token to the home folder; a temporary one is enough.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return parent / "ray"


def missing_program() -> str | None:
    """Return a message if the program that starts Ray's workers is missing on this machine."""
    if shutil.which("bash") is None:  # workers would silently never start
        return "Ray starts its workers with bash, which is not on PATH; add /bin to PATH."
    return None


def stay_on_loopback() -> None:
    """Make the local Ray and all its processes listen on 127.0.0.1 only.

    Ray does this by itself on macOS and Windows. Elsewhere it replaces a given address by the
    machine's external one, which a firewall, a VPN or a proxy may also make unreachable.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # Workers of a trial connect through it, not through the address of the hostname.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # Ray may have been imported before


def start_ray(resources: Resources | None) -> None:
    """Start Ray on this machine, unless it is already running.

    Ray gives its node 30 seconds to start, which may be too short on a cold disk or a busy machine,
    so the start is retried.

    Raises:
        StartError: Ray did not start in any attempt.
        InputError: There is no usable folder for its files.
    """
    forget_other_rays()
    set_ray_options()
    stay_on_loopback()
    import ray

    assert resources is not None
    if (problem := missing_program()) is not None:
        raise StartError(problem)
    if ray.is_initialized():
        return
    folder = _prepare_folder()
    for _ in range(NUM_STARTS):
        try:
            ray.init(
                address="local",  # not a cluster that happens to run here
                num_cpus=local_cpus(),
                num_gpus=local_gpus(),
                # Ray Train asks the dashboard for leftover placement groups.
                include_dashboard=resources.workers > 1,
                log_to_driver=False,
                _temp_dir=str(folder),
                logging_level=logging.ERROR,
            )
            return
        except Exception as error:  # Ray raises no other kind here
            ray.shutdown()
            if "timed out during startup" not in str(error):
                reason = " ".join(str(error).split())[:500]
                raise StartError(f"Ray failed to start: {reason}") from error
            print("Ray did not start within 30 s; the machine may be busy", file=sys.stderr)
    raise StartError(
        f"Ray did not start in {NUM_STARTS} attempts; end other programs on this machine or see "
        f"{folder}/session_latest/logs, then run the command again."
    )


def join_ray(address: str) -> None:
    """Join a running cluster.

    Raises:
        InputError: No cluster answers at this address.
    """
    if (Path.home() / ".ray" / "auth_token").exists():
        # With an address, Ray looks for its token too late and is rejected.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    set_ray_options()
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"--address {address}: {reason} Start a cluster (`ray up cluster.yaml`), omit "
            "--address to use this machine, or put the cluster's token into ~/.ray/auth_token."
        ) from None


def try_ray(resources: Resources | None) -> str | None:
    """Start Ray as a study does, run a task, and stop it; return a message if that fails.

    Args:
        resources: Resources of the trials; None for any.
    """
    one = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=1)
    try:
        start_ray(resources or one)
        import ray

        ray.get(ray.remote(num_cpus=0)(_process_id).remote(), timeout=WORKER_SECONDS)
    except (InputError, StartError) as error:
        return str(error)
    except Exception as error:  # one of Ray's errors
        return f"Ray starts but runs no task ({type(error).__name__}): {error}"
    finally:
        shut_down_ray()
    return None


def _process_id() -> int:
    return os.getpid()


def logs_folder() -> str:
    """Return the log folder of the local Ray."""
    from ray._private import worker

    node: Any = worker._global_node
    return str(node.get_logs_dir_path())


def shut_down_ray() -> bool:
    """Stop Ray if it runs; return False if it did not respond and had to be killed."""
    if "ray" not in sys.modules:
        return True
    import ray

    # Ray Tune leaves reference cycles that hold actors and objects. Collected later, perhaps by
    # the tracking thread, they would access a worker that is gone and crash the process.
    gc.collect()
    # If GCS or raylet do not respond, it never returns.
    ending = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)
    if ending.is_alive():
        kill_ray()
    return not ending.is_alive()


def kill_ray() -> None:
    """Kill all child processes, and those that the raylet has left behind."""
    import psutil

    ours = psutil.Process().children(recursive=True)
    raylets = {str(process.pid) for process in ours if process.name() == "raylet"}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it has ended, or belongs to another user
            if process.environ().get("RAY_RAYLET_PID") in raylets:
                ours.append(process)
    for process in ours:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ours, timeout=KILL_SECONDS)
