"""The model card, word for word: it is what stays of a study beside its model."""

from __future__ import annotations

import dataclasses
import json

from study.export.meta import Meta, preprocessing
from study.export.model_card import model_card
from study.task import class_key
from study.tasks.fashion import TASK

SCORES = {f"accuracy/{class_key(name)}": 0.8 for name in TASK.classes} | {"accuracy": 0.75}
META = Meta(
    task="fashion",
    classes=TASK.classes,
    colors=[(0, 0, 0)] * 10,
    preprocessing=preprocessing((1, 28, 28), TASK.shows),
    params={"model": "two_conv", "dropout": 0.5, "batch_norm": True},
    objective="val/accuracy (max)",
    metrics={
        f"{split}/{name}": value for split in ("val", "test") for name, value in SCORES.items()
    },
    intervals={"test/accuracy": (0.7, 0.8)},
    evaluated_at="28x28 pixels",
    openings=1,
    forced=False,
    state="finished",
    epochs_trained=2,
    search_metrics={"epoch": 2, "val/accuracy": 0.75},
    study="garments",
    dataset="real",
    trial=4,
    confirmed=None,
    run_id="0" * 32,
    data={"dataset": "Fashion-MNIST", "checksum": "0123456789abcdef"},
    origin={},
    largest_difference=1e-6,
)
CARD = """# Fashion-MNIST classification

Trial 4 of the study `garments`, data set: Fashion-MNIST
(checksum `0123456789ab`).

| | accuracy [95 %, bootstrap] |
|---|---|
| test, evaluated once, 28x28 pixels | **0.7500 [0.7000, 0.8000]** |
| validation, on the images that selected this trial (optimistic), same size | 0.7500 |

Test, per class:

```
"""
SETTINGS = """
## Settings

| setting | value |
|---|---|
| model | two_conv |
| dropout | 0.5 |
| batch_norm | True |

One seed, one split: before making a claim about this configuration, train it again with other \
seeds (`study.best --confirm`).
"""


def test_it_begins_with_what_the_model_is_worth_and_ends_with_what_it_is() -> None:
    card = model_card(TASK, META, "val/accuracy")
    assert card.startswith(CARD), card[: len(CARD)]
    assert card.endswith(SETTINGS)
    assert "images = torch.rand(1, 1, 28, 28)  #" in card and "Classes in order: T-shirt" in card


def test_a_confirmation_a_forced_test_and_drawn_data_are_told() -> None:
    scores = {"mean": 0.7, "interval": (0.6, 0.8)}
    confirmed = {"seeds": 3, "won": True, "search": 0.9, "val": scores, "test": scores}
    meta = dataclasses.replace(META, confirmed=confirmed, forced=True, openings=2, dataset="sample")
    card = model_card(TASK, meta, "val/accuracy")
    assert card.split("\n\n")[1].startswith("> **Trained and tested on sample data drawn by")
    assert card.split("\n\n")[2].startswith("> **The trial was tested before it ended")
    assert "| test, opened 2 times, 28x28 pixels |" in card
    rows = (
        "| validation on this training's fold (one of 3 trainings), same size | 0.7500 |\n"
        "| validation, mean of 3 trainings [95 %] | 0.7000 [0.6000, 0.8000] |\n"
        "| test, mean of 3 trainings [95 %] | 0.7000 [0.6000, 0.8000] |\n\nTest, per class:"
    )
    assert rows in card
    assert "it scored 0.9000 (optimistic), and selected by its mean validation score over" in card
    lost = dataclasses.replace(meta, confirmed={**confirmed, "won": False})
    assert "chosen by hand, not selected by trainings" in model_card(TASK, lost, "val/accuracy")


def test_a_name_is_not_a_template() -> None:
    meta = dataclasses.replace(META, study="<a> {{ title }}")
    assert "of the study `<a> {{ title }}`" in model_card(TASK, meta, "val/accuracy")


def test_meta_json_has_its_keys_in_order() -> None:
    keys = list(json.loads(META.as_json()))
    assert keys == [field.name for field in dataclasses.fields(Meta)] and keys[4] == "output"
