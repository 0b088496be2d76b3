"""Objectives that look at picture and text together, or write: what they score, hand-computed values, and that a fused model learns to tell pairs."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.mixture import GaussianMixture
from torch.nn import functional as F

from tests.objectives.test_image_text_contrastive import pairs
from tests.objectives.world import batch, built, ids, settings_of, terms, towers
from tests.train.test_pretrain import Told, settings
from tests.train.tiny import make_shards, small
from vlm_core.checkpoint import fill, read_weights
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.models.pixels import pixels_of
from vlm_core.models.tokenizer import BytePair, special_of
from vlm_core.models.towers import TwoTower
from vlm_core.objectives.contrast import both_ways, softened
from vlm_core.objectives.gather import Pairs
from vlm_core.objectives.masks import IGNORED, hide_patches, hide_words
from vlm_core.objectives.noise_adaptive import Mixture, adaptive_soft_infonce, fit_mixture, gmm_clean_probability
from vlm_core.objectives.prefix_generation import scored
from vlm_core.objectives.queued_contrastive import itc_queue_loss
from vlm_core.train.inputs import Kit, prefix
from vlm_core.train.pretrain import train


def near(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- noise


def test_a_target_that_is_softened_alike_for_all_is_pyramidclips_and_one_that_is_not_softened_is_clips() -> None:
    image, text, scale = pairs(7)
    alone = Pairs(image, text, image, text, 0)
    for chunk in (0, 3):
        near(adaptive_soft_infonce(image, text, scale, torch.full((7,), 0.3, dtype=torch.float64), chunk_size=chunk), softened(alone, scale, 0.3))
        near(adaptive_soft_infonce(image, text, scale, torch.zeros(7, dtype=torch.float64), chunk_size=chunk), both_ways(alone, scale))


def test_each_pair_has_its_own_target() -> None:
    image, text, scale = pairs(3)
    alpha = torch.tensor([0.0, 0.5, 0.2], dtype=torch.float64)
    target = torch.diag(1 - alpha) + (alpha / 2)[:, None] * (1 - torch.eye(3, dtype=torch.float64))
    by_hand = -((target * (scale * image @ text.T).log_softmax(1)).sum() + (target * (scale * text @ image.T).log_softmax(1)).sum()) / 6
    near(adaptive_soft_infonce(image, text, scale, alpha), by_hand)


def test_the_mixture_is_scikit_learns_and_tells_clean_from_noisy_losses() -> None:
    random = np.random.default_rng(0)
    losses = np.concatenate([random.normal(0.5, 0.2, 700), random.normal(3.0, 0.6, 300)])
    theirs = GaussianMixture(2, random_state=0, tol=1e-8, max_iter=500).fit(losses[:, None])
    order = theirs.means_[:, 0].argsort()
    ours = fit_mixture(torch.from_numpy(losses))
    np.testing.assert_allclose(ours.mean_G.numpy(), theirs.means_[order, 0], rtol=2e-3)
    np.testing.assert_allclose(ours.deviation_G.numpy(), np.sqrt(theirs.covariances_[order, 0, 0]), rtol=5e-3)
    np.testing.assert_allclose(ours.share_G.numpy(), theirs.weights_[order], rtol=2e-3)
    clean = gmm_clean_probability(torch.from_numpy(losses))
    assert float(clean[:700].mean()) > 0.99
    assert float(clean[700:].mean()) < 0.01
    assert gmm_clean_probability(torch.tensor([-5.0]), ours).tolist() == [1.0]  # left of both: clean, whatever the wide Gaussian claims


def test_the_posterior_is_bayes_by_hand() -> None:
    mixture = Mixture(torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.75, 0.25]))
    found = float(gmm_clean_probability(torch.tensor([1.0]), mixture))
    assert found == pytest.approx(0.75)  # as far from both


def test_pairs_count_as_clean_until_the_window_is_full_and_noisy_ones_get_softer_targets_then() -> None:
    model, settings_, given = towers(), settings_of("noise_adaptive", window=24, refit_every=1), batch()
    objective = built(settings_, model)
    plain = terms(settings_of("image_text_contrastive"), built(settings_of("image_text_contrastive"), model), model, given)
    first = terms(settings_, objective, model, given)
    torch.testing.assert_close(first["noise_adaptive"], plain["image_text_contrastive"])
    second = terms(settings_, objective, model, given)  # 24 losses seen
    assert bool(objective["noise_adaptive"].mixture_3G.any())
    assert float(objective["noise_adaptive"].mixture_3G[0, 0]) < float(objective["noise_adaptive"].mixture_3G[0, 1])
    assert float((second["noise_adaptive"] - first["noise_adaptive"]).abs().detach()) > 1e-4


# ---------------------------------------------------------------- queue


def test_a_queue_adds_wrong_answers_only() -> None:
    image, text, scale = pairs(4)
    more = [F.normalize(torch.randn(5, image.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in (3, 4)]
    by_hand = sum(
        -(scale * side[row] @ torch.cat([other, queue]).T).log_softmax(0)[row] for side, other, queue in ((image, text, more[1]), (text, image, more[0])) for row in range(4)
    ) / 8  # fmt: skip
    for chunk in (0, 3):
        near(itc_queue_loss(image, text, *more, scale, chunk_size=chunk), by_hand)


def test_the_free_places_of_a_queue_are_not_looked_at() -> None:
    model, given = towers(), batch()
    objective = built(settings_of("queued_contrastive"), model)["queued_contrastive"].train()
    out = model(given)
    clip = both_ways(Pairs(out.image_BD, out.text_BD, out.image_BD, out.text_BD, 0), out.scale)
    torch.testing.assert_close(objective(out, given)["queued_contrastive"], clip)
    assert int(objective.filled) == 12
    assert torch.equal(objective.texts.rows_KD[:12], out.text_BD.detach())
    assert float(objective(out, given)["queued_contrastive"].detach()) > float(clip.detach()) + 0.3  # the own pairs are in the queue now
    objective(out, given)
    assert int(objective.filled) == 30  # of 36


# ---------------------------------------------------------------- words


def test_the_rest_of_a_caption_begins_behind_what_is_given_and_ends_with_its_end_token() -> None:
    words = ids([[5, 6, 7], [5]])  # start 5 6 7 end, start 5 end 0 0
    assert scored(words, torch.tensor([1, 1])).tolist() == [[True, True, True, True], [True, True, False, False]]
    assert scored(words, torch.tensor([3, 2])).tolist() == [[False, False, True, True], [False, True, False, False]]


def test_given_words_are_prompt_and_at_most_a_share_of_the_caption() -> None:
    config = small("objectives.prefix_generation={prompt: 'a caption of', given: 0.5}", "model.decoder={layers: 1, heads: 2}", "model.text.context_length=24")
    kit = Kit(config, Transform(32), BytePair(24))
    texts = ["one two three four five six seven", "one", ""]
    made = prefix({"texts": texts, "uids": ["x"], "step": 3}, kit, torch.device("cpu"))
    again = prefix({"texts": texts, "uids": ["x"], "step": 3}, kit, torch.device("cpu"))
    assert torch.equal(made["given"], again["given"])
    prompt = BytePair(24)(["a caption of"])[0, :4]
    assert bool((made["prefix_ids"][:, :4] == prompt).all())  # start token and three words
    assert 4 <= int(made["given"][0]) <= 7  # at most 3 of 7 words
    assert made["given"][1:].tolist() == [4, 4]
    assert bool((made["given"] < (made["prefix_ids"] != 0).sum(1)).all())  # the end token at least is to be guessed


def test_what_is_given_costs_nothing() -> None:
    model, given = towers(), batch()
    objective = built(settings_of("prefix_generation"), model)["prefix_generation"]
    model.decoder.say.weight.data.zero_()
    model.decoder.say.bias.data.copy_(torch.arange(40.0) / 10)
    log = (torch.arange(40.0) / 10).log_softmax(0)
    out, words = model(given, frozenset({"patches"})), given["prefix_ids"]
    rest = [int(token) for row, first in zip(words, given["given"], strict=True) for token in row[int(first) :] if token]
    assert float(objective(out, given)["prefix_generation"].detach()) == pytest.approx(-float(log[rest].mean()), rel=1e-5)


def test_hidden_words_are_words_and_labels_say_which() -> None:
    torch.manual_seed(0)
    words, text = ids([[5, 6, 7, 8, 9, 10]] * 200), towers().config.text
    hidden, labels = hide_words(words, special_of(text), 0.15)
    chosen = labels != IGNORED
    assert not bool((chosen & torch.isin(words, torch.tensor([0, 38, 39]))).any())
    assert torch.equal(words[chosen], labels[chosen])
    assert torch.equal(hidden[~chosen], words[~chosen])
    assert 0.12 < float(chosen.sum()) / 1200 < 0.18
    assert 0.7 < float((hidden[chosen] == 38).float().mean()) < 0.9  # the start token stands for a hidden word
    assert not bool(torch.isin(hidden[chosen], torch.tensor([0, 39])).any())


def test_rectangles_of_hidden_patches_scale_with_the_grid() -> None:
    torch.manual_seed(0)
    assert [float(hide_patches(50, rows, 0.38).float().mean()) for rows in (4, 14)] == pytest.approx([0.33, 0.37], abs=0.06)
    assert bool(hide_patches(50, 2, 0.38).any(1).all())


# ---------------------------------------------------------------- through the fusion


def test_a_picture_helps_to_guess_hidden_words_only_where_it_is_fused() -> None:
    model, given = towers(), batch()
    objective = built(settings_of("fused_masked_language"), model)["fused_masked_language"]
    asked = {**given, "fused_ids": given["ids"], "fused_labels": given["ids"].where(given["ids"] > 12, IGNORED)}
    other = {**asked, "images": given["images"].roll(1, 0)}
    losses = [float(objective(model(each, frozenset({"fusion"})), each)["fused_masked_language"].detach()) for each in (asked, other)]
    assert abs(losses[0] - losses[1]) > 1e-4


def test_cross_modal_modelling_scores_hidden_places_only_and_hides_them() -> None:
    model, given = towers(), batch()
    objective = built(settings_of("masked_cross_modal"), model)["masked_cross_modal"]
    hidden_BP = torch.zeros(12, 16, dtype=torch.bool)
    hidden_BP[:, :4] = True  # the upper row
    asked = {**given, "hidden_words": given["ids"], "hidden_word_labels": torch.full_like(given["ids"], IGNORED), "hidden_patches": hidden_BP}
    out = model(asked, frozenset({"fusion"}))
    found = objective(out, asked)
    assert float(found["masked_cross_modal.words"].detach()) == 0.0  # none is hidden
    model.visual_tokens.centres_VS.copy_(model.visual_tokens.patches_of(given["images"])[0, :6])
    labels = model.visual_tokens.encode(given["images"])
    fused = model.fuse(model.fusion.begin_image(model.image, given["images"], hidden_BP, objective.mask_E), out.begun_BLE, given["ids"])
    by_hand = F.cross_entropy(objective.of_patches(fused.image_BPW[:, 1:5]).flatten(0, 1), labels[:, :4].flatten())
    torch.testing.assert_close(objective(out, asked)["masked_cross_modal.patches"], by_hand)
    noisy = {**asked, "images": given["images"].clone()}
    noisy["images"][:, :, :8] += torch.randn(12, 3, 8, 32, generator=torch.Generator().manual_seed(0))
    begun = [model.fusion.begin_image(model.image, each["images"], hidden_BP, objective.mask_E) for each in (asked, noisy)]
    torch.testing.assert_close(begun[0], begun[1])  # what is hidden is not seen


@pytest.mark.parametrize("kind", ["gated_fusion, blocks: 1", pytest.param("joint_fusion, width: 32, layers: 1, heads: 2", marks=pytest.mark.slow)])
@pytest.mark.flow
def test_a_fused_model_learns_to_tell_pairs_of_coloured_shapes(kind: str, tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shapes")
    (tmp_path / "run").mkdir()
    config = small(f"model.fusion={{kind: {kind}}}", "objectives.image_text_matching={}", "fit.epochs=40", "loader.cache_mb=50")
    train(settings(config, shards), tmp_path / "run", Told())
    model = TwoTower(config.model, fresh=False).eval()
    fill(model, read_weights(tmp_path / "run" / "final.safetensors"), "")
    right, wrong = _answers(model, config, ShardSamples(shards, "train"))
    assert float((right[:, None] > wrong[None]).float().mean()) > 0.6  # the AUC: 0.5 by chance, with a standard error of 0.025 for 256 pairs


@torch.no_grad()
def _answers(model: TwoTower, config: Any, samples: ShardSamples) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of belonging together, of pairs and of pictures with the sentence of another one."""
    transform, tokenize = pixels_of(config.model.image), BytePair(config.model.text.context_length)
    images, texts = _all(samples, transform)
    words = tokenize(texts)
    begun_BPE, begun_BLE = model.begin(images, words)
    other = torch.tensor([next(j for j in range(row + 1, row + len(texts)) if texts[j % len(texts)] != texts[row]) % len(texts) for row in range(len(texts))])
    found = []
    for rows in (torch.arange(len(texts)), other):
        logits = model.fusion.match_logits(model.fuse(begun_BPE, begun_BLE[rows], words[rows]).class_BW)
        found.append(logits[:, 1] - logits[:, 0])
    return found[0], found[1]


def _all(samples: ShardSamples, transform: Transform) -> tuple[torch.Tensor, list[str]]:
    rows = range(len(samples))
    pictures = [transform.eval_square(Image.open(io.BytesIO(samples.jpeg(row))).convert("RGB")) for row in rows]
    return transform.normalise(torch.stack(pictures)), [str(samples.record(row)["caption"]) for row in rows]
