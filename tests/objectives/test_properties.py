"""What the papers' losses have in common and where they meet: limits, equalities, invariances, hand-computed values."""

import math
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.objectives.test_image_text_contrastive import kept_for_backward, pairs
from tests.objectives.world import batch, built, ids, settings_of, towers
from vlm_core.models.momentum import Momentum
from vlm_core.models.region_text import alignment_logits
from vlm_core.models.towers import Outputs, View
from vlm_core.models.vit_grouping import center_assign, center_pool
from vlm_core.objectives import optimal_transport as otter
from vlm_core.objectives.contrast import both_ways, over_pairs, softened
from vlm_core.objectives.gather import Pairs
from vlm_core.objectives.heads import MaskedHead, masked_prediction_loss
from vlm_core.objectives.image_contrastive import image_contrastive_loss
from vlm_core.objectives.image_text_label import own_labels, unicl_loss
from vlm_core.objectives.image_text_matching import build_itm_batch, draw_negatives, hard_negative_weights, same_pairs
from vlm_core.objectives.masked_autoencoder import patchify, random_masking, sine_positions, unpatchify
from vlm_core.objectives.masks import block_mask
from vlm_core.objectives.mixup import mixup_infonce
from vlm_core.objectives.multi_view import multi_view_loss
from vlm_core.objectives.patch_grouping import superpixel_kl
from vlm_core.objectives.queue import Queue, push
from vlm_core.objectives.regions import token_sigmoid_focal_loss
from vlm_core.objectives.soft_target import soft_infonce
from vlm_core.objectives.token_wise import filip_loss, token_similarity


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


def one_process(image: Tensor, text: Tensor) -> Pairs:
    return Pairs(image, text, image, text, 0)


# ---------------------------------------------------------------- limits in which one loss is another


def test_every_softened_or_mixed_loss_is_clip_where_nothing_is_soft_or_mixed() -> None:
    image, text, scale = pairs(9)
    clip = both_ways(one_process(image, text), scale)
    unique = own_labels(torch.zeros(9, dtype=torch.long))
    near(soft_infonce(image, text, scale, 0.0), clip)
    near(mixup_infonce(one_process(image, text), 1.0, scale), clip)
    near(unicl_loss(one_process(image, text), scale, unique, unique), clip)
    near(filip_loss(image[:, None], text[:, None], scale), clip)
    near(multi_view_loss([image, image], [text, text], scale), clip)
    near(over_pairs((image, text), (image, text), scale=scale, alpha=0.0), clip)


def test_smoothing_targets_is_the_formula_of_the_paper() -> None:
    image, text, scale = pairs(5)
    log = (scale * image @ text.T).log_softmax(1), (scale * text @ image.T).log_softmax(1)
    target = torch.full((5, 5), 0.2 / 4, dtype=torch.float64).fill_diagonal_(0.8)
    near(softened(one_process(image, text), scale, 0.2), -((target * log[0]).sum() + (target * log[1]).sum()) / 10)


def test_nothing_is_lost_at_perfect_alignment_and_a_high_scale() -> None:
    image = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    scale, labels = torch.tensor(100.0, dtype=torch.float64), own_labels(torch.zeros(16, dtype=torch.long))
    losses = [
        unicl_loss(one_process(image, image), scale, labels, labels), filip_loss(image[:, None], image[:, None], scale),
        image_contrastive_loss(image, image, 0.01), soft_infonce(image, image, scale, 0.0),
    ]  # fmt: skip
    assert max(float(loss) for loss in losses) < 1e-3


def test_glip_without_bias_and_with_an_identity_projection_is_a_scaled_dot_product() -> None:
    regions, words = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 3, 4, dtype=torch.float64)
    nothing, log_scale = torch.zeros(4, dtype=torch.float64), torch.tensor([math.log(0.5)], dtype=torch.float64)
    got = alignment_logits(regions, words, torch.eye(4, dtype=torch.float64), nothing, nothing, torch.zeros(1, dtype=torch.float64), log_scale)
    near(got, regions @ F.normalize(words, dim=-1).transpose(1, 2))  # half the length, divided by a half


def test_a_focal_loss_without_focus_is_half_the_binary_cross_entropy_of_real_words() -> None:
    logits, targets = torch.tensor([[[1.0, -2.0, 7.0]]]), torch.tensor([[[1.0, 0.0, 0.0]]])
    expected = 0.5 * (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2)))
    assert float(token_sigmoid_focal_loss(logits, targets, torch.tensor([[1, 1, 0]]), 0.5, 0.0)) == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- single losses


