"""Exports as versions of a registered MLflow model; the best version is its `champion`.

`mlflow models serve -m models:/NAME@champion --env-manager local` answers requests with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.models.model import ModelInfo
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.tracking import MlflowClient
from mlflow.types import Schema, TensorSpec

from study.errors import InputError
from study.formatting import with_interval
from study.inference import archive_check
from study.inference.exported_model import load_module
from study.tracking import registered_model
from study.tracking.store import command_lock, connect

ALIAS = "champion"
# Tags that must match before the confirmed scores of two versions can be compared.
FOLDS = "confirmed.validated_on"
COMPARED = ("confirmed.metric", "data.checksum", "confirmed.evaluated_at", FOLDS)


def register(uri: str, name: str, export: Path, mode: str) -> dict[str, Any]:
    """Register an export; make it the champion if its confirmed score is better.

    Weights that are already registered keep their version. Two commands on one machine run one
    after the other; on two machines they can race, and the worse version can end up champion.

    Args:
        uri: Absolute tracking URI.
        name: Of the registered model.
        export: Folder of the export.
        mode: `max` if a larger score is better, `min` if a smaller one is.

    Returns:
        `model`, `version`, `champion` (its version, None if there is none) and `why`, a sentence.

    Raises:
        InputError: The store cannot register models, or does not have the run, or the model could
            run code.
    """
    client = connect(uri)
    meta = json.loads((export / "meta.json").read_text())
    digest = hashlib.sha256((export / "weights.safetensors").read_bytes()).hexdigest()
    try:
        with command_lock(f"{uri} {name}"):
            version = _known(client, name, digest) or _register(uri, client, name, export, meta)
            for key, value in {**_tags(meta), "study.weights": digest}.items():
                client.set_model_version_tag(name, version.version, key, value)
            version = client.get_model_version(name, version.version)
            why = _crown(client, name, version, mode)
            champion = _champion(client, name)
    except MlflowException as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {name!r} cannot be registered in {uri} ({reason}).") from None
    return {
        "model": name,
        "version": str(version.version),
        "champion": str(champion.version) if champion else None,
        "why": why,
    }


def check(uri: str, name: str) -> None:
    """Check that a store can register models under a name.

    Raises:
        InputError: It cannot.
    """
    client = connect(uri)
    try:
        client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return  # it will be the first version
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"model {name!r} cannot be registered in {uri} ({reason}).") from None


def _tags(meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the tags of a version."""
    tags = {
        "study.name": meta["study"],
        "study.task": meta["task"],
        "study.trial": meta["trial"],
        "data.dataset": meta["dataset"],
        "data.checksum": meta["data"]["checksum"],
    }
    if confirmed := meta["confirmed"]:
        tags |= {
            "confirmed.metric": confirmed["metric"],
            "confirmed.evaluated_at": meta["evaluated_at"],
            FOLDS: json.dumps(confirmed["validated_on"], sort_keys=True),
            "confirmed.mean": confirmed["val"]["mean"],
            "confirmed.seeds": confirmed["seeds"],
            "confirmed.test_mean": confirmed["test"]["mean"],
        }
        if interval := confirmed["val"]["interval"]:  # a single training has none
            tags |= {"confirmed.low": interval[0], "confirmed.high": interval[1]}
    return {key: str(value) for key, value in tags.items()}


def _known(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """Return the version with these weights."""
    found = client.search_model_versions(f"name = '{name}'")
    return next((v for v in found if v.tags.get("study.weights") == digest), None)


def _register(
    uri: str,
    client: MlflowClient,
    name: str,
    export: Path,
    meta: Mapping[str, Any],
) -> ModelVersion:
    """Log the export as an MLflow model of the run it comes from, and register it."""
    if meta["run_id"] is None:
        raise InputError(
            f"trial {meta['trial']} has no MLflow run yet for the model to belong to; resume the "
            "study while its tracking store is reachable."
        )
    run = client.get_run(meta["run_id"])
    with _current(uri, run.info.experiment_id):  # its artifact location gets the files
        logged = _log(name, export, meta)
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, {"study.task": meta["task"]})
        return client.create_model_version(
            name,
            logged.model_uri,
            run_id=meta["run_id"],
            description=(export / "README.md").read_text(),
            model_id=logged.model_id,
        )


