"""Results sent to MLflow after a study, while another command sends the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import IntegrityError

from study.tracking.results import try_to_tell


def test_a_tag_that_another_command_wrote_first_is_written_again(tmp_path: Path) -> None:
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = client.create_run("0").info.run_id
    attempts: list[str] = []

    def tell(key: str) -> None:
        attempts.append(key)
        if len(attempts) == 1:  # between MLflow's look and its write
            with sqlite3.connect(tmp_path / "mlflow.db") as other:
                other.execute("INSERT INTO tags VALUES (?, ?, ?)", (key, "other", run_id))
            error = IntegrityError("INSERT INTO tags", None, Exception("UNIQUE constraint failed"))
            raise MlflowException("UNIQUE constraint failed: tags.key, tags.run_uuid") from error
        client.set_tag(run_id, key, "ours")

    assert try_to_tell(tell, "study.tested") is None
    assert client.get_run(run_id).data.tags["study.tested"] == "ours" and len(attempts) == 2


def test_what_fails_for_another_reason_is_said_at_once() -> None:
    attempts: list[int] = []

    def tell() -> None:
        attempts.append(1)
        raise MlflowException("no such run")

    assert "no such run" in str(try_to_tell(tell)) and len(attempts) == 1
