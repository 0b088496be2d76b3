"""In which order training reads: checked as numbers, without a picture; and several snapshots mixed by weight, with pictures."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.small_world import make_shards
from vlm_core.data.shards.augment import Transform
from vlm_core.data.config import Loader, Mixed, Shard
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.order import BLOCK, LanguageOrder, MixedOrder, Order, shares
from vlm_core.data.shards.samples import ShardSamples, training_samples
from vlm_core.data.shards.shards import read_index
from vlm_core.errors import CheckpointError, Incompatible, MissingInput, NothingLeft


def shard_of(n: int, size: int = 7) -> np.ndarray:
    return (np.arange(n) // size).astype(np.int32)


def stream(order: Order | MixedOrder | LanguageOrder, steps: int, begin: int = 0) -> list[tuple[int, int]]:
    return [pair for step in range(begin, begin + steps) for pair in zip(*(part.tolist() for part in order.part(step)), strict=True)]


@given(st.integers(20, 90), st.integers(20, 90), st.floats(0.2, 5), st.integers(2, 16), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_a_mixture_holds_its_weights_in_each_thousand_and_reads_each_snapshot_evenly(n: int, m: int, weight: float, batch: int, seed: int) -> None:
    order = MixedOrder([shard_of(n), shard_of(m)], [1.0, weight], batch, seed, 3)
    steps = -(-2 * BLOCK // batch)
    seen = stream(order, steps)[: 2 * BLOCK]
    for begin in (0, BLOCK):
        second = sum(row >= n for row, _ in seen[begin : begin + BLOCK])
        assert abs(second - BLOCK * weight / (1 + weight)) <= 1
    for first, size in ((0, n), (n, m)):
        mine = [(row, epoch) for row, epoch in seen if first <= row < first + size]
        for epoch in range(len(mine) // size):
            assert sorted(row - first for row, _ in mine[epoch * size : (epoch + 1) * size]) == list(range(size)), "every sample once before any comes twice"
            assert {number for _, number in mine[epoch * size : (epoch + 1) * size]} == {epoch}


@pytest.mark.parametrize("order", [Order(shard_of(50), 8, 3, 2), MixedOrder([shard_of(50), shard_of(20)], [1, 2], 8, 3, 2)])
def test_any_step_can_be_asked_for_first_and_says_the_same(order: Order | MixedOrder) -> None:
    straight = stream(order, 40)
    for step in (39, 0, 17, 18, 17):
        assert stream(order, 1, step) == straight[8 * step : 8 * (step + 1)]


def test_another_seed_is_another_mixture_and_the_same_seed_the_same() -> None:
    one, two, other = (MixedOrder([shard_of(50), shard_of(20)], [1, 2], 8, seed, 2) for seed in (3, 3, 4))
    assert stream(one, 20) == stream(two, 20) != stream(other, 20)


def test_shares_are_thousandths_by_largest_remainders() -> None:
    assert shares([1, 1, 1]).tolist() in ([334, 333, 333], [333, 334, 333], [333, 333, 334])
    assert shares([1, 3]).tolist() == [250, 750]
    with pytest.raises(Incompatible, match="expected each to be a thousandth of the whole at least"):
        shares([1, 0.0001])


# ---------------------------------------------------------------- with pictures


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of a mix's pictures are kept there."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """60 samples, and 90 that hold the same 60; another seed holds out others."""
    root = tmp_path_factory.mktemp("mixed")
    return make_shards(root / "a", 60)[0], make_shards(root / "b", 90, Shard(held_out=0.3, samples_per_shard=12, seed=5))[0]


def loader(two: tuple[Path, Path], weight: float = 3.0, rank: int = 0, world: int = 1, steps: int = 12) -> TrainLoader:
    config = Loader(batch_size=8, mix={"more": Mixed(shards=str(two[1]), weight=weight)})
    return TrainLoader(training_samples(two[0], config), config, Transform(16), seed=1, rank=rank, world=world, steps=steps)


def test_what_one_snapshot_holds_out_no_training_reads(two: tuple[Path, Path]) -> None:
    held_out = {uid for folder in two for uid in read_index(folder, "heldout")["uid"].to_pylist()}
    assert held_out & {uid for folder in two for uid in read_index(folder, "train")["uid"].to_pylist()}, "else this shows nothing"
    seen = Counter(uid for batch in loader(two, steps=60) for uid in batch["uids"])
    assert not held_out & seen.keys()


def test_a_mixture_gives_the_right_pictures_and_resumes_exactly_with_another_number_of_ranks(two: tuple[Path, Path]) -> None:
    straight = [(batch["uids"], batch["texts"], batch["images"].numpy().tobytes()) for batch in loader(two)]
    samples = loader(two).samples
    for uids, texts, _ in straight:
        for uid, text in zip(uids, texts, strict=True):
            assert text in {caption["text"] for caption in samples.record(samples.uids.index(uid))["captions"]}
    first = loader(two)
    for _ in zip(range(5), first, strict=False):
        pass
    rest = []
    for rank in (0, 1):
        part = loader(two, rank=rank, world=2)
        part.load_state_dict({**first.state_dict(), "step": 5})
        rest.append([(batch["uids"], batch["texts"]) for batch in part])
    assert [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*rest, strict=True)] == [(uids, texts) for uids, texts, _ in straight[5:]]
    assert len(rest[0]) == len(rest[1]) == 7, "every rank takes the same number of steps"


def test_a_checkpoint_of_another_mixture_is_refused(two: tuple[Path, Path]) -> None:
    with pytest.raises(CheckpointError, match="whose loader had data"):
        loader(two, weight=2.0).load_state_dict(loader(two).state_dict())


def test_a_snapshot_of_which_nothing_is_left_is_named(two: tuple[Path, Path], tmp_path: Path) -> None:
    held_out = set(read_index(two[0], "heldout")["uid"].to_pylist())
    config = Loader(mix={"more": Mixed(shards=str(tmp_path / "absent"))})
    with pytest.raises(MissingInput, match="Found no"):
        training_samples(two[0], config)
    with pytest.raises(NothingLeft, match="Found no sample in the 'train' split"):
        ShardSamples(two[0], "train", without=held_out | set(read_index(two[0], "train")["uid"].to_pylist()))


# ---------------------------------------------------------------- languages


LANGUAGES = ["en"] * 810 + ["ko"] * 80 + ["ja"] * 10  # to the power of 0.7: 108.63, 21.49, 5.01 of 135.13, so that shares are 804, 159 and 37 thousandths


def language_order(languages: list[str] = LANGUAGES, power: float = 0.7, seed: int = 3, batch: int = 50) -> LanguageOrder:
    return LanguageOrder(languages, power, shard_of(len(languages), 100), batch, seed, 2)


def test_languages_are_drawn_by_a_power_of_their_samples_each_evenly_in_epochs_of_its_own() -> None:
    order = language_order()
    seen = stream(order, 40)
    for begin in (0, BLOCK):
        assert Counter(LANGUAGES[row] for row, _ in seen[begin : begin + BLOCK]) == {"en": 804, "ko": 159, "ja": 37}
    for language, first, n in (("en", 0, 810), ("ko", 810, 80), ("ja", 890, 10)):
        mine = [(row, epoch) for row, epoch in seen if LANGUAGES[row] == language]
        assert [epoch for _, epoch in mine] == [place // n for place in range(len(mine))]
        assert sorted(row for row, _ in mine[:n]) == list(range(first, first + n)), "every sample once before any comes twice"
    assert order.steps_per_epoch == 18
    assert stream(order, 1, 33) == seen[33 * 50 : 34 * 50] == stream(language_order(), 1, 33), "any step says the same, however it is come to"
    assert stream(language_order(seed=4), 40) != seen


def test_power_one_leaves_languages_as_often_as_they_occur_and_rare_ones_are_one() -> None:
    assert Counter(LANGUAGES[row] for row, _ in stream(language_order(power=1.0), 20)) == {"en": 900, "ko": 89, "ja": 11}
    rare = ["en"] * 4000 + ["fi", "is", "mt"]  # a 4,003rd each
    seen = Counter(rare[row] for row, _ in stream(language_order(rare, 1.0), 60))
    assert seen["en"] == 3 * 998
    assert {name: seen[name] for name in ("fi", "is", "mt")} == {"fi": 2, "is": 2, "mt": 2}


def test_the_loader_draws_languages_of_its_records_says_what_it_drew_and_goes_on_from_a_checkpoint(two: tuple[Path, Path]) -> None:
    config = Loader(batch_size=8, language_power=0.5)
    samples = training_samples(two[1], config)
    language = [samples.record(row)["lang"] for row in range(len(samples))]
    wanted = {name: count**0.5 for name, count in Counter(language).items()}
    straight = TrainLoader(samples, config, Transform(16), seed=1, steps=125)  # a thousand samples
    rows = [straight.part_of(step)[0] for step in range(125)]
    counts = Counter(language[row] for part in rows for row in part.tolist())
    for name, weight in wanted.items():
        assert abs(counts[name] - 1000 * weight / sum(wanted.values())) < 1
    first = TrainLoader(samples, config, Transform(16), seed=1, steps=12)
    for _ in zip(range(5), first, strict=False):
        pass
    rest = TrainLoader(samples, config, Transform(16), seed=1, steps=12)
    rest.load_state_dict(first.state_dict())
    after = [batch["rows"].tolist() for batch in rest]
    assert after == [part.tolist() for part in rows[first.step : 12]]
    assert rest.mixture["languages"] == Counter(language[row] for part in rows[:12] for row in part.tolist())
    with pytest.raises(CheckpointError, match="whose loader had language_power 0.5, expected None"):
        TrainLoader(samples, Loader(batch_size=8), Transform(16), seed=1).load_state_dict(first.state_dict())


@pytest.mark.parametrize("other", [{"debiased": "source"}, {"mix": {"more": {"shards": "x"}}}])
def test_languages_by_weight_and_another_order_are_refused_together(other: dict) -> None:
    with pytest.raises(ValueError, match=f"Found language_power with {next(iter(other))}, expected one of them"):
        Loader.model_validate({"language_power": 0.7, **other})
