"""Seeded splits into training and validation images.

A search on a split that shows the same things in both parts selects the wrong hyperparameters, so
`grouped_split` never divides a group of related images.

The training split has `study.config.NUM_FOLDS` disjoint folds. A search validates on fold 0; the
configurations it selects are confirmed on the other folds, which played no part in the selection.
"""

from __future__ import annotations

import numpy as np

from study.errors import InputError

NUM_CANDIDATES = 2000


def stratified_split(
    targets: np.ndarray, share: float, seed: int, fold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split images so that every class has the same share in both parts.

    Args:
        targets: `(N,)` class indices.
        share: Part of each class that goes to validation, between 0 and 1.
        seed: Seed of the split.
        fold: Which of the disjoint folds is validation, from 0.

    Returns:
        Sorted indices of training and validation images, int64.
    """
    generator = np.random.default_rng(seed)
    val = []
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        begin, end = (round(share * (fold + k) * len(members)) for k in (0, 1))
        val.append(members[begin:end])
    return _complement(len(targets), np.concatenate(val))


def grouped_split(
    groups: np.ndarray, shares: np.ndarray, share: float, seed: int, fold: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split images by group so that classes are nearly as frequent in validation as overall.

    Of many random candidates, the one is chosen whose worst class deviates least from its overall
    share, because average precision depends on class frequency.

    Args:
        groups: `(N,)` group of each image; a group is never divided.
        shares: `(N, K)` share of each class in each image.
        share: Part of the groups that goes to validation, between 0 and 1.
        seed: Seed of the split.
        fold: Which of the disjoint folds is validation, from 0; each is taken from the groups left
            by those before it.

    Returns:
        Sorted indices of training and validation images, int64.

    Raises:
        InputError: There is only one group, or none is left for this fold.
    """
    generator = np.random.default_rng(seed)
    names, member_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise InputError(
            f"all {len(groups)} images show the same thing, so none can be held out for "
            "validation; add images of other things."
        )
    num_val = max(1, round(share * len(names)))
    sums = np.zeros((len(names), shares.shape[1] + 1))  # per group: class shares and image count
    np.add.at(sums, member_of, np.column_stack([shares, np.ones(len(groups))]))
    whole = shares.mean(axis=0)
    present = whole > 0
    left, chosen = np.arange(len(names)), np.empty(0, np.int64)
    for _ in range(fold + 1):
        left = np.setdiff1d(left, chosen)
        num_val = min(num_val, len(left))
        if not num_val:
            raise InputError(f"{len(names)} groups of images are too few for fold {fold}.")
        best = np.inf
        for _ in range(NUM_CANDIDATES):
            candidate = left[generator.choice(len(left), num_val, replace=False)]
            total = sums[candidate].sum(axis=0)
            ratio = total[:-1][present] / total[-1] / whole[present]
            deviation = float(np.abs(ratio - 1).max())
            if deviation < best:
                best, chosen = deviation, candidate
    return _complement(len(groups), np.flatnonzero(np.isin(member_of, chosen)))


def _complement(num: int, val: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held_out = np.zeros(num, bool)
    held_out[val] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)
