"""In which order training reads: pure functions of (seed, step), the same for any number of ranks and reading processes.

order = Order(shard_of, batch_size, seed, window)          one snapshot: every sample once an epoch, less than a batch left out
order = MixedOrder([shard_of, ..], [weight, ..], ...)      several: each in its own epochs, drawn by weight
order = DebiasedOrder([rows, ..], [batches, ..], ...)      every batch from one source alone
order = LanguageOrder([language of each row], power, ...)  one snapshot, languages drawn by a power of their sizes
rows, epochs = order.part(step)                            the rows of a step over all ranks, and the pass of each row over its snapshot
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlm_core.errors import Incompatible

Rows = NDArray[np.int64]
BLOCK = 1000  # positions in which the weights of a mixture hold exactly


def epoch_order(shard_of: NDArray[np.int32], seed: int, epoch: int, window: int) -> Rows:
    """Every row once: shards in random order, samples mixed within each run of `window` shards."""
    random = np.random.default_rng([seed, epoch])
    place = random.permutation(int(shard_of.max()) + 1)
    return np.lexsort((random.random(len(shard_of)), place[shard_of] // window)).astype(np.int64)


class Order:
    """One snapshot, epoch after epoch. The last samples of an epoch that do not fill a step are left out, others in each epoch."""

    def __init__(self, shard_of: NDArray[np.int32], batch_size: int, seed: int, window: int) -> None:
        self.shard_of, self.batch_size, self.seed, self.window = shard_of, batch_size, seed, window
        self.steps_per_epoch = len(shard_of) // batch_size
        self._last = (-1, np.empty(0, np.int64))  # of the epoch last asked for

    def epoch(self, number: int) -> Rows:
        if self._last[0] != number:
            self._last = (number, epoch_order(self.shard_of, self.seed, number, self.window))
        return self._last[1]

    def part(self, step: int) -> tuple[Rows, Rows]:
        epoch, place = divmod(step, self.steps_per_epoch)
        rows = self.epoch(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return rows, np.full(len(rows), epoch)


class MixedOrder:
    """Several snapshots by weight. Rows are numbered through: those of the second follow those of the first.

    In each run of 1,000 samples the weights hold exactly; which of them is whose is drawn from the seed. Each snapshot is read in epochs of its own, so
    none of its samples comes twice before all came once. An epoch of the mixture is as many steps as all snapshots together would fill.
    """

    def __init__(self, shards_of: Sequence[NDArray[np.int32]], weights: Sequence[float], batch_size: int, seed: int, window: int) -> None:
        self.parts = [Order(shard_of, 1, seed, window) for shard_of in shards_of]
        self.first = np.cumsum([0, *(len(shard_of) for shard_of in shards_of)])
        self.share = shares(weights)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = int(self.first[-1]) // batch_size

    def part(self, step: int) -> tuple[Rows, Rows]:
        rows, epochs = np.empty(self.batch_size, np.int64), np.empty(self.batch_size, np.int64)
        at = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        for block in np.unique(at // BLOCK):
            whose = np.random.default_rng([self.seed, 1, int(block)]).permutation(np.repeat(np.arange(len(self.share)), self.share))
            for number, order in enumerate(self.parts):
                mine = whose == number
                count = block * self.share[number] + np.cumsum(mine) - 1  # how many of this snapshot came before
                places = np.flatnonzero((at // BLOCK == block) & mine[at % BLOCK])
                epochs[places], row = np.divmod(count[at[places] % BLOCK], len(order.shard_of))
                for epoch in np.unique(epochs[places]):
                    chosen = epochs[places] == epoch
                    rows[places[chosen]] = self.first[number] + order.epoch(int(epoch))[row[chosen]]
        return rows, epochs


class LanguageOrder:
    """Languages drawn in proportion to n^power of their n samples, so that small ones are seen more often than they occur (KELIP's 0.7; 1 leaves the shares as
    they are). In each thousand samples the shares hold exactly; each language is read in epochs of its own. Languages below a thousandth are one, and get two.

    Args:
        languages: of each row; '' where nobody knows.
        shard_of: of each row.
    """

    def __init__(self, languages: Sequence[str], power: float, shard_of: NDArray[np.int32], batch_size: int, seed: int, window: int) -> None:
        names, number, count = np.unique(np.asarray(languages), return_inverse=True, return_counts=True)
        self.languages: list[str] = [str(name) or "unknown" for name in names[number]]
        weights = count.astype(np.float64) ** power
        rare = weights * BLOCK < weights.sum()
        number = np.where(rare[number], len(names), number)
        kinds, number = np.unique(number, return_inverse=True)
        least = 2 * weights.sum() / BLOCK
        drawn = [float(weights[kind]) if kind < len(names) else max(float(weights[rare].sum()), least) for kind in kinds]
        self.rows = np.argsort(number, kind="stable")
        parts = [shard_of[number == place] for place in range(len(kinds))]
        self.mixed = MixedOrder(parts, drawn, batch_size, seed, window)
        self.steps_per_epoch = self.mixed.steps_per_epoch

    def part(self, step: int) -> tuple[Rows, Rows]:
        rows, epochs = self.mixed.part(step)
        return self.rows[rows], epochs


class DebiasedOrder:
    """Every batch comes from one source alone, so that a model cannot tell pairs apart by the style of their source (ZeroVL, arXiv 2112.09331, section 3.1).

    In each round of sum(counts) steps source g has counts[g] batches; which steps are whose is drawn from the seed, the same on every rank (the official code
    draws on each rank by its clock). Each source is read in epochs of its own.

    Args:
        rows_of: the rows of each source.
        counts: batches of each source in a round.
        shard_of: of all rows.
        steps_per_epoch: None: a round is an epoch.
    """

    def __init__(
        self, rows_of: Sequence[Rows], counts: Sequence[int], shard_of: NDArray[np.int32], batch_size: int, seed: int, window: int, steps_per_epoch: int | None = None
    ) -> None:
        self.rows_of, self.counts, self.seed = rows_of, np.asarray(counts), seed
        self.parts = [Order(shard_of[rows], batch_size, seed, window) for rows in rows_of]
        self.steps_per_epoch = int(self.counts.sum()) if steps_per_epoch is None else steps_per_epoch

    def source(self, step: int) -> tuple[int, int]:
        """(whose batch a step has, how many of that source came before)."""
        block, place = divmod(step, int(self.counts.sum()))
        whose = np.random.default_rng([self.seed, 2, block]).permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        return int(whose[place]), int(block * self.counts[whose[place]] + (whose[:place] == whose[place]).sum())

    def part(self, step: int) -> tuple[Rows, Rows]:
        number, before = self.source(step)
        rows, epochs = self.parts[number].part(before)
        return self.rows_of[number][rows], epochs


def by_source(sources: Sequence[str], batch_size: int) -> list[Rows]:
    """Rows of each source that fills a batch, in the order of their names; those of all others together, if they do."""
    names, number, count = np.unique(np.asarray(sources), return_inverse=True, return_counts=True)
    large = [place for place in range(len(names)) if count[place] >= batch_size]
    rest = np.flatnonzero(count[number] < batch_size)
    return [np.flatnonzero(number == place) for place in large] + ([rest] if len(rest) >= batch_size else [])


def shares(weights: Sequence[float]) -> NDArray[np.int64]:
    """Of 1,000 samples how many are whose, by largest remainders. Raises Incompatible for a weight too small to give one."""
    wanted = np.asarray(weights, np.float64) * BLOCK / float(np.sum(weights))
    share = np.floor(wanted).astype(np.int64)
    share[np.argsort(share - wanted, kind="stable")[: BLOCK - int(share.sum())]] += 1
    if not share.all():
        raise Incompatible(f"Found the weights {list(weights)} of mixed snapshots, expected each to be a thousandth of the whole at least; raise the smallest.")
    return share
