"""Which few pictures a method may learn from, and which classes are base or new.

Sources: KaiyangZhou/Dassl.pytorch `generate_fewshot_dataset`, KaiyangZhou/CoOp `subsample_classes`. Checked by golden `transfer/fewshot_sampling`.
"""
# N pictures, C classes

import random
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

VAL_SHOTS = 4  # of a class at most, however many the training shots are
Indices = NDArray[np.int64]


def fewshot_indices(
    train_labels: Sequence[int] | NDArray[Any], shots: int, seed: int, val_labels: Sequence[int] | NDArray[Any] = ()
) -> tuple[Indices, Indices]:
    """(rows of the training split, rows of the validation split): `shots` and min(shots, 4) of each class, all of a class that has fewer.

    Training and validation are drawn from one generator, in this order, class by class as they first appear: the same as the public split files.
    """
    generator = random.Random(seed)
    return _draw(train_labels, shots, generator), _draw(val_labels, min(shots, VAL_SHOTS), generator)


def _draw(labels: Sequence[int] | NDArray[Any], shots: int, generator: random.Random) -> Indices:
    members: dict[int, list[int]] = {}
    for row, label in enumerate(labels):
        members.setdefault(int(label), []).append(row)
    drawn = [generator.sample(rows, shots) if len(rows) >= shots else rows for rows in members.values()]
    return np.array([row for rows in drawn for row in rows], np.int64)


def base_new_split(labels: Sequence[int] | NDArray[Any], which: Literal["base", "new"]) -> tuple[Indices, Indices]:
    """(rows, their labels counted from 0) of the first half of the sorted classes, rounded up, or of the rest."""
    labels_N = np.asarray(labels, np.int64)
    classes = np.unique(labels_N)
    half = -(-len(classes) // 2)
    chosen = classes[:half] if which == "base" else classes[half:]
    rows = np.flatnonzero(np.isin(labels_N, chosen))
    return rows.astype(np.int64), np.searchsorted(chosen, labels_N[rows]).astype(np.int64)
