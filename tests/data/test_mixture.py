"""Which caption is read when: weights by origin and language, a schedule over epochs, scores under a temperature, and the same answer everywhere."""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data.small_world import make_shards
from vlm_core.data.shards.augment import Transform
from vlm_core.data.config import Loader, Shard
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.mixture import choose_caption, odds, read_caption, read_two, weights_at
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.errors import ConfigError

CAPTIONS = [
    {"text": "the raw one", "origin": "alt", "lang": "en", "score": 0.2}, {"text": "a new one", "origin": "rewritten", "lang": "en", "score": 0.3},
    {"text": "빨간 공", "origin": "alt", "lang": "ko", "score": None}, {"text": "one that was seen", "origin": "synthetic", "lang": "en", "score": 0.4},
]  # fmt: skip


def shares(config: Loader, epoch: int = 0, n: int = 4_000, captions: Any = CAPTIONS) -> dict[str, float]:
    seen = Counter(read_caption({"uid": f"u{k}", "captions": captions}, config, 0, epoch)[0] for k in range(n))
    return {caption["text"]: seen[caption["text"]] / n for caption in captions}


def test_a_language_of_an_origin_may_weigh_other_than_its_origin() -> None:
    assert odds(CAPTIONS, {"alt": 2.0, "alt:ko": 0.5, "synthetic": 0.0}) == [2.0, 1.0, 0.5, 0.0]
    assert odds([{"origin": "alt", "lang": "ko-KR"}, {"origin": "alt", "lang": None}], {"alt:ko": 3.0}) == [3.0, 1.0]
    found = shares(Loader(caption_weights={"alt": 2.0, "alt:ko": 0.5, "synthetic": 0.0}))
    assert list(found.values()) == pytest.approx([2 / 3.5, 1 / 3.5, 0.5 / 3.5, 0], abs=4 * 0.008)


def test_the_schedule_moves_linearly_and_then_stands() -> None:
    config = Loader.read({"caption_weights": {"synthetic": 0.0}, "caption_schedule": {"weights": {"alt": 0.0, "synthetic": 4.0}, "begin": 2, "epochs": 4}})
    at = [weights_at(config, epoch) for epoch in (0, 2, 3, 4, 6, 60)]
    assert [weights["synthetic"] for weights in at] == [0.0, 0.0, 1.0, 2.0, 4.0, 4.0]
    assert [weights["alt"] for weights in at] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert weights_at(Loader(caption_weights={"alt": 3.0}), 9) == {"alt": 3.0}
    early, late = shares(config, 0), shares(config, 6)
    assert early["one that was seen"] == 0
    assert late["the raw one"] == 0
    assert late["one that was seen"] == pytest.approx(4 / 5, abs=4 * 0.007)


def test_a_temperature_prefers_captions_that_fit_the_picture_better() -> None:
    expected = [math.exp((score - 0.4) / 0.1) for score in (0.2, 0.3, 0.3, 0.4)]  # the unscored one counts as an average one
    assert odds(CAPTIONS, {}, 0.1) == pytest.approx(expected)
    found = shares(Loader(caption_temperature=0.1))
    assert list(found.values()) == pytest.approx([value / sum(expected) for value in expected], abs=4 * 0.008)
    assert odds(CAPTIONS, {}, 1e9) == pytest.approx([1, 1, 1, 1])
    assert max(shares(Loader(caption_temperature=1e-4)).items(), key=lambda item: item[1]) == ("one that was seen", 1.0)


def test_the_worst_cases_have_an_answer() -> None:
    alone = [{"text": "dog", "origin": "alt", "lang": "en", "score": None}]
    for config in (Loader(), Loader(caption_weights={"alt": 0.0}), Loader(caption_temperature=1e-6), Loader(caption_schedule={"weights": {"alt": 0.0}})):
        assert shares(config, 3, 10, alone) == {"dog": 1.0}
    unscored = [{**caption, "score": None} for caption in CAPTIONS]
    assert odds(unscored, {"alt": 2.0}, 0.01) == [2.0, 1.0, 2.0, 1.0]


