"""The content of an export's `meta.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from study.task import Value
from study.training.intervals import Interval

OUTPUT = "logits; softmax over dimension 1 gives probabilities"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Meta:
    """An exported model and its origin; each attribute is a key, in this order.

    Attributes:
        task: Name of the task.
        classes: Their names, in the order of the model's output.
        colors: Red, green and blue of each class, 0 to 255.
        preprocessing: How an image becomes an input of the model.
        output: The model's output.
        params: Hyperparameters and settings of the training.
        objective: The study's objective.
        metrics: Scores by full name (`test/...`, `val/...`) at `evaluated_at`.
        intervals: 95 % intervals of some of these.
        evaluated_at: The data's own size, at which the scores were measured.
        openings: How often the test split was opened for these weights.
        forced: Whether the trial was tested before it ended.
        state: Of the trial: finished, stopped, running.
        epochs_trained: Number of epochs trained.
        search_metrics: The best epoch, and its metrics during training.
        study: Name of the study.
        dataset: `real` or `sample`.
        trial: Number of the trial; for a confirmed configuration, its number in the search.
        confirmed: Result of its confirmation (`Confirmation.as_origin`); None if not confirmed.
        run_id: Of the MLflow run; None if it has none.
        data: Identity of the data set.
        origin: Versions of the code and its packages, and the machine.
        largest_difference: Largest logit difference between the reloaded and the trained model.
    """

    task: str
    classes: Sequence[str]
    colors: Sequence[tuple[int, int, int]]
    preprocessing: Mapping[str, Any]
    output: str = OUTPUT
    params: Mapping[str, Value]
    objective: str
    metrics: Mapping[str, float]
    intervals: Mapping[str, Interval]
    evaluated_at: str
    openings: int
    forced: bool
    state: str
    epochs_trained: int
    search_metrics: Mapping[str, float | None]
    study: str
    dataset: str
    trial: int
    confirmed: Mapping[str, Any] | None
    run_id: str | None
    data: Mapping[str, Any]
    origin: Mapping[str, Any]
    largest_difference: float

    def as_json(self) -> str:
        """Return the text of `meta.json`."""
        return json.dumps(vars(self), indent=1)


def preprocessing(input_shape: Sequence[int], shows: str) -> dict[str, Any]:
    """Return how an image becomes an input.

    Args:
        input_shape: Of one image, `(C, H, W)`.
        shows: What an image shows (`Task.shows`).
    """
    return {
        "input": ["batch", *input_shape],
        "dtype": "float32",
        "range": [0.0, 1.0],
        "channels": "RGB" if input_shape[0] == 3 else "grey",
        "resize": "average over the area of each new pixel",
        "normalization": "inside the model",
        "shows": shows,
    }