def test_two_views_of_two_pictures_give_the_value_computed_by_hand() -> None:
    one, two = torch.eye(2, dtype=torch.float64), torch.tensor([[0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    # temperature 1; logits of (other view, other picture of the same view): first view (.6 | 0, 0), (1 | .8, 0); second view (.6 | .8, .8), (1 | 0, .8)
    rows = [(0.6, 0.0, 0.0), (1.0, 0.8, 0.0), (0.6, 0.8, 0.8), (1.0, 0.0, 0.8)]
    expected = sum(math.log(sum(math.exp(x) for x in row)) - row[0] for row in rows) / 4
    assert float(image_contrastive_loss(one, two, 1.0)) == pytest.approx(expected, rel=1e-12)


def test_padding_changes_nothing_token_by_token() -> None:
    random = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(4, 3, 6, dtype=torch.float64, generator=random), dim=-1) for _ in range(2))
    real = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]]).bool()
    noisy = torch.where(real[..., None], text, 9 * torch.ones_like(text))
    near(filip_loss(image, noisy, torch.tensor(5.0), real), filip_loss(image, text, torch.tensor(5.0), real))
    longer = torch.cat([text, torch.randn(4, 2, 6, dtype=torch.float64, generator=random)], 1), F.pad(real, (0, 2))
    near(filip_loss(image, longer[0], torch.tensor(5.0), longer[1]), filip_loss(image, text, torch.tensor(5.0), real))
    by_hand = sum(max(float(image[1, p] @ text[0, w]) for w in range(2)) for p in range(3)) / 3
    assert float(token_similarity(image, text, None, real)[1, 0]) == pytest.approx(by_hand, rel=1e-12)


def test_a_text_of_padding_only_divides_nothing_by_zero() -> None:
    image, text = torch.ones(2, 3, 4) / 2, torch.ones(2, 3, 4) / 2
    real = torch.tensor([[True, True, True], [False, False, False]])
    assert bool(token_similarity(image, text, None, real).isfinite().all())
    assert token_similarity(text, image, real)[1].tolist() == [0.0, 0.0]


def test_pairs_of_one_class_do_not_push_each_other_away() -> None:
    image, text, scale = pairs(4)
    with torch.no_grad():
        text[1] = text[0]
        image[1] = image[0]
    labels = torch.tensor([5, 5, -1, -2])
    soft = unicl_loss(one_process(image, text), scale, labels, labels)
    apart = unicl_loss(one_process(image, text), scale, torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 4]))
    near(soft, apart)  # equal columns have equal probabilities: the mean of their logarithms is that of each
    near(torch.autograd.grad(soft, image)[0][2:], torch.autograd.grad(apart, image)[0][2:])


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 9), st.integers(1, 60), st.floats(0.02, 1.0), st.integers(0, 4))
def test_a_transport_plan_sums_alike_over_columns_and_tends_to_over_rows(count: int, iterations: int, epsilon: float, chunk: int) -> None:
    random = torch.Generator().manual_seed(count)
    image, text = (F.normalize(torch.randn(count, 6, dtype=torch.float64, generator=random), dim=-1) for _ in range(2))
    taught = otter.Taught(image, text)
    plans = otter.sinkhorn(lambda begin, end: taught.similarity(begin, end) / epsilon, count, iterations, chunk)
    for plan, flip in zip(plans, (False, True), strict=True):
        mass = (taught.similarity(0, count, flip) / epsilon + plan.rows_N[:, None] + plan.columns_N).exp() / count
        assert bool(mass.isfinite().all())
        torch.testing.assert_close(mass.sum(0), torch.full((count,), 1 / count, dtype=torch.float64), rtol=1e-9, atol=0)
        assert float(mass.sum()) == pytest.approx(1.0, rel=1e-9)


def test_the_transport_parts_scale_has_a_gradient_beyond_its_bound_and_comes_back() -> None:
    model, given = towers(), batch()
    objective = built(settings_of("optimal_transport"), model)["optimal_transport"]
    with torch.no_grad():
        objective.log_scale.fill_(5.0)
    (grad,) = torch.autograd.grad(objective(model(given), given)["optimal_transport.transport"], objective.log_scale)
    assert abs(float(grad)) > 1e-3
    objective.clamp_scale()
    assert float(objective.log_scale.detach()) == pytest.approx(math.log(100))
    assert float(objective.scales()["optimal_transport"]) == pytest.approx(100.0)


