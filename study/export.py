"""From a trial's best checkpoint to the files of a folder that works without this project.

model.pt2             torch.export; takes images in [0, 1], normalises them itself
weights.safetensors   the network's weights, for `task.build_model`
meta.json             task, classes, preprocessing, settings, metrics, origin
README.md             a model card
figures/              validation and test
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from study.archive_check import UnsafeArchive, load_program
from study.batches import Batches
from study.closed_split import Examination
from study.datasets.source import DataSource, ImageSet
from study.errors import DamagedFile, TrialError
from study.interval import shown
from study.model_folder import default_colors
from study.models import Normalized
from study.objective import Goal
from study.run_figures import save_figures
from study.run_folder import read_arrays
from study.tables import per_class_table
from study.task import Task

TOLERANCE = 1e-4  # largest allowed difference of a logit after reloading
NUM_COMPARED = 16  # validation images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """An exported model, as far as it is known before its test.

    Attributes:
        input_shape: Of one image, `(C, H, W)`.
        difference: The largest one between a logit of the reloaded and of the trained model.
    """

    input_shape: tuple[int, ...]
    difference: float


def write_model(ready: Examination, source: DataSource, draft: Path) -> Model:
    """Write network, weights and figures of validation to a draft; return what is known of them.

    Args:
        ready: The winner.
        source: Gives the validation images on which the exported model is compared.
        draft: An empty folder.

    Raises:
        TrialError: The network cannot be exported, or the reloaded model differs by more than
            `TOLERANCE` or would be refused.
    """
    task, network = ready.task, ready.network.cpu()
    images = task.load_splits(source, ready.config).val
    chosen = images.images[images.indices[:NUM_COMPARED]]
    inputs = torch.from_numpy(chosen).float() / 255
    model = Normalized(network, *task.normalization).eval()
    try:
        save_program(model, tuple(inputs.shape[1:]), draft / "model.pt2")
    except OSError:
        raise
    except Exception as error:  # whatever torch.export makes of a network that it cannot follow
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
        raise TrialError(f"the network cannot be exported ({reason}).") from error
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, draft / "weights.safetensors", {"task": task.name})
    difference = _largest_difference(task, network, images, draft / "model.pt2", inputs)
    if not difference < TOLERANCE:
        raise TrialError(f"the exported model differs from the trained one by {difference:g}.")
    validation = draft / "figures" / "validation"
    validation.mkdir(parents=True)
    for figure in ready.folder.figures():
        (validation / figure.name).write_bytes(figure.read_bytes())
    return Model(input_shape=tuple(inputs.shape[1:]), difference=difference)


def rehearse(
    ready: Examination, model: Model, draft: Path, goal: Goal, confirmed: Mapping[str, Any] | None
) -> None:
    """Write once, and delete, what is written after the test: validation in the test's place.

    What fails here, a figure or a disk that is full, fails while the split is closed.

    Raises:
        TrialError: A figure cannot be drawn.
    """
    assert ready.validation is not None
    metrics = {
        f"{split}/{name}": value
        for split in ("val", "test")
        for name, value in ready.validation.metrics.items()
    }
    test = {"metrics": metrics, "size": "rehearsed", "openings": 0}
    place = draft / "rehearsal"
    place.mkdir()
    _write_texts(ready, model, test, place, goal, confirmed)
    try:
        _draw(ready, test, ready.validation.evidence, place)
    except OSError:
        raise
    except Exception as error:  # a task's own code, and matplotlib's
        raise TrialError(
            f"the figures cannot be drawn ({type(error).__name__}: {error}), so nothing is tested."
        ) from error
    shutil.rmtree(place)


def write_results(
    ready: Examination,
    model: Model,
    test: Mapping[str, Any],
    draft: Path,
    goal: Goal,
    confirmed: Mapping[str, Any] | None,
) -> None:
    """Write what is known after the test: `meta.json`, the model card and figures of the test.

    Args:
        ready: The winner.
        model: From `write_model`.
        test: From `test_once`.
        draft: Where the model is.
        goal: What the study is after.
        confirmed: If it is a training of a confirmation: of which configuration, with what mean
            and interval (`study.confirmed.Confirmation.as_origin`).
    """
    _write_texts(ready, model, test, draft, goal, confirmed)
    try:
        _draw(ready, test, read_arrays(ready.folder.path / "test.npz"), draft)
    except Exception as error:  # the test is not repeated for its figures
        shutil.rmtree(draft / "figures" / "test", ignore_errors=True)
        reason = error if isinstance(error, DamagedFile) else f"{type(error).__name__}: {error}"
        print(f"{reason} There are no figures of the test split.", file=sys.stderr)


def _write_texts(
    ready: Examination,
    model: Model,
    test: Mapping[str, Any],
    draft: Path,
    goal: Goal,
    confirmed: Mapping[str, Any] | None,
) -> None:
    task, record, trial = ready.task, ready.record, ready.trial
    meta = {
        "task": task.name,
        "classes": list(task.classes),
        "colors": task.colors or default_colors(len(task.classes)),
        "preprocessing": {
            "input": ["batch", *model.input_shape],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": "RGB" if model.input_shape[0] == 3 else "grey",
            "resize": "average over the area of each new pixel",
            "normalization": "inside the model",
            "shows": task.shows,
        },
        "output": "logits; softmax over dimension 1 gives probabilities",
        "params": record.params(trial),
        "objective": str(goal),
        "metrics": dict(test["metrics"]),
        "intervals": dict(test.get("intervals", {})),
        "evaluated_at": test["size"],
        "openings": test["openings"],
        "forced": test.get("forced", False),
        "state": trial.state,
        "epochs_trained": trial.epochs,
        "search_metrics": {"epoch": trial.best_epoch, **trial.metrics},
        "study": record.manifest["study"],
        "dataset": record.manifest["dataset"],
        "trial": confirmed["trial"] if confirmed else trial.number,
        "confirmed": dict(confirmed) if confirmed else None,
        "run_id": record.run_folder(trial.number).run_id,
        "data": record.manifest["data"],
        "origin": {k: fact for k, fact in ready.state["facts"].items() if k != "machine.host"},
        "largest_difference": model.difference,
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))
    card = model_card(task, meta, goal.objectives[0].metric)
    (draft / "README.md").write_text(card)


def save_program(model: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Export a model of images `(B, *shape)`, without an image and without this machine's paths.

    torch.export keeps its example inputs, with the whole storage of what they are views of, and at
    each operator the lines of source code that called it, with the files' places.
    """
    dynamic = {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (torch.zeros(2, *shape),), dynamic_shapes=dynamic)
    program.example_inputs = None
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for name in ("stack_trace", "from_node"):
                node.meta.pop(name, None)
    torch.export.save(program, path)


