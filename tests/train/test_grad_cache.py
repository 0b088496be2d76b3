"""A batch in parts: cached gradients are those of the whole batch, accumulated ones the mean over the parts."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.objectives.world import SMALL, batch, built, towers
from vlm_core.errors import Incompatible
from vlm_core.models.towers import Outputs, TwoTower
from vlm_core.objectives import base
from vlm_core.objectives import config as menu
from vlm_core.train.body import Body
from vlm_core.train.config import Fit, Optim
from vlm_core.train.fit import Loop
from vlm_core.train.grad_cache import accumulated_step, cached_step, part, parts, refuse_batch_norm, whole_step

PAIRS = 6
COMPOSED: dict[str, dict[str, Any]] = {
    "clip": {"image_text_contrastive": {}},
    "siglip in chunks": {"sigmoid": {"chunk_size": 4, "weight": 2.0}},
    "declip": {"multi_view": {}, "nearest_neighbour": SMALL["nearest_neighbour"], "simsiam": SMALL["simsiam"], "masked_language": {}},
    "slip and moco": {"image_text_contrastive": {}, "image_contrastive": SMALL["image_contrastive"], "moco": SMALL["moco"]},
    "otter": {"optimal_transport": {}},
    "filip and mae": {"token_wise": {"top_k": 3}, "masked_autoencoder": SMALL["masked_autoencoder"]},
    "alip": {"weighted_captions": {}},
    "pyramidclip": {"hierarchical": {"weight": 0.3}, "cross_level": {"weight": 0.7, "regions": 0.4}},
    "kelip": {"multi_crop": {}},
    "zerovl": {"mixup": {}},
    "unicl": {"image_text_label": {}},
    "coca": {"captioning": {"chunk_size": 2}, "image_text_contrastive": {}},
    "pali": {"prefix_generation": {"chunk_size": 4}},
    "ra-clip": {"retrieval_augmented": {}},
    "fiber's queue": {"queued_contrastive": SMALL["queued_contrastive"]},
}


def body_of(chosen: dict[str, Any], dropout: bool) -> Body:
    """In float64; with dropout, patches and text states are dropped, too."""
    model: TwoTower = towers(**({"image.patch_dropout": 0.5} if dropout and "masked_autoencoder" not in chosen else {})).double()
    if dropout:
        model.text.ln_final = nn.Sequential(model.text.ln_final, nn.Dropout(0.3))
    settings = menu.Objectives.read(chosen)
    weights = {kind: objective.weight for kind, objective in settings.chosen().items()}
    return Body(model, dict(built(settings, model).items()), weights, settings.needs).train()  # type: ignore[arg-type]


def gradients(body: Body, step: Any) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """(loss, gradients, buffers) after a step as the loop makes it."""
    torch.manual_seed(7)
    left, total, _ = step(body)
    left.backward()
    grads = {name: value.grad.clone() for name, value in body.named_parameters() if value.grad is not None}
    return float(total), grads, {name: value.clone() for name, value in body.named_buffers()}


def parts_kept(body: Body, given: dict[str, Any], size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What the cache must equal: every part with gradient at once, their features joined, one loss."""
    given = body.ask(given)
    outs = [body.towers(part(given, rows, PAIRS), body.needs) for rows in parts(PAIRS, size)]

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], Tensor) and values[0].ndim:
            return torch.cat(values)
        if isinstance(values[0], tuple):
            inner = [join(list(each)) for each in zip(*values, strict=True)]
            return type(values[0])(*inner) if hasattr(values[0], "_fields") else tuple(inner)
        return values[0]

    joined: Outputs = join(outs)
    total, terms = body.judge(joined, given)
    return total, total.detach(), terms


