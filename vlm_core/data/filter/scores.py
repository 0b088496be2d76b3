"""How well image and text of a sample fit, from stored embeddings: pure functions, no model here.

N samples, D joint width, T target images, M reference samples. Embeddings are unit-norm float32 unless a function says otherwise.
Sources: methods/data.md 5, 10, 11. Checked by golden `data/{negcliploss_normsim,hype_hyperbolic}`.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import SchemaMismatch


def unit(rows_ND: NDArray[Any]) -> NDArray[Any]:
    """Rows as float32 of length one. Stores hold float16, which alone moves a cosine by up to 1e-3."""
    rows = np.asarray(rows_ND, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


def clip_score(image_ND: NDArray[Any], text_ND: NDArray[Any]) -> NDArray[Any]:
    """Cosine of image and text per sample. Raises SchemaMismatch for a value that no cosine can have."""
    scores = np.einsum("nd,nd->n", unit(image_ND), unit(text_ND))
    wrong = ~(np.abs(scores) <= 1.0001)
    if wrong.any():
        raise SchemaMismatch(
            f"Found {int(wrong.sum())} scores outside [-1, 1] or undefined (first {scores[wrong][0]!r} at row {int(wrong.argmax())}), "
            "expected cosines; embed again, the embeddings are damaged."
        )
    return scores


def norm_sim(image_ND: NDArray[Any], target_TD: NDArray[Any], p: float) -> NDArray[Any]:
    """NormSim_p: the p-norm of an image's cosines with the target images (p = 2, or inf: the largest by absolute value). Memory is O(N + tile)."""
    out = np.zeros(len(image_ND))
    for rows, columns in _tiles(len(image_ND), len(target_TD)):
        sims = image_ND[rows] @ target_TD[columns].T
        out[rows] = np.maximum(out[rows], np.abs(sims).max(axis=1)) if p == np.inf else out[rows] + np.square(sims, dtype=np.float64).sum(axis=1)
    return out if p == np.inf else np.sqrt(out)


def neg_clip_loss(image_ND: NDArray[Any], text_ND: NDArray[Any], temperature: float) -> NDArray[Any]:
    """CLIP score minus how easily the sample's image and text fit the rest of the batch (minus tau times its contrastive loss)."""
    norm_text, norm_image = batch_norms(image_ND, text_ND, temperature)
    return np.einsum("nd,nd->n", image_ND, text_ND) - norm_text - norm_image


