"""Debiased sampling (ZeroVL): every batch from one source, sources in proportion, the same order on every rank and after a resume."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.small_world import make_shards
from vlm_core.data.config import Loader, Mixed, Shard
from vlm_core.data.shards.augment import Transform
from vlm_core.data.shards.loader import TrainLoader
from vlm_core.data.shards.order import DebiasedOrder, by_source
from vlm_core.data.shards.samples import MixedSamples, ShardSamples, training_samples
from vlm_core.errors import CheckpointError, Incompatible


def order_of(sizes: list[int], batch: int, seed: int) -> tuple[DebiasedOrder, list[str]]:
    sources = [str(number) for number, size in enumerate(sizes) for _ in range(size)]
    sources = [sources[place] for place in np.random.default_rng(0).permutation(len(sources))]
    rows_of = by_source(sources, batch)
    shard_of = (np.arange(len(sources)) // 7).astype(np.int32)
    return DebiasedOrder(rows_of, [len(rows) // batch for rows in rows_of], shard_of, batch, seed, 3), sources


@given(st.lists(st.integers(16, 60), min_size=2, max_size=4), st.integers(2, 8), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_every_batch_is_of_one_source_and_an_epoch_holds_each_in_proportion_to_its_size(sizes: list[int], batch: int, seed: int) -> None:
    order, sources = order_of(sizes, batch, seed)
    assert order.steps_per_epoch == sum(size // batch for size in sizes)
    for epoch in range(2):
        steps, rows = Counter[str](), list[int]()
        for step in range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch):
            part, epochs = order.part(step)
            (source,) = {sources[row] for row in part}
            steps[source] += 1
            rows += part.tolist()
            assert set(epochs.tolist()) == {epoch}
        assert steps == {str(number): size // batch for number, size in enumerate(sizes)}
        assert len(set(rows)) == len(rows)  # no sample twice


def test_sources_take_turns_at_random_and_differently_in_every_epoch() -> None:
    order, _ = order_of([64, 64], 4, seed=3)
    first, second = ([order.source(step)[0] for step in range(begin, begin + 32)] for begin in (0, 32))
    assert first != second
    assert first != sorted(first)
    assert order.source(40) == order.source(40)


def test_sources_too_small_for_a_batch_are_one_source_together() -> None:
    rows_of = by_source(["a"] * 5 + ["b"] * 2 + ["c"] * 2 + ["d"] * 8, 4)
    assert [rows.tolist() for rows in rows_of] == [[0, 1, 2, 3, 4], list(range(9, 17)), [5, 6, 7, 8]]
    assert [rows.tolist() for rows in by_source(["a"] * 5 + ["b"] * 2, 4)] == [[0, 1, 2, 3, 4]]  # two are not a batch


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes of a mix's pictures are kept there."""
    monkeypatch.setenv("VLM_HOME", str(tmp_path / "home"))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("debiased")
    return make_shards(root / "one", 60)[0], make_shards(root / "two", 90, Shard(held_out=0.2, samples_per_shard=12, seed=4))[0]


def loader(
    two: tuple[Path, Path], rank: int = 0, world: int = 1, steps: int | None = None, weight: float = 3.0, debiased: str | None = "source"
) -> TrainLoader:
    config = Loader(batch_size=4, mix={"two": Mixed(shards=str(two[1]), weight=weight)}).but(f"debiased={debiased or 'null'}")
    return TrainLoader(training_samples(two[0], config), config, Transform(16), seed=1, rank=rank, world=world, steps=steps)


def test_every_batch_of_a_mixture_is_of_one_snapshot_in_proportion_to_the_weights(two: tuple[Path, Path]) -> None:
    plan = loader(two)
    samples = plan.samples
    assert isinstance(samples, MixedSamples)
    whose = []
    for step in range(1000):
        rows, _ = plan.part_of(step)
        (number,) = set(np.searchsorted(samples._first, rows, "right").tolist())
        whose.append(number)
    assert Counter(whose) == {1: 250, 2: 750}


def test_ranks_share_a_source_and_a_resumed_run_goes_on_exactly(two: tuple[Path, Path]) -> None:
    straight = [(batch["uids"], batch["images"].numpy().tobytes()) for batch in loader(two, steps=14)]
    first = loader(two, steps=14)
    for _ in zip(range(5), first, strict=False):
        pass
    rest = []
    for rank in (0, 1):
        part = loader(two, rank, 2, steps=14)
        part.load_state_dict({**first.state_dict(), "step": 5})
        rest.append([batch["uids"] for batch in part])
    assert [a + b for a, b in zip(*rest, strict=True)] == [uids for uids, _ in straight[5:]]
    with pytest.raises(CheckpointError, match="whose loader had debiased 'source', expected None"):
        loader(two, debiased=None).load_state_dict(first.state_dict())


def test_the_sources_of_one_snapshot_are_those_of_its_records(two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    samples, record = ShardSamples(two[0], "train"), ShardSamples.record
    kind = {uid: "photo" if number % 3 else "drawing" for number, uid in enumerate(samples.uids)}
    monkeypatch.setattr(ShardSamples, "record", lambda self, row: {**record(self, row), "source": kind[self.uids[row]]})
    config = Loader(batch_size=4, debiased="source")
    seen = Counter[str]()
    for batch in TrainLoader(samples, config, Transform(16), seed=1):
        (source,) = {kind[uid] for uid in batch["uids"]}
        seen[source] += 1
    assert seen == {name: count // 4 for name, count in Counter(kind.values()).items()}


def test_a_snapshot_smaller_than_a_batch_is_refused(two: tuple[Path, Path]) -> None:
    config = Loader(batch_size=64, debiased="source", mix={"two": Mixed(shards=str(two[1]))})
    with pytest.raises(Incompatible, match="for batches of 64 from one snapshot alone"):
        TrainLoader(training_samples(two[0], config), config, Transform(16), seed=1)