def assert_same(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-10)
    assert found[1].keys() == expected[1].keys()
    for group in (1, 2):
        for name, value in expected[group].items():
            torch.testing.assert_close(found[group][name], value, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("size", [1, 2, 4, 5, 6])
@pytest.mark.parametrize("name", COMPOSED)
def test_cached_gradients_equal_those_of_the_whole_batch(name: str, size: int) -> None:
    given = batch(PAIRS, torch.float64)
    expected = gradients(body_of(COMPOSED[name], False), lambda body: whole_step(body, given))
    assert_same(gradients(body_of(COMPOSED[name], False), lambda body: cached_step(body, given, size)), expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("name", ["clip", "declip", "slip and moco", "filip and mae", "pali"])
def test_under_dropout_and_patch_dropout_every_part_is_dropped_the_same_again(name: str, size: int) -> None:
    given = batch(PAIRS, torch.float64)
    expected = gradients(body_of(COMPOSED[name], True), lambda body: parts_kept(body, given, size))
    assert_same(gradients(body_of(COMPOSED[name], True), lambda body: cached_step(body, given, size)), expected)
    other = gradients(body_of(COMPOSED[name], True), lambda body: (torch.manual_seed(8), cached_step(body, given, size))[1])
    assert other[0] != pytest.approx(expected[0], rel=1e-6)  # the noise matters


@pytest.mark.parametrize(("kind", "name"), [("captioning", "decoder"), ("prefix_generation", "text.transformer")])
def test_no_more_captions_are_written_at_a_time_than_the_towers_see(kind: str, name: str) -> None:
    body, seen = body_of({kind: {"chunk_size": 2}}, False), list[int]()
    body.towers.get_submodule(name).register_forward_hook(lambda _, given, made: seen.append(len(made)))
    cached_step(body, batch(PAIRS, torch.float64), 2)[0].backward()
    assert len(seen) >= 6
    assert max(seen) == 2


def test_accumulated_gradients_are_the_mean_over_parts_weighted_by_their_pairs() -> None:
    given, chosen = batch(PAIRS, torch.float64), {"image_text_contrastive": {}}
    found = gradients(body_of(chosen, False), lambda body: accumulated_step(body, given, 4))
    one, two = (gradients(body_of(chosen, False), lambda body, rows=rows: whole_step(body, part(given, rows, PAIRS))) for rows in (slice(0, 4), slice(4, 6)))
    assert found[0] == pytest.approx((4 * one[0] + 2 * two[0]) / 6, rel=1e-12)
    for name, value in found[1].items():
        torch.testing.assert_close(value, (4 * one[1][name] + 2 * two[1][name]) / 6, rtol=1e-9, atol=1e-12)


def test_a_batch_is_cut_by_pairs_and_what_has_no_row_per_pair_stays() -> None:
    token = nn.Parameter(torch.zeros(4))
    given = {"images": torch.arange(4), "views": [torch.arange(4), torch.arange(4) + 4], "texts": list("abcd"), "masked": {"mask": token, "seen": torch.arange(4)},
             "mixed": (True, 0.5), "step": 3}  # fmt: skip
    cut = part(given, slice(1, 3), 4)
    assert cut["images"].tolist() == [1, 2]
    assert [view.tolist() for view in cut["views"]] == [[1, 2], [5, 6]]
    assert cut["texts"] == ["b", "c"]
    assert cut["masked"]["mask"] is token
    assert cut["masked"]["seen"].tolist() == [1, 2]
    assert (cut["mixed"], cut["step"]) == ((True, 0.5), 3)


def test_batch_norm_in_a_tower_is_refused_with_the_reason() -> None:
    model = towers()
    refuse_batch_norm(model)
    model.image.bn = nn.BatchNorm2d(3)
    with pytest.raises(Incompatible, match=r"Found fit.micro_batch with batch norm in the tower \(image.bn\), expected towers without it"):
        refuse_batch_norm(model)
    refuse_batch_norm(model.eval())


@pytest.mark.parametrize("gradients", ["cached", "accumulated"])
def test_operations_of_a_step_in_parts_are_three_times_those_of_forward_and_counting_leaves_no_trace(gradients: str) -> None:
    settings = menu.Objectives.read({"image_text_contrastive": {}, "moco": SMALL["moco"]})
    model = towers()
    body, given = Body(model, *base.build(settings, model), settings.needs), batch()
    whole, parts = (Loop(body, Optim(), Fit.read({"micro_batch": size, "gradients": gradients}), 10) for size in (None, PAIRS // 2))
    before, state = {name: value.clone() for name, value in body.state_dict().items()}, torch.get_rng_state()
    found = [whole.flops_of(given), parts.flops_of(given)]
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in before.items())
    assert torch.equal(state, torch.get_rng_state())
    with FlopCounterMode(display=False) as forward:
        body(given)
    assert found[0] == 3 * forward.get_total_flops()
    # equal but for the products of all with all, which are small: N x N / 2 in the place of N x N
    assert 0.97 < found[1] / found[0] <= 1
