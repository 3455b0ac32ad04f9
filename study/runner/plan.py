"""Plan of a study: the command's request, fully checked before Ray starts."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
from collections.abc import Sequence
from typing import Any

from study.cluster.resources import Node, Resources, allocate, this_machine
from study.config import (
    TrainConfig,
    Value,
    build_config,
    check_sync,
    config_fields,
    parse_assignments,
)
from study.datasets.source import DataSource, check_classes
from study.errors import InputError, StorageError
from study.objective import Goal
from study.records.manifest import (
    METRICS_VERSION,
    changed_metrics,
    find_study,
    read_manifest,
    refuse_other_study,
)
from study.records.run_options import RunOptions
from study.records.study_record import StudyRecord
from study.search.parse_objective import parse_goal
from study.search.space_file import load_space
from study.search.warm_start import warm_start
from study.search_space import SearchSpace, find_space
from study.storage.paths import AnyPath, ObjectPath, as_path
from study.task import Task, base_values, load_task, prepare

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
NAME_LENGTH = 200  # file names have at most 255 bytes, and MLflow and exports add to it
MAX_SEED = 2**62  # limit of SQLite, numpy and torch, less room for trial numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """A requested study, checked except for what needs Ray.

    Attributes:
        task: The task.
        goal: Objectives and constraints.
        name: Name of the study.
        source: The data.
        identity: Description and checksum of the data set.
        space: The search space.
        settings: Settings shared by all trials.
        epochs: Epochs of a trial that is not stopped early.
        resources: Resources per trial; None on a cluster until it is joined.
        options: Options of the command.
    """

    task: Task
    goal: Goal
    name: str
    source: DataSource
    identity: dict[str, Any]
    space: SearchSpace
    settings: dict[str, Value]
    epochs: int
    resources: Resources | None
    options: RunOptions

    @property
    def folder(self) -> AnyPath:
        """The study's folder."""
        return as_path(self.options.studies_dir) / self.name

    @property
    def title(self) -> str:
        """Name in messages."""
        return f"study {self.name}"

    @property
    def begun_before(self) -> bool:
        """Whether the study was started before, so that MLflow may know it."""
        return self.folder.exists()

    @property
    def asha(self) -> tuple[int, float] | None:
        """Grace period in epochs and reduction factor of ASHA; None if no trial is stopped."""
        return self.options.asha(self.epochs)

    def manifest(self) -> dict[str, Any]:
        """Return the content of `study.json` for a new study."""
        manifest = {
            "study": self.name,
            "task": self.task.name,
            "dataset": self.source.dataset,
            "checksum": self.identity["checksum"],
            **self.goal.describe(),
            "epochs": self.epochs,
            "space": self.space.describe(),
            "settings": self.settings,
            "seed": self.options.seed,
            "sampler": self.options.sampler,
            "data": self.identity,
            "metrics_version": METRICS_VERSION,
        }
        name = self.options.warm_start_from
        begun = any((self.folder / file).exists() for file in ("study.json", "optuna.db"))
        if name and begun:  # the study's manifest has what was taken over
            manifest["warm_start"] = {"from": name}
        elif name:
            earlier = StudyRecord.read(find_study(as_path(self.options.studies_dir), name))
            manifest["warm_start"] = warm_start(manifest, self.space, earlier)
        return manifest

    def begun(self) -> StudyRecord | None:
        """Return the study's record; None if the study has not been started.

        Raises:
            InputError: The folder holds another study.
        """
        if not (self.folder / "study.json").exists():
            return None
        record = StudyRecord.read(self.folder)
        refuse_other_study(self.folder, record.manifest, json.loads(json.dumps(self.manifest())))
        return record

    def refuse_changed_metrics(self) -> None:
        """Refuse new trials if the objective of an old study is now computed differently.

        Raises:
            InputError: It is, and the study has trials left to run.
        """
        if not (self.folder / "study.json").exists():
            return
        known = read_manifest(self.folder)
        changed = changed_metrics(known, self.goal.metrics)
        if changed and StudyRecord.read(self.folder).num_ended() < self.options.num_samples:
            way = (
                f"Choose another --name for a new study (--warm-start-from {self.name} tries the "
                "best trials of this one first)."
            )
            if "confirms" in known:
                way = f"Move {self.folder} away and run the command again to retrain everything."
            raise InputError(
                f"{self.title} was started when {changed[0]} was each trial's own training loss; "
                f"now it is plain cross-entropy, and the two cannot be compared. {way}"
            )

    def with_resources(self, nodes: Sequence[Node]) -> StudyPlan:
        """Return the plan with the resources of these machines."""
        resources = allocate(nodes, self.options)
        sync = bool(self.settings["sync_batch_norm"])
        check_sync(sync, resources.workers, resources.gpus_per_worker > 0)
        return dataclasses.replace(self, resources=resources)


