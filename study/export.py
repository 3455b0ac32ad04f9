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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from study.archive_check import UnsafeArchive, load_program
from study.batches import Batches
from study.closed_split import load_trained
from study.data import DataSource, ImageSet
from study.errors import DamagedFile, TrialError
from study.interval import shown
from study.model_folder import default_colors
from study.models import Normalized
from study.objective import Goal
from study.record import StudyRecord
from study.run_folder import read_arrays, save_figures
from study.tables import per_class_table
from study.task import Task
from study.trial_record import TrialRecord

TOLERANCE = 1e-4  # largest allowed difference of a logit after reloading
NUM_COMPARED = 16  # validation images


def export(
    task: Task,
    source: DataSource,
    record: StudyRecord,
    trial: TrialRecord,
    test: Mapping[str, Any],
    folder: Path,
    *,
    objective: Goal,
    confirmed: Mapping[str, Any] | None = None,
) -> float:
    """Write the export folder, replacing an earlier export only when this one is complete.

    Args:
        task: The task.
        source: Gives the validation images on which the exported model is compared.
        record: The study.
        trial: The winner.
        test: From `test_once`.
        folder: Where to.
        objective: What the study is after.
        confirmed: If `trial` is a training of a confirmation: of which configuration, with what
            mean and interval (`study.confirmed.Confirmation.as_origin`).

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
    save_program(model, tuple(inputs.shape[1:]), draft / "model.pt2")
    weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(weights, draft / "weights.safetensors", {"task": task.name})
    difference = _largest_difference(task, network, images, draft / "model.pt2", inputs)
    if not difference < TOLERANCE:
        raise TrialError(f"the exported model differs from the trained one by {difference:g}.")
    meta = {
        "task": task.name,
        "classes": list(task.classes),
        "colors": task.colors or default_colors(len(task.classes)),
        "preprocessing": {
            "input": ["batch", *inputs.shape[1:]],
            "dtype": "float32",
            "range": [0.0, 1.0],
            "channels": "RGB" if inputs.shape[1] == 3 else "grey",
            "resize": "average over the area of each new pixel",
            "normalization": "inside the model",
            "shows": task.shows,
        },
        "output": "logits; softmax over dimension 1 gives probabilities",
        "params": record.params(trial),
        "objective": str(objective),
        "metrics": dict(test["metrics"]),
        "intervals": dict(test.get("intervals", {})),
        "evaluated_at": test["size"],
        "search_metrics": {"epoch": trial.epoch, **trial.metrics},
        "study": record.manifest["study"],
        "dataset": record.manifest["dataset"],
        "trial": confirmed["trial"] if confirmed else trial.number,
        "confirmed": dict(confirmed) if confirmed else None,
        "run_id": record.run_folder(trial.number).run_id,
        "data": record.manifest["data"],
        "origin": {key: fact for key, fact in state["facts"].items() if key != "machine.host"},
        "largest_difference": difference,
    }
    (draft / "meta.json").write_text(json.dumps(meta, indent=1))
    card = model_card(task, meta, objective.objectives[0].metric)
    (draft / "README.md").write_text(card)
    _draw(task, record, trial, test, draft / "figures")
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    return difference


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
    task: Task, record: StudyRecord, trial: TrialRecord, test: Mapping[str, Any], target: Path
) -> None:
    folder = record.run_folder(trial.number)
    data = task.name if record.manifest["dataset"] == "real" else f"{task.name}, SAMPLE data"
    note = f"{data}, trial {trial.number}, test split, {test['size']}"
    try:
        evidence = read_arrays(folder.path / "test.npz")
        save_figures(lambda: task.figures(evidence, note), target / "test")
    except DamagedFile as error:  # the test is not repeated for its figures
        print(f"{error} There are no figures of the test split.", file=sys.stderr)
    (target / "validation").mkdir(parents=True)
    for figure in folder.figures():
        (target / "validation" / figure.name).write_bytes(figure.read_bytes())


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

| | {metric} [95 %, bootstrap] |
|---|---|
| test, evaluated once, {meta["evaluated_at"]} | **{scores["test"]}** |
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
