"""The user's environment: what every command makes of it, and studies under all of it at once."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import urllib.request
from pathlib import Path

import environments
import pytest
from conftest import LONG
from environments import SETTINGS, Setting, can_be_other_user, run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from study.cli import run_command
from study.errors import InputError
from study.runner.plan import make_plan
from study.system import environment
from study.tune import build_parser, options_of

# What is asked of an environment that a command has prepared, without the seconds of Ray.
PROBE = """
import getpass, json, os, sys, tempfile
from pathlib import Path
from study import cli as command
from study.storage import cache, sqlite_uri
from study.system import environment
from study.tracking import access as tracking_access

def main():
    print("\\u6f22 \\udcff")  # whatever the locale
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_text("\\u6f22")
        utf8 = Path(file.name).read_bytes() == "\\u6f22".encode()
    place = environment.socket_folder()
    cache.cached(cache.cache_home(), "probe", [], lambda folder: {})
    print("PROBE" + json.dumps({
        "user": getpass.getuser(),
        "home": os.path.isabs(Path.home()),
        "cache": os.path.isabs(cache.cache_home()),
        "utf8": utf8,
        "streams": [os.fstat(number) is not None for number in range(3)],
        "sockets": len(os.fsencode(place)) < 42 and str(place).isascii(),
        "temporary": os.environ.get("TMPDIR", tempfile.gettempdir()) == tempfile.gettempdir(),
        "store": tracking_access.check_access("sqlite:///mlflow.db") is None,
    }))
    return 0

if __name__ == "__main__":
    sys.exit(command.run_command(main))
"""
PREPARED = {name: True for name in ("home", "cache", "utf8", "sockets", "temporary", "store")}


def probed(setting: Setting, home: Path) -> environments.Outcome:
    """Run the probe as `python -m`, in an environment."""
    (home.parent / "probe").mkdir(exist_ok=True)
    (home.parent / "probe" / "study_probe.py").write_text(PROBE)
    shell = f'export PYTHONPATH="{home.parent}/probe"\n{setting.shell}'
    return run([Setting(**{**vars(setting), "shell": shell})], home, ("study_probe",))


# The probe lies in PYTHONPATH, and is no module of `study`, which passes over the current folder.
WORKING = [s for s in SETTINGS if s.works and not re.search("PYTHONPATH|SystemExit", s.name)]


@pytest.mark.parametrize("setting", WORKING[:: 1 if LONG else 4], ids=lambda s: s.name)
def test_an_environment_is_made_one_to_work_in(setting: Setting, tmp_path: Path) -> None:
    if setting.user and not can_be_other_user():
        pytest.skip("needs root and setpriv")
    os.chmod(tmp_path, 0o755)
    outcome = probed(setting, tmp_path / "home")
    assert "Traceback" not in outcome.text and outcome.code == 0, outcome.text
    if "1>&-" in setting.shell or "2>" in setting.shell or "1<" in setting.shell:
        return
    (line,) = [line for line in outcome.text.splitlines() if line.startswith("PROBE")]
    answer = json.loads(line.removeprefix("PROBE"))
    assert answer.pop("user") and all(answer.pop("streams")) and answer == PREPARED


@given(
    st.text(st.sampled_from("abc ü漢%\\n'?"), min_size=1, max_size=12),
    st.integers(1, 20),
)
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sockets_of_ray_fit_wherever_temporary_files_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, repeated: int
) -> None:
    folder = tmp_path / (name * repeated)[:60]
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    found = environment.socket_folder()
    path = f"{found}{environment.RAY_PATH}"
    assert path.isascii() and path.isprintable() and len(path) <= 107
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(path)
    os.unlink(path)


def test_another_place_for_sockets_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = tmp_path / ("t" * 90)
    long.mkdir()
    monkeypatch.setenv("RAY_TMPDIR", str(long))
    place = environment.socket_folder()
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "bytes too long" in told and f"go to {place}/ray" in told
    monkeypatch.setattr(environment, "_socket_folders", lambda first: iter([long]))
    with pytest.raises(InputError, match="bytes too long .* set TMPDIR to a writable folder"):
        environment.socket_folder()


def test_a_temporary_folder_of_another_user_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / f"study-{os.getuid()}").symlink_to("/tmp")
    with pytest.raises(InputError, match="does not belong to this user"):
        environment._make_own(tmp_path, "cache")


def test_loopback_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intranet.example")
    monkeypatch.delenv("NO_PROXY", raising=False)
    environment._bypass_proxy_for_loopback()
    assert os.environ["no_proxy"] == "intranet.example,localhost,127.0.0.1,::1"
    assert urllib.request.proxy_bypass("127.0.0.1")
    monkeypatch.setenv("no_proxy", "*")
    environment._bypass_proxy_for_loopback()
    assert os.environ["no_proxy"] == "*"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left on device: x"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files (ulimit -n)"),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), "Permission denied: /y"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "cannot start more threads"),
    ],
)
def test_what_the_system_refuses_is_a_line(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    assert run_command(main) == 1
    told = capsys.readouterr().err
    assert told.startswith("failed: ") and line in told and told.count("\n") == 1


def test_faults_of_ours_keep_their_traceback() -> None:
    for error in (FileNotFoundError(errno.ENOENT, "No such file"), RuntimeError("a bug")):

        def main(error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error)):
            run_command(main)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--name", "n" * 256), "--name 'nnnn"),
        (("--name", "n" * 201), "at most 200 letters"),
        (("--seed", str(2**63)), "--seed must be 0 to 2**62, but got 9223372036854775808"),
        (("--seed", "-1"), "--seed must be 0 to 2**62, but got -1"),
        (("--seed", "9" * 500), "--seed must be 0 to 2**62, but got 999"),
        (("--search-space", "s" * 300), "there is no search space"),
        (("--search-space", "s" * 300 + ".yaml"), "there is no search space"),
        (("--data-dir", "d" * 300, "--dataset", "real"), "ddd"),
    ],
)
def test_arguments_without_measure_are_refused_in_a_line(
    flags: tuple[str, str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fashion", "--dataset", "sample", *flags]
    code = run_command(lambda: bool(make_plan(options_of(build_parser().parse_args(words)))))
    told = capsys.readouterr().err
    assert code in (1, 2) and line in told and told.count("\n") == 1
