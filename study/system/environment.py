"""Repair of an environment in which commands would fail.

Every command calls `prepare` before anything else. Settings that would break a study by accident (a
missing folder for temporary files, a user without a name, a proxy for connections to this machine)
are corrected for this process and its children; a message says so if files go elsewhere. If an
environment cannot be repaired, `prepare` raises `InputError`.

Only `make_temporary` chooses folders outside the studies.
"""

from __future__ import annotations

import locale
import os
import pwd
import resource
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path

from study.errors import InputError

# A socket's path must be below 108 bytes, including what Ray appends to its temporary folder: a
# session folder and the longest name in it.
SOCKET_BYTES = 107
RAY_PATH = "/ray/session_2026-01-01_00-00-00_000000_1000000/sockets/plasma_store.1"
# Variables for other uses of MLflow, ignored here: a study decides itself where its runs go.
FOREIGN = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_ACTIVE_MODEL_ID",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_DIR",
    "MLFLOW_REGISTRY_DIR",
    "MLFLOW_LOGGING_LEVEL",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING",
)
IMPORT_BYTES = 2**30  # address space; below it, loading libraries kills the process
LOOPBACK = ("localhost", "127.0.0.1", "::1")


def prepare() -> None:
    """Repair the environment of this process.

    Raises:
        InputError: It cannot be repaired; the message says what to do.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < IMPORT_BYTES:
        raise InputError(f"ulimit -v allows {limit >> 10} KiB of memory, too little; raise it.")
    _use_utf8()
    _reset_signals()
    os.umask(os.umask(0o077) & 0o077)  # the user can always read and write our files
    _check_current_folder()
    _set_temporary_folder()
    _set_user()
    _bypass_proxy_for_loopback()
    if shutil.which("bash") is None:  # Ray starts its workers with it
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH"), os.defpath]))
    for name in FOREIGN:
        os.environ.pop(name, None)
    if not os.environ.get("SOURCE_DATE_EPOCH", "0").isdigit():  # numpy fails otherwise
        del os.environ["SOURCE_DATE_EPOCH"]
    if any(entry[0] == "error" for entry in warnings.filters):
        # Warnings of libraries must not become errors, here or in child processes.
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"


def _use_utf8() -> None:
    """Use UTF-8 for files whatever the locale, and escape characters a stream cannot encode.

    Python chooses the file encoding at start-up, so in another locale the command restarts itself.
    """
    main = getattr(sys.modules["__main__"], "__spec__", None)
    name = main.name if main is not None else os.path.basename(sys.argv[0])
    if (
        locale.getencoding().lower().replace("-", "") != "utf8"
        and not sys.flags.utf8_mode
        and not sys.flags.ignore_environment
        and name.partition(".")[0] == "study"
    ):
        os.environ.setdefault("PYTHONIOENCODING", f"{sys.stderr.encoding}:backslashreplace")
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _reset_signals() -> None:
    """Undo an inherited SIGCHLD handler and signal mask, so that no signal is lost."""
    if threading.current_thread() is threading.main_thread():  # only allowed there
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _check_current_folder() -> None:
    try:
        here = os.getcwd()
    except OSError:
        raise InputError("the current folder no longer exists; change to one that does.") from None
    try:
        here.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"the path of the current folder is not UTF-8 ({os.fsencode(here)!r}); change to "
            "another, or rename it."
        ) from None


def _set_temporary_folder() -> None:
    """Set `TMPDIR` to the folder Python uses; other programs do not check that it exists."""
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError:
        raise InputError(
            "there is no writable folder for temporary files (TMPDIR, /tmp, /var/tmp); free some "
            "space, or set TMPDIR to one."
        ) from None
    given = os.environ.get("TMPDIR")
    if given is not None and given != folder:
        if given:
            print(f"TMPDIR={given} cannot be used; temporary files go to {folder}", file=sys.stderr)
        os.environ["TMPDIR"] = folder


def _set_user() -> None:
    """Set a user name, home and config folder where they are missing or not writable."""
    try:
        entry = pwd.getpwuid(os.getuid())
    except KeyError:  # `docker run -u 54321`
        entry = None
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = entry.pw_name if entry else f"uid-{os.getuid()}"
    if not os.path.isabs(os.environ.get("HOME", "")):
        known = entry.pw_dir if entry else ""
        os.environ["HOME"] = known if os.path.isdir(known) else str(make_temporary("home"))
    for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        if not os.path.isabs(os.environ.get(name, "/")):
            del os.environ[name]  # the XDG standard ignores relative paths
    config = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    if "MPLCONFIGDIR" not in os.environ and not _can_write(Path(config)):
        os.environ["MPLCONFIGDIR"] = str(make_temporary("matplotlib"))  # else it warns


def _bypass_proxy_for_loopback() -> None:
    """Bypass proxies for connections to this machine, such as those to MLflow and Ray."""
    if not any(
        os.environ.get(f"{kind}_proxy") or os.environ.get(f"{kind}_PROXY".upper())
        for kind in ("http", "https", "all", "grpc")
    ):
        return
    for name in ("no_proxy", "NO_PROXY"):
        known = [word for word in os.environ.get(name, "").split(",") if word.strip()]
        if "*" not in known:
            os.environ[name] = ",".join([*known, *(h for h in LOOPBACK if h not in known)])


def _can_write(folder: Path) -> bool:
    try:
        return is_writable(folder)
    except OSError:
        return False


def is_writable(folder: Path) -> bool:
    """Return whether a file can be created in a folder or, if missing, its nearest parent."""
    while not os.path.exists(folder):  # `Path.exists` raises if a folder cannot be entered
        folder = folder.parent
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def user_cache() -> Path:
    """Return this user's cache folder: in the home, or a temporary one if not writable."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(home).expanduser()
    if folder.is_absolute() and _can_write(folder):
        return folder
    return make_temporary("cache")


