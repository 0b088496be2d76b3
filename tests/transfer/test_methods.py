"""Properties that the papers state, and limits in which one method is another."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from vlm_core.config import build
from vlm_core.errors import DataError, Incompatible
from vlm_core.evaluate import probe
from vlm_core.evaluate.probe import choose, linear_probe
from vlm_core.models import config as menu
from vlm_core.models import prompts, tokenizer
from vlm_core.models.clip_transformer import build as build_text
from vlm_core.recipes.transfer import linear_probe_full
from vlm_core.transfer import cache
from vlm_core.transfer.base import Support
from vlm_core.transfer.config import Coop, LinearProbe, TipAdapter, ZeroShot

TOWER = menu.ClipTransformer(context_length=20, width=32, layers=2, heads=2)
NAMES = ["red ball", "cat", "very_old tree house"]


@pytest.fixture(scope="module")
def support() -> Support:
    torch.manual_seed(0)
    tower = build_text(TOWER, width=16, activation="quick_gelu").eval().requires_grad_(False)
    tower.token_embedding.weight.data.normal_(std=0.5)
    labels = torch.arange(3).repeat(4)
    features = torch.randn(2, 12, 16)
    text = F.normalize(torch.randn(3, 16), dim=-1)
    return Support(
        features, labels, torch.randn(9, 16), torch.arange(3).repeat(3), text, text.flip(0), NAMES, scale=20.0, tower=tower, tokenize=tokenizer.build(TOWER)
    )


def test_tip_adapter_without_its_cache_is_zero_shot(support: Support) -> None:
    tip, plain = build(TipAdapter(alpha=0), support=support), build(ZeroShot(), support=support)
    torch.testing.assert_close(tip.logits(support.val_MD), plain.logits(support.val_MD))


def test_the_cache_gives_a_support_picture_its_own_label_when_it_is_sharp(support: Support) -> None:
    keys_DN, values_NC = cache.build_cache(support.views_VND[:1], support.labels_N, 3)
    votes_NC = cache.cache_logits(F.normalize(support.views_VND[0], dim=-1) @ keys_DN, values_NC, beta=200.0)
    assert torch.equal(votes_NC.argmax(dim=1), support.labels_N)
    torch.testing.assert_close(votes_NC.amax(dim=1), torch.ones(12), rtol=1e-3, atol=1e-3)


def test_the_search_keeps_the_first_of_equally_good_strengths() -> None:
    """Every strength is right on this validation set, so the first pair of the grid must win."""
    eye = torch.eye(2)
    found = cache.tip_search(eye, torch.tensor([0, 1]), eye, eye, eye, most=(3.1, 2.1), steps=(3, 4))
    assert found == (0.1, 0.1, 1.0)


def test_ensembled_templates_are_used_when_asked_for(support: Support) -> None:
    single, ensemble = (build(ZeroShot(templates=kind), support=support).logits(support.val_MD) for kind in ("single", "ensemble"))
    torch.testing.assert_close(ensemble, single.flip(1))


def test_an_ensemble_of_equal_prompts_is_that_prompt() -> None:
    rows = torch.randn(3, 8)
    torch.testing.assert_close(prompts.ensemble_text(rows.repeat_interleave(4, 0), [4, 4, 4]), F.normalize(rows, dim=-1))


@pytest.mark.parametrize("class_specific", [False, True])
def test_coop_starts_as_the_template_that_its_words_spell(support: Support, class_specific: bool) -> None:
    method = build(Coop(words="a photo of a", class_specific=class_specific), support=support)
    ids_CL = support.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])  # type: ignore[misc]
    with torch.no_grad():
        expected_CD = F.normalize(support.tower.from_embeddings(support.tower.embed(ids_CL), ids_CL), dim=-1)  # type: ignore[union-attr]
        torch.testing.assert_close(method.text(), expected_CD, rtol=1e-4, atol=1e-5)
    assert method.context.shape == ((3, 4, 32) if class_specific else (4, 32))


def test_a_class_specific_context_gets_its_gradient_from_its_own_class_only(support: Support) -> None:
    method = build(Coop(tokens=3, class_specific=True), support=support)
    method.text()[1].sum().backward()
    assert method.context.grad is not None
    assert method.context.grad[1].abs().sum() > 0
    assert method.context.grad[[0, 2]].abs().sum() == 0


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_the_name_stands_where_the_setting_says(support: Support, position: str) -> None:
    """The learnt words are marked by large numbers; what is left around them is the class name and the full stop."""
    slots = prompts.PromptSlots(NAMES, 4, support.tokenize, support.tower.embed)  # type: ignore[arg-type, union-attr]
    assert slots.name_lens == [2, 1, 4]
    mixed_CLE = prompts.assemble_prompts(slots.prefix_C1E, torch.full((4, 32), 99.0), slots.suffix_CXE, slots.name_lens, position)  # type: ignore[arg-type]
    marked = (mixed_CLE[2] == 99).all(dim=1).nonzero().flatten().tolist()
    assert marked == {"end": [1, 2, 3, 4], "middle": [1, 2, 7, 8], "front": [5, 6, 7, 8]}[position]


def test_more_words_than_the_text_tower_reads_are_refused(support: Support) -> None:
    with pytest.raises(Incompatible, match="lower"):
        build(Coop(tokens=16), support=support)


def test_coop_without_a_text_tower_says_what_to_give() -> None:
    bare = Support(torch.ones(1, 1, 2), torch.zeros(1, dtype=torch.long), torch.ones(1, 2), torch.zeros(1), torch.ones(1, 2), torch.ones(1, 2), ["a"])
    with pytest.raises(Incompatible, match="--in model=PATH"):
        build(Coop(), support=bare)


def test_a_probe_of_two_classes_scores_as_scikit_learn_does_and_never_says_the_third(support: Support) -> None:
    rows = support.labels_N < 2
    pair = Support(support.views_VND[:, rows], support.labels_N[rows], support.val_MD, support.val_labels_M, support.text_CD, support.text_CD, NAMES)
    method = build(LinearProbe(protocol="grid", grid=[1.0]), support=pair)
    method.tune(pair)
    x = np.concatenate([pair.views_VND[0].numpy(), pair.val_MD.numpy()]).astype(float)
    y = np.concatenate([pair.labels_N.numpy(), pair.val_labels_M.numpy()])
    official = linear_probe(x, y, 1.0)  # the grid protocol fits on training and validation data, where class 2 does occur
    assert np.array_equal(method.logits(pair.val_MD).argmax(dim=1).numpy(), official.predict(pair.val_MD.double().numpy()))
    method = build(LinearProbe(steps=1), support=pair)
    method.tune(pair)
    assert set(method.logits(pair.val_MD).argmax(dim=1).tolist()) <= {0, 1}


def test_the_stronger_penalty_wins_a_tie_on_validation_data() -> None:
    x, y = np.array([[-1.0], [1.0], [-1.1], [1.1]]), np.array([0, 1, 0, 1])
    assert choose(x, y, x, y, [0.1, 1.0, 10.0]).c == 0.1


def test_a_probe_without_validation_pictures_is_refused(support: Support) -> None:
    bare = Support(support.views_VND, support.labels_N, support.val_MD[:0], support.val_labels_M[:0], support.text_CD, support.text_CD, NAMES)
    with pytest.raises(DataError, match="no validation pictures"):
        build(LinearProbe(), support=bare).tune(bare)


def two_clouds(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and validation data of two overlapping classes in 30 dimensions, of which three tell."""
    random = np.random.default_rng(seed)
    y = random.integers(0, 2, 160)
    x = random.normal(size=(160, 30)) + np.where(np.arange(30) < 3, 0.7, 0.0) * (2 * y[:, None] - 1)
    return x[:60], y[:60], x[60:], y[60:]


