"""The reading order is a pure function of seed and epoch: each sample once, the same for any number of ranks, and exactly resumable."""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.small_world import make_shards, picture
from vlm_core.data.shards.augment import Transform
from vlm_core.data.config import Loader, Shard
from vlm_core.data.shards.loader import TrainLoader, decode
from vlm_core.data.shards.mixture import choose_caption
from vlm_core.data.shards.order import epoch_order
from vlm_core.data.shards.samples import ShardSamples
from vlm_core.data.shards.shards import read_samples
from vlm_core.errors import BadManifest, CheckpointError, ConfigError, Incompatible, NothingLeft

PIXELS = Transform(16)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("loader"), n=60, config=Shard(held_out=0.3, samples_per_shard=9))[0]  # 39 training samples


def loader(shards: Path, batch_size: int = 8, steps: int | None = None, seed: int = 0, rank: int = 0, world: int = 1, **more: object) -> TrainLoader:
    config = Loader.read({"batch_size": batch_size, **more})
    return TrainLoader(ShardSamples(shards), config, PIXELS, seed=seed, rank=rank, world=world, steps=steps)


def facts(batches: list) -> list:  # type: ignore[type-arg]
    """What a batch holds, as comparable values."""
    return [(b["uids"], b["texts"], b["rows"].tolist(), b["images"].numpy().tobytes()) for b in batches]