def test_two_captions_cost_the_mean_of_clips_losses_and_levels_meet_their_own_level() -> None:
    image, text, scale = pairs(5)
    second, local = (F.normalize(torch.randn(5, image.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in (3, 4))
    out = Outputs(image, text, scale, None, caption_BD=second, views=(View(local, local),))

    def soft(one: Tensor, other: Tensor, alpha: float) -> Tensor:
        target = torch.full((5, 5), alpha / 4, dtype=torch.float64).fill_diagonal_(1 - alpha)
        return -((target * (scale * one @ other.T).log_softmax(1)).sum() + (target * (scale * other @ one.T).log_softmax(1)).sum()) / 10

    model = towers()
    found = built(settings_of("multi_text"), model)["multi_text"](out, {})
    near(found["multi_text"], (soft(image, text, 0.0) + soft(image, second, 0.0)) / 2)
    found = built(settings_of("hierarchical", alpha=0.3), model)["hierarchical"](out, {})
    near(found["hierarchical"], (soft(image, second, 0.3) + soft(local, text, 0.3)) / 2)  # the whole with the summary, the crop with the original

    regions, names = (
        F.normalize(torch.randn(5, image.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=-1) for seed in (5, 6)
    )
    across = built(settings_of("cross_level", alpha=0.3, regions=0.4), model)["cross_level"]
    found = across(out._replace(regions_BD=regions, attributes_BD=names), {})
    near(found["cross_level.regions"], (soft(regions, second, 0.3) + soft(regions, text, 0.3)) / 2)
    near(found["cross_level.names"], (soft(image, names, 0.3) + soft(local, names, 0.3)) / 2)
    assert [across.factor(name) for name in found] == pytest.approx([0.4, 0.6])

    crops = out._replace(views=(View(local, local), View(regions, regions)))
    found = built(settings_of("multi_crop"), model)["multi_crop"](crops, {})
    near(found["multi_crop"], (soft(image, text, 0.0) + soft(local, text, 0.0) + soft(regions, text, 0.0)) / 3)


# ---------------------------------------------------------------- masks


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_block_mask_hides_some_and_at_most_what_it_may(seed: int) -> None:
    hidden = block_mask(14, 75, Random(seed))
    assert 1 <= int(hidden.sum()) <= 75
    assert np.array_equal(hidden, block_mask(14, 75, Random(seed)))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.integers(4, 50), st.sampled_from([0.25, 0.5, 0.75]))
def test_random_masking_keeps_a_fixed_number_and_can_be_undone(batch_size: int, count: int, share: float) -> None:
    noise = torch.rand(batch_size, count, generator=torch.Generator().manual_seed(count))
    seen, removed, restore = random_masking(noise, share)
    assert seen.shape == (batch_size, int(count * (1 - share)))
    assert removed.sum(1).tolist() == [count - int(count * (1 - share))] * batch_size
    order = torch.cat([seen, torch.full((batch_size, count - seen.shape[1]), -1)], dim=1).gather(1, restore)
    assert torch.equal(order == -1, removed.bool())
    assert torch.equal(order[order != -1], torch.arange(count).repeat(batch_size)[order.flatten() != -1])


def test_patches_come_back_to_the_picture_and_each_position_is_its_own() -> None:
    picture = torch.randn(2, 3, 16, 16)
    assert torch.equal(unpatchify(patchify(picture, 4), 4), picture)
    positions = sine_positions(4, 16)
    assert float(torch.cdist(positions, positions).fill_diagonal_(9).min()) > 0.1


def test_a_text_with_nothing_hidden_costs_nothing() -> None:
    states = torch.randn(2, 3, 4, requires_grad=True)
    loss = masked_prediction_loss(states, torch.full((2, 3), -100), MaskedHead(4, 7))
    assert float(loss.detach()) == 0.0
    assert float(torch.autograd.grad(loss, states)[0].abs().sum()) == 0.0


# ---------------------------------------------------------------- queues, slow copies, negatives, centres


def test_a_queue_goes_on_at_the_front_or_drops_the_rest() -> None:
    queue, rows = torch.zeros(5, 1), torch.tensor([[1.0], [2.0], [3.0]])
    wrapped, at = push(queue, 3, rows)
    assert (wrapped.flatten().tolist(), at) == ([3.0, 0.0, 0.0, 1.0, 2.0], 1)
    dropped, at = push(queue, 3, rows, wrap=False)
    assert (dropped.flatten().tolist(), at) == ([0.0, 0.0, 0.0, 1.0, 2.0], 0)
    own = Queue(4, 1)
    for value in range(6):
        own.push(torch.full((1, 1), float(value)))
    assert own.rows_KD.flatten().tolist() == [4.0, 5.0, 2.0, 3.0]
    assert float(own.at) == 2


def test_a_slow_copy_follows_its_module_and_has_no_parameter() -> None:
    fast = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    slow = Momentum(fast)
    with torch.no_grad():
        fast[0].weight.fill_(1.0)
    before = slow.get_buffer("0/weight").clone()
    slow.update(0.75)
    near(slow.get_buffer("0/weight"), 0.75 * before + 0.25)
    assert not list(slow.parameters())
    fast.eval()
    assert slow(torch.ones(1, 2)).grad_fn is None
    torch.testing.assert_close(slow(torch.ones(1, 2)), slow.get_buffer("0/weight").sum()[None, None] / math.sqrt(1 + 1e-5))


def test_hard_negatives_are_never_the_own_pair_nor_an_equal_text() -> None:
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    weights = hard_negative_weights(torch.tensor([[9.0, 8.0, 1.0], [3.0, 9.0, 2.0], [1.0, 2.0, 9.0]]), 3, same)
    assert (weights[0] > 0).tolist() == [False, False, True]
    assert float(weights[2, 1] / weights[2, 0]) == pytest.approx(math.e, rel=1e-5)
    pictures, texts, labels = build_itm_batch(torch.tensor([1, 0]), torch.tensor([1, 0]))
    assert (pictures.tolist(), texts.tolist(), labels.tolist()) == ([0, 1, 0, 1, 1, 0], [0, 1, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0])


def test_a_pair_with_the_same_words_or_the_same_picture_is_no_negative_at_any_scale() -> None:
    words = ids([[5, 6], [5, 7], [5, 6], [8]])
    forbidden = same_pairs(words, torch.tensor([1, 2, 3, 2]))
    assert forbidden.tolist() == [[True, False, True, False], [False, True, False, True], [True, False, True, False], [False, True, False, True]]
    alike = torch.tensor([[0.9, 0.1, 0.9, 0.2], [0.0, 1.0, 0.3, 1.0], [1.0, 0.0, 1.0, 0.5], [0.1, 0.9, 0.1, 1.0]])
    torch.manual_seed(0)
    for scale in (1.0, 100.0, 1e6):  # at the last the softmax gives all that may be drawn the chance 0
        drawn = torch.stack([draw_negatives(scale * alike, forbidden) for _ in range(200)])
        assert not bool(forbidden.gather(1, drawn.T).any())
    assert (drawn[:, 0] == 1).float().mean() == pytest.approx(0.5, abs=4 * 0.5 / 200**0.5)
    hardest = torch.stack([draw_negatives(torch.tensor([[9.0, 1.0, 3.0]] * 3), torch.eye(3, dtype=torch.bool)) for _ in range(4_000)])[:, 0]
    share = math.exp(3) / (math.exp(3) + math.exp(1))
    assert float((hardest == 2).float().mean()) == pytest.approx(share, abs=4 * (share * (1 - share) / 4_000) ** 0.5)


def test_a_pair_without_a_possible_negative_counts_as_a_pair_only() -> None:
    assert draw_negatives(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)).tolist() == [-100]
    some = draw_negatives(torch.ones(3, 3), torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 1]]).bool())
    assert some.tolist() == [-100, 2, 1]
    pictures, texts, labels = build_itm_batch(some, some)
    assert (pictures.tolist(), texts.tolist()) == ([0, 1, 2, 0, 1, 2, 0, 2, 1], [0, 1, 2, 0, 2, 1, 0, 1, 2])
    assert labels.tolist() == [1, 1, 1, -100, 0, 0, -100, 0, 0]
    model, given = towers(), batch()
    objective = built(settings_of("image_text_matching"), model)["image_text_matching"]
    one = {**given, **{name: given[name][:1] for name in ("images", "ids", "picture_ids")}}
    fused = model.fuse(*model.begin(one["images"], one["ids"]), one["ids"])
    expected = F.cross_entropy(model.fusion.match_logits(fused.class_BW), torch.tensor([1]))
    torch.testing.assert_close(objective(model(one, frozenset({"fusion"})), one)["image_text_matching"], expected)


