"""Environments that are not ours: settings of a shell, a machine or a folder to run studies in.

    python tests/environments.py --number 100 --seed 0     # so many at random, 1 to 3 settings each
    python tests/environments.py --each                    # every setting by itself
    python tests/environments.py --together                # all that must work, in few studies
    python tests/environments.py --only umask              # those whose name holds it

Each runs the first command of the README, cut small. It must end with exit code 0 and all trials in
the study's record and in MLflow, or with 1 or 2 and one line that says why; never with a traceback.
A summary goes to stderr, JSON to stdout. `test_environment.py` runs a sample of the same settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

TRIALS = 2
COMMAND = (
    "study.tune",
    "fashion",
    "--dataset",
    "sample",
    "--num-samples",
    str(TRIALS),
    "--epochs",
    "1",
    "--set",
    "width1=4",
    "--set",
    "width2=4",
    "--set",
    "hidden=16",
    "--max-concurrent",
    "1",
)
SECONDS = 300  # of a command, on a machine with other work
USER = "54321"  # a user id without a passwd entry
# May read all, since this Python may lie in another user's home, and write nothing of others'.
AS_USER = (
    shutil.which("setpriv") or "setpriv",
    "--reuid",
    USER,
    "--regid",
    USER,
    "--clear-groups",
    "--inh-caps",
    "+dac_read_search",
    "--ambient-caps",
    "+dac_read_search",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """Something that may be otherwise than on a developer's machine.

    Attributes:
        name: For people.
        env: Variables; None for one that is not set. `{here}` is the current folder.
        shell: Run by bash before the command, in its current folder.
        folder: Name of the current folder.
        user: Whether to run as a user without a name.
        works: Whether the command must work; else it may end with a line that says why.
    """

    name: str
    env: tuple[tuple[str, str | None], ...] = ()
    shell: str = ""
    folder: str = ""
    user: bool = False
    works: bool = True


def variables(names: str, *values: str | None, works: bool = True) -> list[Setting]:
    """Return a setting for each value of one or several variables."""
    return [
        Setting(name=f"{names}={value}", env=tuple((n, value) for n in names.split()), works=works)
        for value in values
    ]


def shells(*lines: str, works: bool = True) -> list[Setting]:
    """Return a setting for each line of shell."""
    return [Setting(name=line, shell=line, works=works) for line in lines]


SETTINGS = [
    # Home and caches
    *variables("HOME", None, "", "relative", "/nonexistent", "/proc"),
    *variables("XDG_CACHE_HOME", "relative/cache", "/proc/none", ""),
    *variables("XDG_CONFIG_HOME XDG_DATA_HOME", "relative", "/proc/none"),
    *variables("MPLCONFIGDIR", "/proc/none", ""),
    *variables("MPLBACKEND", "module://matplotlib_inline.backend_inline", "nonsense", "TkAgg"),
    *variables("MATPLOTLIBRC TORCH_HOME", "/nonexistent"),
    *variables("LOGNAME USER LNAME USERNAME", None, ""),
    *variables("STUDY_DATA_DIR", "/nonexistent"),
    *variables("STUDY_CACHE_DIR", "/proc/none", works=False),
    # Temporary files
    *variables("TMPDIR", "/nonexistent", "relative", "", "/proc", "{here}/file", "/dev/null"),
    *variables("TMPDIR", f"{{here}}/{'t' * 42}", f"{{here}}/{'t' * 150}", "{here}/two words"),
    *variables("TMPDIR", "{here}/tmpü漢", "{here}/100%25"),
    *variables("TEMP TMP", "/nonexistent"),
    # Ray
    *variables("RAY_ADDRESS", "10.255.255.1:6379", "auto", "ray://127.0.0.1:1"),
    *variables("RAY_NAMESPACE", "theirs"),
    *variables("RAY_RUNTIME_ENV", "junk", '{"pip": ["none"]}'),
    *variables("RAY_JOB_CONFIG_JSON_ENV_VAR", '{"runtime_env": {"pip": ["none"]}}', "junk"),
    *variables("RAY_TMPDIR", "/nonexistent", "relative", f"{{here}}/{'r' * 90}"),
    *variables("RAY_AUTH_MODE", "token", "disabled"),
    *variables("RAY_AUTH_MODE", "junk"),
    *variables("RAY_AUTH_TOKEN", "theirs"),
    *variables("RAY_AUTH_TOKEN_PATH", "/nonexistent"),
    *variables("RAY_OVERRIDE_RESOURCES", '{"CPU": 0}', "junk"),
    *variables("RAY_memory_monitor_refresh_ms RAY_DEDUP_LOGS", "0"),
    *variables("RAY_LOG_TO_STDERR RAY_LOG_TO_DRIVER", "1"),
    *variables("RAY_CHDIR_TO_TRIAL_DIR RAY_AIR_NEW_OUTPUT RAY_AIR_FULL_TRACEBACKS", "1"),
    *variables("RAY_TRAIN_V2_ENABLED RAY_ENABLE_AUTO_CONNECT", "0"),
    *variables("RAY_object_spilling_config RAY_STORAGE RAY_REDIS_ADDRESS", "junk"),
    *variables("RAY_USE_TLS RAY_CLIENT_MODE RAY_USE_MULTIPROCESSING_CPU_COUNT", "1"),
    *variables("RAY_RUNTIME_ENV_HOOK", "none.hook"),
    *variables("TUNE_RESULT_DIR TUNE_ORIG_WORKING_DIR", "/proc/none"),
    *variables("TUNE_RESULT_BUFFER_LENGTH TUNE_RESULT_BUFFER_MIN_TIME_S", "1000"),
    *variables("TUNE_MAX_PENDING_TRIALS_PG TUNE_GLOBAL_CHECKPOINT_S", "1", "junk"),
    *variables("TUNE_DISABLE_STRICT_METRIC_CHECKING TUNE_DISABLE_SIGINT_HANDLER", "0"),
    # MLflow
    *variables("MLFLOW_RUN_ID MLFLOW_EXPERIMENT_NAME MLFLOW_EXPERIMENT_ID", "junk"),
    *variables("MLFLOW_REGISTRY_URI", "nonsense://x", "http://127.0.0.1:1"),
    *variables("MLFLOW_TRACKING_URI", ""),
    *variables("MLFLOW_TRACKING_URI", "nonsense", "sqlite:///:memory:", "mysql://", works=False),
    *variables("MLFLOW_TRACKING_URI", "http://127.0.0.1:1", "sqlite:////proc/m.db", works=False),
    *variables("MLFLOW_TRACKING_TOKEN MLFLOW_WORKSPACE MLFLOW_ACTIVE_MODEL_ID", "junk"),
    *variables("MLFLOW_ENABLE_ASYNC_LOGGING MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "true"),
    *variables("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "1"),
    *variables("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "NullPool"),
    *variables("MLFLOW_SQLALCHEMYSTORE_POOLCLASS", "junk", works=False),
    *variables("MLFLOW_LOGGING_LEVEL", "DEBUG"),
    *variables("MLFLOW_LOGGING_LEVEL", "junk"),
    *variables("MLFLOW_HTTP_REQUEST_TIMEOUT MLFLOW_HTTP_REQUEST_MAX_RETRIES", "99999"),
    *variables("MLFLOW_TRUNCATE_LONG_VALUES MLFLOW_CONFIGURE_LOGGING", "false"),
    *variables("MLFLOW_TRACKING_DIR MLFLOW_REGISTRY_DIR", "/proc/none"),
    *variables("MLFLOW_ENABLE_WORKSPACES", "true", works=False),
    *variables("DATABRICKS_RUNTIME_VERSION", "15.4"),
    *variables("DATABRICKS_HOST DATABRICKS_TOKEN", "junk"),
    *variables("OPTUNA_STORAGE", "sqlite:////proc/none.db"),
    *variables("OTEL_EXPORTER_OTLP_ENDPOINT OTEL_TRACES_EXPORTER", "http://127.0.0.1:1"),
    # Threads and devices
    *variables("OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS", "0", "junk", "64", "1"),
    *variables("OMP_PROC_BIND", "true"),
    *variables("KMP_AFFINITY OMP_PLACES", "cores"),
    *variables("CUDA_VISIBLE_DEVICES", "", "-1", "junk", "0", "GPU-8932f937"),
    *variables("HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES", "0"),
    *variables("NVIDIA_VISIBLE_DEVICES", "all"),
    # Schedulers of clusters
    *variables("RANK LOCAL_RANK NODE_RANK GROUP_RANK PMI_RANK OMPI_COMM_WORLD_RANK", "3"),
    *variables("WORLD_SIZE LOCAL_WORLD_SIZE MASTER_PORT TORCHELASTIC_RUN_ID", "4"),
    *variables("MASTER_ADDR", "10.255.255.1"),
    *variables("SLURM_JOB_ID SLURM_PROCID SLURM_NTASKS SLURM_CPUS_PER_TASK SLURM_NODEID", "7"),
    *variables("KUBERNETES_SERVICE_HOST TF_CONFIG", "10.255.255.1"),
    # Network
    *variables("http_proxy https_proxy all_proxy HTTP_PROXY HTTPS_PROXY", "http://127.0.0.1:9"),
    *variables("grpc_proxy all_proxy", "socks5://127.0.0.1:9"),
    *variables("REQUESTS_CA_BUNDLE SSL_CERT_FILE", "/nonexistent"),
    *variables("AWS_PROFILE AWS_ENDPOINT_URL GOOGLE_APPLICATION_CREDENTIALS", "junk"),
    # Python
    *variables("PYTHONOPTIMIZE", "1", "2"),
    *variables("PYTHONWARNINGS", "error", "always", "junk"),
    *variables("PYTHONDEVMODE", "1"),
    *variables("PYTHONDONTWRITEBYTECODE PYTHONSAFEPATH PYTHONNOUSERSITE PYTHONFAULTHANDLER", "1"),
    *variables("PYTHONUNBUFFERED", "", "1"),
    *variables("PYTHONSTARTUP PYTHONPATH PYTHONUSERBASE VIRTUAL_ENV CONDA_PREFIX", "/nonexistent"),
    *variables("PYTHONPYCACHEPREFIX", "/proc/none"),
    *variables("PYTHONBREAKPOINT", "none.such"),
    *variables("PYTHONHASHSEED", "0"),
    *variables("PYTHONMALLOC", "debug"),
    *variables("PYTHONINTMAXSTRDIGITS", "640"),
    *variables("PYTHONIOENCODING", "ascii", "latin-1:strict", "cp1252"),
    # Locale, terminal, time
    Setting(
        name="ASCII only",
        env=(("LC_ALL", "C"), ("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")),
    ),
    *variables("LC_ALL LANG", "C", "POSIX", "de_DE.ISO-8859-1", "tr_TR.UTF-8", "junk", None),
    *variables("TERM", None, "dumb", "junk", "xterm-256color"),
    *variables("COLUMNS LINES", "0", "-1", "junk", "1", "100000"),
    *variables("NO_COLOR FORCE_COLOR CLICOLOR_FORCE", "1"),
    *variables("TZ", "junk", "", "Asia/Kathmandu", ":/nonexistent"),
    *variables("SOURCE_DATE_EPOCH", "0", "junk"),
    *variables("DISPLAY WAYLAND_DISPLAY QT_API", ":99"),
    *variables("JPY_PARENT_PID CI DEBUG", "1"),
    *variables("SHELL PWD OLDPWD", "/nonexistent"),
    # Memory and libraries
    *variables("MALLOC_ARENA_MAX MALLOC_PERTURB_", "1"),
    *variables("MALLOC_CHECK_", "3"),
    *variables("LD_PRELOAD LD_LIBRARY_PATH", "/nonexistent.so"),
    *variables("TORCH_DEVICE_BACKEND_AUTOLOAD TORCH_CPP_LOG_LEVEL TORCH_SHOW_CPP_STACKTRACES", "0"),
    *variables("GRPC_VERBOSITY GLOG_v", "debug"),
    *variables("PATH", "/nonexistent", ""),
    # Limits and what a process inherits
    *shells("umask 0", "umask 077", "umask 0777", "umask 0277"),
    *shells("ulimit -n 1024", "ulimit -c 0", "ulimit -s 512", "ulimit -s unlimited", "ulimit -l 0"),
    *shells("ulimit -n 20", "ulimit -n 64", "ulimit -n 256", works=False),
    *shells("ulimit -f 100", "ulimit -f 20000", works=False),
    *shells("ulimit -v 300000", "ulimit -v 1500000", "ulimit -v 6000000", works=False),
    *shells("taskset -cp 0 $$ >&2", "renice -n 19 $$ >&2"),
    *shells("exec 0<&-", "exec 1>&-", "exec 2>&-", "exec 0<&- 1>&- 2>&-"),
    *shells("exec </dev/full", "exec 1</dev/null", "exec >/dev/full", "exec 2>/dev/full"),
    *shells("trap '' INT", "trap '' HUP TERM", "trap '' CHLD", "trap '' PIPE"),
    # The current folder
    *(
        Setting(name=f"folder {name}", folder=name)
        for name in (
            "two words",
            "ü漢",
            "who? me",
            "a#b",
            "100%25 %20",
            "-dash",
            "quote'\"",
            "a&b=c;d",
            "n" * 200,
            "[x]{y}*",
            "sqlite:",
            "back\\slash",
            "~",
            "dollar$HOME",
        )
    ),
    Setting(name="folder of a line break", folder="a\nb", works=False),
    Setting(name="folder not in UTF-8", shell="mkdir $'\\xff'; cd $'\\xff'", works=False),
    *shells('mkdir gone; cd gone; rmdir "$PWD"', "cd /proc", works=False),
    *shells("touch studies", "mkdir mlflow.db", "echo text >mlflow.db", works=False),
    *shells("touch mlruns", "mkdir -p studies/fashion/study.json", works=False),
    *shells("touch mlflow.db", "touch data export .git", "mkdir ray torch mlflow study data"),
    *shells("mkdir fashion fashion.yaml; touch facade", "ln -s /tmp linked"),
    *shells("echo 'raise SystemExit(7)' | tee json.py torch.py random.py queue.py >types.py"),
    *shells("echo 'raise SystemExit(7)' | tee yaml.py numpy.py ray.py mlflow.py >token.py"),
    *shells("mkdir -p deep/$(printf 'd%.0s' {1..200})/{1..3}; cd deep/*/2"),
    *shells("echo theirs=1 >study.py", works=False),
    # The user
    Setting(name="a user without a name", user=True),
    Setting(name="a user without a name or home", user=True, env=(("HOME", "/root"),)),
    Setting(name="a folder of another user's", user=True, shell="cd /", works=False),
    Setting(name="ulimit -u 60", user=True, shell="ulimit -u 60", works=False),
    Setting(name="ulimit -u 200", user=True, shell="ulimit -u 200", works=False),
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a command ended.

    Attributes:
        names: Of the settings.
        code: Its exit code; None if it was still running after `SECONDS`.
        seconds: How long it took.
        trials: In the study's record, ended.
        runs: In MLflow, ended.
        text: What it printed.
        fault: What is wrong with that; None if nothing.
    """

    names: list[str]
    code: int | None
    seconds: float
    trials: int
    runs: int
    text: str
    fault: str | None