def test_the_choice_is_a_function_of_uid_epoch_and_seed() -> None:
    config = Loader(caption_temperature=0.2, caption_schedule={"weights": {"synthetic": 3.0}, "epochs": 3})
    chosen = {
        (seed, epoch): [read_caption({"uid": f"u{k}", "captions": CAPTIONS}, config, seed, epoch) for k in range(60)] for seed in (0, 1) for epoch in (0, 1)
    }
    assert len({tuple(texts) for texts in chosen.values()}) == 4
    again = [read_caption({"uid": f"u{k}", "captions": CAPTIONS}, config, 1, 1) for k in reversed(range(60))]
    assert again[::-1] == chosen[1, 1]
    assert choose_caption({"uid": "u1", "captions": CAPTIONS}, {}, 0, 0) == read_caption({"uid": "u1", "captions": CAPTIONS}, Loader(), 0, 0)


def test_two_captions_are_the_raw_one_and_one_of_the_wanted_origins() -> None:
    config = Loader(second_caption=["synthetic", "rewritten"])
    seen = Counter(read_two({"uid": f"u{k}", "captions": CAPTIONS}, config, 0, 0) for k in range(600))
    assert set(seen) == {("the raw one", "a new one", "rewritten"), ("the raw one", "one that was seen", "synthetic")}
    assert abs(seen["the raw one", "a new one", "rewritten"] - 300) < 4 * 150**0.5
    assert read_two({"uid": "u", "captions": CAPTIONS[:1]}, config, 0, 0) == ("the raw one", "the raw one", "alt")


def test_a_caption_that_weighs_nothing_is_never_the_second_one() -> None:
    config = Loader(second_caption=["synthetic", "rewritten"], caption_weights={"rewritten": 0.0})
    assert {read_two({"uid": f"u{k}", "captions": CAPTIONS}, config, 0, 0)[2] for k in range(50)} == {"synthetic"}
    for captions in (CAPTIONS[:2], [CAPTIONS[0], CAPTIONS[1], CAPTIONS[1]]):  # only rewritten ones beside the raw one
        assert {read_two({"uid": f"u{k}", "captions": captions}, config, 0, 0) for k in range(50)} == {("the raw one", "the raw one", "alt")}
    later = Loader.read({"second_caption": ["rewritten"], "caption_weights": {"rewritten": 0.0}, "caption_schedule": {"weights": {"rewritten": 1.0}, "epochs": 2}})
    assert [read_two({"uid": "u", "captions": CAPTIONS}, later, 0, epoch)[2] for epoch in (0, 1)] == ["alt", "rewritten"]


@pytest.mark.parametrize(
    "setting", [{"caption_weights": {"synthetik": 1.0}}, {"caption_schedule": {"weights": {"synthetik": 1.0}}}, {"second_caption": ["synthetik"]}]
)
def test_an_origin_that_does_not_exist_is_named_with_the_nearest_one(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'synthetic'"):
        Loader.read(setting)


# ---------------------------------------------------------------- what the loader hands out


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("mixture"), n=60, config=Shard(held_out=0.3, samples_per_shard=9))[0]  # a raw and a rewritten caption each


def loader(shards: Path, steps: int, **settings: Any) -> TrainLoader:
    return TrainLoader(ShardSamples(shards), Loader.read({"batch_size": 8, **settings}), Transform(16), seed=0, steps=steps)


@pytest.mark.parametrize("workers", [0, 1])
def test_the_realised_mixture_is_counted_per_epoch_and_survives_a_resume(shards: Path, workers: int) -> None:
    settings = {"caption_weights": {"rewritten": 0.0}, "caption_schedule": {"weights": {"alt": 0.0}, "epochs": 2}, "workers": workers}
    whole = loader(shards, 12, **settings)
    list(whole)
    assert whole.steps_per_epoch == 4
    assert {epoch: sum(seen.values()) for epoch, seen in whole.mixtures.items()} == {0: 32, 1: 32, 2: 32}
    assert (dict(whole.mixtures[0]), dict(whole.mixtures[2])) == ({"alt": 32}, {"rewritten": 32})
    assert 0 < whole.mixtures[1]["rewritten"] < 32
    first = loader(shards, 12, **settings)
    for _ in zip(range(7), first, strict=False):
        pass
    second = loader(shards, 12, **settings)
    second.load_state_dict(first.state_dict())
    list(second)
    assert second.mixtures == whole.mixtures
    assert second.mixture == whole.mixture
    assert whole.mixture["captions"].total() == 96


def test_a_batch_brings_both_captions_of_each_sample_where_they_are_wanted(shards: Path) -> None:
    batches = list(loader(shards, 4, second_caption=["rewritten"]))
    for batch in batches:
        assert batch["captions"] == [f"{text}, said again" for text in batch["texts"]]
        assert batch["origins"] == ["rewritten"] * 8
    assert all("captions" not in batch for batch in loader(shards, 2))