def make_temporary(name: str) -> Path:
    """Create a private folder for temporary files, which is not deleted; return it.

    Raises:
        InputError: It cannot be created.
    """
    return _make_own(Path(tempfile.gettempdir()), name)


def _make_own(parent: Path, name: str) -> Path:
    folder = parent / f"study-{os.getuid()}"
    for place in (folder, folder / name):
        try:
            place.mkdir(mode=0o700, exist_ok=True)
            found = place.lstat()
        except OSError as error:
            raise InputError(f"cannot create the folder {place} ({error.strerror}).") from None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise InputError(f"{place} does not belong to this user; set TMPDIR to another folder.")
    return folder / name


def socket_folder() -> Path:
    """Return a folder in which Ray can create its session folder and sockets.

    A socket's path is limited to 107 bytes and Ray accepts ASCII only. If `TMPDIR` does not fit,
    another folder is chosen and a message says so.

    Raises:
        InputError: There is no such folder.
    """
    first = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    why = ""
    for folder in _socket_folders(Path(first)):
        problem = _socket_problem(folder)
        if problem is None:
            if why:
                print(f"{why}; Ray's files go to {folder}/ray", file=sys.stderr)
            return folder
        why = why or problem
    raise InputError(f"{why}; set TMPDIR to a writable folder with a short path.")


def _socket_folders(first: Path) -> Iterator[Path]:
    yield first
    for parent in ("/tmp", "/var/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/dev/shm", Path.home()):
        if parent and os.path.isdir(parent):
            try:
                yield _make_own(Path(parent), "s")
            except InputError:  # another user's, or not writable
                continue


def _socket_problem(folder: Path) -> str | None:
    """Return why Ray cannot create sockets below a folder, by trying; None if it can."""
    text = str(folder)
    if not folder.is_absolute() or not text.isascii() or not text.isprintable() or " " in text:
        return f"the path {folder} contains characters that Ray does not accept"
    longest = text + RAY_PATH
    if len(longest.encode()) > SOCKET_BYTES:
        return (
            f"the path {folder} is {len(longest.encode()) - SOCKET_BYTES} bytes too long for "
            "Ray's sockets"
        )
    ray = folder / "ray"
    try:
        ray.mkdir(exist_ok=True)
        # A short name suffices: file systems differ in allowing sockets, and the length is checked.
        name = f".study-{os.getpid()}"
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(ray / name))
        (ray / name).unlink()
    except OSError as error:
        return f"cannot create sockets in {ray} ({error.strerror or error})"
    return None