def test_patches_of_equal_assignment_cost_nothing_and_an_empty_centre_gives_zero() -> None:
    scores = torch.zeros(1, 3, 4)
    scores[:, 1] = 5.0
    hard = center_assign(scores)
    assert hard.sum(-1).tolist() == [[0.0, 4.0, 0.0]]
    pooled = center_pool(hard, torch.arange(4.0).view(1, 4, 1))
    assert pooled.flatten().tolist() == [0.0, 1.5, 0.0]
    assert float(superpixel_kl(hard.transpose(1, 2), torch.tensor([[0, 0, 1, 1]]))) == pytest.approx(0.0, abs=1e-9)


# ---------------------------------------------------------------- memory, and what the towers make


def test_no_chunked_loss_keeps_a_square_of_the_batch() -> None:
    image, text, scale = pairs(2048, 16, dtype=torch.float32)
    labels, square, all_pairs = torch.arange(2048), 2048 * 2048 * 4, one_process(image, text)
    with torch.no_grad():
        taught = otter.Taught(image.clone(), text.clone())
    losses = {
        "soft": lambda size: softened(all_pairs, scale, 0.2, chunk_size=size), "label": lambda size: unicl_loss(all_pairs, scale, labels, labels, chunk_size=size),
        "mixup": lambda size: mixup_infonce(all_pairs, 0.7, scale, chunk_size=size), "views": lambda size: image_contrastive_loss(image, text, 0.1, chunk_size=size),
        "tokens": lambda size: filip_loss(image[:, None], text[:, None], scale, chunk_size=size),
        "transport": lambda size: torch.stack(otter.otter_loss(all_pairs, taught, scale, scale, iterations=1, chunk_size=size)).sum(),
    }  # fmt: skip
    for name, loss in losses.items():
        assert kept_for_backward(lambda loss=loss: loss(0), image, text, scale) > square, name
        assert kept_for_backward(lambda loss=loss: loss(128), image, text, scale) < square / 8, name


