"""The user's environment: what every command makes of it, and studies under all of it at once."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import environments
import pytest
from conftest import LONG
from environments import SETTINGS, Setting, can_be_other_user, run

# What is asked of an environment that a command has prepared, without the seconds of Ray.
PROBE = """
import getpass, json, os, sys, tempfile
from pathlib import Path
from study import cache, command, environment, sqlite_uri, tracking_access

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
