"""Splits that do not leak."""

from __future__ import annotations

import numpy as np
import pytest

from study.config import VAL_SHARE
from study.datasets.splits import grouped_split, stratified_split
from study.errors import InputError
from study.task import NUM_FOLDS


def test_stratified_split_keeps_class_shares() -> None:
    targets = np.repeat([0, 1, 2], [60, 30, 12])
    train, val = stratified_split(targets, 1 / 6, seed=0)
    assert np.bincount(targets[val]).tolist() == [10, 5, 2]
    assert sorted([*train, *val]) == list(range(102))


def test_grouped_split_never_cuts_a_group_and_keeps_shares() -> None:
    rng = np.random.default_rng(0)
    groups = np.tile(np.arange(60), 3)
    shares = rng.dirichlet([4.0, 4.0, 0.3], 60)[groups]  # a rare class in few groups
    train, val = grouped_split(groups, shares, 1 / 6, seed=0)
    assert not set(groups[train]) & set(groups[val])
    assert len(set(groups[val])) == 10
    ratio = shares[val].mean(axis=0) / shares.mean(axis=0)
    assert np.abs(ratio - 1).max() < 0.2


def test_one_group_cannot_be_split() -> None:
    with pytest.raises(InputError, match="all 5 images show the same thing"):
        grouped_split(np.zeros(5, np.int64), np.ones((5, 1)), 0.2, seed=0)


def test_grouped_split_takes_any_group_names() -> None:
    groups = np.array([7, 7, 100, 3, 3, 3, 8, 9])
    train, val = grouped_split(groups, np.ones((8, 1)), 0.3, seed=1)
    assert not set(groups[train]) & set(groups[val])
    assert len(train) + len(val) == 8 and len(val)


def test_folds_are_disjoint_and_keep_shares() -> None:
    rng = np.random.default_rng(0)
    groups = np.tile(np.arange(120), 3)
    shares = rng.dirichlet([4.0, 4.0, 0.3], 120)[groups]
    parts = [grouped_split(groups, shares, VAL_SHARE, 0, fold)[1] for fold in range(NUM_FOLDS)]
    assert sorted(np.concatenate(parts)) == list(range(360))
    for val in parts:
        assert np.abs(shares[val].mean(axis=0) / shares.mean(axis=0) - 1).max() < 0.25
    targets = np.repeat([0, 1], [60, 31])
    parts = [stratified_split(targets, VAL_SHARE, 0, fold)[1] for fold in range(NUM_FOLDS)]
    assert sorted(np.concatenate(parts)) == list(range(91))
    assert all(5 <= (targets[val] == 1).sum() <= 6 for val in parts)


def test_a_fold_without_groups_left_is_refused() -> None:
    with pytest.raises(InputError, match="2 groups of images are too few for fold 2"):
        grouped_split(np.array([0, 1]), np.ones((2, 1)), VAL_SHARE, 0, fold=2)
