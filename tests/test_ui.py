"""`study.ui`: a real server, its page's address, and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from conftest import wait_for
from tracked import client_of, extended

from study import ui
from study.errors import InputError


def process_ids(session: int) -> list[int]:
    """The processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(words[3]) == session and words[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_page_is_there_until_a_signal_and_its_server_ends_with_it(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    extended(tmp_path, "s", 2)
    client = client_of(tmp_path)
    experiment = client.get_experiment_by_name("s")
    view = "mlflow.sharedViewState.trials"
    client.set_experiment_tag(experiment.experiment_id, view, "{}")  # as an early version left it
    command = [sys.executable, "-m", "study.ui", "s", "--no-browser", "--tracking-uri"]
    command += [f"sqlite:///{tmp_path / 'mlflow.db'}"]
    with (
        (tmp_path / "said").open("w") as said,
        subprocess.Popen(
            command, cwd=tmp_path, stdout=said, stderr=said, text=True, start_new_session=True
        ) as process,
    ):
        text = tmp_path / "said"

        def answers() -> bool:
            assert process.poll() is None, text.read_text()
            return "press Ctrl-C to stop the server" in text.read_text()

        try:
            wait_for(answers)
            link = text.read_text().split()[0]
            address, place = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/(#.*)", link).groups()
            assert place.startswith(f"#/experiments/{experiment.experiment_id}/runs?viewStateShare")
            with urllib.request.urlopen(f"{address}/health") as reply:
                assert reply.status == 200
            tags = client.get_experiment(experiment.experiment_id).tags
            assert json.loads(tags[view])["orderByKey"] == "metrics.`best/accuracy`"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            assert children and all(process_ids(int(child)) for child in children)
        finally:
            os.kill(process.pid, number)
        assert process.wait(60) == code
    wait_for(lambda: not any(process_ids(int(child)) for child in children), 60)
    assert "Traceback" not in text.read_text()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) != 0


def test_a_server_that_there_is_already_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda link: bool(opened.append(link)) or True)
    ui.show("http://127.0.0.1:5000/#/experiments/1", no_browser=False)
    assert opened == [capsys.readouterr().out.strip()] == ["http://127.0.0.1:5000/#/experiments/1"]


def test_what_cannot_be_shown_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = extended(tmp_path, "s", 1)
    where = ["--studies-dir", str(record.path.parent), "--no-browser", "--tracking-uri"]
    with pytest.raises(InputError, match="has no run of study s; name the study's store"):
        ui.main(["s", *where, f"sqlite:///{tmp_path / 'other.db'}"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError, match="--port .*in use; choose another"):
            ui.main(["s", "--port", port, *where, f"sqlite:///{tmp_path / 'mlflow.db'}"])
    client = client_of(tmp_path)
    client.delete_experiment(client.get_experiment_by_name("s").experiment_id)
    with pytest.raises(InputError, match="was deleted; run the study's command again, or `mlflow"):
        ui.main(["s", *where, f"sqlite:///{tmp_path / 'mlflow.db'}"])