@pytest.mark.parametrize("window", [1, 2, 100])
def test_every_row_comes_once_in_each_epoch_and_each_epoch_differs(window: int) -> None:
    shard_of = np.repeat(np.arange(7), 5).astype(np.int32)
    orders = [epoch_order(shard_of, 3, epoch, window) for epoch in range(3)]
    for order in orders:
        assert sorted(order) == list(range(35))
    assert len({tuple(order) for order in orders}) == 3
    assert np.array_equal(orders[1], epoch_order(shard_of, 3, 1, window))
    assert not np.array_equal(orders[1], epoch_order(shard_of, 4, 1, window))
    for begin in range(0, 35, 5 * window):  # samples leave their run of shards never
        assert len(set(shard_of[orders[0][begin : begin + 5 * window]])) == min(window, 7 - begin // 5)


def test_an_epoch_reads_each_sample_at_most_once_and_leaves_out_less_than_a_batch(shards: Path) -> None:
    reader = loader(shards)
    train = {sample.uid for sample in read_samples(shards, "train")}
    for _ in range(2):
        seen = [uid for batch in reader for uid in batch["uids"]]
        assert len(seen) == len(set(seen)) == 32
        assert set(seen) < train
    assert (len(reader), reader.step, reader.epoch) == (4, 8, 2)


def test_a_batch_holds_the_right_picture_and_text_for_each_uid(shards: Path) -> None:
    stored = {sample.uid: sample for sample in read_samples(shards, "train")}
    samples = ShardSamples(shards)
    for batch in loader(shards):
        assert batch["images"].shape == (8, 3, 16, 16)
        assert batch["images"].dtype == torch.uint8
        for image, text, uid, origin, row in zip(batch["images"], batch["texts"], batch["uids"], batch["origins"], batch["rows"], strict=True):
            assert samples.uids[row] == uid
            assert (text, origin) in [(c["text"], c["origin"]) for c in stored[uid].record["captions"]]
            number = int(stored[uid].record["sha256"], 16)
            bright = image.flatten(1).float().quantile(0.75, dim=1) - torch.tensor([number * 7 % 256, number * 13 % 256, number * 29 % 256])
            assert bright.abs().max() <= 4, "the colour tells the number; JPEG moves it a little, and a quarter of the picture is darker"


def test_two_ranks_together_read_what_one_reads(shards: Path) -> None:
    whole = [set(batch["uids"]) for batch in loader(shards)]
    ranks = [[batch["uids"] for batch in loader(shards, rank=rank, world=2)] for rank in (0, 1)]
    assert [len(part) for part in ranks] == [4, 4]
    assert [set(a) | set(b) for a, b in zip(*ranks, strict=True)] == whole
    assert all(len(part) == 4 for rank in ranks for part in rank)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_run_sees_exactly_what_it_would_have_seen(shards: Path, stop: int) -> None:
    straight = facts(list(loader(shards, steps=9)))
    first = loader(shards, steps=9)
    begun = []
    for batch in first:
        begun.append(batch)
        if len(begun) == stop:
            break
    second = loader(shards, steps=9)
    second.load_state_dict(first.state_dict())
    assert facts(begun) + facts(list(second)) == straight
    assert len(straight) == len(second) == 9


def test_a_run_that_goes_on_with_more_ranks_still_reads_the_rest_once(shards: Path) -> None:
    straight = [set(batch["uids"]) for batch in loader(shards, steps=6)]
    first = loader(shards, steps=6)
    for _ in zip(range(3), first, strict=False):
        pass
    rest = []
    for rank in (0, 1):
        part = loader(shards, steps=6, rank=rank, world=2)
        part.load_state_dict({**first.state_dict(), "step": 3})
        rest.append([set(batch["uids"]) for batch in part])
    assert [a | b for a, b in zip(*rest, strict=True)] == straight[3:]


def test_reading_processes_and_the_cache_change_nothing_but_time(shards: Path) -> None:
    straight = facts(list(loader(shards, steps=7)))
    assert facts(list(loader(shards, steps=7, workers=2))) == straight
    cached = loader(shards, steps=7, cache_mb=1)
    assert facts(list(cached)) == straight
    assert sorted(cached._reader.cache) == sorted({row for _, _, rows, _ in straight for row in rows})
    assert sum(image.nbytes for image in cached._reader.cache.values()) == 10**6 - cached._reader.free


def test_a_checkpoint_counts_the_batches_handed_out_and_not_those_read_ahead(shards: Path) -> None:
    reader = loader(shards, steps=8, workers=1)
    batches = iter(reader)
    next(batches)
    assert reader.state_dict()["step"] == 1
    del batches


def test_reading_leaves_the_global_random_numbers_alone(shards: Path) -> None:
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    list(loader(shards))
    assert torch.equal(torch.rand(3), wanted)


# ---------------------------------------------------------------- captions

RECORD = {
    "uid": "u",
    "captions": [{"text": "the raw one", "origin": "alt"}, {"text": "a new one", "origin": "rewritten"}, {"text": "one more new", "origin": "rewritten"}],
}


def share(weights: dict[str, float], record: dict = RECORD, n: int = 3000) -> Counter[str]:  # type: ignore[type-arg]
    return Counter(choose_caption({**record, "uid": f"u{k}"}, weights, 0, 0)[0] for k in range(n))


def test_captions_are_drawn_uniformly_or_by_the_weight_of_their_origin() -> None:
    spread = 4 * (3000 * 2 / 9) ** 0.5
    assert all(abs(count - 1000) < spread for count in share({}).values())
    weighted = share({"alt": 2.0, "rewritten": 0.5})
    assert abs(weighted["the raw one"] - 2000) < spread
    assert abs(weighted["a new one"] - 500) < spread
    assert set(share({"rewritten": 0.0})) == {"the raw one"}
    assert set(share({"alt": 0.0})) == {"a new one", "one more new"}
    assert set(share({"alt": 0.0, "rewritten": 0.0})) == {"the raw one"}


def test_the_choice_depends_on_uid_epoch_and_seed_only() -> None:
    texts = {(seed, epoch): [choose_caption({**RECORD, "uid": f"u{k}"}, {}, seed, epoch)[0] for k in range(50)] for seed in (0, 1) for epoch in (0, 1)}
    assert len({tuple(chosen) for chosen in texts.values()}) == 4
    assert texts[0, 1] == [choose_caption({**RECORD, "uid": f"u{k}"}, {}, 0, 1)[0] for k in range(50)]


@pytest.mark.parametrize(
    ("text", "expected"), [("dog", "the raw one"), ("", "the raw one"), ("a dog", "a dog"), ("빨간 공", "빨간 공"), ("赤い丸いボール", "赤い丸いボール")]
)
def test_a_choice_of_fewer_than_two_words_gives_the_raw_caption(text: str, expected: str) -> None:
    record = {"uid": "u", "captions": [RECORD["captions"][0], {"text": text, "origin": "rewritten"}]}
    assert choose_caption(record, {"alt": 0.0}, 0, 0)[0] == expected


def test_the_realised_mixture_is_counted(shards: Path) -> None:
    reader = loader(shards, steps=20)
    origins = Counter(origin for batch in reader for origin in batch["origins"])
    assert reader.mixture == {"captions": origins}
    assert abs(origins["alt"] - 80) < 4 * 160**0.5 / 2


# ---------------------------------------------------------------- pictures


def test_decoders_agree_and_a_small_scale_is_never_smaller_than_asked() -> None:
    jpeg = picture(5, width=200, height=120)
    full = np.array(Image.open(io.BytesIO(jpeg)))
    assert np.abs(decode(jpeg).permute(1, 2, 0).numpy().astype(int) - full).max() <= 2
    small = decode(jpeg, min_side=50)
    assert (small.shape[1], small.shape[2]) == (60, 100)
    assert decode(jpeg, min_side=500).shape == (3, 120, 200)


@pytest.mark.parametrize("mode", ["CMYK", "L", "P"])
def test_unusual_pictures_are_read_through_pil(mode: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), (200, 40, 90), np.uint8)).convert(mode).save(stream, "PNG" if mode == "P" else "JPEG", quality=100)
    expected = np.array(Image.open(io.BytesIO(stream.getvalue())).convert("RGB")).astype(int)
    assert np.abs(decode(stream.getvalue()).permute(1, 2, 0).numpy() - expected).max() <= 3


