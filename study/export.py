"""From a trial's best checkpoint to a folder that works without this project.

model.pt2             torch.export; takes images in [0, 1], normalises them itself
weights.safetensors   the network's weights, for `task.build_model`
meta.json             task, classes, preprocessing, settings, metrics, origin
README.md             a model card
figures/              validation and test
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from study import checkpoint, distributed
from study.batches import Batches
from study.data import DataSource, ImageSet
from study.errors import DamagedFile, InputError, TrialError
from study.evaluation import evaluate
from study.files import read_document, write_document
from study.model_folder import WHOLE, default_colors
from study.models import Normalized
from study.record import StudyRecord
from study.run_folder import read_arrays, save_figures, write_arrays
from study.tables import per_class_table
from study.task import Task, TrainConfig, build_config
from study.trial_record import TrialRecord

TOLERANCE = 1e-4  # largest allowed difference of a logit after reloading
NUM_COMPARED = 16  # validation images


def load_trained(
    task: Task, record: StudyRecord, trial: TrialRecord
) -> tuple[torch.nn.Module, TrainConfig, dict[str, Any]]:
    """Return the network of a trial's best epoch, its settings and the checkpoint.

    Raises:
        DamagedFile: The checkpoint is missing or damaged.
        TrialError: It is of another epoch.
    """
    folder = record.run_folder(trial.number)
    state = folder.weights(trial.metric, trial.mode)
    if len(state["history"]) != trial.epoch:
        raise TrialError(
            f"{folder.best_checkpoint} is of epoch {len(state['history'])}, not {trial.epoch}; if "
            "the trial still runs try again later, else repeat it: python -m study.train "
            f"{task.name} --like {folder.run_id}"
        )
    config = build_config(task.config_class, state["config"])
    network = task.build_model(config)
    network.load_state_dict(state["network"])
    return network.eval(), config, state


def score(
    task: Task, config: TrainConfig, network: torch.nn.Module, images: ImageSet
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Return metrics (without the split's name) and evidence of a network on an image set."""
    device = distributed.device()
    batches = Batches(images, device, task.normalization)
    metrics, meter, seen = evaluate(task, config, network.to(device), batches, images)
    return metrics, task.evidence(network, meter, seen)


def test_once(
    task: Task,
    source: DataSource,
    record: StudyRecord,
    trial: TrialRecord,
) -> dict[str, Any]:
    """Score a trial on the closed test split, and on validation at the same size.

    What was scored is kept in the study's `tests.json`, so the same weights are tested once.

    Returns:
        `metrics` by full name (`test/...`, `val/...`), `size` of the targets, `time`.
    """
    file = record.path / "tests.json"
    folder = record.run_folder(trial.number)
    try:
        tests: list[dict[str, Any]] = read_document(file)["tests"] if file.exists() else []
    except DamagedFile as error:
        raise InputError(
            f"{error} It says which weights were tested already: put it back from a backup, or "
            "delete it and test again."
        ) from None
    network, config, _ = load_trained(task, record, trial)
    digest = checkpoint.digest(folder.best_checkpoint)
    for test in tests:
        if test["checkpoint"] == digest and test["checksum"] == record.manifest["checksum"]:
            return test
    metrics: dict[str, float] = {}
    size = ""
    for split in ("val", "test"):
        images = task.load_full_size(source, config, split)
        scores, evidence = score(task, config, network, images)
        metrics |= {f"{split}/{name}": value for name, value in scores.items()}
        scored = images.targets if images.targets.ndim == 3 else images.images
        size = "{}x{} pixels".format(*scored.shape[-2:])
        if split == "test":
            write_arrays(folder.path / "test.npz", evidence)
    test = {
        "trial": trial.number,
        "checkpoint": digest,
        "checksum": record.manifest["checksum"],
        "size": size,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "metrics": metrics,
    }
    write_document(file, {"tests": [*tests, test]})
    return test