def can_be_other_user() -> bool:
    """Return whether commands can be run as another user."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        return False
    check = [*AS_USER, sys.executable, "-c", "import encodings"]
    return subprocess.run(check, cwd="/", capture_output=True).returncode == 0


def run(settings: list[Setting], home: Path, command: tuple[str, ...] = COMMAND) -> Outcome:
    """Run a command in a new folder below `home` under some settings."""
    here = home / (next((s.folder for s in settings if s.folder), "") or "here")
    here.mkdir(parents=True)
    env = {**os.environ, "HOME": str(home), "STUDY_CACHE_DIR": str(home.parent / "cache")}
    for name in ("MLFLOW_TRACKING_URI", "RAY_TMPDIR", "TMPDIR", "XDG_CACHE_HOME", "PYTHONPATH"):
        env.pop(name, None)
    shell = [shutil.which("bash") or "bash", "-c"]
    if any(setting.user for setting in settings):
        shell = [*AS_USER, *shell]
        env.pop("STUDY_CACHE_DIR")
        for path in (home, here):
            os.chown(path, int(USER), int(USER))
    given = {name: value for setting in settings for name, value in setting.env}
    for name, value in given.items():
        env.pop(name, None)
        if value is not None:
            value = value.replace("{here}", str(here))
            env[name] = value
            if name in ("TMPDIR", "RAY_TMPDIR") and str(here) in value and "file" not in value:
                os.makedirs(value)
                os.chmod(value, 0o777)
    (home / "file").touch()
    script = "\n".join([*(s.shell for s in settings if s.shell), 'exec "$0" -m "$@"'])
    began = time.monotonic()
    with (home / "output").open("w+b") as output:
        process = subprocess.Popen(
            [*shell, script, sys.executable, *command],
            cwd=here,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            code = None
        output.seek(0)
        text = output.read().decode(errors="replace")
    trials, runs = sum(_trials(here)), sum(_runs(here))
    outcome = Outcome(
        names=[setting.name for setting in settings],
        code=code,
        seconds=round(time.monotonic() - began, 1),
        trials=trials,
        runs=runs,
        text=text,
        fault=None,
    )
    return dataclasses.replace(outcome, fault=_fault(settings, outcome))


def _trials(home: Path) -> Iterator[int]:
    for file in home.rglob("trial.json"):
        state = json.loads(file.read_text())["state"]
        yield state in ("finished", "stopped")


def _runs(home: Path) -> Iterator[int]:
    for file in home.rglob("mlflow.db"):
        if file.is_file() and file.stat().st_size and file.read_bytes().startswith(b"SQLite"):
            with closing(sqlite3.connect(file)) as store:
                yield from store.execute(
                    "SELECT COUNT(*) FROM runs JOIN tags USING (run_uuid) WHERE key = 'study.role' "
                    "AND value = 'trial' AND status IN ('FINISHED', 'KILLED')"
                ).fetchone()


def _fault(settings: list[Setting], outcome: Outcome) -> str | None:
    lines = outcome.text.strip().splitlines()
    silent = any(word in s.shell for s in settings for word in ("2>", "1>&-"))
    if "Traceback" in outcome.text or "Fatal Python error" in outcome.text:
        return "a traceback"
    if outcome.code is None:
        return f"no end in {SECONDS} s"
    if outcome.code == 0:
        if outcome.trials != TRIALS or outcome.runs != TRIALS:
            return f"{outcome.trials} trials and {outcome.runs} runs of {TRIALS}"
        return None
    if all(setting.works for setting in settings):
        return f"exit code {outcome.code}, but it must work"
    told = [line for line in lines if line.startswith(("error:", "failed:"))]
    own = any("study.py" in s.shell for s in settings)  # Python's own word: it is another `study`
    if outcome.code not in (1, 2):
        return f"exit code {outcome.code}"
    if len(told) != 1 and not silent and not own:
        return f"{len(told)} lines that say why"
    return None


def contradict(settings: list[Setting]) -> bool:
    """Return whether one of these settings would undo another."""
    names = [name for setting in settings for name, _ in setting.env]
    places = [s for s in settings if s.folder or "cd " in s.shell]
    shells = [
        s.shell.split()[: 1 if s.shell.startswith("exec") else 2] for s in settings if s.shell
    ]
    doubled = any(shells.count(words) > 1 for words in shells)
    return len(names) != len(set(names)) or len(places) > 1 or doubled


def together(settings: list[Setting]) -> list[list[Setting]]:
    """Return as few groups as there can be of settings that do not contradict each other."""
    groups: list[list[Setting]] = []
    for setting in settings:
        for group in groups:
            if not contradict([*group, setting]):
                group.append(setting)
                break
        else:
            groups.append([setting])
    return groups


def draw(generator: random.Random, others: bool) -> list[Setting]:
    """Return one to three settings that do not contradict each other."""
    table = [setting for setting in SETTINGS if others or not setting.user]
    chosen = generator.sample(table, generator.randint(1, 3))
    return draw(generator, others) if contradict(chosen) else chosen


def main() -> int:
    """Run studies in environments, and say how they ended."""
    parser = argparse.ArgumentParser(description="Run studies in environments that are not ours.")
    parser.add_argument("--number", type=int, default=100, help="of environments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", action="store_true", help="every setting by itself")
    parser.add_argument("--together", action="store_true", help="all that must work, in groups")
    parser.add_argument("--only", help="every setting by itself whose name holds this")
    parser.add_argument("--part", default="0/1", help="K/N: every N-th from K, to share the work")
    args = parser.parse_args()
    others = can_be_other_user()
    if args.each or args.only:
        chosen = [[s] for s in SETTINGS if (args.only or "") in s.name and (others or not s.user)]
    elif args.together:
        chosen = together([s for s in SETTINGS if s.works and (others or not s.user)])
    else:
        generator = random.Random(args.seed)
        chosen = [draw(generator, others) for _ in range(args.number)]
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="e", dir="/tmp") as base:
        os.chmod(base, 0o755)
        first, step = map(int, args.part.split("/"))
        for number, settings in list(enumerate(chosen))[first::step]:
            outcome = run(settings, Path(base) / str(number))
            outcomes.append(outcome)
            print(
                f"{number:3}  {outcome.fault or 'good':40}  exit {outcome.code}  "
                f"{outcome.seconds:5.1f} s  {' + '.join(outcome.names)!r}",
                file=sys.stderr,
                flush=True,
            )
            if outcome.fault:
                print("     | " + outcome.text[-3000:].replace("\n", "\n     | "), file=sys.stderr)
            shutil.rmtree(Path(base) / str(number), ignore_errors=True)
    bad = [outcome for outcome in outcomes if outcome.fault]
    worked = sum(outcome.code == 0 for outcome in outcomes)
    print(
        f"{len(outcomes)} environments, {worked} worked, {len(outcomes) - worked - len(bad)} ended "
        f"with a line, {len(bad)} faults",
        file=sys.stderr,
    )
    print(
        json.dumps(
            {
                "environments": len(outcomes),
                "seed": args.seed,
                "worked": worked,
                "faults": len(bad),
                "outcomes": [dataclasses.asdict(outcome) for outcome in outcomes],
            },
            indent=1,
        )
    )
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
