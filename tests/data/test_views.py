"""Views and augmented texts: of the right shape, different each time, the same for the same sample."""

from random import Random

import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.view_config import Views
from vlm_core.data.shards.views import Beside, augment_text, eda, strong_view

PICTURE = torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TRANSFORM = Transform(32, crop_scale_min=0.9)


def test_a_view_depends_on_its_name_only() -> None:
    beside = Beside(Views(), TRANSFORM, 2, True)
    first, again, other = (beside.of(PICTURE, "a red ball on the grass", where)[0] for where in ("0/1/a", "0/1/a", "0/2/a"))
    assert [view.shape for view in first] == [(3, 32, 32)] * 2
    assert {view.dtype for view in first} == {torch.uint8}
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_shares_of_zero_leave_a_plain_crop_and_of_one_take_the_colour_away() -> None:
    still = Views(jitter_share=0, gray_share=0, blur_share=0, flip=False, crop_scale_min=0.9)
    assert torch.equal(strong_view(PICTURE, still, TRANSFORM, Random(3)), TRANSFORM.train_square(PICTURE, Random(3)))
    gray = strong_view(PICTURE, still.model_copy(update={"gray_share": 1.0}), TRANSFORM, Random(3))
    assert torch.equal(gray[0], gray[1])
    assert torch.equal(gray[0], gray[2])
    blurred = strong_view(PICTURE, still.model_copy(update={"blur_share": 1.0}), TRANSFORM, Random(3)).float()
    assert float(blurred.diff(dim=2).abs().mean()) < float(TRANSFORM.train_square(PICTURE, Random(3)).float().diff(dim=2).abs().mean())


def test_a_batch_stacks_views_by_number() -> None:
    beside = Beside(Views(), TRANSFORM, 2, True)
    parts = [beside.of(PICTURE, "one two three", f"0/0/{name}") for name in "abc"]
    batch = beside.batch(parts)
    assert [view.shape for view in batch["views"]] == [(3, 3, 32, 32)] * 2
    assert torch.equal(batch["views"][1][2], parts[2][0][1])
    assert batch["augmented_texts"] == [part[1] for part in parts]
    assert Beside(Views(), TRANSFORM, 0, True).batch([beside.of(PICTURE, "x", "y")]).keys() == {"augmented_texts"}


@given(st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 99))
def test_a_swap_keeps_all_words_and_a_deletion_leaves_at_least_one(words: list[str], count: int, seed: int) -> None:
    assert sorted(eda(words, "swap", count, Random(seed))) == sorted(words)
    left = eda(words, "delete", count, Random(seed))
    assert len(left) == max(len(words) - count, 1)
    kept = iter(words)
    assert all(word in kept for word in left), "the order of what is left stays"


def test_a_text_of_one_word_stays_and_a_longer_one_changes() -> None:
    assert augment_text("ball", Random(0)) == "ball"
    assert all(augment_text("one two three four", Random(seed)) != "one two three four" for seed in range(10))
