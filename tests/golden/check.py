"""What a golden table is made of, and the comparison that every entry goes through.

A table maps the stem of `tests/golden/<family>/<stem>.npz` to a function that turns the stored arrays into checks:

    def clip_loss(arrays: Arrays) -> Iterator[Check]:
        image = tensor(arrays["image"], grad=True)
        loss = image_text_contrastive_loss(image, ...)
        yield Check("loss", loss, arrays["loss"])
        yield Check("grad_image", gradient(loss, image), arrays["grad_image"])

    TABLE = {"clip_loss": clip_loss}

Everything about shapes is read from the arrays, so that the same table runs over files made with other seeds and sizes.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

Arrays = Mapping[str, np.ndarray]


class Check(NamedTuple):
    """One value: ours against the official one. Integers, booleans and text are compared exactly."""

    name: str
    got: Any
    expected: Any
    rtol: float = 1e-3
    atol: float = 1e-5


Entry = Callable[[dict[str, np.ndarray]], Iterator[Check]]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def tensor(array: np.ndarray, *, grad: bool = False, dtype: torch.dtype | None = None) -> torch.Tensor:
    """A tensor with its own memory, a leaf that collects gradients if asked."""
    out = torch.tensor(np.asarray(array), dtype=dtype)
    return out.requires_grad_() if grad else out


def gradient(value: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    """d value / d leaf, keeping the graph for the next question."""
    return torch.autograd.grad(value, leaf, retain_graph=True)[0]


def as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def failure(check: Check) -> str | None:
    """None when the two agree, else one line that says where and by how much they differ."""
    got, expected = as_array(check.got), as_array(check.expected)
    if got.shape != expected.shape:
        return f"{check.name}: shape {got.shape}, expected {expected.shape}"
    if expected.dtype.kind not in "fc" or got.dtype.kind not in "fciub":
        wrong = np.argwhere(got != expected)
        return f"{check.name}: {len(wrong)} of {expected.size} differ, first at {tuple(wrong[0])}" if len(wrong) else None
    close = np.isclose(got, expected, rtol=check.rtol, atol=check.atol, equal_nan=True)
    if close.all():
        return None
    gap = np.where(close, 0, np.abs(np.nan_to_num(got.astype(float)) - np.nan_to_num(expected.astype(float))))
    where = np.unravel_index(int(gap.argmax()), gap.shape)
    return (
        f"{check.name}: {int((~close).sum())} of {close.size} differ, worst {got[where]!r} for {expected[where]!r} at {tuple(map(int, where))}"
        f" (rtol {check.rtol:g}, atol {check.atol:g})"
    )


def run_entry(entry: Entry, path: Path) -> tuple[int, list[str]]:
    """(number of checks, what failed) of one file. An entry that checks nothing fails."""
    checks = list(entry(load_arrays(path)))
    return len(checks), [line for check in checks if (line := failure(check))] or ([] if checks else ["the entry checks nothing"])