def test_clips_search_fits_fifteen_strengths_and_ends_between_worse_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    data, fits = two_clouds(0), []
    monkeypatch.setattr(probe, "linear_probe", lambda x, y, c, most: fits.append((len(x), c)) or linear_probe(x, y, c, most))
    found = probe.sweep(*data)
    monkeypatch.undo()
    asked = [c for _, c in fits]
    assert len(asked) - 1 == len(set(asked)) <= 15
    assert fits[-1] == (160, found.c)  # all data, with the chosen strength
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= set(np.round(asked, 12))
    place = round(8 * np.log10(found.c))
    assert found.c == pytest.approx(10 ** (place / 8))

    def right(place: int) -> float:
        return probe.accuracy(probe.linear_probe(*data[:2], 10 ** (place / 8)), *data[2:])

    assert found.val_accuracy == right(place) >= max(right(coarse) for coarse in range(-48, 49, 16))
    assert found.val_accuracy > right(place - 1)  # a tie goes to the stronger penalty
    assert found.val_accuracy >= right(place + 1)


def test_the_full_recipe_is_clips_search_on_the_whole_split_and_says_which_strength_it_took() -> None:
    recipe = linear_probe_full()
    assert (recipe.shots, recipe.method.protocol, recipe.method.max_iter) == ([0], "clip", 1000)
    x, y, val_x, val_y = two_clouds(1)
    none = torch.ones(2, 30)
    data = Support(torch.from_numpy(x)[None], torch.from_numpy(y), torch.from_numpy(val_x), torch.from_numpy(val_y), none, none, ["a", "b"])
    method = build(recipe.method, support=data)
    method.tune(data)
    assert float(method.strength) == probe.sweep(x, y, val_x, val_y).c
