"""Classification, retrieval, matching and detection: values computed by hand, properties, an independent library."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from vlm_core.errors import DataError
from vlm_core.evaluate import detection, metrics, retrieval, segmentation
from vlm_core.evaluate.matching import placements


def test_a_model_with_constant_scores_earns_nothing_wherever_the_right_answer_stands() -> None:
    same = np.ones((4, 3))
    assert metrics.topk_accuracy(same, np.array([0, 0, 0, 0])) == 0
    assert metrics.topk_accuracy(same, np.array([0, 1, 2, 0]), k=3) == 1
    picture, text = np.ones((3, 2, 4)), np.ones((3, 2, 4))
    assert retrieval.caption_selection(picture, text) == {"text_acc": 0, "image_acc": 0, "group_acc": 0}
    assert retrieval.retrieval_recall(np.ones((5, 2)), np.ones((5, 2)), np.arange(5), (1, 4))["image_retrieval_recall_at_4"] == 0


def test_the_ensemble_is_the_mean_of_unit_embeddings_and_not_of_raw_ones() -> None:
    prompts = np.array([[[3.0, 0.0], [0.0, 1.0]]])
    np.testing.assert_allclose(metrics.classifier_weights(prompts).T, [[np.sqrt(0.5), np.sqrt(0.5)]])


def test_mean_per_class_recall_weighs_rare_classes_like_frequent_ones() -> None:
    targets, predictions = np.array([0] * 9 + [1]), np.zeros(10, int)
    assert metrics.mean_per_class_recall(predictions, targets) == 0.5


def test_average_precision_of_positives_at_ranks_one_and_three_is_five_sixths() -> None:
    scores, targets = np.array([[0.9], [0.8], [0.7], [0.1]]), np.array([[1], [0], [1], [0]])
    np.testing.assert_allclose(metrics.average_precision(scores, targets), [(1 + 2 / 3) / 2])
    assert np.isnan(metrics.ap11(scores, np.zeros((4, 1)))[0])


def test_perfect_confidence_has_no_calibration_error_and_wrong_confidence_all_of_it() -> None:
    sure = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert metrics.ece(sure, np.array([0, 1])) == 0
    assert metrics.ece(sure, np.array([1, 0])) == 1
    assert metrics.brier(sure, np.array([1, 0])) == 2


def test_an_auc_of_one_kind_of_labels_is_refused() -> None:
    with pytest.raises(DataError, match="only true labels among 3"):
        metrics.roc_auc(np.arange(3.0), np.ones(3, bool))


def test_recall_counts_any_of_several_positives_both_ways() -> None:
    """Pictures 0 and 1 share text 0; text 1 belongs to picture 2. Ranks computed by hand from the cosines."""
    image = np.array([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]])
    text = np.array([[1.0, 0.0], [0.0, 1.0]])
    ranks = retrieval.retrieval_ranks(image, text, np.array([0, 1, 2]), np.array([0, 0, 1]))
    assert ranks.of_texts.tolist() == [1, 2, 2]
    assert ranks.of_images.tolist() == [1, 2]


def test_ranks_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    image, text, owner = random.normal(size=(33, 5)), random.normal(size=(70, 5)), random.integers(0, 33, 70)
    whole = retrieval.retrieval_ranks(image, text, owner, np.arange(70))
    monkeypatch.setattr(retrieval, "BLOCK", 7)
    for a, b in zip(whole, retrieval.retrieval_ranks(image, text, owner, np.arange(70)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_placement_is_the_roc_auc_of_scikit_learn_with_ties(seed: int) -> None:
    random = np.random.default_rng(seed)
    image, text = random.integers(-2, 3, (30, 4)).astype(float), random.integers(-2, 3, (40, 4)).astype(float)
    rows, columns = np.arange(30), random.integers(0, 40, 30)
    scores = metrics.unit(image) @ metrics.unit(text).T
    known = np.zeros(scores.shape, bool)
    known[rows, columns] = True
    assert placements(image, text, rows, columns).mean() == pytest.approx(roc_auc_score(known.ravel(), scores.ravel()), abs=1e-12)


def test_perfect_boxes_score_one_and_no_boxes_score_nothing() -> None:
    box = np.array([[0.0, 0, 10, 10], [20, 20, 50, 50]])
    truth = detection.Boxes(np.array([1, 1]), np.array([1, 2]), box, np.ones(2), np.zeros(2, bool), box[:, 2:].prod(axis=1))
    scores = detection.coco_ap(truth, truth, [1, 2], [1, 2, 3])
    assert scores.stats12[:3].tolist() == pytest.approx([1, 1, 1])
    assert np.isnan(scores.ap([3]))
    none = detection.Boxes(*(column[:0] for column in truth))
    assert detection.coco_ap(truth, none, [1], [1, 2]).stats12[0] == 0


def test_summed_confusion_matrices_equal_that_of_all_images_and_255_is_ignored() -> None:
    random = np.random.default_rng(0)
    truth, said = random.integers(0, 3, (4, 5, 5)), random.integers(0, 3, (4, 5, 5))
    truth[0, 0] = 255
    parts = sum(segmentation.confusion_matrix(truth[i : i + 1], said[i : i + 1], 3) for i in range(4))
    np.testing.assert_array_equal(parts, segmentation.confusion_matrix(truth, said, 3))
    assert parts.sum() == 95
    assert segmentation.harmonic_mean(0, 0) == 0