# ---------------------------------------------------------------- bad input


def test_too_few_samples_for_the_ranks_is_said_before_anything_hangs(shards: Path) -> None:
    with pytest.raises(
        Incompatible,
        match=r"Found 39 training samples for batch_size 64 \(32 on each of 2 ranks\), expected at least one batch on every rank; lower batch_size",
    ):
        loader(shards, batch_size=64, world=2)
    with pytest.raises(Incompatible, match="Found batch_size 8 for 3 ranks, expected a multiple of 3"):
        loader(shards, world=3)
    with pytest.raises(ConfigError, match="Found the caption origin 'rewriten' in caption_weights.*did you mean 'rewritten'?"):
        loader(shards, caption_weights={"rewriten": 1.0})
    with pytest.raises(NothingLeft, match="Found no sample in the 'test' split"):
        ShardSamples(shards, "test")


def test_a_checkpoint_of_another_order_is_refused(shards: Path, tmp_path: Path) -> None:
    state = loader(shards, seed=1).state_dict()
    with pytest.raises(CheckpointError, match="Found a checkpoint whose loader had seed 1, expected 0 as now"):
        loader(shards).load_state_dict(state)
    with pytest.raises(CheckpointError, match="whose loader had shuffle_window 16, expected 2 as now; start afresh or restore that setting"):
        loader(shards, seed=1, shuffle_window=2).load_state_dict(state)
    other = make_shards(tmp_path, n=90)[0]
    with pytest.raises(CheckpointError, match="whose loader had data"):
        loader(other, seed=1).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_shard_is_named_also_by_a_reading_process(tmp_path: Path, workers: int) -> None:
    shards = make_shards(tmp_path, n=60)[0]
    for path in shards.glob("train-*.tar"):
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(BadManifest, match=r"Found .*train-0000\d.tar cut off at sample [0-9a-f]{32} .*make the shards again\.$"):
        list(loader(shards, workers=workers))
    for path in shards.glob("train-*.tar"):
        path.write_bytes(bytes(50_000))
    with pytest.raises(BadManifest, match="Found a record that cannot be read, sample"):
        list(loader(shards, workers=workers))
    for path in shards.glob("train-*.tar"):
        path.unlink()
    with pytest.raises(BadManifest, match="cannot be opened"):
        list(loader(shards, workers=workers))
