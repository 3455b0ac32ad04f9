"""Paths as URIs: what is written there is found there, by SQLAlchemy, Optuna and MLflow."""

from __future__ import annotations

import sqlite3
import urllib.parse
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.tracking import MlflowClient

from study.errors import InputError
from study.storage import sqlite_uri
from study.tracking import store as tracking_store

NAMES = st.text(
    st.sampled_from("a?#%20&=:;@+ ü~.'\"\\\n漢{}[]*") | st.characters(exclude_categories=["Cs"]),
    min_size=1,
    max_size=30,
).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)


@given(name=NAMES)
@settings(deadline=None)
def test_a_uri_gives_its_path_back(name: str) -> None:
    path = Path("/home", name, "mlflow.db")
    uri = sqlite_uri.uri_of(path)
    assert sqlite_uri.path_of(uri) == path and sqlite_uri.absolute(uri) == uri
    assert sqlalchemy.make_url(uri).database == str(path)
    assert urllib.parse.unquote(uri.removeprefix("sqlite:///")) == str(path)


@given(name=NAMES)
@settings(
    deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_sqlalchemy_makes_the_file_that_is_meant(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "names" / name[:60].encode()[:200].decode(errors="ignore")
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "a.db"
    engine = sqlalchemy.create_engine(sqlite_uri.uri_of(file))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE IF NOT EXISTS t (x INT)"))
    engine.dispose()
    with closing(sqlite3.connect(file)) as store:
        assert store.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]


def test_optuna_makes_the_file_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "[x]{y}* {} %20" / "optuna.db"
    file.parent.mkdir()
    storage = optuna.storages.RDBStorage(sqlite_uri.uri_of(file))
    optuna.create_study(study_name="s", storage=storage)
    assert file.stat().st_size > 0 and [file] == list(tmp_path.rglob("*.db"))


def test_uris_as_people_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sqlite_uri.path_of("sqlite:///mlflow.db") == tmp_path / "mlflow.db"
    assert sqlite_uri.path_of("sqlite:///~/m.db") == tmp_path / "m.db"
    assert sqlite_uri.path_of("sqlite:////data/a b%20c.db") == Path("/data/a b c.db")
    assert sqlite_uri.path_of("sqlite:////data/a.db?timeout=9") == Path("/data/a.db")
    assert sqlite_uri.absolute("sqlite:///a.db?timeout=9") == f"sqlite:///{tmp_path}/a.db?timeout=9"
    assert sqlite_uri.path_of("sqlite:///C:\\runs\\m.db") == tmp_path / "C:\\runs\\m.db"
    assert sqlite_uri.path_of("http://127.0.0.1:5000") is None


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("sqlite:///:memory:", "not a file that a later command could read"),
        ("sqlite://", "not the URI of a SQLite file"),
        ("sqlite:///", "not a file"),
        ("sqlite:mlflow.db", "not the URI of a SQLite file"),
        ("sqlite:///file:m.db?mode=memory&uri=true", "not a file"),
        ("sqlite:////data/what?/m.db", "write %3F for a ?"),
        ("sqlite:////tmp", "is a folder; name a file in it, sqlite:////tmp/mlflow.db"),
    ],
)
def test_uris_of_no_file_are_refused(uri: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        tracking_store.resolve_uri(uri)


@pytest.mark.parametrize("name", ["who? me", "a#b", "100%25 a%20b", "sp ace ü", "plus+&=;'"])
def test_mlflow_keeps_runs_and_files_in_the_folder_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    home = tmp_path / name
    home.mkdir()
    monkeypatch.chdir(home)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = tracking_store.resolve_uri(None)
    assert tracking_store.is_usable_file(uri)
    tracking_store.check(uri)
    assert [path.name for path in tmp_path.iterdir()] == [name], "no folder of another name"
    assert {"mlflow.db", "mlruns"} <= {path.name for path in home.iterdir()}
    (experiment,) = MlflowClient(uri).search_experiments(filter_string="name = 'study.doctor'")
    assert urllib.parse.unquote(experiment.artifact_location).endswith(
        f"{name}/mlruns/study.doctor"
    )
    import mlflow

    assert mlflow.get_tracking_uri().startswith("sqlite:////"), "as `mlflow ui` here finds it"
    assert sqlite_uri.path_of(mlflow.get_tracking_uri()) == home / "mlflow.db"