def test_towers_make_only_what_is_asked_for_and_plain_clip_pays_for_nothing() -> None:
    model, given = towers().eval(), {name: value for name, value in batch().items() if name != "caption_ids"}
    calls: list[str] = []
    for name in ("image", "text"):
        getattr(model, name).transformer.register_forward_hook(lambda *_, name=name: calls.append(name))
    plain = model(given)
    assert calls == ["image", "text"]
    assert [getattr(plain, name) for name in ("augmented_BD", "patches_BPD", "tokens_BLD", "patches_BPE", "tokens_BLE", "seen_BVE", "masked_BLE")] == [None] * 7
    assert plain.views == ()
    calls.clear()
    dense = model(given, frozenset({"dense", "second_view"}))
    assert calls == ["image", "text", "image"]
    torch.testing.assert_close(dense.image_BD, plain.image_BD)
    torch.testing.assert_close(dense.text_BD, plain.text_BD)
    assert dense.patches_BPD.shape == (12, 16, 8)
    end = given["ids"].argmax(1)
    torch.testing.assert_close(dense.tokens_BLD[torch.arange(12), end], plain.text_BD)


def test_a_tower_that_sees_all_patches_sees_what_it_always_sees() -> None:
    model, images = towers().eval(), batch()["images"]
    whole = model.image.tokens(images)
    torch.testing.assert_close(model.image.tokens(images, seen_BV=torch.arange(16).expand(12, -1)), whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.image.tokens(images, hidden_BP=torch.zeros(12, 16, dtype=torch.bool), mask_E=torch.zeros(16)), whole, rtol=1e-4, atol=1e-5)
    hidden = torch.zeros(12, 16, dtype=torch.bool)
    hidden[:, 3] = True
    noisy = images.clone()
    noisy[:, :, 0:8, 24:32] = 7.0  # the fourth patch
    seen = [model.image.tokens(one, hidden_BP=hidden, mask_E=torch.ones(16)) for one in (images, noisy)]
    torch.testing.assert_close(seen[0], seen[1])
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))[:5]
    assert model.image.tokens(images, seen_BV=order.expand(12, -1)).shape == (12, 6, 16)