def export(
    task: Task,
    source: DataSource,
    record: StudyRecord,
    trial: TrialRecord,
    test: Mapping[str, Any],
    folder: Path,
) -> float:
    """Write the export folder, replacing an earlier export only when this one is complete.

    Args:
        task: The task.
        source: Gives the validation images on which the exported model is compared.
        record: The study.
        trial: The winner.
        test: From `test_once`.
        folder: Where to.

    Returns:
        The largest difference between a logit of the reloaded and of the trained model.

    Raises:
        TrialError: The reloaded model differs by more than `TOLERANCE`.
    """
    network, config, state = load_trained(task, record, trial)
    draft = folder.with_name(f".{folder.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    images = task.load_splits(source, config).val
    chosen = images.images[images.indices[:NUM_COMPARED]]
    inputs = torch.from_numpy(chosen).float() / 255
    model = Normalized(network, *task.normalization).eval()
    dynamic = {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(model, (inputs[:2],), dynamic_shapes=dynamic)
    torch.export.save(program, draft / "model.pt2")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, draft / "weights.safetensors", {"task": task.name})
    difference = _largest_difference(task, network, images, draft / "model.pt2", inputs)
    if not difference < TOLERANCE:
        raise TrialError(f"the exported model differs from the trained one by {difference:g}.")
    meta = {
        "task": task.name,
        "classes": list(task.classes),
        "colors": getattr(task, "colors", None) or default_colors(len(task.classes)),
        "preprocessing": {
            "input": ["batch", *inputs.shape[1:]],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": "RGB" if inputs.shape[1] == 3 else "grey",
            "resize": "average over the area of each new pixel",
            "normalization": "inside the model",
            "shows": getattr(task, "shows", WHOLE),
        },
        "output": "logits; softmax over dimension 1 gives probabilities",
        "params": record.params(trial),
        "metrics": dict(test["metrics"]),
        "evaluated_at": test["size"],
        "search_metrics": {"epoch": trial.epoch, **trial.metrics},
        "study": record.manifest["study"],
        "dataset": record.manifest["dataset"],
        "trial": trial.number,
        "run_id": record.run_folder(trial.number).run_id,
        "data": record.manifest["data"],
        "origin": state["facts"],
        "largest_difference": difference,
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))
    (draft / "README.md").write_text(model_card(task, meta))
    _draw(task, record, trial, test, draft / "figures")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return difference


def _largest_difference(
    task: Task, network: torch.nn.Module, images: ImageSet, path: Path, inputs: torch.Tensor
) -> float:
    """Compare the file, given images in [0, 1], with the network on batches as in training."""
    reloaded = torch.export.load(path).module()
    batches = Batches(images, torch.device("cpu"), task.normalization)
    normalised, _ = next(batches.evaluation(len(inputs)))
    with torch.inference_mode():
        expected = network(normalised)
        whole, single = reloaded(inputs), reloaded(inputs[:1])
        return float(max((whole - expected).abs().max(), (single - expected[:1]).abs().max()))


def _draw(
    task: Task, record: StudyRecord, trial: TrialRecord, test: Mapping[str, Any], target: Path
) -> None:
    folder = record.run_folder(trial.number)
    data = task.name if record.manifest["dataset"] == "real" else f"{task.name}, SAMPLE data"
    note = f"{data}, trial {trial.number}, test split, {test['size']}"
    try:
        evidence = read_arrays(folder.path / "test.npz")
        save_figures(task.figures(evidence, note), target / "test")
    except DamagedFile as error:  # the test is not repeated for its figures
        print(f"{error} There are no figures of the test split.", file=sys.stderr)
    (target / "validation").mkdir(parents=True)
    for figure in folder.figures():
        (target / "validation" / figure.name).write_bytes(figure.read_bytes())


def model_card(task: Task, meta: Mapping[str, Any]) -> str:
    """Return the README of an export."""
    shape = ", ".join(map(str, meta["preprocessing"]["input"][1:]))
    metric = task.metric.split("/", 1)[1]
    metrics = meta["metrics"]
    settings = "\n".join(f"| {name} | {value} |" for name, value in meta["params"].items())
    sample = (
        ""
        if meta["dataset"] == "real"
        else "\n> **Trained and tested on the drawn sample data. These numbers say nothing about "
        "the real data set.**\n"
    )
    return f"""# {task.title}
{sample}
Trial {meta["trial"]} of the study `{meta["study"]}`, data set: {meta["data"]["dataset"]}
(checksum `{meta["data"]["checksum"][:12]}`).

| | {metric} |
|---|---|
| test, evaluated once, {meta["evaluated_at"]} | **{metrics["test/" + metric]:.4f}** |
| the validation images on which this trial was chosen (optimistic), same size | \
{metrics["val/" + metric]:.4f} |

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

Classes in order: {", ".join(meta["classes"])}.
`weights.safetensors` holds the same weights for `study`'s own network. Nothing needs unpickling.

## Settings

| setting | value |
|---|---|
{settings}

One seed, one split: for a claim about this configuration train it again with other seeds.
"""
