"""A SQLite store that was moved, with its artifacts or without."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from study.storage.sqlite_uri import uri_of
from study.tracking.store import connect, ensure_experiment


def new_store(home: Path) -> str:
    """Make a store with a run that has an artifact and a metric; return the run's id."""
    home.mkdir()
    uri = uri_of(home / "mlflow.db")
    client = connect(uri)
    return add_run(client, uri)


def add_run(client: MlflowClient, uri: str) -> str:
    experiment = ensure_experiment(client, uri, "s")
    run_id = client.create_run(experiment, tags={"study.role": "trial"}).info.run_id
    client.log_text(run_id, "words", "figures/a.txt")
    return str(run_id)


def texts(uri: str, run_id: str) -> str:
    client = connect(uri)
    place = client.download_artifacts(run_id, "figures/a.txt")
    return Path(place).read_text()


@pytest.mark.parametrize("names", [("old", "new"), ("o l%20d?#", "nü w")])
def test_a_project_that_was_moved_finds_its_artifacts(
    tmp_path: Path, names: tuple[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = tmp_path / names[0], tmp_path / names[1]
    run_id = new_store(old)
    old.rename(new)
    uri = uri_of(new / "mlflow.db")
    client = connect(uri)
    assert f"artifacts are now in {new / 'mlruns'} instead of {old / 'mlruns'}" in caplog.text
    assert texts(uri, run_id) == "words"
    later = add_run(client, uri)
    assert (new / "mlruns" / "s" / later / "artifacts" / "figures" / "a.txt").exists()
    assert not old.exists(), "it must not come again"
    caplog.clear()
    connect(uri)
    assert not caplog.text, "once is enough"


def test_where_the_old_folder_cannot_be_made_the_artifacts_are_found_all_the_same(
    tmp_path: Path,
) -> None:
    run_id = new_store(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "old").write_text("a file")
    uri = uri_of(tmp_path / "new" / "mlflow.db")
    assert texts(uri, run_id) == "words"
    add_run(connect(uri), uri)


def test_a_copied_project_has_artifacts_of_its_own(tmp_path: Path) -> None:
    run_id = new_store(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    uri = uri_of(tmp_path / "new" / "mlflow.db")
    client = connect(uri)
    place = client.get_run(run_id).info.artifact_uri
    assert place.startswith((tmp_path / "new" / "mlruns").as_uri())
    assert texts(uri, run_id) == "words"
    old = connect(uri_of(tmp_path / "old" / "mlflow.db"))
    assert old.get_run(run_id).info.artifact_uri.startswith((tmp_path / "old").as_uri())


def test_a_store_that_was_moved_alone_keeps_its_artifacts_where_they_are(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_store(tmp_path / "old")
    (tmp_path / "new").mkdir()
    (tmp_path / "old" / "mlflow.db").rename(tmp_path / "new" / "mlflow.db")
    assert texts(uri_of(tmp_path / "new" / "mlflow.db"), run_id) == "words"
    assert not caplog.text
    # Then its artifacts follow.
    (tmp_path / "old" / "mlruns").rename(tmp_path / "new" / "mlruns")
    assert texts(uri_of(tmp_path / "new" / "mlflow.db"), run_id) == "words"


def test_artifacts_that_are_gone_are_told_and_found_when_they_come(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_store(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    (tmp_path / "new" / "mlruns").rename(tmp_path / "aside")
    uri = uri_of(tmp_path / "new" / "mlflow.db")
    add_run(connect(uri), uri)
    assert "if you have them, move them to the first" in caplog.text
    assert not (tmp_path / "old").exists()
    shutil.copytree(tmp_path / "aside", tmp_path / "new" / "mlruns", dirs_exist_ok=True)
    assert texts(uri, run_id) == "words"


def test_another_path_of_the_same_folder_is_no_move(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = new_store(tmp_path / "old")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    assert texts(uri_of(tmp_path / "link" / "mlflow.db"), run_id) == "words"
    assert not caplog.text


def test_what_others_keep_in_the_store_stays_as_it_is(tmp_path: Path) -> None:
    new_store(tmp_path / "old")
    client = connect(uri_of(tmp_path / "old" / "mlflow.db"))
    places = ("s3://team/mlruns/x", (tmp_path / "elsewhere" / "mlruns" / "x").as_uri())
    ids = [client.create_experiment(str(place), artifact_location=place) for place in places]
    (tmp_path / "old").rename(tmp_path / "new")
    client = connect(uri_of(tmp_path / "new" / "mlflow.db"))
    for one, place in zip(ids, places, strict=True):
        assert client.get_experiment(one).artifact_location == place
    assert not os.path.lexists(tmp_path / "elsewhere")
