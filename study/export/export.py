"""Exports a trial's best checkpoint as a folder that works without this project.

model.pt2             torch.export; takes images in [0, 1] and normalises them itself
weights.safetensors   the network's weights, for `task.build_model`
meta.json             task, classes, preprocessing, settings, metrics, origin
README.md             a model card
figures/              validation and test
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from study.datasets.source import DataSource, ImageSet
from study.errors import DamagedFile, TrialError
from study.export.meta import Meta, preprocessing
from study.export.model_card import model_card
from study.figures.run_figures import save_figures
from study.formatting import sample_mark
from study.inference.archive_check import UnsafeArchive, load_program
from study.inference.exported_model import default_colors
from study.objective import Goal
from study.records.run_folder import read_arrays
from study.selection.held_out_test import Examination
from study.task import Task
from study.training.batches import Batches
from study.training.models import Normalized

TOLERANCE = 1e-4  # largest allowed logit difference after reloading
NUM_COMPARED = 16  # validation images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """Facts about an exported model that are known before its test.

    Attributes:
        input_shape: Of one image, `(C, H, W)`.
        difference: Largest logit difference between the reloaded and the trained model.
    """

    input_shape: tuple[int, ...]
    difference: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draft:
    """An export that is being written.

    Attributes:
        ready: The winner.
        goal: The study's goal.
        confirmed: For a training of a confirmation: its configuration, mean and interval
            (`study.selection.confirmation.Confirmation.as_origin`); else None.
        folder: Folder to write to, empty at first.
    """

    ready: Examination
    goal: Goal
    confirmed: Mapping[str, Any] | None
    folder: Path

    def write_model(self, source: DataSource) -> Model:
        """Write the network, its weights and the validation figures; return facts on the model.

        Args:
            source: Source of the validation images on which the exported model is checked.

        Raises:
            TrialError: The network cannot be exported, or the reloaded model differs by more than
                `TOLERANCE` or would be refused.
        """
        task, network = self.ready.task, self.ready.network.cpu()
        images = task.load_splits(source, self.ready.config).val
        chosen = images.images[images.indices[:NUM_COMPARED]]
        inputs = torch.from_numpy(chosen).float() / 255
        model = Normalized(network, *task.normalization).eval()
        try:
            save_program(model, tuple(inputs.shape[1:]), self.folder / "model.pt2")
        except OSError:
            raise
        except Exception as error:  # whatever torch.export raises for a network it cannot trace
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise TrialError(f"the network cannot be exported ({reason}).") from error
        weights = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
        save_file(weights, self.folder / "weights.safetensors", {"task": task.name})
        difference = _largest_difference(task, network, images, self.folder / "model.pt2", inputs)
        if not difference < TOLERANCE:
            raise TrialError(f"the exported model differs from the trained one by {difference:g}.")
        validation = self.folder / "figures" / "validation"
        validation.mkdir(parents=True)
        for figure in self.ready.folder.figures():
            (validation / figure.name).write_bytes(figure.read_bytes())
        return Model(input_shape=tuple(inputs.shape[1:]), difference=difference)

    def rehearse(self, model: Model) -> None:
        """Write and delete everything that is written after the test, with validation results.

        So a figure that cannot be drawn, or a full disk, fails before the split is opened.

        Raises:
            TrialError: A figure cannot be drawn.
        """
        assert self.ready.validation is not None
        metrics = {
            f"{split}/{name}": value
            for split in ("val", "test")
            for name, value in self.ready.validation.metrics.items()
        }
        test = {"metrics": metrics, "size": "rehearsed", "openings": 0}
        rehearsal = dataclasses.replace(self, folder=self.folder / "rehearsal")
        rehearsal.folder.mkdir()
        rehearsal._write_texts(model, test)
        try:
            rehearsal._draw(test, self.ready.validation.figure_data)
        except OSError:
            raise
        except Exception as error:  # from the task's code, or matplotlib
            raise TrialError(
                f"the figures cannot be drawn ({type(error).__name__}: {error}), so the test was "
                "not run."
            ) from error
        shutil.rmtree(rehearsal.folder)

    def write_results(self, model: Model, test: Mapping[str, Any]) -> None:
        """Write the test's results: `meta.json`, the model card and the test figures.

        Args:
            model: From `write_model`.
            test: From `test_once`.
        """
        self._write_texts(model, test)
        try:
            self._draw(test, read_arrays(self.ready.folder.path / "test.npz"))
        except Exception as error:  # the test is not repeated for its figures
            shutil.rmtree(self.folder / "figures" / "test", ignore_errors=True)
            reason = error if isinstance(error, DamagedFile) else f"{type(error).__name__}: {error}"
            print(f"{reason} The export has no figures of the test split.", file=sys.stderr)

    def _write_texts(self, model: Model, test: Mapping[str, Any]) -> None:
        meta = self._meta(model, test)
        (self.folder / "meta.json").write_text(meta.as_json())
        card = model_card(self.ready.task, meta, self.goal.objectives[0].metric)
        (self.folder / "README.md").write_text(card)

    def _meta(self, model: Model, test: Mapping[str, Any]) -> Meta:
        task, record, trial = self.ready.task, self.ready.record, self.ready.trial
        facts = self.ready.state["facts"]
        return Meta(
            task=task.name,
            classes=list(task.classes),
            colors=task.colors or default_colors(len(task.classes)),
            preprocessing=preprocessing(model.input_shape, task.shows),
            params=record.config(trial),
            objective=str(self.goal),
            metrics=dict(test["metrics"]),
            intervals=dict(test.get("intervals", {})),
            evaluated_at=test["size"],
            openings=test["openings"],
            forced=test.get("forced", False),
            state=trial.state,
            epochs_trained=trial.epochs,
            search_metrics={"epoch": trial.best_epoch, **trial.metrics},
            study=record.manifest["study"],
            dataset=record.manifest["dataset"],
            trial=self.confirmed["trial"] if self.confirmed else trial.number,
            confirmed=dict(self.confirmed) if self.confirmed else None,
            run_id=record.run_folder(trial.number).run_id,
            data=record.manifest["data"],
            origin={name: fact for name, fact in facts.items() if name != "machine.host"},
            largest_difference=model.difference,
        )

    def _draw(self, test: Mapping[str, Any], figure_data: Mapping[str, np.ndarray]) -> None:
        """Draw the test figures."""
        task = self.ready.task
        mark = sample_mark(self.ready.record.manifest["dataset"])
        parts = [task.name, mark, f"trial {self.ready.trial.number}", "test split", test["size"]]
        note = ", ".join(filter(None, parts))
        save_figures(lambda: task.figures(figure_data, note), self.folder / "figures" / "test")


def save_program(model: torch.nn.Module, shape: tuple[int, ...], path: Path) -> None:
    """Export a model of images `(B, *shape)`, without any image or path of this machine.

    torch.export keeps its example inputs, including the whole storage that they are views of, and
    for each operator the source lines that called it, with their file paths.
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
        TrialError: `study.predict` would refuse to load it.
    """
    try:
        return load_program(path).module()
    except UnsafeArchive as error:
        raise TrialError(
            f"the exported model could not be loaded again: {error}; use only torch operators in "
            "this network."
        ) from None


def _largest_difference(
    task: Task, network: torch.nn.Module, images: ImageSet, path: Path, inputs: torch.Tensor
) -> float:
    """Compare the exported file on images in [0, 1] with the network on batches as in training."""
    reloaded = reload(path)
    batches = Batches(images, torch.device("cpu"), task.normalization)
    normalised, _ = next(batches.evaluation(len(inputs)))
    with torch.inference_mode():
        expected = network(normalised)
        whole, single = reloaded(inputs), reloaded(inputs[:1])
        return float(max((whole - expected).abs().max(), (single - expected[:1]).abs().max()))