def make_plan(options: RunOptions) -> StudyPlan:
    """Build the plan of a command, checking everything that needs no Ray.

    Raises:
        InputError: The first mistake found.
    """
    task = load_task(options.task)
    name = options.name or task.name
    _check_name(name)
    options.check()
    _check_studies_dir(options.studies_dir)
    _check_numbers(options)
    _check_warm_start(options, name)
    if options.system_metrics and importlib.util.find_spec("psutil") is None:
        raise InputError("--system-metrics needs psutil; run: pip install psutil")
    space, config = _space(task, options)
    searched = {parameter.name for parameter in space.parameters} | {"seed"}
    settings = {
        field: getattr(config, field)
        for field in config_fields(task.config_class)
        if field not in searched
    }
    source = DataSource.find(options.dataset, options.data_dir)
    study = StudyPlan(
        task=task,
        goal=parse_goal(task, options.objective, options.require),
        name=name,
        source=source,
        identity={},
        space=space,
        settings=settings,
        epochs=config.epochs,
        resources=None,
        options=options,
    )
    if options.address is None:
        study = study.with_resources([this_machine()])
    study = dataclasses.replace(study, identity=prepare(task, source))
    check_classes(task.name, task.classes, task.load_splits(source, config))
    return study


def _check_name(name: str) -> None:
    """Refuse a name that is not a valid folder name on every system."""
    if not NAME.fullmatch(name) or len(name) > NAME_LENGTH:
        raise InputError(
            f"--name {name[:40]!r}: use at most {NAME_LENGTH} letters, digits, dots, dashes "
            "and underscores."
        )


def _check_numbers(options: RunOptions) -> None:
    """Refuse numbers outside their valid range."""
    if not 0 <= options.seed <= MAX_SEED:
        raise InputError(f"--seed must be 0 to 2**62, but got {str(options.seed)[:40]}.")
    if options.grace_period is not None and options.grace_period < 1:
        raise InputError(f"--grace-period must be at least 1, but got {options.grace_period}.")
    if not options.reduction_factor > 1:
        raise InputError(
            f"--reduction-factor must be above 1, but got {options.reduction_factor:g}."
        )
    if options.max_failures < 0:
        raise InputError(f"--max-failures must be 0 or more, but got {options.max_failures}.")
    if options.keep_weights < 1:
        raise InputError(f"--keep-weights must be at least 1, but got {options.keep_weights}.")


def _check_warm_start(options: RunOptions, name: str) -> None:
    """Refuse a warm start that would have no effect."""
    if options.warm_start_from == name:
        raise InputError(f"--warm-start-from {name}: this is the study itself; name another one.")
    if options.warm_start_from and options.sampler == "random":
        raise InputError(
            "--warm-start-from has no effect with --sampler random; remove one of them."
        )


def _space(task: Task, options: RunOptions) -> tuple[SearchSpace, TrainConfig]:
    """Return the search space and the configuration of the baseline."""
    assigned = parse_assignments(options.set, task.config_class)
    if "seed" in assigned:
        raise InputError("--set seed: trial i uses the study's seed plus i; use --seed instead.")
    if options.epochs is not None:
        if "epochs" in assigned:
            raise InputError("--epochs and --set epochs exclude each other; remove one.")
        assigned["epochs"] = options.epochs
    space = load_space(
        find_space(options.search_space or task.name),
        task.config_class,
        base_values(task, options.dataset),
        assigned,
    )
    config = build_config(task.config_class, {**space.fixed, **space.baseline})
    for values in space.corners():  # finds incompatible settings before Ray starts
        build_config(task.config_class, values)
    _check_batches(space, config.batch_size, options.workers_per_trial)
    return space, config


def _check_studies_dir(text: str) -> None:
    """Check that the studies' object store, if it is one, answers."""
    place = as_path(text)
    if isinstance(place, ObjectPath):
        try:
            place.exists()
        except StorageError as error:
            raise InputError(f"{error} Or choose another with --studies-dir.") from None


def _check_batches(space: SearchSpace, batch_size: int, workers: int) -> None:
    """Refuse batches that cannot be divided among the workers of a trial."""
    sizes: list[Value] = [batch_size]
    for parameter in space.parameters:
        if parameter.name == "batch_size":
            sizes = list(parameter.choices)
            if parameter.kind == "int":
                assert parameter.low is not None
                sizes = [parameter.low, parameter.low + (parameter.step or 1)]
    for size in sizes:
        if int(size) % workers:
            raise InputError(
                f"batch_size={size} cannot be divided among {workers} workers; change batch_size "
                "(in a search space: low and step) or --workers-per-trial."
            )
