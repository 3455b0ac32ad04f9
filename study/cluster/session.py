"""Ray's session: started on this machine or joined on a cluster, and shut down."""

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
WORKER_SECONDS = 30.0  # for a worker of Ray to start, on a busy machine
SHUTDOWN_SECONDS = 30.0
KILL_SECONDS = 5.0  # for killed processes to be gone

# What a study relies on, whatever the user's shell says.
OPTIONS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # the other output ignores verbose=0
    "RAY_AIR_FULL_TRACEBACKS": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # they are in error.txt and MLflow
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # KeyboardInterrupt ends the study here
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # it would copy the current folder to each worker
}
# What is meant for another Ray than the one that a study starts for itself.
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
# Of Tune, which would change what a study does.
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
    """Set what Ray reads from the environment."""
    os.environ.update(OPTIONS)
    for name in TUNE:
        os.environ.pop(name, None)


def forget_other_rays() -> None:
    """Drop what is meant for another Ray than the one to be started; it is read on import."""
    for name in FOREIGN:
        os.environ.pop(name, None)


def _prepare_folder() -> Path:
    """See to what Ray writes and asks outside of its folder, and return that.

    Raises:
        InputError: There is none, or a limit of this process is too low.
    """
    raise_limits(local_cpus())
    parent = socket_folder()
    os.environ["RAY_TMPDIR"] = str(parent)
    token = Path.home() / ".ray" / "auth_token"
    if not os.path.isfile(os.environ.get("RAY_AUTH_TOKEN_PATH", "")):
        os.environ.pop("RAY_AUTH_TOKEN_PATH", None)  # Ray would end over it
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    if not named and not os.access(token, os.R_OK) and not is_writable(token.parent):
        # Ray would write one to the home; one that lives as long as this process does as well.
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    return parent / "ray"


def missing_program() -> str | None:
    """Return what Ray starts its workers with and is not on this machine, in a sentence."""
    if shutil.which("bash") is None:  # they would never start, and nobody would say so
        return "Ray starts its workers with bash, which is not on PATH; add /bin to PATH."
    return None


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
        InputError: There is no place for its files.
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
                address="local",  # not a cluster that happens to run on this machine
                num_cpus=local_cpus(),
                num_gpus=local_gpus(),
                # Ray Train asks the dashboard which placement groups are left over.
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
        InputError: There is none.
    """
    if (Path.home() / ".ray" / "auth_token").exists():
        # Given an address, Ray looks for its token too late and is refused.
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
    """Start Ray as a study does, have it do something, and stop it; return what goes wrong.

    Args:
        resources: Of the trials; None for any.
    """
    one = Resources(workers=1, cpus_per_worker=1, gpus_per_worker=0, concurrent=1)
    try:
        start_ray(resources or one)
        import ray

        ray.get(ray.remote(num_cpus=0)(_process_id).remote(), timeout=WORKER_SECONDS)
    except (InputError, StartError) as error:
        return str(error)
    except Exception as error:  # Ray's own
        return f"Ray starts but runs no task ({type(error).__name__}): {error}"
    finally:
        shut_down_ray()
    return None


def _process_id() -> int:
    return os.getpid()


def logs_folder() -> str:
    """Return where the Ray that runs here writes its logs."""
    from ray._private import worker

    node: Any = worker._global_node
    return str(node.get_logs_dir_path())


def shut_down_ray() -> bool:
    """Stop Ray if it runs; return whether it let itself be stopped, else it is killed."""
    if "ray" not in sys.modules:
        return True
    import ray

    # What Ray Tune leaves in cycles holds actors and objects. Collected later, by the thread
    # of tracking perhaps, it would reach for a worker that is gone, and end the process.
    gc.collect()
    # Where GCS or raylet do not answer, it never returns.
    ending = threading.Thread(target=ray.shutdown, name="ray-shutdown", daemon=True)
    ending.start()
    ending.join(SHUTDOWN_SECONDS)
    if ending.is_alive():
        kill_ray()
    return not ending.is_alive()


def kill_ray() -> None:
    """Kill all processes that this one has started, and what the raylet has left behind."""
    import psutil

    ours = psutil.Process().children(recursive=True)
    raylets = {str(process.pid) for process in ours if process.name() == "raylet"}
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # it is gone, or another user's
            if process.environ().get("RAY_RAYLET_PID") in raylets:
                ours.append(process)
    for process in ours:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(ours, timeout=KILL_SECONDS)
