"""The options of a command that starts or continues a study: the flags of `study.tune`, as values.

A field has the name of its flag: `num_samples` is `--num-samples`. Each start keeps its options in
`study.json`, so the text of a command need not be parsed again. They are not part of a study's
identity; only the manifest is.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping
from typing import Any, Self

from study.errors import InputError
from study.system.redaction import masked

# Default grace period, as a fraction of the epochs. In replays of recorded learning curves
# (tests/benchmarks/searchers.py), a grace period of one epoch in 20 stops the later winner in one
# to two studies out of three, and the search favours fast starters.
GRACE = 0.2
MOST_TRIALS = 10**15


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResourceOptions:
    """The number of trials and their resources.

    Attributes:
        num_samples: Ended trials at which the study is complete; infinity for no limit.
        max_concurrent: Trials at a time; None for as many as fit.
        workers_per_trial: Processes that train one trial together.
        cpus_per_worker: Cores per worker; None to divide them evenly.
        gpus_per_worker: GPUs per worker; None for one if there are enough.
        address: Address of a running Ray cluster, or `auto`; None for this machine.
        wait: Number of cluster nodes to wait for; None to use those that are up.
    """

    num_samples: float = 10
    max_concurrent: int | None = None
    workers_per_trial: int = 1
    cpus_per_worker: int | None = None
    gpus_per_worker: float | None = None
    address: str | None = None
    wait: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Take the options from parsed flags, or from `describe`; other entries are ignored.

        An option missing from an old record gets its default.
        """
        names = {field.name for field in dataclasses.fields(cls)} & values.keys()
        given = {name: _plain(values[name]) for name in names}
        if given.get("num_samples", 1) is None:
            given["num_samples"] = math.inf
        return cls(**given)

    def check(self) -> None:
        """Check everything that does not depend on the machine.

        Raises:
            InputError: An option is invalid.
        """
        for flag in ("num_samples", "max_concurrent", "workers_per_trial", "cpus_per_worker"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise InputError(f"--{flag.replace('_', '-')} must be at least 1, but got {value}.")
        if MOST_TRIALS < self.num_samples < math.inf:
            raise InputError(
                f"--num-samples {self.num_samples:,} is too many; use inf for no limit."
            )
        gpus = self.gpus_per_worker or 0.0
        if not 0 <= gpus < float("inf"):
            raise InputError(f"--gpus-per-worker must be 0 or more, but got {gpus:g}.")
        if self.workers_per_trial > 1 and gpus % 1:
            raise InputError(
                f"--gpus-per-worker {gpus:g}: several workers cannot share a GPU; use a whole "
                "number, or --workers-per-trial 1."
            )
        if gpus > 1 and gpus % 1:
            raise InputError(f"--gpus-per-worker {gpus:g}: above 1 it must be a whole number.")
        if self.wait is not None and self.wait < 1:
            raise InputError(f"--wait must be at least 1 node, but got {self.wait}.")
        if self.wait is not None and self.address is None:
            raise InputError("--wait counts the nodes of a cluster; add its --address.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunOptions(ResourceOptions):
    """The options of a command that starts or continues a study, as typed.

    Attributes:
        task: Name or file of the task.
        name: Study name; None for the task's name.
        dataset: `real` or `sample`.
        data_dir: Folder of data sets; None for the default.
        objective: Metric, or two with a comma; None for the task's.
        require: Constraints, such as `ap/window>=0.8`.
        search_space: File or name; None for the task's.
        epochs: Epochs of a full trial; None for the task's.
        set: Settings shared by all trials, as `FIELD=VALUE`.
        scheduler: `asha` or `none`.
        sampler: `tpe` or `random`.
        grace_period: Epochs before a trial may be stopped; None for a fraction of all epochs.
        reduction_factor: One in this many trials continues at each rung.
        time_budget: Seconds after which the study stops; None for no limit.
        trial_timeout: Seconds without an epoch after which a trial counts as hung.
        max_failures: Retries of the same epoch.
        keep_weights: Number of best ended trials whose weights are kept.
        warm_start_from: Name of an earlier study whose results the search starts from.
        seed: Seed of the search.
        studies_dir: Folder of studies.
        tracking_uri: MLflow store; None for the default.
        system_metrics: Whether to log metrics of this machine.
    """

    task: str
    name: str | None = None
    dataset: str = "real"
    data_dir: str | None = None
    objective: str | None = None
    require: tuple[str, ...] = ()
    search_space: str | None = None
    epochs: int | None = None
    set: tuple[str, ...] = ()
    scheduler: str = "asha"
    sampler: str = "tpe"
    grace_period: int | None = None
    reduction_factor: float = 3.0
    time_budget: float | None = None
    trial_timeout: float = 3600.0
    max_failures: int = 2
    keep_weights: int = 5
    warm_start_from: str | None = None
    seed: int = 0
    studies_dir: str = "studies"
    tracking_uri: str | None = None
    system_metrics: bool = False

    @staticmethod
    def of_last_start(manifest: Mapping[str, Any]) -> RunOptions | None:
        """Return the options of a study's last command; None if unknown."""
        starts = manifest.get("starts", [])
        known = starts[-1].get("options") if starts else None
        return RunOptions.of(known) if known is not None else None

    def describe(self) -> dict[str, Any]:
        """Return the options as a JSON object for `study.json`, without passwords."""
        values = {name: _without_secrets(value) for name, value in vars(self).items()}
        return values | ({"num_samples": None} if math.isinf(self.num_samples) else {})

    def asha(self, epochs: int) -> tuple[int, float] | None:
        """Return ASHA's grace period and reduction factor; None if no trial is stopped early."""
        if self.scheduler == "none":
            return None
        grace = self.grace_period
        return (math.ceil(GRACE * epochs) if grace is None else grace), self.reduction_factor

    def command(self) -> str:
        """Return the command line for these options, defaults left out."""
        words = ["python", "-m", "study.tune", self.task]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "task" or value == field.default:
                continue
            flag = "--" + field.name.replace("_", "-")
            if isinstance(value, bool):
                words.append(flag)
            elif isinstance(value, tuple):
                words += [word for each in value for word in (flag, each)]
            else:
                unit = "s" if field.name in ("time_budget", "trial_timeout") else ""
                words += [flag, f"{_shortest(value)}{unit}"]
        return shlex.join(map(masked, words))


def _plain(value: Any) -> Any:
    """Return a value as stored in an option: a list from flags or JSON becomes a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _without_secrets(value: Any) -> Any:
    if isinstance(value, tuple):
        return [masked(each) for each in value]
    return masked(value) if isinstance(value, str) else value


def _shortest(value: Any) -> str:
    """Return a value as typed: whole seconds without a decimal point."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def say_trials(number: float) -> str:
    """Return a number of trials in words, infinity as unlimited."""
    return "an unlimited number of trials" if math.isinf(number) else f"{number} trials"