def batch_norms(image_ND: NDArray[Any], text_ND: NDArray[Any], temperature: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(tau/2) log sum_j exp(s_ij/tau) over the texts of each image, and over the images of each text. The N x N cosines are never there at once."""
    over_texts, over_images = LogSum(len(image_ND)), LogSum(len(text_ND))
    for rows, columns in _tiles(len(image_ND), len(text_ND)):
        logits = image_ND[rows] @ text_ND[columns].T / temperature
        over_texts.add(rows, logits)
        over_images.add(columns, logits.T)
    return temperature / 2 * over_texts.value(), temperature / 2 * over_images.value()


class LogSum:
    """log sum exp per row over values that come tile by tile; the largest so far is taken off first (at tau = 0.01 the exponents reach 100)."""

    def __init__(self, n: int) -> None:
        self._top, self._sum = np.full(n, -np.inf), np.zeros(n)

    def add(self, rows: slice, values: NDArray[Any]) -> None:
        top = np.maximum(self._top[rows], values.max(axis=1))
        shifted = np.exp(values - top.astype(values.dtype)[:, None])
        self._sum[rows] = self._sum[rows] * np.exp(self._top[rows] - top) + shifted.sum(axis=1, dtype=np.float64)
        self._top[rows] = top

    def value(self) -> NDArray[Any]:
        return self._top + np.log(self._sum)


Vectors = Callable[[NDArray[Any]], tuple[NDArray[Any], NDArray[Any]]]  # rows -> their (image, text) embeddings


def neg_clip_loss_pool(vectors: Vectors, n: int, temperature: float, batch: int, repeats: int, seed: int) -> NDArray[Any]:
    """`neg_clip_loss` averaged over `repeats` random batchings of n samples. Batches are of equal size (+-1), so no partition sum is short; one is in memory."""
    rng, total = np.random.default_rng(seed), np.zeros(n)
    for _ in range(repeats):
        for rows in np.array_split(rng.permutation(n), -(-n // batch)):
            rows.sort()  # the order inside a batch says nothing, and files are read forwards
            total[rows] += neg_clip_loss(*vectors(rows), temperature)
    return total / repeats


# ---- HYPE: embeddings as tangent vectors of hyperbolic space, curvature c > 0

APERTURE = 0.1


def lorentz_lift(tangent_ND: NDArray[Any], curvature: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Exponential map at the origin: (space (N, D), time (N, 1)) on the hyperboloid <x, x> = -1/c."""
    root = np.sqrt(curvature)
    length = np.maximum(np.linalg.norm(tangent_ND, axis=-1, keepdims=True) * root, 1e-8)
    space = np.sinh(length) / length * tangent_ND
    return space, np.sqrt(1 / curvature + (space**2).sum(-1, keepdims=True))


def _inner(x: tuple[NDArray[Any], NDArray[Any]], y: tuple[NDArray[Any], NDArray[Any]]) -> NDArray[Any]:
    return x[0] @ y[0].T - x[1] @ y[1].T


def neg_lorentz_distance(image_ND: NDArray[Any], text_MD: NDArray[Any], curvature: float) -> NDArray[Any]:
    """Minus the geodesic distance between every image and every text (N, M)."""
    inner = _inner(lorentz_lift(image_ND, curvature), lorentz_lift(text_MD, curvature))
    return -np.arccosh(np.maximum(-curvature * inner, 1 + 1e-8)) / np.sqrt(curvature)


def entailment(x_ND: NDArray[Any], y_MD: NDArray[Any], curvature: float) -> NDArray[Any]:
    """How far every y lies outside the entailment cone of every x (N, M): exterior angle minus half-aperture, not clamped."""
    x, y = lorentz_lift(x_ND, curvature), lorentz_lift(y_MD, curvature)
    inner = curvature * _inner(x, y)
    length = np.linalg.norm(x[0], axis=-1, keepdims=True)
    cosine = (y[1].T + x[1] * inner) / (length * np.sqrt(np.maximum(inner**2 - 1, 1e-8)))
    half_aperture = np.arcsin(np.clip(2 * APERTURE / (length * np.sqrt(curvature)), -1 + 1e-8, 1 - 1e-8))
    return np.arccos(np.clip(cosine, -1 + 1e-8, 1 - 1e-8)) - half_aperture


def specificity(
    image_ND: NDArray[Any], text_ND: NDArray[Any], image_ref_MD: NDArray[Any], text_ref_MD: NDArray[Any], curvature: float
) -> tuple[NDArray[Any], NDArray[Any]]:
    """(of the image: mean over reference texts; of the text: mean over reference images): large means far from everything general."""
    of_image, of_text = np.zeros(len(image_ND)), np.zeros(len(text_ND))
    for rows, columns in _tiles(len(image_ND), len(text_ref_MD)):
        of_image[rows] += entailment(text_ref_MD[columns], image_ND[rows], curvature).sum(0)
    for rows, columns in _tiles(len(text_ND), len(image_ref_MD)):
        of_text[rows] += entailment(text_ND[rows], image_ref_MD[columns], curvature).sum(1)
    return of_image / len(text_ref_MD), of_text / len(image_ref_MD)


def hype_score(image_ND: NDArray[Any], text_ND: NDArray[Any], image_ref_MD: NDArray[Any], text_ref_MD: NDArray[Any], curvature: float) -> NDArray[Any]:
    """HYPE's sum of minus distance and both specificities (its Table 3: these three suffice)."""
    parts = (slice(start, start + PAIRED) for start in range(0, len(image_ND), PAIRED))
    distance = np.concatenate([np.diagonal(neg_lorentz_distance(image_ND[rows], text_ND[rows], curvature)) for rows in parts])
    image_spec, text_spec = specificity(image_ND, text_ND, image_ref_MD, text_ref_MD, curvature)
    return distance + image_spec + text_spec


PAIRED = 64  # rows of which only the diagonal of all pairs is wanted
TILE = 1024  # rows and columns of a matrix that is never there as a whole: 4 MB of float32


def _tiles(rows: int, columns: int) -> Iterator[tuple[slice, slice]]:
    for first in range(0, rows, TILE):
        for second in range(0, columns, TILE):
            yield slice(first, min(first + TILE, rows)), slice(second, min(second + TILE, columns))