def _log(name: str, export: Path, meta: Mapping[str, Any]) -> ModelInfo:
    """Log the export as a model of its run, in MLflow's current store."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    example = np.zeros((1, *meta["preprocessing"]["input"][1:]), np.float32)  # not a real image
    logits = load_module(export / "model.pt2")(torch.from_numpy(example))
    logged: ModelInfo = Model.log(
        artifact_path=None,
        name=name,
        flavor=mlflow.pyfunc,
        run_id=meta["run_id"],
        python_model=registered_model.__file__,
        code_paths=[archive_check.__file__],
        artifacts={
            "model": str(export / "model.pt2"),
            "card": str(export / "README.md"),
            "meta": str(export / "meta.json"),
        },
        signature=ModelSignature(inputs=_images(example), outputs=_images(logits)),
        input_example=example,
        pip_requirements=[
            f"torch=={torch.__version__.split('+')[0]}",
            f"numpy=={np.__version__}",
        ],
    )
    return logged


def _images(one: np.ndarray | torch.Tensor) -> Schema:
    """Return the schema of a batch of float32 arrays with the shape of this one, `(1, ...)`."""
    return Schema([TensorSpec(np.dtype(np.float32), (-1, *one.shape[1:]))])


@contextmanager
def _current(uri: str, experiment: str) -> Iterator[None]:
    """Temporarily set the store and experiment that MLflow's fluent functions use.

    MLflow puts them into the environment, where later commands in this process, and all its child
    processes, would find them.
    """
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID")
    before = {name: os.environ.get(name) for name in names}
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(experiment_id=experiment)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])  # type: ignore[arg-type]
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    alias = client.get_registered_model(name).aliases.get(ALIAS)
    return client.get_model_version(name, str(alias)) if alias else None


def _crown(client: MlflowClient, name: str, version: ModelVersion, mode: str) -> str:
    """Move the alias if the version is better than the champion; return what was done and why."""
    champion = _champion(client, name)
    here = f"version {version.version}"
    if "confirmed.mean" not in version.tags:
        stays = f"version {champion.version} stays champion" if champion else "there is no champion"
        return f"{here} is not confirmed (study.best --confirm SEEDS), so {stays}."
    new = float(version.tags["confirmed.mean"])
    score = _score(version)
    if champion is None:
        client.set_registered_model_alias(name, ALIAS, version.version)
        return f"{here} is the first champion, {score}."
    if champion.version == version.version:
        return f"{here} is already the champion, {score}."
    there = f"version {champion.version}"
    differs = [key for key in COMPARED if champion.tags.get(key) != version.tags.get(key)]
    if differs or "confirmed.mean" not in champion.tags:
        return (
            f"{there} stays champion: {here} cannot be compared with it "
            f"({', '.join(differs) or 'confirmed.mean'} differs"
            f"{'; confirm both with the same number of seeds' if differs == [FOLDS] else ''})."
        )
    old = float(champion.tags["confirmed.mean"])
    if (new > old) if mode == "max" else (new < old):
        client.set_registered_model_alias(name, ALIAS, version.version)
        return f"{here} is the new champion, {score}; it replaces {there}, {_score(champion)}."
    return f"{there} stays champion, {_score(champion)}; {here} is not better, {score}."


def _score(version: ModelVersion) -> str:
    tags = version.tags
    ends = [float(tags[key]) for key in ("confirmed.low", "confirmed.high") if key in tags]
    mean = with_interval(float(tags["confirmed.mean"]), ends)
    return f"confirmed {tags['confirmed.metric']} {mean} over {tags['confirmed.seeds']} trainings"
