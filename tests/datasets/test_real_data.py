"""What only the real data sets can show; skipped without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from study.datasets import mini_facade
from study.datasets.source import DataSource
from study.storage.cache import Entry
from study.tasks.facade import TASK as FACADE
from study.tasks.facade import FacadeConfig
from study.tasks.fashion import TASK as FASHION
from study.tasks.fashion import FashionConfig
from study.training.batches import Batches
from study.training.evaluation import evaluate
from study.training.loop import fit


@pytest.fixture(scope="module")
def facades(real: DataSource) -> Entry:
    return mini_facade.load(real)


def test_the_published_sets_are_recognised(real: DataSource, facades: Entry) -> None:
    fashion = FASHION.identity(real)
    assert (fashion["train"], fashion["test"]) == (60_000, 10_000)
    assert (facades.meta["train"], facades.meta["test"]) == (906, 114)
    assert facades.meta["verified"] == "the published starter set"


def test_fashion_validation_is_stratified(real: DataSource) -> None:
    splits = FASHION.load_splits(real, FashionConfig())
    assert len(splits.train) == 50_000 and len(splits.val) == 10_000
    labels = splits.val.targets[splits.val.indices]
    assert np.bincount(labels).tolist() == [1000] * 10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_validation_image_has_a_partner_in_training(
    real: DataSource, facades: Entry, seed: int
) -> None:
    splits = FACADE.load_splits(real, FacadeConfig(split_seed=seed))
    is_val = np.zeros(906, bool)
    is_val[splits.val.indices] = True
    for crop in (302, 604):  # by the set's numbering
        assert np.array_equal(is_val[: 906 - crop], is_val[crop:])
    first, second = facades.array("train_alike").T  # by what the images show
    assert np.array_equal(is_val[first], is_val[second])
    for building in ((16, 116), (9, 300), (23, 41), (51, 170), (106, 120), (119, 222)):
        assert is_val[building[0]] == is_val[building[1]]
    num_facades = is_val[:302].sum()
    assert 0.15 <= num_facades / 302 <= 0.2
    shares = facades.array("train_shares")
    ratio = shares[splits.val.indices].mean(axis=0) / shares.mean(axis=0)
    assert np.abs(ratio - 1).max() < 0.2


def test_images_alone_find_nearly_all_partners(facades: Entry) -> None:
    first, second = facades.array("train_alike").T
    same = first % 302 == second % 302
    found = np.union1d(first[same], second[same])
    assert len(found) >= 860  # plain phase correlation at 0.3 finds 823
    others = {tuple(sorted((int(a) % 302, int(b) % 302))) for a, b in facades.array("train_alike")}
    assert sum(a != b for a, b in others) <= 10


def test_test_images_of_one_building_count_once(real: DataSource, facades: Entry) -> None:
    groups = facades.array("test_groups")
    assert len(groups) == 114 and len(set(groups.tolist())) <= 76
    images = FACADE.load_full_size(real, FacadeConfig(image_size=256), "test")
    assert np.array_equal(images.shown, groups)
    for group in set(groups.tolist()):  # the files are in three runs of the same buildings
        steps = np.diff(np.flatnonzero(groups == group))
        assert ((steps >= 34) & (steps <= 84)).all()


def test_a_random_split_cuts_buildings_apart(real: DataSource) -> None:
    splits = FACADE.load_splits(real, FacadeConfig(split="image"))
    val = set(splits.val.indices % 302)
    assert len(val & set(splits.train.indices % 302)) > 0.9 * len(val)


def test_average_precision_equals_scikit_learn_on_real_predictions(real: DataSource) -> None:
    widths = {f"width{n}": width for n, width in enumerate((8, 16, 24, 16, 8), 1)}
    config = FacadeConfig(image_size=64, epochs=1, learning_rate=3e-3, **widths)
    result = next(fit(FACADE, config, real))
    network = FACADE.build_model(config)
    network.load_state_dict(result.state["network"])
    val = FACADE.load_splits(real, config).val
    batches = Batches(val, torch.device("cpu"), FACADE.normalization)
    metrics, _, _ = evaluate(FACADE, network, batches, val, batch_size=8, precision="auto")
    probabilities, labels = [], []
    with torch.inference_mode():
        for images, targets in batches.evaluation(8):
            probabilities.append(network(images).double().softmax(dim=1).movedim(1, -1))
            labels.append(targets)
    scores = torch.cat(probabilities).flatten(0, 2).numpy()
    targets = torch.cat(labels).flatten().numpy()
    for index, name in enumerate(FACADE.classes):
        expected = average_precision_score(targets == index, scores[:, index])
        assert metrics[f"ap/{name}"] == pytest.approx(expected, abs=1e-3), name
    assert metrics["mean_ap"] > 0.25  # chance is 0.2