def reload(path: Path) -> Any:
    """Return the module of a program that was just saved.

    Raises:
        TrialError: Others would refuse to load it.
    """
    try:
        return load_program(path).module()
    except UnsafeArchive as error:
        raise TrialError(
            f"the exported model would not be loaded again: {error}; write this network with "
            "operators of torch alone."
        ) from None


def _largest_difference(
    task: Task, network: torch.nn.Module, images: ImageSet, path: Path, inputs: torch.Tensor
) -> float:
    """Compare the file, given images in [0, 1], with the network on batches as in training."""
    reloaded = reload(path)
    batches = Batches(images, torch.device("cpu"), task.normalization)
    normalised, _ = next(batches.evaluation(len(inputs)))
    with torch.inference_mode():
        expected = network(normalised)
        whole, single = reloaded(inputs), reloaded(inputs[:1])
        return float(max((whole - expected).abs().max(), (single - expected[:1]).abs().max()))


def _draw(
    ready: Examination, test: Mapping[str, Any], evidence: Mapping[str, np.ndarray], draft: Path
) -> None:
    """Draw the figures of the test."""
    task = ready.task
    data = task.name if ready.record.manifest["dataset"] == "real" else f"{task.name}, SAMPLE data"
    note = f"{data}, trial {ready.trial.number}, test split, {test['size']}"
    save_figures(lambda: task.figures(evidence, note), draft / "figures" / "test")


def model_card(task: Task, meta: Mapping[str, Any], chosen_by: str) -> str:
    """Return the README of an export; `chosen_by` is the metric, e.g. `val/mean_ap`."""
    shape = ", ".join(map(str, meta["preprocessing"]["input"][1:]))
    metric = chosen_by.split("/", 1)[1]
    metrics, intervals = meta["metrics"], meta["intervals"]
    scores = {
        split: shown(metrics[f"{split}/{metric}"], intervals.get(f"{split}/{metric}"))
        for split in ("test", "val")
    }
    confirmed = meta["confirmed"]
    val = "the validation images on which this trial was chosen (optimistic), same size"
    means = ""
    claim = (
        "One seed, one split: for a claim about this configuration train it again with other "
        "seeds (`study.best --confirm`)."
    )
    if confirmed:
        val = f"validation on the fold of this training, one of {confirmed['seeds']}, same size"
        rows = {
            f"{name}, mean of {confirmed['seeds']} trainings [95 %]": shown(
                confirmed[split]["mean"], confirmed[split]["interval"]
            )
            for name, split in (("validation", "val"), ("test", "test"))
        }
        means = "".join(f"| {name} | {text} |\n" for name, text in rows.items())
        won = "won by its mean validation over" if confirmed["won"] else "was asked for, not won by"
        claim = (
            f"The configuration was found by a search, where it scored {confirmed['search']:.4f} "
            f"(optimistic), and {won} trainings with other seeds, on folds that did not choose it. "
            "The means above are what to expect of it; the test chose nothing."
        )
    settings = "\n".join(f"| {name} | {value} |" for name, value in meta["params"].items())
    opened = "evaluated once" if meta["openings"] < 2 else f"opened {meta['openings']} times"
    forced = (
        "\n> **The trial had not ended when it was tested, as asked by `--force`: later epochs may "
        "have been tested, too.**\n"
        if meta["forced"]
        else ""
    )
    sample = (
        ""
        if meta["dataset"] == "real"
        else "\n> **Trained and tested on the drawn sample data. These numbers say nothing about "
        "the real data set.**\n"
    )
    return f"""# {task.title}
{sample}{forced}
Trial {meta["trial"]} of the study `{meta["study"]}`, data set: {meta["data"]["dataset"]}
(checksum `{meta["data"]["checksum"][:12]}`).

| | {metric} [95 %, bootstrap] |
|---|---|
| test, {opened}, {meta["evaluated_at"]} | **{scores["test"]}** |
| {val} | {scores["val"]} |
{means}
Test, per class:

```
{per_class_table(task, metrics, "test")}
```

## Use

```python
import torch

model = torch.export.load("model.pt2").module()
images = torch.rand(1, {shape})  # float32 in [0, 1]; the model normalises
probabilities = model(images).softmax(dim=1)
```

On photographs of any size, with `study` installed:
`python -m study.predict THIS_FOLDER IMAGE... --out DIR`

`study.predict` refuses a `model.pt2` that could run code; `torch.export.load` does not, so give it
only files that you trust. Classes in order: {", ".join(meta["classes"])}.
`weights.safetensors` holds the same weights for `study`'s own network. No image of the data is in
either; pictures in `figures/` may show some, so take them out if the data must not be shown.

## Settings

| setting | value |
|---|---|
{settings}

{claim}
"""
