"""How well image and text of a sample fit, from stored embeddings: pure functions, no model here.

N samples, D joint width, T target images, M reference samples. Embeddings are unit-norm float32 unless a function says otherwise.
Sources: methods/data.md 5, 10, 11. Checked by golden `data/{negcliploss_normsim,hype_hyperbolic}`.
"""

from collections.abc import Iterator
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
    """NormSim_p: the p-norm of an image's cosines with the target images (p = inf: the largest by absolute value)."""
    return np.linalg.norm(image_ND @ target_TD.T, ord=p, axis=1)


def neg_clip_loss(image_ND: NDArray[Any], text_ND: NDArray[Any], temperature: float) -> NDArray[Any]:
    """CLIP score minus how easily the sample's image and text fit the rest of the batch (minus tau times its contrastive loss)."""
    sims = image_ND @ text_ND.T
    norm_text, norm_image = batch_norms(sims, temperature)
    return np.diagonal(sims) - norm_text - norm_image


def batch_norms(sims_NN: NDArray[Any], temperature: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """(tau/2) log sum_j exp(s_ij/tau) over the texts of each image, and over the images of each text."""
    return tuple(temperature / 2 * _log_sum_exp(sims / temperature) for sims in (sims_NN, sims_NN.T))  # type: ignore[return-value]


def _log_sum_exp(rows: NDArray[Any]) -> NDArray[Any]:
    top = rows.max(axis=1)  # at tau = 0.01 the exponents reach 100
    return top + np.log(np.exp(rows - top[:, None]).sum(axis=1))


def neg_clip_loss_pool(image_ND: NDArray[Any], text_ND: NDArray[Any], temperature: float, batch: int, repeats: int, seed: int) -> NDArray[Any]:
    """`neg_clip_loss` averaged over `repeats` random batchings of the pool. Batches are of equal size (+-1), so no partition sum is short."""
    rng, total = np.random.default_rng(seed), np.zeros(len(image_ND))
    for _ in range(repeats):
        for rows in np.array_split(rng.permutation(len(image_ND)), -(-len(image_ND) // batch)):
            total[rows] += neg_clip_loss(image_ND[rows], text_ND[rows], temperature)
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
    return entailment(text_ref_MD, image_ND, curvature).mean(0), entailment(text_ND, image_ref_MD, curvature).mean(1)


def hype_score(image_ND: NDArray[Any], text_ND: NDArray[Any], image_ref_MD: NDArray[Any], text_ref_MD: NDArray[Any], curvature: float) -> NDArray[Any]:
    """HYPE's sum of minus distance and both specificities (its Table 3: these three suffice); memory is O(block x M)."""
    distance = np.concatenate([np.diagonal(neg_lorentz_distance(image_ND[rows], text_ND[rows], curvature)) for rows in _blocks(len(image_ND))])
    image_spec, text_spec = specificity(image_ND, text_ND, image_ref_MD, text_ref_MD, curvature)
    return distance + image_spec + text_spec


def _blocks(n: int, size: int = 1024) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))
