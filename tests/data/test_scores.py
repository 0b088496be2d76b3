"""Scores from embeddings, against hand-computed values, identities and independent implementations (golden arrays: tests/golden)."""

import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_core.data.filter import scores
from vlm_core.errors import SchemaMismatch


def unit_rows(seed: int, n: int = 12, d: int = 6) -> np.ndarray:
    return scores.unit(np.random.default_rng(seed).normal(size=(n, d)))


def test_the_clip_score_is_the_cosine_whatever_the_lengths_and_however_stored() -> None:
    image, text = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[4.0, 3.0], [-2.0, 0.0]])
    assert scores.clip_score(image, text) == pytest.approx([24 / 25, -1.0])
    rows, other = unit_rows(0), unit_rows(1)
    exact = np.einsum("nd,nd->n", rows.astype(np.float64), other.astype(np.float64))
    assert np.abs(scores.clip_score(rows.astype(np.float16), other.astype(np.float16)) - exact).max() < 1e-3


def test_an_undefined_score_is_refused_with_its_row() -> None:
    broken = unit_rows(0)
    broken[4, 2] = np.nan
    with pytest.raises(SchemaMismatch, match=r"Found 1 scores outside \[-1, 1\] or undefined .* at row 4\)"):
        scores.clip_score(broken, unit_rows(1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.01, 0.07, 1.0]))
def test_neg_clip_loss_is_minus_tau_times_the_contrastive_loss_of_the_sample(seed: int, tau: float) -> None:
    image, text = unit_rows(seed), unit_rows(seed + 1)
    logits, labels = torch.tensor(image @ text.T) / tau, torch.arange(len(image))
    cross_entropy = torch.nn.functional.cross_entropy
    loss = (cross_entropy(logits, labels, reduction="none") + cross_entropy(logits.T, labels, reduction="none")) / 2
    assert scores.neg_clip_loss(image, text, tau) == pytest.approx(-tau * loss.numpy(), abs=1e-5)


def test_neg_clip_loss_of_a_pool_in_one_batch_is_that_of_the_batch_and_batches_have_equal_size() -> None:
    image, text = unit_rows(2, 11), unit_rows(3, 11)

    def vectors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image[rows], text[rows]

    whole = scores.neg_clip_loss(image, text, 0.1)
    assert scores.neg_clip_loss_pool(vectors, 11, 0.1, batch=100, repeats=3, seed=0) == pytest.approx(whole, abs=1e-6)
    # fewer rivals, higher score: with batches of 5 and 6, never of 10 and 1 (alone in its batch a sample scores 0)
    split = scores.neg_clip_loss_pool(vectors, 11, 0.1, batch=10, repeats=2, seed=0)
    assert (split > whole).all()
    assert (split < -1e-4).all()
    assert np.array_equal(split, scores.neg_clip_loss_pool(vectors, 11, 0.1, batch=10, repeats=2, seed=0))


def test_norm_sim_by_hand() -> None:
    image, target = np.array([[1.0, 0.0], [0.6, -0.8]]), np.array([[0.0, 1.0], [1.0, 0.0], [-1.0, 0.0]])
    assert scores.norm_sim(image, target, 2) == pytest.approx([np.sqrt(2), np.sqrt(0.64 + 0.36 + 0.36)])
    assert scores.norm_sim(image, target, np.inf) == pytest.approx([1.0, 0.8])


@settings(max_examples=20, deadline=None)
@given(st.floats(0.05, 3), st.floats(-3, 3), st.floats(0.25, 4))
def test_hyperbolic_distance_along_a_line_through_the_origin_is_the_difference_of_the_tangents(a: float, b: float, curvature: float) -> None:
    """The exponential map at the origin keeps lengths along rays, at any curvature."""
    direction = np.array([[0.6, 0.8, 0.0]])
    distance = -scores.neg_lorentz_distance(a * direction, b * direction, curvature)[0, 0]
    assert distance == pytest.approx(abs(a - b), abs=2e-3)


@pytest.mark.parametrize("curvature", [0.5, 1.0, 2.0])
def test_lifted_points_lie_on_the_hyperboloid(curvature: float) -> None:
    space, time = scores.lorentz_lift(np.random.default_rng(0).normal(size=(9, 5)), curvature)
    assert (space**2).sum(1) - time[:, 0] ** 2 == pytest.approx(np.full(9, -1 / curvature), rel=1e-6)


def test_a_point_straight_behind_another_lies_in_its_cone_and_one_before_it_does_not() -> None:
    ray = np.array([[0.6, 0.8]])
    assert scores.entailment(0.5 * ray, 2.0 * ray, 1.0)[0, 0] < 0
    assert scores.entailment(2.0 * ray, 0.5 * ray, 1.0)[0, 0] > np.pi / 2


def test_hype_score_in_blocks_is_the_sum_of_its_parts() -> None:
    rng = np.random.default_rng(5)
    image, text, image_ref, text_ref = (rng.normal(size=(n, 4)) for n in (1500, 1500, 3, 3))
    image_spec, text_spec = scores.specificity(image, text, image_ref, text_ref, 1.0)
    distance = np.diagonal(scores.neg_lorentz_distance(image[1020:1030], text[1020:1030], 1.0))
    got = scores.hype_score(image, text, image_ref, text_ref, 1.0)
    assert got[1020:1030] == pytest.approx(distance + image_spec[1020:1030] + text_spec[1020:1030])


def peak_mb(work: Callable[[], Any]) -> float:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


def test_scores_that_compare_all_with_all_never_hold_all_the_cosines() -> None:
    """4,096 by 4,096 values of 4 bytes are 67 MB; scores and their parts are at most 0.1 MB each."""
    image, text = unit_rows(6, 4096, 8), unit_rows(7, 4096, 8)
    assert peak_mb(lambda: scores.neg_clip_loss(image, text, 0.01)) < 25
    assert peak_mb(lambda: scores.norm_sim(image, text, 2)) < 25
    assert peak_mb(lambda: scores.hype_score(image[:1100], text[:1100], image, text, 1.0)) < 120  # float64, and an entailment has eight parts


def test_tiles_of_any_size_give_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    image, text = unit_rows(8, 50), unit_rows(9, 50)

    def everything() -> list[np.ndarray]:
        norms = [scores.norm_sim(image, text[:7], p) for p in (2, np.inf)]
        return [scores.neg_clip_loss(image, text, 0.01), *norms, scores.hype_score(image, text, image[:9], text[:11], 0.7)]

    whole = everything()
    monkeypatch.setattr(scores, "TILE", 8)
    for parts, at_once in zip(everything(), whole, strict=True):
        assert parts == pytest.approx(at_once, abs=1e-6)
